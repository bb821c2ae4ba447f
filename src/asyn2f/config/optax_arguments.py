"""The arguments of optimizers as settings of a config."""

import dataclasses
import inspect
from collections.abc import Callable, Collection
from typing import Any, get_args

from asyn2f.config.arguments import argument_docs, of_signature
from asyn2f.settings import Setting, of_annotation

_SHARE = {"at_least": 0.0, "below": 1.0}
_COUNT = {"at_least": 0.0}
# Of arguments of optax, whose signatures have no ranges.
_RANGES: dict[str, dict[str, Any]] = {
    "learning_rate": {"above": 0.0},
    **dict.fromkeys(("b1", "b2", "b3", "momentum", "decay"), _SHARE),
    **dict.fromkeys(("eps", "eps_root", "weight_decay"), _COUNT),
}


def of_optimizer(
    function: Callable[..., Any], filled: Collection[str], is_optax: bool
) -> dict[str, Setting]:
    """The arguments of an optimizer's function, by name.

    Args:
      function: returns a transformation.
      filled: arguments that it must have, and that are no settings.
      is_optax: whether it is one of optax. Their arguments have the types of their
        defaults, and the ranges that go with their names; those that no config can hold
        are left out, and those without a default are None.

    Raises:
      TypeError: it lacks an argument; or one has no default, or is of a type that no
        config has.

    >>> import optax
    >>> found = of_optimizer(optax.adamw, ["learning_rate"], is_optax=True)
    >>> sorted(found)[:4], found["b1"].in_words(), found["mu_dtype"].in_words()
    (['b1', 'b2', 'eps', 'eps_root'], '[0, 1)', 'a string, or None')
    """
    parameters = inspect.signature(function).parameters
    for name in filled:
        if name not in parameters:
            raise TypeError(
                f"it has no argument {name}, which may differ from step to step; write "
                f"a function of it: def make_optimizer({name}, *, ...)"
            )
    if not is_optax:
        return of_signature(function, filled)
    found = of_signature(function, filled, strict=False)
    docs = argument_docs(function)
    for name, parameter in parameters.items():
        kind = None if name in filled or name in found else _kind_of(name, parameter)
        if kind is not None:
            each = of_annotation(kind, default=None, doc=docs.get(name, ""))
            found[name] = dataclasses.replace(each, optional=True)
    return {name: _in_range(name, each) for name, each in found.items()}


def _kind_of(name: str, parameter: inspect.Parameter) -> Any:
    """The type of an argument that has no default, or None as such; None = unknown."""
    if parameter.default not in (None, parameter.empty):
        return None
    if name.endswith("_dtype"):
        return str
    return float if float in get_args(parameter.annotation) else None


def _in_range(name: str, each: Setting) -> Setting:
    bounds = _RANGES.get(name, {}) if each.kind is float else {}
    return dataclasses.replace(each, **bounds)
