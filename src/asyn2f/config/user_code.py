"""The user-defined functions that a config names, and their arguments as its keys."""

import contextlib
import inspect
import os
from collections.abc import Callable
from typing import Any

import jax
import optax

from asyn2f.config import references
from asyn2f.config.arguments import as_arguments, of_signature
from asyn2f.config.dotted import Config, flatten, nested
from asyn2f.config.optax_arguments import of_optimizer
from asyn2f.config.references import Found
from asyn2f.errors import (
    Asyn2fError,
    ConfigError,
    ContractError,
    TaskError,
    in_one_line,
)
from asyn2f.settings import Setting
from asyn2f.strategies import Strategy
from asyn2f.strategies.shapes import check_shapes
from asyn2f.tasks.base import Task
from asyn2f.tasks.checks import check_task

CODE_PATH = "code_path"
INSIDE, OUTSIDE = "training.optimizer", "strategy.server_optimizer"
"""The keys of the workers' optimizer and of the server's."""
ARGUMENTS = {
    "task.factory": "task.args.",
    "strategy.name": "strategy.args.",
    INSIDE: "training.optimizer_args.",
    OUTSIDE: "strategy.server_optimizer_args.",
}
"""The keys that may hold a reference, and the prefix of its arguments' keys."""
FILLED = {
    "task.factory": ("workers", "seed", "worker"),
    INSIDE: ("learning_rate",),
}
"""Arguments that are no keys: a function that has them is passed their values."""
WORKER, DATA = "worker", "data"
"""A factory that takes `worker` opens that worker's data alone; one that takes `data`
besides is passed the path of them."""


def is_argument(key: str) -> bool:
    """Whether a dotted key is that of an argument."""
    return key.startswith(tuple(ARGUMENTS.values()))


def references_in(config: Config) -> dict[str, str]:
    """The references in a config, by key."""
    flat = flatten(config)
    found = {key: flat.get(key, "") for key in ARGUMENTS}
    return {key: x for key, x in found.items() if references.is_reference(x)}


def found_in(config: Config) -> dict[str, Found]:
    """What the references in a config name, by key.

    Raises:
      ConfigError: there is no such function, or its module fails.
    """
    path = config.get(CODE_PATH, "")
    return {
        key: references.find(reference, path, f"config.{key}")
        for key, reference in references_in(config).items()
    }


def settings_in(config: Config) -> dict[str, Setting]:
    """The arguments of the functions that a config names, by dotted key.

    Raises:
      ConfigError: see `found_in`; or an argument cannot be a key.
    """
    return {
        ARGUMENTS[key] + name: each
        for key, found in found_in(config).items()
        for name, each in settings_of(key, found).items()
    }


