"""A package of a user's own through the programs, as real processes."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

import asyn2f
from asyn2f.cli.trials import run_trial
from asyn2f.config.default import load_config
from tests.support.programs import read
from tests.support.programs import run as run_program
from tests.support.user_code import write_package
from tests.unit.test_references import import_state as import_state

pytestmark = pytest.mark.processes
AGREEMENT = "mypackage.mine:agreement"


def program(folder, name: str, *arguments: str) -> tuple[int, str, str]:
    """Runs a program of the package in a folder that is not the checkout."""
    code, out, err = run_program(name, *arguments, folder=folder)
    assert "Traceback" not in out + err, err
    return code, out, err


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """One clear line, and exit code 2."""
    code, out, err = outcome
    assert (code, out, err.count("\n")) == (2, "", 1), out + err
    for word in ("error: ", *words):
        assert word in err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three workers, started beside neither the code nor the checkout."""
    folder = tmp_path_factory.mktemp("own")
    config = write_package(folder / "code")
    (folder / "elsewhere").mkdir()
    flags = ["--config.runtime.idle_priority=False", "--config.task.args.noise=0.1"]
    code, out, err = program(
        folder / "elsewhere",
        "local",
        f"--config={config}",
        f"--workdir={folder / 'run'}",
        *flags,
    )
    assert code == 0, out + err
    return folder


def test_it_runs_and_is_scored_by_its_own_metric(run):
    summary = read(run / "run" / "summary.json")
    assert (summary["status"], summary["strategy"]) == ("finished", AGREEMENT)
    assert summary["versions"] == 6
    assert "error" in str(summary)
    config = read(run / "run" / "config.json")
    assert config["code_path"] == str(run / "code")
    assert config["task"]["args"]["noise"] == 0.1
    assert (run / "run" / "report.html").exists()
    assert {x.invariant for x in asyn2f.verify(run / "run").violations} == set()


def test_it_is_replayed_and_resumed_only_with_its_code(run, tmp_path):
    """From another folder; after the code has moved; and after it was edited."""
    moved, edited = tmp_path / "moved", tmp_path / "edited"
    for folder in (moved, edited):
        shutil.copytree(run / "code", folder)
    with open(edited / "mypackage" / "inner.py", "a") as file:
        file.write("# edited\n")
    folder = f"--run={run / 'run'}"
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            "as it was": ("replay", folder),
            "moved": ("replay", folder, f"--config.code_path={moved}"),
            "edited": ("replay", folder, f"--config.code_path={edited}"),
            "nowhere": ("replay", folder, f"--config.code_path={tmp_path}"),
            "resumed": (
                "local",
                "--resume",
                f"--workdir={run / 'run'}",
                f"--config.code_path={edited}",
                "--config.stop.max_versions=8",
            ),
            "other": ("replay", folder, "--config.strategy.args.rate=1.0"),
        }
        found = {n: pool.submit(program, tmp_path, *job) for n, job in jobs.items()}
    outcomes = {name: job.result() for name, job in found.items()}
    line = "the sources of mypackage.mine differ from those that the run in"
    for name in ("as it was", "moved", "edited"):
        code, out, err = outcomes[name]
        assert code == 0, out + err
        assert "the parameters agree, bit for bit" in out
        assert (line in out) == (name == "edited")
    refused(outcomes["nowhere"], "no module mypackage.mine in", "config.code_path")
    refused(outcomes["resumed"], line, "restore them, or start another run")
    code, out, _ = outcomes["other"]
    assert code == 0
    assert "config.strategy.args.rate: 0.5 in the run, 1.0 now" in out


