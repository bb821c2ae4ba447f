"""What a caller gives `simulate` and `replay` besides a config, checked."""

from typing import Any

from asyn2f.config import schema, user_code
from asyn2f.config.references import is_reference
from asyn2f.config.schema import Config, section
from asyn2f.config.task import TaskSettings
from asyn2f.errors import ConfigError
from asyn2f.settings import check_type
from asyn2f.strategies import BUILDERS, Strategy
from asyn2f.tasks.base import Task
from asyn2f.training.experiment import Experiment


def check_given(
    experiment: Any, task: Any, strategy: Any, config: Config | None = None
) -> None:
    """Checks the types of what is given.

    Args:
      experiment, task, strategy: as in `simulate`.
      config: whose `task.factory` excludes a task besides; None = not checked.

    Raises:
      ConfigError: in one line, with what is found, and what is allowed.

    >>> check_given(None, None, BUILDERS["fedbuff"])
    Traceback (most recent call last):
    asyn2f.errors.ConfigError: strategy: found the function fedbuff, allowed: a \
Strategy; call it: strategy=fedbuff(...)
    """
    if experiment is not None:
        hint = "asyn2f.make_experiment makes one"
        for kind, name in ((Task, "task"), (Strategy, "strategy")):
            if isinstance(experiment, kind):
                hint = f"pass it as {name}=..."
        check_type("experiment", experiment, Experiment, hint)
    if task is not None:
        check_type("task", task, Task, "asyn2f.supervised makes one")
    if isinstance(strategy, str):
        if strategy not in BUILDERS and not is_reference(strategy):
            allowed = f"a Strategy, or one of {', '.join(BUILDERS)}; or MODULE:FUNCTION"
            raise ConfigError(f"strategy: found {strategy!r}, allowed: {allowed}")
    elif strategy is not None:
        check_type("strategy", strategy, Strategy, "asyn2f.fedbuff() makes one")
    if experiment is not None and (task is not None or strategy is not None):
        raise ConfigError(
            "found an experiment and a task or strategy besides; give one of them"
        )
    factory = section(config, TaskSettings).factory if config else ""
    if task is not None and factory:
        raise ConfigError(
            f"task: found one besides config.task.factory, which is {factory}; give "
            "one of them"
        )


def with_strategy(
    config: Config, strategy: Strategy | str | None
) -> tuple[Config, Strategy | None]:
    """A config that names the strategy, if that is given by its name; and the strategy,
    if it is given itself."""
    if not isinstance(strategy, str):
        return config, strategy
    config = user_code.without_arguments(config, "strategy.name")
    return schema.plain(schema.changed(config, {"strategy.name": strategy})), None
