"""The optimizers that a config names, and what has to fit in its section `training`."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import optax

from asyn2f.config import user_code
from asyn2f.config.dotted import Config
from asyn2f.errors import ConfigError
from asyn2f.settings import settings_of
from asyn2f.strategies import Strategy, with_server_optimizer
from asyn2f.training.optimizers import SGD, Optimizer
from asyn2f.training.settings import Training

OF_SGD = ("momentum", "weight_decay")
"""Settings of the built-in optimizer, without effect on others."""


def check_training(training: Training) -> None:
    """Checks that the settings fit together.

    Raises:
      ConfigError: they do not.
    """
    floor, rate = training.learning_rate_min, training.learning_rate
    schedule, epochs = training.schedule, training.schedule_epochs
    if schedule != "fixed" and floor > rate:
        raise ConfigError(
            f"config.training.learning_rate_min: found {floor:g}, allowed: at most "
            f"training.learning_rate, which is {rate:g}, where the schedule is "
            f"{schedule}: lower it too, or take training.schedule=fixed"
        )
    if schedule != "cosine" and epochs:
        raise ConfigError(
            f"config.training.schedule_epochs: found {epochs}, allowed: 0 where the "
            f"schedule is {schedule}; only cosine counts a worker's own epochs"
        )
    if training.optimizer == SGD:
        return
    for name in OF_SGD:
        value, default = getattr(training, name), settings_of(Training)[name].default
        if value not in (0.0, default):
            raise ConfigError(
                f"config.training.{name}: found {value:g}, allowed: {default:g}, its "
                f"default, or 0, as it belongs to {SGD} and the optimizer is "
                f"{training.optimizer}; set training.optimizer_args.{name}, if it has "
                "that"
            )


def optimizer_of(config: Config) -> Optimizer | None:
    """The workers' optimizer; None = the built-in one.

    Raises:
      ConfigError: there is no such function, or it is not one of the learning rate.
    """
    if user_code.INSIDE not in user_code.references_in(config):
        return None
    found: Optimizer = user_code.call(config, user_code.INSIDE, through=_inside)
    return found


def with_optimizer(config: Config, strategy: Strategy) -> Strategy:
    """The strategy with the server's optimizer, if the config names one.

    Raises:
      ConfigError: there is no such function; or it fails, or returns no optimizer.
    """
    if user_code.OUTSIDE not in user_code.references_in(config):
        return strategy
    return _around(
        strategy, user_code.call(config, user_code.OUTSIDE, through=_outside)
    )


# The same functions each time, so that experiments share what is compiled.


@lru_cache(maxsize=64, typed=True)
def _inside(function: Callable[..., Any], **arguments: Any) -> Optimizer:
    def build(learning_rate: Any) -> optax.GradientTransformation:
        made: optax.GradientTransformation = function(
            learning_rate=learning_rate, **arguments
        )
        return made

    return build


@lru_cache(maxsize=64, typed=True)
def _outside(
    function: Callable[..., Any], **arguments: Any
) -> optax.GradientTransformation:
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and arguments.get(name) is None:
            hint = "; the server has a rate of its own, often between 0.001 and 1"
            raise ValueError(
                f"{name}: found None, needed: a number"
                f"{hint if name == 'learning_rate' else ''}"
            )
    made = function(**arguments)
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(f"it returned {made!r:.60}, not a GradientTransformation")
    return made


@lru_cache(maxsize=64)
def _around(strategy: Strategy, optimizer: optax.GradientTransformation) -> Strategy:
    return with_server_optimizer(strategy, optimizer)
