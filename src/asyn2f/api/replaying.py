"""Replaying what happened in a run, as it was or with other settings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from asyn2f import rundir, trace
from asyn2f.api.given import check_given, with_strategy
from asyn2f.api.results import Simulation
from asyn2f.api.simulation import executed, experiment_of
from asyn2f.config import build, schema
from asyn2f.config.default import load_config
from asyn2f.config.private import NO_ROOTS, Roots
from asyn2f.report.metrics import read_metrics
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.execute import Execution, Executor
from asyn2f.sim.executors.serial import Watch
from asyn2f.sim.from_trace import Recording, agree, differences, order_of
from asyn2f.sim.order import Numbers, Order, Result, line_of
from asyn2f.store.orbax import OrbaxStore
from asyn2f.strategies import Strategy
from asyn2f.tasks.base import Task
from asyn2f.timing import Timing
from asyn2f.trace import causality, history
from asyn2f.training import agreement
from asyn2f.training.batches import steps_per_epoch
from asyn2f.training.evaluation import KeptOf, initial, make_scores, make_worker_scores
from asyn2f.training.experiment import Experiment, initial_server_state
from asyn2f.types import Params, ServerState


def replay(
    folder: Path | str,
    config: build.Config | None = None,
    executor: Executor = "serial",
    *,
    task: Task | None = None,
    strategy: Strategy | str | None = None,
    data: str | Path | Mapping[int, str | Path] | None = None,
) -> Simulation:
    """Executes what happened in a run, real or simulated, again.

    With the run's own config and executor, its parameters are reproduced bit for bit on
    the same machine with the same libraries. Another config shows what would have come
    of the same arrivals. `asyn2f replay` also compares with what the run has left.

    Args:
      folder: of the run.
      config: see `simulate`; None = the run's own.
      executor: "serial", as for every run of processes.
      task, strategy: of your own, in place of the config's; see `simulate`.
      data: see `simulate`.

    Raises:
      ConfigError: see `build.check`.
      RunDirError: the folder holds no run.
      ValueError: a malformed trace, or flags of JAX that differ from those of the run:
        see `agreement.FLAGS`.
      IncompleteTraceError: traces of workers are missing.
      CausalityError: the trace contradicts itself.
    """
    check_given(None, task, strategy)
    events = trace.of_run(folder)
    if config is None:
        config = load_config(folder)
    config, own = with_strategy(schema.plain(config), strategy)
    config = schema.changed(config, {"sim.executor": executor})
    build.check(config)
    makers = agreement.made_by(events)
    agreement.check_flags(maker.environment for maker in makers)
    history.check_complete(events)
    causality.check(events)
    experiment = experiment_of(config, task, own, data)
    agreement.check_registered(experiment.task, events)
    run = executed(config, experiment, order_of(events))
    is_simulated = any(maker.actor == "simulation" for maker in makers)
    return run._replace(is_replay=not is_simulated)


# ---------------------------------------------------------------- comparing


class Difference(NamedTuple):
    """The difference of a replayed version from the one in the run's folder."""

    version: int
    same_bits: bool
    absolute: float  # largest difference of a parameter
    relative: float  # the same, divided by the model's largest parameter


class Comparison(NamedTuple):
    """A replay, compared with everything that the run has left in its folder."""

    versions: list[Difference]  # those still in the folder
    sha256: str  # of the newest version's parameters
    recorded_sha256: str | None  # in the run's summary
    other: list[str]  # numbers besides the parameters that differ

    @property
    def same_bits(self) -> bool:
        """Whether all parameters are the same, bit for bit."""
        is_same = self.recorded_sha256 in (None, self.sha256)
        return is_same and all(row.same_bits for row in self.versions)


def summary_of(folder: Path) -> dict[str, Any]:
    """The run's summary; {} if it has not ended."""
    path = folder / rundir.SUMMARY
    return rundir.read_json(path) if path.exists() else {}


def nodes_present(order: Order, folder: Path) -> set[int]:
    """The nodes of the versions in the folder that the newest one descends from, except
    version 0, which is drawn from the seed."""
    store = OrbaxStore(folder / rundir.MODELS)
    present = set(store.versions())
    store.close()
    return {node for node in line_of(order) if int(order.version[node]) in present}


