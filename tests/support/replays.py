"""Simulated runs and replays for `test_replay`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from asyn2f import trace
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import initial_server_state
from tests.support.executions import Seen, experiment_of
from tests.support.experiments import config_with
from tests.support.handmade_trace import hand_made
from tests.support.programs import FAST, Outcome, read, run

SMALL = [
    "--config=configs/digits.py",
    "--config.workers=6",
    "--config.stop.max_versions=12",
    "--config.timing.epochs_per_push=1",
    "--config.sim.executor=serial",
]
EARLY = [
    "--config.stop.max_versions=60",
    "--config.stop.target=0.7",
    "--config.timing.min_updates=1",
    "--config.worker_speeds=(100.0,)",
]


def simulate(folder: Path, *flags: str) -> Outcome:
    return run("simulate", *SMALL, *flags, f"--workdir={folder}")


def replay(folder: Path, *flags: str) -> Outcome:
    return run("replay", f"--run={folder}", *flags)


def changed_line(kind: str, change, number: int = 0):
    """Changes the trace: the line of one event, to another or to none."""

    def tamper(run_folder: Path) -> None:
        path = run_folder / "trace" / "simulation.jsonl"
        lines = path.read_text().splitlines()
        places = [i for i, x in enumerate(lines) if json.loads(x)["kind"] == kind]
        place = places[number]
        lines[place : place + 1] = change(lines[place])
        path.write_text("\n".join(lines) + "\n")

    return tamper


def with_fields(**more):
    def change(line: str) -> list[str]:
        fields = json.loads(line)
        return [json.dumps(fields | {k: f(fields[k]) for k, f in more.items()})]

    return change


def another_checkpoint(run_folder: Path) -> None:
    """Version 3 with one parameter a little different."""
    like = jax.eval_shape(lambda: initial_server_state(_digits()))
    store = OrbaxStore(run_folder / "models")
    state, record = store.load(3, like)
    shutil.rmtree(run_folder / "models" / "3")
    params = state.model.params
    leaves, treedef = jax.tree.flatten(params)
    leaves[-1] = leaves[-1] + 1e-3
    model = state.model._replace(params=treedef.unflatten(leaves))
    store.save(3, state._replace(model=model), record)
    store.close()


def _digits():
    return experiment_of(
        workers=6, task__hidden=(64,), task__partition="iid", training__batch_size=32
    )


def another_digest(run_folder: Path) -> None:
    path = run_folder / "summary.json"
    path.write_text(json.dumps(read(path) | {"params_sha256": "0" * 64}))


TAMPERED = {
    "a merge left out": changed_line("Merged", lambda line: []),
    "a step more": changed_line("Trained", with_fields(steps=lambda n: n + 1)),
    "an update left out": changed_line("Pushed", lambda line: []),
    "other updates": changed_line("Aggregated", with_fields(updates=lambda u: u[::-1])),
    "a torn line": changed_line("Trained", lambda line: [line[:40]]),
    "another checkpoint": another_checkpoint,
    "another digest": another_digest,
    "an unknown key": lambda path: _change_config(path, {"colour": 1}),
    "no config": lambda path: (path / "config.json").unlink(),
    "a torn config": lambda path: (path / "config.json").write_text('{"seed'),
    "no trace": lambda path: shutil.rmtree(path / "trace"),
}
# Without a config in the folder, the flag names one.
GIVEN_CONFIG = {"no config": ["--config=configs/digits.py"]}
WHAT_IF = {
    "max_share": ["--config.strategy.asyn2f.max_share=1.0"],
    "fedavg": ["--config.strategy.name=fedavg"],
    "timing": ["--config.timing.min_updates=1"],
    "workers": ["--config.workers=5"],
}
BAD_INPUT = {
    "key": (["--config.traning.momentum=0.5"], ["did you mean training.momentum"]),
    "column": (["--config.sim.profiles={}/colour.csv"], ["row 1", "'colour'"]),
    "file": (["--config.sim.profiles={}/none.csv"], ["cannot read", "none.csv"]),
    "endless": (
        ["--config.stop.max_versions=0", "--config.stop.target=0.9"],
        ["config.stop", "max_versions"],
    ),
}


def _change_config(run_folder: Path, more: dict) -> None:
    path = run_folder / "config.json"
    path.write_text(json.dumps(read(path) | more))


PROFILES = {
    "colour.csv": "step_s,colour\n0.01,red\n",
    "good.csv": "step_s,outages\n0.01,0.05-0.3\n0.02,\n",
    "good.jsonl": '{"step_s": 0.01, "outages": [[0.05, 0.3]]}\n{"step_s": 0.02}\n',
}


def jobs(folder: Path, simulated: Path) -> dict[str, Callable[[], Outcome]]:
    """All that is started, by name, on copies of a simulated run where it matters."""
    for name, text in PROFILES.items():
        (folder / name).write_text(text)
    write_forked(folder / "forked")
    real = f"--workdir={folder / 'real'}"
    found: dict[str, Callable[[], Outcome]] = {
        "real": lambda: run("local", *FAST, "--config.stop.max_versions=15", real),
        "explained": lambda: replay(simulated, "--explain=3"),
        "explained 99": lambda: replay(simulated, "--explain=99"),
        "replayed": lambda: replay(simulated),
        "forked": lambda: replay(folder / "forked"),
        "nowhere": lambda: replay(folder / "nowhere"),
    }
    simulations = {
        "again": [],
        "before_save": EARLY,
        "metric": [
            "--config.timing.push_at_metric=0.6",
            "--config.timing.push_after_epochs=4",
        ],
        "csv": [f"--config.sim.profiles={folder}/good.csv"],
        "jsonl": [f"--config.sim.profiles={folder}/good.jsonl"],
        "diverged": ["--config.training.learning_rate=300"],
    }
    found["longer"] = lambda: made_longer(folder / "longer")
    for name, (flags, _) in BAD_INPUT.items():
        simulations[f"bad {name}"] = [flag.format(folder) for flag in flags]
    for name, flags in simulations.items():
        found[name] = lambda name=name, flags=flags: simulate(folder / name, *flags)
    for name, flags in WHAT_IF.items():
        found[name] = lambda flags=flags: replay(simulated, *flags)
    for name, tamper in TAMPERED.items():
        copy = shutil.copytree(simulated, folder / name)
        tamper(copy)
        given = GIVEN_CONFIG.get(name, [])
        found[name] = lambda copy=copy, given=given: replay(copy, *given)
    return found


def made_longer(folder: Path) -> list[Outcome]:
    """A simulation of 4 versions continued to 12; then resumes that change nothing."""
    limit = "--config.stop.max_versions="
    resumed = [[], [f"{limit}6"], ["--config.sim.step_spread=2"], [f"{limit}4"]]
    return [
        simulate(folder, f"{limit}4"),
        *(simulate(folder, "--resume", *flags) for flags in resumed),
    ]


def write_forked(run_folder: Path) -> None:
    """A run that ended with version 2, made by the second incarnation: the first one's
    was lost, after a worker had merged it."""
    (run_folder / "trace").mkdir(parents=True)
    events = [event for event in hand_made() if event.time_s < 5.45]
    lines = "".join(trace.to_line(event) + "\n" for event in events)
    (run_folder / "trace" / "all.jsonl").write_text(lines)
    config = config_with(workers=2, task__hidden=(8,))
    (run_folder / "config.json").write_text(json.dumps(config))
    experiment = experiment_of(
        workers=2, task__partition="iid", training__batch_size=32
    )
    seen = Seen()
    execute_serially(experiment, order_of(events), range(1, 4), seen)
    store = OrbaxStore(run_folder / "models")
    for node in (1, 3):
        state = seen.states[node - 1]
        store.save(int(state.model.version), state, {"incarnation": 1})
    store.close()
    summary = {"params_sha256": seen.sha256s[-1]}
    (run_folder / "summary.json").write_text(json.dumps(summary))
