"""A whole run under a virtual clock: any number of workers, in one process.

    python -m launch.simulate --config=configs/digits.py --workdir=runs/simulated \\
        --config.workers=100 --config.sim.step_s=0.01, --config.sim.step_spread=4

Leaves in its folder what a run of processes leaves; all times are virtual seconds.
"""

import json
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyn2f import errors, rundir, trace
from asyn2f.api import (
    Moved,
    bytes_by,
    cycles_of,
    epochs_of,
    order_of_config,
    watched_of,
)
from asyn2f.cli import app, inputs, machine
from asyn2f.cli.claim import claimed
from asyn2f.cli.serving import print_summary
from asyn2f.cli.watcher import Keeper, Watcher
from asyn2f.config import build, schema
from asyn2f.report.metrics import MetricsWriter
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.execute import Execution, execution_of
from asyn2f.sim.order import (
    Order,
    Result,
    ended_by_divergence,
)
from asyn2f.sim.to_trace import events_of
from asyn2f.timing import deadline_warning
from asyn2f.training.batches import (
    Score,
)
from asyn2f.training.experiment import Experiment
from asyn2f.types import ServerState

app.takes("config", "workdir", "keep_every_s", "resume", "overwrite")


def simulate(
    config: build.Config, experiment: Experiment, order: Order, folder: Path
) -> dict[str, Any]:
    """Executes a run that has been scheduled, in a folder that has been claimed.

    Returns:
      The summary, which has been written into the folder as well.
    """
    settings = config["sim"]
    watched = watched_of(order, settings["evaluate_every"])
    execution = execution_of(
        experiment,
        order,
        settings["executor"],
        settings["lanes"],
        watched,
        machine.TRIALS,
    )
    print(f"executor: {execution.why}", flush=True)
    watcher = Watcher(experiment, folder, order.start_s)
    app.stop_on_signals(watcher.stop)
    executing_s = time.monotonic()
    keeper = Keeper(folder, config, execution, watcher)
    result = execution.run(watcher, keeper.found(), keeper)
    jax.block_until_ready(result.state)
    wall_s = time.monotonic() - executing_s
    diverged = ended_by_divergence(order, result.numbers)
    if diverged is not None:
        order, watcher.status = diverged, "failed"
    elif watcher.reason is not None:
        order = o.cut(order, result.num_events, watcher.reason)
    last = None if diverged else result.state
    watcher.finish(last)
    made_s = order.time_s[order.kind == o.AGGREGATE]
    times_s = np.concatenate([[order.start_s], made_s, [order.end_s]])
    moved = bytes_by(config, experiment, order, times_s)
    summary = _summary(config, execution, order, last, watcher, folder)
    summary |= {name: int(values[-1]) for name, values in _named(moved).items()}
    summary["execution_s"] = wall_s
    rate = order.num_steps / wall_s if wall_s else 0.0
    print(f"executed {order.num_steps:,} local steps in {wall_s:.1f} s: {rate:,.0f}/s")
    _write(execution, order, result, watcher.scores, moved, folder)
    rundir.write_json(folder / rundir.SUMMARY, summary)
    if watcher.status == "finished":
        (folder / rundir.PROGRESS).unlink(missing_ok=True)
    return summary


def _summary(
    config: build.Config,
    execution: Execution,
    order: Order,
    last: ServerState | None,
    watcher: Watcher,
    folder: Path,
) -> dict[str, Any]:
    """`last`: the state of the last version; None where training has diverged."""
    accuracy, version = watcher.best if watcher.scores else (None, None)
    versions = len(order.version) - 1
    final = watcher.scores.get(versions) if last is not None else None
    kinds = {
        name: int(np.isin(order.kind, kinds).sum()) for name, kinds in _FATES.items()
    }
    return {
        "status": watcher.status,
        "reason": order.reason,
        "run": rundir.read_json(folder / rundir.RUN)["run"],
        "strategy": config["strategy"]["name"],
        "seed": config["seed"],
        "versions": versions,
        "best_version": version,
        "best_accuracy": accuracy,
        "final_accuracy": final.accuracy if final else None,
        "final_f1": final.f1 if final else None,
        "wall_s": order.end_s - order.start_s,  # virtual
        "updates": {"committed": len(order.members), **kinds},
        "incomplete_versions": int((order.lacking > 0).sum()),
        "params_sha256": params_sha256(last.model.params) if last else None,
        "executor": execution.why,
        "local_steps": order.num_steps,
    }


def _named(moved: Moved) -> dict[str, np.ndarray]:
    """As in summary and metrics."""
    return {
        "bytes_up": moved.up,
        "bytes_down": moved.down,
        "broadcast_bytes_down": moved.broadcast_down,
    }


_FATES = {"superseded": [o.SUPERSEDE], "rejected": [o.REJECT, o.REFUSE]}