def settings_of(key: str, found: Found) -> dict[str, Setting]:
    """The arguments of one function by name. Raises as `settings_in`."""
    if not callable(found.function):
        raise ConfigError(
            f"config.{key}: found {found.label}, {found.function!r:.60}, allowed: a "
            "function"
        )
    try:
        if key in (INSIDE, OUTSIDE):
            filled = FILLED.get(key, ())
            is_optax = found.module.partition(".")[0] == "optax"
            return of_optimizer(found.function, filled, is_optax)
        return of_signature(found.function, tuple(_filled(key, found)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{key}: {found.label}: {error}") from None


def optax_hint(key: str, value: Any) -> str:
    """The reference that was meant by the bare name of an optimizer of optax; or "".

    >>> optax_hint("training.optimizer", "adamw")
    '; did you mean optax:adamw?'
    """
    is_name = (
        key in (INSIDE, OUTSIDE) and isinstance(value, str) and value.isidentifier()
    )
    if not is_name or not inspect.isfunction(getattr(optax, value.lower(), None)):
        return ""
    return f"; did you mean optax:{value.lower()}?"


def completed(config: Config, *, strict: bool = True) -> dict[str, Any]:
    """The config with every argument, those that are not given by their defaults.

    Args:
      config: nested dicts.
      strict: otherwise a function that cannot be found leaves the config as it is.
    """
    flat = flatten(config)
    with contextlib.nullcontext() if strict else contextlib.suppress(ConfigError):
        for key, each in settings_in(config).items():
            value = flat.setdefault(key, each.default)
            if each.kind is float and type(value) is int:
                with contextlib.suppress(OverflowError):  # then it is out of range
                    flat[key] = float(value)
    return nested(flat)


def without_arguments(config: Config, key: str) -> dict[str, Any]:
    """The config without the arguments of the reference under a key: for another."""
    flat = flatten(config)
    return nested({k: v for k, v in flat.items() if not k.startswith(ARGUMENTS[key])})


def located(config: Config) -> dict[str, Any]:
    """The config with references that are found from every working directory."""
    flat = flatten(config)
    given = flat.get(CODE_PATH, "").split(os.pathsep)
    folders = [os.path.abspath(folder) for folder in given if folder]
    for key, found in found_in(config).items():
        flat[key] = found.reference
        if found.folder is not None:
            folders.append(str(found.folder))
    flat[CODE_PATH] = os.pathsep.join(dict.fromkeys(folders))
    return nested(flat)


def filled_of(config: Config, key: str) -> list[str]:
    """The arguments of a function that the framework passes it."""
    found = found_in(config)
    return _filled(key, found[key]) if key in found else []


def _filled(key: str, found: Found) -> list[str]:
    if key not in FILLED or not callable(found.function):
        return []
    taken = inspect.signature(found.function).parameters
    names = (*FILLED[key], *((DATA,) if WORKER in taken else ()))
    return [name for name in names if name in taken]


def digests(config: Config) -> dict[str, str]:
    """The digests of the sources of a config's references, by module."""
    return {found.module: found.digest for found in found_in(config).values()}


def call(
    config: Config,
    key: str,
    *,
    through: Callable[..., Any] = lambda function, **given: function(**given),
    **filled: Any,
) -> Any:
    """Calls the function that a config names.

    Args:
      config: with its arguments.
      key: of the reference.
      through: calls the function that it is given with the arguments.
      **filled: passed to the function if it has such arguments.

    Raises:
      ConfigError: it fails; in one line, with the line of its source.
    """
    found, prefix = found_in(config)[key], ARGUMENTS[key]
    settings, flat = settings_of(key, found), flatten(config)
    given = {name: flat[prefix + name] for name in settings if prefix + name in flat}
    filled = {name: filled[name] for name in _filled(key, found) if name in filled}
    try:
        arguments = as_arguments(settings, given)
        return through(found.function, **arguments, **filled)
    except (Exception, SystemExit) as error:
        name, colon, _ = str(error).partition(":")
        if isinstance(error, ValueError) and colon and name in settings:
            raise ConfigError(f"config.{prefix}{error}") from None
        what = f" failed: {in_one_line(error)}"
        if isinstance(error, Asyn2fError):
            what = f": {error}"
        raise ConfigError(f"config.{key}: {found.label}{what}") from error


def checked_task(config: Config, task: Any, batch_size: int) -> Task:
    """A user-defined task, checked by its shapes.

    Raises:
      ConfigError: it cannot be trained, evaluated or split.
    """
    try:
        check_task(task, batch_size)
    except TaskError as error:
        found = found_in(config).get("task.factory")
        where = f"config.task.factory: {found.label}" if found else "task"
        raise ConfigError(f"{where}: {error}") from error
    return task


def check_strategy(strategy: Strategy, task: Task) -> None:
    """Checks a user-defined strategy on the shapes of a task's model.

    Raises:
      ConfigError: a function fails, or changes structure, shapes or dtypes.
    """
    model = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    try:
        check_shapes(strategy, model, len(task.shards))
    except ContractError as error:
        raise ConfigError(
            f"config.strategy.name: {strategy.name}: {error}; see asyn2f check-strategy"
        ) from error
