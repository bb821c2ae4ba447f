"""A whole run under a virtual clock: any number of workers, in one process.

    asyn2f simulate --config=configs/digits.py --workdir=runs/simulated \\
        --config.workers=100 --config.sim.step_s=0.01, --config.sim.step_spread=4

Its folder has the same files as that of a run of processes; all times are virtual
seconds.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from asyn2f import errors, rundir
from asyn2f.api.replaying import summary_of
from asyn2f.api.results import Simulation, write_run
from asyn2f.api.simulation import cycles_of, order_of_config, reached, watched_of
from asyn2f.cli import app, claim, machine, process
from asyn2f.cli.server import print_summary, write_config
from asyn2f.config import build, identity, schema, user_code
from asyn2f.config.default import load_config
from asyn2f.config.private import Roots
from asyn2f.config.schema import section
from asyn2f.protocol.caveats import warnings_of
from asyn2f.sim import order as o
from asyn2f.sim.executors.execute import (
    Execution,
    execution_of,
    read_progress,
    write_progress,
)
from asyn2f.sim.executors.machine import Progress
from asyn2f.sim.order import Order, ended_by_divergence
from asyn2f.sim.settings import SimSettings
from asyn2f.store.orbax import OrbaxStore
from asyn2f.timing import Stop, deadline_warning
from asyn2f.training.evaluation import KeptOf, make_scores
from asyn2f.training.experiment import Experiment, stage
from asyn2f.types import Best, Metric, Scores, ServerState

_KEEP_EVERY = flags.DEFINE_float(
    "keep_every_s",
    60.0,
    "Seconds between checkpoints of the progress of an execution in lanes.",
    lower_bound=0.0,
)


def main() -> int:
    request = app.request()
    config, folder = request.config, request.folder
    if section(config, SimSettings).executor in ("auto", "sharded"):
        machine.use_cores_as_devices()
    machine.prepare_jax()
    # Before anything is overwritten: a wrong setting must not cost an old run.
    finished = _finished(folder, config) if request.resume else None
    if finished and finished["limits"] == section(config, Stop):
        print(f"nothing to do: the simulation in {folder} is finished")
        return 0
    with claim.claimed(
        folder, resume=request.resume, overwrite=request.overwrite
    ) as claimed:
        return _run(request, claimed, finished)


def _run(
    request: app.Request, claimed: claim.Claim, finished: dict[str, Any] | None
) -> int:
    """Schedules and executes the run, unless finished; returns the exit code."""
    config, folder = request.config, request.folder
    experiment, order = _scheduled(config, request.data)
    if request.resume:
        claim.check_same_code(folder, user_code.digests(config))
        claim.check_same_data(folder, experiment.task)
    metric = experiment.task.metric
    if finished and not _goes_further(order, config, metric, finished):
        print(
            f"nothing to do: the simulation in {folder} is finished with "
            f"{finished['versions']} versions, and these limits allow no more"
        )
        return 0
    claimed.clear(overwrite=request.overwrite)
    _prepare(request, experiment)
    claimed.begin()
    return print_summary(_execute(config, experiment, order, folder), folder)


def _execute(
    config: build.Config, experiment: Experiment, order: Order, folder: Path
) -> dict[str, Any]:
    """Executes a scheduled run; writes its files, and returns the summary."""
    settings = section(config, SimSettings)
    watched = watched_of(order, settings.evaluate_every)
    execution = execution_of(
        experiment, order, settings.executor, settings.lanes, watched
    )
    print(f"executor: {execution.why}", flush=True)
    watcher = Watcher(experiment, folder, order.start_s)
    process.stop_on_signals(watcher.stop)
    start_s = time.monotonic()
    keeper = Keeper(folder, config, execution, watcher)
    result = execution.run(watcher, keeper.found(), keeper)
    jax.block_until_ready(result.state)
    wall_s = time.monotonic() - start_s
    diverged = ended_by_divergence(order, result.numbers)
    if diverged is not None:
        order, watcher.status = diverged, "failed"
    elif watcher.reason is not None:
        order = o.cut(order, result.num_events, watcher.reason)
    watcher.finish(None if diverged else result.state)
    run = Simulation(config, experiment, order, result, watcher.scores, execution.means)
    summary = run.summary() | {
        "status": watcher.status,
        "run": rundir.read_json(folder / rundir.RUN)["run"],
        "executor": execution.why,
        "execution_s": wall_s,
    }
    summary["warnings"] = warnings_of(summary)
    rate = order.num_steps / wall_s if wall_s else 0.0
    print(f"executed {order.num_steps:,} local steps in {wall_s:.1f} s: {rate:,.0f}/s")
    write_run(run, folder, machine.environment())
    rundir.write_json(folder / rundir.SUMMARY, summary)
    if watcher.status == "finished":
        (folder / rundir.PROGRESS).unlink(missing_ok=True)
    return summary


def _scheduled(config: build.Config, data: Roots) -> tuple[Experiment, Order]:
    start_s = time.monotonic()
    task = build.build_task(config, "all", data)
    experiment = build.build_experiment(config, task)
    cycles_s = cycles_of(experiment, build.build_profiles(config)).tolist()
    if short := deadline_warning(experiment.strategy.timing, cycles_s):
        print(f"warning: {short}", flush=True)
    order = order_of_config(config, experiment)
    scheduled_s = time.monotonic() - start_s
    print(
        f"scheduled {order.num_updates:,} updates, {len(order.version) - 1:,} versions "
        f"and {order.end_s - order.start_s:,.1f} virtual s in {scheduled_s:.1f} s",
        flush=True,
    )
    return experiment, order


def _prepare(request: app.Request, experiment: Experiment) -> None:
    """Writes the files that exist from the start of a run."""
    folder = request.folder
    if request.resume:  # what was interrupted has written them; they are written again
        (folder / rundir.METRICS).unlink(missing_ok=True)
        for name in (rundir.TRACE, rundir.TENSORBOARD):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_config(folder, request.config, experiment.task.metric)
    claim.write_split(
        folder, experiment.task, user_code.digests(request.config), experiment.reveal
    )


def _finished(folder: Path, config: build.Config) -> dict[str, Any] | None:
    """The summary of a finished simulation in a folder, with its "limits"; None
    if there is none, or it is not finished.

    Raises:
      ConfigError: the run has another config.
      RunDirError: it is a run of processes.
    """
    if not (folder / rundir.CONFIG).exists():
        return None  # which claiming the folder refuses
    if (folder / rundir.SERVER).exists():
        raise errors.RunDirError(
            f"--resume: {folder} holds a run of processes; continue it with asyn2f run "
            "or asyn2f server, or give another --workdir"
        )
    stored = schema.plain(load_config(folder))
    identity.check_same_experiment(stored, config)
    summary = summary_of(folder)
    if summary.get("status") != "finished":
        return None
    identity.check_same_schedule(stored, config)
    return summary | {"limits": section(stored, Stop)}


def _goes_further(
    order: Order, config: build.Config, metric: Metric, finished: dict[str, Any]
) -> bool:
    """Whether a schedule has more versions than a finished run, and does not end at a
    target that the run has reached."""
    target, best = section(config, Stop).target, finished["best_value"]
    has_reached = best is not None and metric.reaches(best, target)
    return len(order.version) - 1 > finished["versions"] and not has_reached


# ---------------------------------------------------------------- callbacks


class Watcher:
    """Evaluates versions as they are made, keeps the best, and knows when to stop."""

    def __init__(self, experiment: Experiment, folder: Path, start_s: float) -> None:
        self.scores: dict[int, Scores] = {}
        self.status = "finished"
        self.reason: str | None = None  # why it has stopped the run, if so
        self._experiment = experiment
        self._scores_of = make_scores(experiment)
        self._metric, self._target = experiment.task.metric, experiment.stop.target
        self._store = OrbaxStore(folder / rundir.MODELS)
        self._run = rundir.read_json(folder / rundir.RUN)["run"]
        self._start_s = start_s
        self._shown_s = time.monotonic()

    def __call__(
        self, node: int, time_s: float, state: ServerState, kept_of: KeptOf
    ) -> bool:
        with stage(self._experiment, "evaluate", node):
            score = self.scores[node] = self._scores_of(state, kept_of)
        name, value = self._metric.name, score[self._metric.name]
        best = self._store.best()
        if self._metric.is_better(value, best.value if best else None):
            self._keep(node, state)
            best = Best(node, name, value)
            self._store.set_best(best)
        if time.monotonic() - self._shown_s > 2.0:
            self._shown_s = time.monotonic()
            elapsed_s = time_s - self._start_s
            print(
                f"{elapsed_s:9.1f} virtual s  version {node:6d}  "
                f"{name} {value:.4f}" + (f"  best {best.value:.4f}" if best else ""),
                flush=True,
            )
        if self._metric.reaches(value, self._target):
            self.reason = reached(self._metric, self._target)
        return self.reason is not None

    def stop(self, signal: str) -> None:
        """Ends the run at the next version that is evaluated."""
        self.status, self.reason = "interrupted", f"{signal} received"

    def finish(self, state: ServerState | None) -> None:
        """Saves the last version, unless it is not finite."""
        if state is not None:
            self._keep(int(state.model.version), state)
        self._store.close()

    def _keep(self, node: int, state: ServerState) -> None:
        if node not in self._store.versions():
            record = {"run": self._run, "incarnation": 1, "version": node}
            self._store.save(node, state, record)


class Keeper:
    """Writes checkpoints of an execution's progress, and reads the last one."""

    def __init__(
        self, folder: Path, config: build.Config, execution: Execution, watcher: Watcher
    ) -> None:
        self._path = folder / rundir.PROGRESS
        self._execution, self._key = execution, _key(config, execution)
        self._watcher = watcher
        self._kept_s = time.monotonic()

    def found(self) -> Progress | None:
        """Where to continue an execution of the same order by the same means."""
        if self._execution.machine is None:
            return None
        read = read_progress(self._path, self._key, self._execution.machine.carry)
        if read is None:
            return None
        progress, scores = read
        self._watcher.scores |= scores
        waves = len(self._execution.machine.plan.steps)
        print(f"continuing after {progress.wave:,} of {waves:,} waves", flush=True)
        return progress

    def __call__(self, progress: Callable[[], Progress]) -> None:
        if time.monotonic() - self._kept_s < _KEEP_EVERY.value:
            return
        write_progress(self._path, self._key, progress(), self._watcher.scores)
        self._kept_s = time.monotonic()


def _key(config: build.Config, execution: Execution) -> str:
    """A digest of everything that the numbers and the calls depend on."""
    digest = hashlib.sha256(machine.source_digest(("report", "runtime")).encode())
    digest.update(identity.experiment_digest(config).encode())
    digest.update(repr((execution.means, sorted(execution.watched))).encode())
    for column in execution.order:
        digest.update(np.asarray(column).tobytes())
    return digest.hexdigest()