def _write(
    execution: Execution,
    order: Order,
    result: Result,
    scores: dict[int, Score],
    moved: Moved,
    folder: Path,
) -> None:
    """The trace and the metrics; `moved`: by the time of each version, and the end."""
    experiment, environment = execution.experiment, machine.environment()
    environment |= execution.means._asdict()
    task, num_bytes = experiment.task, experiment.publication.template.num_bytes
    events = events_of(
        order,
        result.numbers,
        scores,
        run=rundir.read_json(folder / rundir.RUN)["run"],
        environment=environment,
        num_examples=[len(rows) for rows in task.shards],
        qualities=task.qualities,
        steps_per_epoch=epochs_of(experiment),
        num_bytes=num_bytes,
        guards=experiment.guards,
    )
    metrics = MetricsWriter(folder)
    traces = folder / rundir.TRACE
    traces.mkdir(exist_ok=True)
    row: dict[str, Any] = {}
    (traces / "simulation.jsonl").unlink(missing_ok=True)  # it may be a link
    with open(traces / "simulation.jsonl", "x", encoding="utf-8") as file:
        for event in events:
            file.write(trace.to_line(event) + "\n")
            match event:
                case trace.Aggregated():
                    behind = event.staleness
                    row = {
                        "updates": len(event.updates),
                        "lacking": event.lacking,
                        "staleness_mean": sum(behind) / len(behind),
                        "staleness_max": max(behind),
                        "loss": float(result.numbers.model_loss[event.version]),
                        "learning_rate": event.learning_rate,
                    }
                case trace.Published():
                    now = {
                        "version": event.version,
                        "time_s": event.time_s - order.start_s,
                        **{n: int(x[event.version]) for n, x in _named(moved).items()},
                    }
                    if event.version:
                        workers = {"workers": event.receivers}
                        metrics.write({"kind": "version", **now, **workers, **row})
                case trace.Evaluated():
                    score = scores[event.version]._asdict()
                    metrics.write({"kind": "score", **now, **score})
    metrics.close()


def main() -> int:
    folder = Path(app.required(app.WORKDIR))
    config = app.plain(app.CONFIG.value)
    if config["sim"]["executor"] in ("auto", "sharded"):
        machine.use_cores_as_devices()
    machine.prepare_jax()
    # Before anything is overwritten: a run is not lost for a setting that is wrong.
    finished = _finished(folder, config) if app.RESUME.value else None
    if finished and finished["stop"] == json.loads(json.dumps(config["stop"])):
        print(f"nothing to do: the simulation in {folder} is finished")
        return 0
    with claimed(
        folder, resume=app.RESUME.value, overwrite=app.OVERWRITE.value
    ) as claim:
        experiment, order = _scheduled(config)
        if app.RESUME.value:
            inputs.check_same_data(folder, experiment.task)
        if finished and not _goes_further(order, config, finished):
            print(
                f"nothing to do: the simulation in {folder} is finished with "
                f"{finished['versions']} versions, and these limits ask for no more"
            )
            return 0
        claim.clear(overwrite=app.OVERWRITE.value)
        _begin(config, experiment, folder)
        claim.begin()
        return print_summary(simulate(config, experiment, order, folder), folder)


def _scheduled(config: build.Config) -> tuple[Experiment, Order]:
    begun_s = time.monotonic()
    experiment = build.build_experiment(config)
    cycles_s = cycles_of(experiment, build.build_profiles(config)).tolist()
    if short := deadline_warning(experiment.strategy.timing, cycles_s):
        print(f"warning: {short}", flush=True)
    order = order_of_config(config, experiment)
    scheduled_s = time.monotonic() - begun_s
    print(
        f"scheduled {order.num_updates:,} updates, {len(order.version) - 1:,} versions "
        f"and {order.end_s - order.start_s:,.1f} virtual s in {scheduled_s:.1f} s",
        flush=True,
    )
    return experiment, order


def _begin(config: build.Config, experiment: Experiment, folder: Path) -> None:
    """Writes what is known of a run before it is executed."""
    if app.RESUME.value:  # an interrupted one has written them; they are written anew
        (folder / rundir.METRICS).unlink(missing_ok=True)
        for name in (rundir.TRACE, rundir.TENSORBOARD):
            shutil.rmtree(folder / name, ignore_errors=True)
    rundir.write_json(folder / rundir.CONFIG, dict(config))
    if not (folder / rundir.RUN).exists():
        rundir.write_json(folder / rundir.RUN, {"run": secrets.token_hex(6)})
    inputs.write_split(folder, experiment.task)


def _finished(folder: Path, config: build.Config) -> dict[str, Any] | None:
    """The summary of a finished simulation in a folder, with what it was to `stop` at;
    None if there is none, or it has not come to its end.

    Raises:
      ConfigError: the run was begun with another config.
      RunDirError: it is a run of processes.
    """
    if not (folder / rundir.CONFIG).exists():
        return None  # which claiming the folder refuses
    if (folder / rundir.SERVER).exists():
        raise errors.RunDirError(
            f"--resume: {folder} holds a run of processes; go on with launch.server or "
            "launch.local, or give another --workdir"
        )
    stored = rundir.read_json(folder / rundir.CONFIG)
    build.check_same_experiment(stored, config)
    if not (folder / rundir.SUMMARY).exists():
        return None
    summary = rundir.read_json(folder / rundir.SUMMARY)
    if summary["status"] != "finished":
        return None
    now = json.loads(json.dumps(schema.flatten(config)))
    for key, before in schema.flatten(stored).items():
        if key.startswith(_SCHEDULES) and key not in _EXECUTES and now[key] != before:
            raise errors.ConfigError(
                f"config.{key}: found {now[key]!r}, but the simulation in {folder} "
                f"has finished with {before!r}; to go on, change stop alone"
            )
    return summary | {"stop": stored["stop"]}


# What orders a simulation, and what in it says only how that is executed.
_SCHEDULES = ("sim.", "worker_speeds", "min_workers")
_EXECUTES = ("sim.executor", "sim.lanes", "sim.evaluate_every")


def _goes_further(order: Order, config: build.Config, finished: dict[str, Any]) -> bool:
    """Whether a schedule has more versions than a run that has finished, and is not
    ended by an accuracy that the run has reached."""
    target, best = config["stop"]["target_accuracy"], finished["best_accuracy"] or 0.0
    is_reached = 0.0 < target <= best
    return len(order.version) - 1 > finished["versions"] and not is_reached