def test_it_is_compared_with_grids_of_its_own(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = program(
        tmp_path,
        "compare",
        f"--config={run / 'code' / 'experiment.py'}",
        f"--strategies={AGREEMENT},fedavg",
        *("--trials=3", "--seeds=2", "--choice_seeds=1", "--jobs=2"),
        "--grids=mypackage.mine:GRIDS",
        "--config.stop.max_time_s=2",
        f"--workdir={tmp_path / 'compared'}",
    )
    assert out[0] == 0, out[1] + out[2]
    table = (tmp_path / "compared" / "table.md").read_text()
    assert AGREEMENT in table
    assert "fedavg" in table
    lines = (tmp_path / "compared" / "results.jsonl").read_text().splitlines()
    assert sum("strategy.args.rate" in line for line in lines) >= 2


def test_its_contract_is_checked_and_its_errors_are_one_line(run, tmp_path):
    path = f"--config.code_path={run / 'code'}"
    factory = "--config.task.factory=mypackage.mine:make_task"
    jobs = {
        "contract": ("check_strategy", AGREEMENT, path),
        "power": ("check_strategy", AGREEMENT, path, "--config.strategy.args.power=-1"),
        "quality": ("quality", factory, path),
        "help": ("worker", "--helpfull", f"--config={run / 'code' / 'experiment.py'}"),
        "nothing": (
            "simulate",
            "--config.task.factory=mypackage.mine:make_nothing",
            path,
            f"--workdir={tmp_path / 'x'}",
        ),
    }
    with ThreadPoolExecutor(2) as pool:
        found = {n: pool.submit(program, tmp_path, *job) for n, job in jobs.items()}
    outcomes = {name: job.result() for name, job in found.items()}
    code, out, _ = outcomes["contract"]
    assert code == 0
    assert out.count("holds") > 15
    assert out.endswith(f"{AGREEMENT} keeps the contract\n")
    refused(outcomes["power"], "config.strategy.args.power: found -1.0")
    code, out, err = outcomes["quality"]
    assert (code, "found no labels" in err, out) == (2, True, ""), out + err
    assert "--config.task.args.noise=0.0" in outcomes["help"][1]
    code, out, err = outcomes["nothing"]
    assert code == 2
    assert "mypackage.mine:make_nothing: found None, allowed: a Task" in err
    assert not (tmp_path / "x").exists()


BROKEN = """
import jax
import mypackage.mine as mine


def fail(x):
    raise ValueError("the sensor is gone")


def loss(params, carry, batch, key):
    value, aux = mine.loss(params, carry, batch, key)
    shape = jax.ShapeDtypeStruct((), value.dtype)
    noise = jax.pure_callback(fail, shape, jax.lax.stop_gradient(value))
    return value + jax.lax.stop_gradient(noise), aux


def make_task(*, workers: int, seed: int):
    return mine.make_task(workers=workers, seed=seed)._replace(loss=loss)
"""


def test_an_error_inside_of_jit_names_stage_worker_and_version(run, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    code = os.pathsep.join([str(tmp_path), str(run / "code")])
    flags = ["--config.task.factory=broken:make_task", f"--config.code_path={code}"]
    flags += ["--config.workers=1", "--config.timing.min_updates=1"]
    flags += ["--config.sim.executor=serial"]
    with ThreadPoolExecutor(2) as pool:
        found = [
            pool.submit(program, tmp_path, name, *flags, f"--workdir={tmp_path / name}")
            for name in ("local", "simulate")
        ]
    places = (130, "version 0, worker 0)"), (1, "worker 0, event")
    for job, (ends_with, where) in zip(found, places, strict=True):
        code, out, err = job.result()
        assert code == ends_with, out + err
        assert "train failed (strategy asyn2f, version 0, worker 0" in out + err
        assert where in out + err
        assert "the sensor is gone" in out + err


def test_trials_in_one_process_share_a_task(run, monkeypatch):
    from asyn2f.cli import trials

    made = []
    unsplit = trials.build.unsplit_task
    monkeypatch.setattr(
        trials.build, "unsplit_task", lambda *a: made.append(unsplit(*a)) or made[-1]
    )
    config = asyn2f.config.schema.plain(load_config(run / "run"))
    config = asyn2f.config.schema.changed(config, {"stop.max_time_s": 1.0})
    for seed in (0, 1):
        job = trials.Job(config | {"seed": seed}, {}, "result", None, "")
        assert run_trial(job).strategy == AGREEMENT
    assert len(made) == 2  # this factory takes the seed
