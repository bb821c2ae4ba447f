"""A run under a virtual clock as a value: for notebooks, and for whoever makes many.

`launch.simulate` and `launch.replay` do the same with a folder, and say what they do.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyn2f import errors, trace
from asyn2f.config import build, schema
from asyn2f.sim import order as o
from asyn2f.sim.execute import Executor, execution_of
from asyn2f.sim.from_trace import order_of
from asyn2f.sim.order import (
    Order,
    Result,
    ended_by_divergence,
)
from asyn2f.sim.profiles import Profiles
from asyn2f.sim.schedule import (
    carried,
    schedule,
)
from asyn2f.sim.serial import Follower
from asyn2f.trace import causality, history
from asyn2f.training import agreement
from asyn2f.training.batches import (
    Score,
    make_evaluate,
    steps_per_epoch,
)
from asyn2f.training.experiment import Experiment, initial_server_state, published
from asyn2f.types import ServerState

_EVALUATIONS = 200  # in a run, unless the config says how often


class Simulation(NamedTuple):
    """A run, and what came of it."""

    experiment: Experiment
    order: Order  # who did what, and when; up to a version that is not finite
    result: Result  # the newest state; numbers of each update and version
    scores: dict[int, Score]  # by node of the order: 0, and those that were evaluated


def simulate(config: build.Config, experiment: Experiment | None = None) -> Simulation:
    """Schedules the run that a config describes, and executes it.

    Args:
      config: what `get_config()` of one of `configs/` gives, or nested dicts.
        By what means it is executed and how often it is evaluated are in `config.sim`.
      experiment: of a task or strategy of one's own; where the config says the same as
        an experiment holds (seed, training, timing, stop, ...), it has to agree with
        it. None = `build.build_experiment(config)`.

    Calls that differ in seed, learning rates or limits alone share what has been
    compiled; `jax.config.update("jax_compilation_cache_dir", folder)` keeps it for
    the next process.

    Raises:
      ConfigError: see `build.check`; nothing ends the run; or `experiment` was made
        with other settings.
      PlanError, TooLargeError: not by these means.

    >>> from configs.digits import get_config
    >>> config = get_config()
    >>> config.stop.max_versions = 3
    >>> list(simulate(config).scores)
    [0, 1, 2, 3]
    """
    config = schema.plain(config)
    build.check(config)
    if experiment is None:
        experiment = build.build_experiment(config)
    else:
        build.check_agrees(config, experiment)
    order, target = order_of_config(config, experiment), experiment.stop.target_accuracy
    found = _executed(config, experiment, order, target)
    count = found.result.num_events
    if found.order is order and count < len(order.time_s):
        order = o.cut(order, count, f"target accuracy {target:g} reached")
        return found._replace(order=order)
    return found


def replay(
    config: build.Config, folder: Path | str, executor: Executor = "serial"
) -> Simulation:
    """Executes what happened in a run, real or simulated.

    With the run's own config and by the run's own means a run's parameters come again
    bit for bit, on the machine and with the libraries that made them; with another
    config it is what would have come of the same arrivals.

    Args:
      config: see `simulate`; `configs.of_run.get_config(folder)` is the run's own.
      folder: of the run.
      executor: serial is that of every real run.

    Raises:
      ConfigError: see `build.check`.
      RunDirError: the folder holds no run.
      ValueError: a line is none of a trace, or JAX makes other numbers here than it
        did there: see `agreement.FLAGS`.
      IncompleteTraceError: traces of workers are missing.
      CausalityError: the trace contradicts itself.
    """
    config = schema.plain(config)
    config = {**config, "sim": {**config.get("sim", {}), "executor": executor}}
    build.check(config)
    events = trace.of_run(folder)
    agreement.check_flags(x.environment for x in agreement.made_by(events))
    history.check_complete(events)
    causality.check(events)
    return _executed(config, build.build_experiment(config), order_of(events))


def order_of_config(config: build.Config, experiment: Experiment) -> Order:
    """The order of the run that a config describes.

    Raises:
      ConfigError: nothing but a target accuracy ends it, or its profiles are wrong.
    """
    timing, profiles = experiment.strategy.timing, build.build_profiles(config)
    follower = Follower(experiment) if timing.depends_on_values else None
    try:
        return schedule(
            timing,
            profiles,
            experiment.stop,
            experiment.seed,
            steps_per_epoch=epochs_of(experiment),
            num_bytes=experiment.publication.template.num_bytes,
            update_bytes=experiment.update_template.num_bytes,
            aggregate_s=config["sim"]["aggregate_s"],
            heartbeat_timeout_s=config["runtime"]["heartbeat_timeout_s"],
            signal_of=follower.signal if follower else None,
            accepts=follower.accepts if follower else None,
        )
    except ValueError as error:
        raise errors.ConfigError(f"config.{error}") from None


def cycles_of(experiment: Experiment, profiles: Profiles) -> np.ndarray:
    """Seconds from push to push of each worker, without jitter and outages, f64 [W]."""
    epochs = experiment.strategy.timing.epochs_per_push
    up, down = experiment.update_template, experiment.publication.template
    links_s = profiles.upload_s + profiles.download_s
    links_s += 8e-6 * up.num_bytes / profiles.upload_mbps
    links_s += 8e-6 * down.num_bytes / profiles.download_mbps
    return epochs * np.array(epochs_of(experiment)) * profiles.step_s + links_s


def epochs_of(experiment: Experiment) -> list[int]:
    """Steps in an epoch of each worker."""
    batch_size = experiment.training.batch_size
    return [steps_per_epoch(len(rows), batch_size) for rows in experiment.task.shards]


def watched_of(order: Order, every: int) -> list[int]:
    """The nodes to be evaluated: every so many, and the last; 0 = about 200."""
    last = len(order.version) - 1
    every = every or max(1, last // _EVALUATIONS)
    return sorted({*range(every, last + 1, every), last} - {0})


class Moved(NamedTuple):
    """Bytes of payloads that had been moved by each of T times, i64 [T] each."""

    up: np.ndarray  # pushed
    down: np.ndarray  # carried to workers, as the method has them fetched: `carried`
    broadcast_down: np.ndarray  # if every version went to every live worker instead


def bytes_by(
    config: build.Config, experiment: Experiment, order: Order, times_s: np.ndarray
) -> Moved:
    """The bytes that a scheduled run had moved by each of these times.

    Args:
      config: whose `sim` says what the links carry.
      experiment: of the run.
      order: of its schedule, which may have been cut.
      times_s: f64 [T]; of the order's clock.
    """
    pushed_s = order.time_s[order.kind == o.PUSH]
    made_s = order.time_s[order.kind == o.AGGREGATE]
    pushed = np.searchsorted(pushed_s, times_s, side="right")
    nodes = np.searchsorted(made_s, times_s, side="right")
    given = np.cumsum(order.receivers, dtype=np.int64)[nodes]
    up_bytes = experiment.update_template.num_bytes
    down_bytes = experiment.publication.template.num_bytes
    timing, profiles = experiment.strategy.timing, build.build_profiles(config)
    traffic = carried(order, timing, profiles, down_bytes, experiment.seed)
    return Moved(
        up=pushed * up_bytes,
        down=traffic.until(times_s) * down_bytes,
        broadcast_down=given * down_bytes,
    )


def _executed(
    config: build.Config, experiment: Experiment, order: Order, target: float = 0.0
) -> Simulation:
    settings, evaluate = config["sim"], make_evaluate(experiment.task)

    def score_of(state: ServerState) -> Score:
        return evaluate(published(experiment, state.model).params)

    scores = {0: score_of(initial_server_state(experiment))}

    def watch(node: int, time_s: float, state: ServerState) -> bool:
        scores[node] = score_of(state)
        return 0.0 < target <= scores[node].accuracy

    watched = watched_of(order, settings["evaluate_every"])
    execution = execution_of(
        experiment, order, settings["executor"], settings["lanes"], watched
    )
    result = execution.run(watch)
    order = ended_by_divergence(order, result.numbers) or order
    return Simulation(experiment, order, result, scores)