def compare(
    execution: Execution,
    recording: Recording,
    folder: Path,
    tolerance: float,
    run: Callable[[Execution, Watch], Result] = Execution.run,
    events: Sequence[trace.Event] = (),
) -> Comparison:
    """Executes, and compares with every version in the run's folder, with the numbers
    in its trace and metrics, and with its summary.

    Args:
      execution: of the recorded order; watches `nodes_present`.
      recording: from the run's trace.
      folder: of the run.
      tolerance: of numbers besides the parameters; see `differences`.
      run: executes.
      events: of the run; the scores that its workers gave stored versions are
        compared.
    """
    store, experiment = OrbaxStore(folder / rundir.MODELS), execution.experiment
    shapes = jax.eval_shape(lambda: initial_server_state(experiment))
    scores_of, at_workers = make_scores(experiment), _recorded_by_workers(events)
    metric, stored = experiment.task.metric, store.best()
    found: list[Difference] = []
    other: list[str] = []
    best: float | None = None  # computed now

    def watch(node: int, time_s: float, state: ServerState, kept_of: KeptOf) -> bool:
        nonlocal best
        version = int(state.model.version)
        before = store.load(version, shapes).state.model.params
        found.append(_difference(version, before, state.model.params))
        if by_worker := at_workers.get(version):
            other.extend(_scores_that_differ(experiment, state, by_worker, tolerance))
        elif stored is not None and version == stored.version:
            best = scores_of(state, kept_of)[metric.name]
        return False

    result = run(execution, watch)
    store.close()
    other += differences(recording, result.numbers, tolerance)
    other += _losses_that_differ(recording.order, result.numbers, folder, tolerance)
    if best is not None and stored is not None:
        if stored.metric != metric.name:
            other.append(f"best.json: by {stored.metric}, replayed by {metric.name}")
        elif not agree(stored.value, best, tolerance):
            other.append(
                f"best.json: version {stored.version} has {metric.name} "
                f"{stored.value}, replayed {best}"
            )
    sha256 = params_sha256(result.state.model.params)
    return Comparison(found, sha256, summary_of(folder).get("params_sha256"), other)


_ByWorker = dict[int, trace.WorkerScored]


def _recorded_by_workers(events: Sequence[trace.Event]) -> dict[int, _ByWorker]:
    """The scores of each version by its workers."""
    found: dict[int, _ByWorker] = {}
    for event in events:
        if isinstance(event, trace.WorkerScored):
            found.setdefault(event.version, {})[event.worker] = event
    return found


def _scores_that_differ(
    experiment: Experiment, state: ServerState, recorded: _ByWorker, tolerance: float
) -> Iterator[str]:
    """Scores of a version by workers. Where these keep a part of the model, it is that
    of the moment, which a replay does not have."""
    if not experiment.sharing.is_whole:
        return
    now = make_worker_scores(experiment)(state, initial(experiment))
    for worker, event in sorted(recorded.items()):
        for name, value in event.scores.items():
            found = now.get(worker, {}).get(name)
            if found is None or not agree(value, found, tolerance):
                yield (
                    f"worker {worker}: version {event.version} has {name} {value}, "
                    f"replayed {found}"
                )


def _losses_that_differ(
    order: Order, numbers: Numbers, folder: Path, tolerance: float
) -> Iterator[str]:
    """Losses of versions in the metrics. Of a version that was lost in a crash there
    may be a row besides that of the one made again."""
    losses = {
        int(order.version[node]): numbers.model_loss[node] for node in line_of(order)
    }
    recorded: dict[int, list[Any]] = {}
    for row in read_metrics(folder):
        if row.get("kind") == "version" and row.get("version") in losses:
            recorded.setdefault(row["version"], []).append(row.get("loss"))
    for version, values in recorded.items():
        if not any(agree(value, losses[version], tolerance) for value in values):
            yield (
                f"metrics: version {version} has loss {values[-1]}, replayed "
                f"{losses[version]}"
            )


def _difference(version: int, before: Params, now: Params) -> Difference:
    pairs = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True)
    ]
    absolute = max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs)
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x, _ in pairs)
    same_bits = params_sha256(before) == params_sha256(now)
    relative = absolute / largest if largest else absolute
    return Difference(version, same_bits, absolute, relative)


# ---------------------------------------------------------------- other settings


def obstacle(
    experiment: Experiment,
    order: Order,
    stored: build.Config,
    changed: dict[str, Any],
    data: Roots = NO_ROOTS,
) -> str:
    """Why a recorded order does not allow other settings; "" if it does.

    Args:
      experiment: with the other settings.
      order: recorded.
      stored: the run's own config.
      changed: by dotted key, as from `identity.changed_keys`.
      data: where each worker's own data are.
    """
    fixed = [key for key in changed if key.split(".")[0] in ("timing", "stop")]
    if fixed:
        return f"config.{fixed[0]} decides when things happen, and that is recorded"
    own = build.build_experiment(stored, build.build_task(stored, "all", data))
    before, now = own.strategy.timing, experiment.strategy.timing
    for name, was in vars(_effective(before)).items():
        is_now = getattr(_effective(now), name)
        if was != is_now:
            return (
                f"{experiment.strategy.name} has {name} = {is_now!r}, and the run had "
                f"{was!r}: other things happen at other times"
            )
    if experiment.workers <= int(order.worker.max(initial=0)):
        return f"config.workers = {experiment.workers} are fewer than the run had"
    if now.counts_steps:
        return ""
    batch_size = experiment.training.batch_size
    shards = zip(own.task.shards, experiment.task.shards, strict=False)
    for worker, (rows_before, rows) in enumerate(shards):
        steps_before = steps_per_epoch(len(rows_before), own.training.batch_size)
        steps = steps_per_epoch(len(rows), batch_size)
        if steps_before != steps:
            return (
                f"an epoch of worker {worker} had {steps_before} steps and would have "
                f"{steps}: it would push at other times"
            )
    return ""


def _effective(timing: Timing) -> Timing:
    """The timing without settings that have no effect, or are compared elsewhere."""
    if timing.quorum != "some":
        timing = replace(timing, min_updates=1, pending="newest")
    if timing.while_training != "merge_once":
        timing = replace(timing, merge_slot=0.5)
    return replace(timing, min_workers=1)
