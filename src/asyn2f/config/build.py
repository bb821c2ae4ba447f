"""From a config to an experiment, its runtime settings and its profiles."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from asyn2f.config import private, schema, user_code
from asyn2f.config.arguments import of_signature
from asyn2f.config.private import NO_ROOTS, Roots, Whose
from asyn2f.config.references import is_reference
from asyn2f.config.run import check_runtime
from asyn2f.config.schema import Config, RunSettings, section
from asyn2f.config.task import (
    TaskSettings,
    check_task,
    classification,
    with_shards,
)
from asyn2f.config.training import check_training, optimizer_of, with_optimizer
from asyn2f.errors import (
    ConfigError,
    OptimizerError,
    ShareError,
)
from asyn2f.kernels.codecs import Coding, check_coding
from asyn2f.kernels.guards import Guards
from asyn2f.privacy import Privacy
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.sim.profiles import STEP_S, Profiles, draw_profiles, read_profiles
from asyn2f.sim.settings import SimSettings, is_profiles_file
from asyn2f.strategies import BUILDERS, Strategy
from asyn2f.strategies._asyn2f import ROBUST
from asyn2f.tasks.base import Task
from asyn2f.timing import Stop, Timing, check_cycle
from asyn2f.training.experiment import Experiment, make_experiment, problem_of_reveal
from asyn2f.training.settings import Training
from asyn2f.training.sharing import check_share
from asyn2f.types import Metric


def check(config: Config) -> None:
    """Checks that every key is present, known and in range, and that they fit together.

    Raises:
      ConfigError: otherwise.
    """
    schema.check_values(config)
    strategy = build_strategy(config)
    if problem := problem_of_reveal(strategy, section(config, Privacy).reveal):
        raise ConfigError(f"config.privacy.reveal: {problem}")
    workers = section(config, RunSettings).workers
    min_workers = schema.values_of(config, Timing)["min_workers"]
    if min_workers > workers:
        raise ConfigError(
            f"config.min_workers: found {min_workers}, allowed: at most "
            f"config.workers, which is {workers}"
        )
    check_task(section(config, TaskSettings), workers)
    check_training(section(config, Training))
    optimizer_of(config)
    try:
        check_coding(section(config, Coding))
    except ValueError as error:
        raise ConfigError(f"config.wire.{error}") from None
    if section(config, Stop) == Stop():
        raise ConfigError(
            "config.stop: found nothing that ends the run; set max_versions, "
            "max_time_s or target"
        )
    check_runtime(section(config, RuntimeSettings))


def build_task(config: Config, whose: Whose = "all", roots: Roots = NO_ROOTS) -> Task:
    """The task: data read and split, no array on any device yet.

    Args:
      config: see `check`.
      whose: of data that each worker has of its own, those that this process opens.
      roots: where those data are.

    Raises:
      ConfigError: the data are missing or malformed, or cannot be split as configured;
        or a user-defined factory fails.
    """
    return split_task(config, unsplit_task(config, whose, roots))


def unsplit_task(config: Config, whose: Whose = "all", roots: Roots = NO_ROOTS) -> Task:
    """As `build_task`, not split unless the factory splits."""
    run, settings = section(config, RunSettings), section(config, TaskSettings)
    private.check_roots(config, roots)
    if settings.factory and private.is_private(config):
        return private.task_of(config, whose, roots)
    if not settings.factory:
        return classification(settings)
    task = user_code.call(config, "task.factory", workers=run.workers, seed=run.seed)
    return checked_task(config, task)


def checked_task(config: Config, task: Any) -> Task:
    """A user-defined task, checked by its shapes. Raises as `build_task`."""
    return user_code.checked_task(config, task, section(config, Training).batch_size)


def split_task(config: Config, task: Task) -> Task:
    """The task, split as configured unless it is split; the patterns of `share` match
    its model. Raises as `build_task`."""
    run = section(config, RunSettings)
    _check_share(task, run.share)
    return with_shards(task, section(config, TaskSettings), run.workers, run.seed)


def _check_share(task: Task, share: tuple[str, ...]) -> None:
    try:
        check_share(task.init, share)
    except ShareError as error:
        raise ConfigError(f"config.{error}") from error


def build_strategy(config: Config) -> Strategy:
    """The strategy, its timing completed by the experiment's settings.

    Raises:
      ConfigError: a parameter of the strategy is out of range.
    """
    name, chosen = schema.strategy_of(config)
    guards = build_guards(config)
    if guards.mode == "enforce" and "max_share" in chosen:
        # Only ever lowered, and left as it is where it is out of range.
        chosen["max_share"] = min(chosen["max_share"], guards.max_share)
    if is_reference(config["strategy"]["name"]):
        strategy = _own_strategy(config, name, chosen)
    else:
        try:
            strategy = _built(BUILDERS[name], **chosen)
        except ValueError as error:
            raise ConfigError(f"config.strategy.{name}.{error}") from None
    return with_timing(config, with_optimizer(config, strategy))


def with_timing(config: Config, strategy: Strategy) -> Strategy:
    """The strategy, its timing completed by the experiment's settings.

    Raises:
      ConfigError: it has a rule of its own for what is set.
    """
    settings = schema.values_of(config, Timing)
    workers = section(config, RunSettings).workers
    usual = strategy.timing.min_updates
    if strategy.timing.replaces:  # each worker has one pending update at most
        usual = min(usual, workers)
    settings["min_updates"] = settings["min_updates"] or usual
    settings["min_workers"] = settings["min_workers"] or workers
    if strategy.timing.push_below_mean and settings["push_at_metric"] is not None:
        raise ConfigError(
            f"config.timing.push_at_metric: found {settings['push_at_metric']}, but "
            f"{strategy.name} has a rule of its own for pushes; leave it at None"
        )
    timing = replace(strategy.timing, **settings)
    try:
        check_cycle(timing)
    except ValueError as error:
        raise ConfigError(f"config.timing.{error}") from None
    return strategy._replace(timing=timing)


@lru_cache(maxsize=64, typed=True)
def _built(builder: Callable[..., Strategy], **chosen: Any) -> Strategy:
    """The same functions each time, so that experiments share what is compiled."""
    return builder(**chosen)


def _own_strategy(config: Config, name: str, chosen: dict[str, Any]) -> Strategy:
    """The strategy of a builder that the config refers to, under its name there."""
    changes = {f"strategy.args.{key}": value for key, value in chosen.items()}
    changed = schema.changed(config, changes)
    strategy = user_code.call(changed, "strategy.name", through=_built)
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"config.strategy.name: {name} returned {strategy!r:.60}, allowed: an "
            "asyn2f.Strategy; end it with `return Strategy(...)`"
        )
    return strategy._replace(name=name)


def build_guards(config: Config) -> Guards:
    """The guards; a strategy that has no coefficients to cap is left without a cap."""
    guards, (name, chosen) = section(config, Guards), schema.strategy_of(config)
    is_robust = chosen.get("aggregate") in ROBUST
    if found := user_code.found_in(config).get("strategy.name"):
        taken = user_code.settings_of("strategy.name", found)
    else:
        taken = of_signature(BUILDERS[name])
    if is_robust or "max_share" not in taken:
        return replace(guards, max_share=1.0)
    return guards


def build_experiment(
    config: Config, task: Task | None = None, strategy: Strategy | None = None
) -> Experiment:
    """Everything that the numbers depend on.

    Args:
      config: see `check`.
      task: from `build_task`; None = it is built.
      strategy: a user-defined one, whose timing and server optimizer the config
        completes; None = it is built.

    Raises:
      ConfigError: see `check` and `build_task`; or a user-defined strategy fails.
    """
    check(config)
    task = build_task(config) if task is None else task
    is_own = bool(
        {"strategy.name", user_code.OUTSIDE} & user_code.references_in(config).keys()
    )
    if strategy is None:
        strategy = build_strategy(config)
    else:
        is_own = True
        strategy = with_timing(config, with_optimizer(config, strategy))
    _check_target(section(config, Stop), task.metric)
    if is_own:
        user_code.check_strategy(strategy, task)
    try:
        return make_experiment(
            task,
            strategy,
            section(config, Training),
            section(config, Stop),
            section(config, RunSettings).seed,
            build_guards(config),
            section(config, Coding),
            section(config, Privacy).reveal,
            section(config, RunSettings).share,
            optimizer_of(config),
        )
    except ShareError as error:
        raise ConfigError(f"config.{error}") from error
    except OptimizerError as error:
        raise ConfigError(f"config.training.{error}") from error


def _check_target(stop: Stop, metric: Metric) -> None:
    """Checks that a target of a fraction is one, and not its worst value."""
    if stop.target is None or not metric.is_fraction:
        return
    is_worst = stop.target == (0.0 if metric.higher_is_better else 1.0)
    if is_worst or not 0.0 <= stop.target <= 1.0:
        allowed = "(0, 1]" if metric.higher_is_better else "[0, 1)"
        raise ConfigError(
            f"config.stop.target: found {stop.target:g}, allowed: {allowed}, as the "
            f"metric is {metric.name}; or None, for no target"
        )


def build_profiles(config: Config) -> Profiles:
    """How fast and how far away the simulated workers are.

    Raises:
      ConfigError: the file of profiles cannot be used.
    """
    settings, run = section(config, SimSettings), section(config, RunSettings)
    if is_profiles_file(settings.profiles):
        try:
            return read_profiles(Path(settings.profiles), run.workers)
        except ValueError as error:
            raise ConfigError(f"config.sim.profiles: {error}") from None
    speeds = section(config, RuntimeSettings).worker_speeds
    steps = settings.step_s
    # What is not set here is as in the runtime, where a speed of 0 is no limit.
    fastest = 1.0 / STEP_S
    step_s = tuple(
        steps[k % len(steps)] or 1.0 / (speeds[k % len(speeds)] or fastest)
        for k in range(run.workers)
    )
    rng = np.random.default_rng([run.seed, 1])  # another than the partition's
    return draw_profiles(run.workers, rng, replace(settings, step_s=step_s))
