"""Runs under a virtual clock, as values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyn2f import errors
from asyn2f.api.given import check_given, with_strategy
from asyn2f.api.progress import Progress, shown
from asyn2f.api.results import Simulation, epochs_of
from asyn2f.config import build, schema
from asyn2f.config.default import default_config
from asyn2f.config.private import roots_of
from asyn2f.config.schema import RuntimeSettings, section
from asyn2f.sim import order as o
from asyn2f.sim.executors.execute import debugging, execution_of
from asyn2f.sim.executors.serial import Follower
from asyn2f.sim.order import Order, ended_by_divergence
from asyn2f.sim.profiles import Profiles
from asyn2f.sim.schedule import schedule
from asyn2f.sim.settings import SimSettings
from asyn2f.strategies import BUILDERS, Strategy
from asyn2f.tasks.base import Task
from asyn2f.training.evaluation import KeptOf, initial, make_scores
from asyn2f.training.experiment import (
    Experiment,
    initial_server_state,
    published,
    stage,
)
from asyn2f.types import Metric, Params, Scores, ServerState

_EVALUATIONS = 200  # of a run, unless the config states their interval


def simulate(
    config: build.Config | None = None,
    experiment: Experiment | None = None,
    *,
    task: Task | None = None,
    strategy: Strategy | str | None = None,
    data: str | Path | Mapping[int, str | Path] | None = None,
    progress: Progress | bool = False,
) -> Simulation:
    """Schedules and executes the run that a config describes; `asyn2f simulate` does
    the same in a folder.

    Args:
      config: from `default_config`, `load_config` or a config file; or nested dicts.
        None = `config_of(experiment)`, or the defaults.
      experiment: with a task or strategy of your own, from `make_experiment`. Settings
        that a config holds as well (seed, workers, training, timing, stop, ...) have to
        be the same there; `config_of` copies them. None = what the config describes.
      task, strategy: of your own, in place of the config's; a task is split as the
        config has it unless it is split. A strategy may also be a name, as in
        `config.strategy.name`.
      data: where each worker's own data are, for a factory with the arguments `worker`
        and `data`: paths by worker, or one with {worker} in it.
      progress: True shows a line; a function is called with each evaluated version: a
        dict of `version`, `time_s`, `scores`.

    Runs that differ only in seed, learning rates or limits share compiled programs;
    `jax.config.update("jax_compilation_cache_dir", folder)` keeps them for other
    processes.

    Returns:
      The executed run: see `Simulation.history`.

    Raises:
      ConfigError: an invalid config, or one without an end; or `experiment` has other
        settings; or a task, strategy or experiment is of another type.
      PlanError, TooLargeError: the executor cannot execute the run.
      ExecutionError: a function of the task or the strategy has failed; names stage,
        strategy, version and worker. `config.sim.executor = "debug"` executes without
        `jax.jit`, so that prints and breakpoints in it see values.

    >>> from asyn2f import default_config
    >>> run = simulate(default_config(stop__max_versions=3))
    >>> [row["version"] for row in run.history()]
    [0, 1, 2, 3]
    """
    check_given(experiment, task, strategy)
    if config is None:
        workers = {"workers": len(task.shards)} if task and task.shards else {}
        config = config_of(experiment) if experiment else default_config(workers)
    config, own = with_strategy(schema.plain(config), strategy)
    build.check(config)
    check_given(experiment, task, strategy, config)
    if experiment is None:
        experiment = experiment_of(config, task, own, data)
    else:
        check_agrees(config, experiment)
    order, target = order_of_config(config, experiment), experiment.stop.target
    run = executed(config, experiment, order, target, progress)
    count = run.result.num_events
    if run.order is order and count < len(order.time_s):
        order = o.cut(order, count, reached(experiment.task.metric, target))
        return run._replace(order=order)
    return run


def experiment_of(
    config: build.Config,
    task: Task | None,
    strategy: Strategy | None,
    data: str | Path | Mapping[int, str | Path] | None = None,
) -> Experiment:
    """What a config describes, with a user-defined task or strategy."""
    if task is None:
        task = build.build_task(config, "all", roots_of(data))
    else:
        task = build.split_task(config, build.checked_task(config, task))
    return build.build_experiment(config, task, strategy)


def executed(
    config: build.Config,
    experiment: Experiment,
    order: Order,
    target: float | None = None,
    progress: Progress | bool = False,
) -> Simulation:
    """Executes an order by the means in `config.sim`, until an evaluated version has
    reached the `target`; None = to its end."""
    metric = experiment.task.metric
    settings = section(config, SimSettings)
    scores_of = make_scores(experiment)
    scores: dict[int, Scores] = {}
    best: float | None = None
    best_params: Params = None
    show = shown(progress, len(order.version) - 1, metric)

    def watch(node: int, time_s: float, state: ServerState, kept_of: KeptOf) -> bool:
        nonlocal best, best_params
        version = int(order.version[node])
        with stage(experiment, "evaluate", version):
            found = scores[node] = scores_of(state, kept_of)
        if metric.is_better(found[metric.name], best):
            params = published(experiment, state.model).params
            best, best_params = found[metric.name], jax.device_get(params)
        show({"version": version, "time_s": time_s - order.start_s, "scores": found})
        return metric.reaches(found[metric.name], target)

    with debugging(settings.executor):
        with stage(experiment, "init", 0):
            first, kept_of = initial_server_state(experiment), initial(experiment)
        watch(0, order.start_s, first, kept_of)
    watched = watched_of(order, settings.evaluate_every)
    execution = execution_of(
        experiment, order, settings.executor, settings.lanes, watched
    )
    result = execution.run(watch)
    show(None)
    order = ended_by_divergence(order, result.numbers) or order
    means = execution.means
    return Simulation(config, experiment, order, result, scores, means, best_params)


def reached(metric: Metric, target: float | None) -> str:
    """The reason of the end of a run that has reached its target.

    >>> reached(Metric("loss", higher_is_better=False), 0.25)
    'target loss 0.25 reached'
    """
    return f"target {metric.name} {target:g} reached"


def order_of_config(config: build.Config, experiment: Experiment) -> Order:
    """The order of the run that a config describes.

    Raises:
      ConfigError: nothing but a target ends it, or its profiles are wrong.
    """
    timing, profiles = experiment.strategy.timing, build.build_profiles(config)
    settings, runtime = section(config, SimSettings), section(config, RuntimeSettings)
    try:
        with debugging(settings.executor):
            follower = Follower(experiment) if timing.depends_on_values else None
            return schedule(
                timing,
                profiles,
                experiment.stop,
                experiment.seed,
                steps_per_epoch=epochs_of(experiment),
                num_bytes=experiment.publication.template.num_bytes,
                update_bytes=experiment.update_template.num_bytes,
                aggregate_s=settings.aggregate_s,
                heartbeat_timeout_s=runtime.heartbeat_timeout_s,
                signal_of=follower.signal if follower else None,
                accepts=follower.accepts if follower else None,
            )
    except ValueError as error:
        raise errors.ConfigError(f"config.{error}") from None


def cycles_of(experiment: Experiment, profiles: Profiles) -> np.ndarray:
    """Seconds from push to push of each worker, without jitter and outages, f64 [W]."""
    timing, step_s = experiment.strategy.timing, profiles.step_s.tolist()
    pairs = zip(epochs_of(experiment), step_s, strict=True)
    cycles_s = np.array([timing.cycle_s(*pair) for pair in pairs])
    up, down = experiment.update_template, experiment.publication.template
    links_s = profiles.upload_s + profiles.download_s
    links_s += 8e-6 * up.num_bytes / profiles.upload_mbps
    links_s += 8e-6 * down.num_bytes / profiles.download_mbps
    return cycles_s + links_s


def watched_of(order: Order, every: int) -> list[int]:
    """The nodes to be evaluated: every n-th and the last; 0 = about 200 in all."""
    last = len(order.version) - 1
    every = every or max(1, last // _EVALUATIONS)
    return sorted({*range(every, last + 1, every), last} - {0})


# ---------------------------------------------------------------- own experiments


def check_agrees(config: build.Config, experiment: Experiment) -> None:
    """Compares the settings that a config and an experiment both hold.

    Raises:
      ConfigError: names the first key in which they differ.
    """
    wanted, flat = _settings_in(experiment), schema.flatten(config)
    if flat["min_workers"]:  # 0 = all of them, here and below the usual number
        wanted["min_workers"] = experiment.strategy.timing.min_workers
    if not flat["timing.min_updates"]:
        del wanted["timing.min_updates"]
    for key, value in wanted.items():
        if flat[key] != value:
            raise errors.ConfigError(
                f"config.{key}: found {flat[key]!r}, but the experiment was made with "
                f"{value!r}; change one of them"
            )


def config_of(experiment: Experiment, /, **dotted: Any) -> build.Config:
    """The default config with the settings of your own experiment, for `simulate`.

    Args:
      experiment: from `make_experiment`.
      **dotted: other settings, with `__` for the dot: `sim__step_s=(0.1, 0.4)`.

    Raises:
      ConfigError: an unknown key, or a value that is not allowed.

    >>> experiment = build.build_experiment(schema.plain(default_config(workers=2)))
    >>> config = config_of(experiment, sim__jitter=0.5)
    >>> config["workers"], config["sim"]["jitter"]
    (2, 0.5)
    """
    changes = _settings_in(experiment)
    if experiment.strategy.name in BUILDERS:
        changes["strategy.name"] = experiment.strategy.name
    return schema.plain(default_config(changes, **dotted))


def _settings_in(experiment: Experiment) -> dict[str, Any]:
    """The settings that an experiment holds, by dotted key."""
    guards = experiment.guards
    held: dict[str, Any] = {
        "seed": experiment.seed,
        "workers": experiment.workers,
        "guards.mode": guards.mode,
    }
    held |= schema.keyed(experiment.training) | schema.keyed(experiment.stop)
    held |= schema.keyed(experiment.coding) | schema.keyed(experiment.strategy.timing)
    del held["min_workers"]
    if guards.mode != "off":
        held |= schema.keyed(guards)
    if guards.mode != "off" and guards.max_share == 1.0:  # there is nothing to cap
        del held["guards.max_share"]
    return held
