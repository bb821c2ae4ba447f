"""Three workers with a file each, a server and an evaluator with none of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asyn2f
from asyn2f import trace
from asyn2f.config.default import load_config
from tests.support.programs import ROOT, finish, read, run, wait_for_line
from tests.unit.test_references import import_state as import_state

pytestmark = pytest.mark.processes
EXAMPLE = ROOT / "examples" / "private_silos"
VERSIONS = 12

# Records each file that a process opens, and refuses those of silos that are not its.
HOOK = """
import os, sys

log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        os.write(log, path.encode() + b"\\n")
        if "/silo-" in path and not path.startswith(os.environ["OWN"]):
            raise PermissionError(path)

sys.addaudithook(hook)
"""


class Federation:
    """The processes of a run, each with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        subprocess.run(
            [sys.executable, EXAMPLE / "make_silos.py", folder / "silos"], check=True
        )
        for silo in range(3):  # as on machines of their own
            (folder / f"silo-{silo}").mkdir()
            shutil.move(folder / "silos" / f"{silo}.npz", self.rows(silo))

    def rows(self, silo: int) -> Path:
        return self.folder / f"silo-{silo}" / "rows.npz"

    def start(
        self, program: str, name: str, *flags: str, own: Path | None = None
    ) -> subprocess.Popen:
        path = os.pathsep.join(map(str, (self.folder / "hook", ROOT / "src", ROOT)))
        env = {"OPENED": str(self.folder / f"{name}.opened"), "OWN": str(own)}
        config = (
            f"--config.task.factory={EXAMPLE}/private_silos.py:make_task",
            "--config=default",
            "--config.workers=3",
            "--config.strategy.name=fedavg",
            f"--config.stop.max_versions={VERSIONS}",
        )
        return subprocess.Popen(
            [
                *(sys.executable, "-m", f"launch.{program}", *config),
                *(f"--workdir={self.folder / name}", "--insecure", *flags),
            ],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def opened(self, name: str) -> set[Path]:
        """The files of silos that a process has opened."""
        lines = (self.folder / f"{name}.opened").read_text().splitlines()
        assert any(line.endswith(".py") or "trace" in line for line in lines)
        return {Path(line) for line in lines if "/silo-" in line}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """A run that has finished, with the traces of all in the server's folder."""
    made = Federation(tmp_path_factory.mktemp("private"))
    server = made.start("server", "server")
    address = wait_for_line(server, "listening at").split("listening at ")[1]
    address = f"--server={address.split(',')[0].split(' ')[0]}"
    peers = [made.start("evaluator", "evaluator", address)]
    for silo in range(3):
        rows = made.rows(silo)
        own = f"--worker={silo}", f"--data={rows}"
        name = f"worker-{silo}"
        peers.append(made.start("worker", name, address, *own, own=rows.parent))
    outcomes = [finish(process) for process in (server, *peers)]
    assert [code for code, _, _ in outcomes] == [0] * 5, outcomes
    for name in ("evaluator", *(f"worker-{silo}" for silo in range(3))):
        source = made.folder / name / "trace" / f"{name}.jsonl"
        shutil.copy(source, made.folder / "server" / "trace")
    return made


def test_each_process_opens_its_own_rows_and_no_others(federation):
    assert not federation.opened("server") | federation.opened("evaluator")
    for silo in range(3):
        assert federation.opened(f"worker-{silo}") == {federation.rows(silo)}


def test_the_server_knows_sizes_and_digests_alone(federation):
    folder = federation.folder / "server"
    joined = [e for e in trace.of_run(folder) if isinstance(e, trace.WorkerJoined)]
    assert {e.worker: e.num_examples for e in joined} == {0: 300, 1: 400, 2: 737}
    split = read(folder / "split.json")
    assert (split["sizes"], split["counts"]) == (None, None)
    assert "rows.npz" not in (folder / "config.json").read_text()
    assert not asyn2f.verify(folder).violations
    assert "737" in (folder / "report.html").read_text()


def test_it_learns_as_from_the_same_split_shared(federation):
    folder = federation.folder / "server"
    data = {silo: federation.rows(silo) for silo in range(3)}
    shared = asyn2f.simulate(load_config(folder), data=data)
    best = max(scores["accuracy"] for scores in shared.scores.values())
    assert abs(read(folder / "summary.json")["best_value"] - best) <= 0.01


def test_it_is_replayed_bit_for_bit_with_the_data_of_all(federation):
    replay = [sys.executable, "-m", "launch.replay"]
    replay += [f"--run={federation.folder / 'server'}"]
    pattern = f"--data={federation.folder}/silo-{{worker}}/rows.npz"
    done = subprocess.run([*replay, pattern], cwd=ROOT, capture_output=True, text=True)
    assert "the parameters agree, bit for bit" in done.stdout, done.stderr
    missing = subprocess.run(replay, cwd=ROOT, capture_output=True, text=True)
    assert missing.returncode == 2
    assert "the data of worker 0, 1, 2 are missing" in missing.stderr


def test_a_worker_without_its_data_does_not_start(federation):
    worker = federation.start("worker", "none", "--worker=0", "--server=tcp://[::1]:9")
    code, out, err = finish(worker)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "worker 0 opens its own data: give --data=PATH" in err


# ---------------------------------------------------------------- federated evaluation

APART = """
from pathlib import Path
import flax.linen as nn
import numpy as np
import asyn2f

COLUMNS = {"x": np.zeros((0, 64), np.float32), "y": np.zeros(0, np.int32)}

def make_task(*, worker: int | None = None, data: Path | None = None):
    return asyn2f.supervised(nn.Dense(10), COLUMNS if data is None else data, test=0.2)
"""


@pytest.fixture(scope="module")
def evaluated(federation):
    """A run in which no process but the workers has a row of data."""
    folder = federation.folder
    (folder / "apart.py").write_text(APART)
    data = f"--data={folder}/silo-{{worker}}/rows.npz"
    code, out, err = run(
        "local",
        *(f"--workdir={folder / 'apart'}", data, "--config=default"),
        f"--config.task.factory={folder / 'apart.py'}:make_task",
        *("--config.workers=3", "--config.stop.target=0.9"),
        "--config.worker_speeds=(60.0,)",
        *("--config.stop.max_versions=60", "--config.runtime.idle_priority=False"),
    )
    assert code == 0, out + err
    return folder / "apart", data


def test_workers_score_versions_until_the_target_is_reached(evaluated):
    folder, _ = evaluated
    summary = read(folder / "summary.json")
    assert re.match(r"accuracy 0\.9\d* reached at \d+", summary["reason"])
    assert summary["best_value"] >= 0.9
    events = trace.of_run(folder)
    assert not [e for e in events if getattr(e, "actor", "") == "evaluator"]
    for event in (e for e in events if isinstance(e, trace.Evaluated)):
        parts = {
            e.worker: e
            for e in events
            if isinstance(e, trace.WorkerScored) and e.version == event.version
        }
        assert set(event.workers) <= parts.keys()
        scores = [parts[worker].scores["accuracy"] for worker in event.workers]
        assert event.scores["accuracy_worst"] == min(scores)
        assert min(scores) <= event.scores["accuracy"] <= max(scores)
    assert not asyn2f.verify(folder).violations


def test_scores_of_workers_replay_bit_for_bit(evaluated):
    folder, data = evaluated
    code, out, err = run("replay", f"--run={folder}", data)
    assert (code, err) == (0, "")
    assert "the parameters agree, bit for bit" in out
    assert "DIFFER" not in out
    path = folder / "trace" / "worker-1.jsonl"
    lines = path.read_text()
    version = max(e.version for e in trace.of_run(folder) if hasattr(e, "version"))
    changed = re.sub(
        rf'("WorkerScored".*"version": {version}, .*"accuracy": )[\d.]+',
        r"\g<1>0.5",
        lines,
    )
    assert changed != lines
    path.write_text(changed)
    code, out, _ = run("replay", f"--run={folder}", data)
    path.write_text(lines)
    assert code == 1
    assert f"worker 1: version {version} has accuracy 0.5, replayed" in out


def test_an_evaluator_is_told_that_it_has_nothing_to_evaluate(evaluated):
    folder, _ = evaluated
    config = f"--config=of_run:{folder}"
    code, out, err = run("evaluator", config, f"--workdir={folder}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "found no test set that an evaluator could use" in err
