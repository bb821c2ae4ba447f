"""Models of several kinds as two pure functions of a dict of collections."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax

from asyn2f.errors import TaskError
from asyn2f.types import Params


class Apply(Protocol):
    def __call__(
        self, params: Params, x: Any, key: jax.Array | None
    ) -> tuple[Any, dict[str, Any]]:
        """Outputs, and the new values of every collection but `"params"`; in evaluation
        mode, without a key, no collection changes and {} is returned."""


class Network(NamedTuple):
    """A model as pure functions."""

    init: Callable[[jax.Array, Any], Params]  # (key, x) -> collections
    apply: Apply


def network_of(model: Any) -> Network:
    """The functions of a Flax Linen module, of an NNX module or a function of `rngs`
    that makes one, or of a pair (init, apply).

    Raises:
      TaskError: a model of another kind.

    >>> init, apply = network_of((lambda key, x: 2.0, lambda w, x: w * x))
    >>> apply(init(jax.random.key(0), None), 3.0, None)
    (6.0, {})
    """
    if isinstance(model, nn.Module):
        return _linen(model)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return _functions(*model)
    # Imported here: it takes a part of a second, and Linen needs none of it.
    from asyn2f.tasks.nnx_networks import Module, network_of_nnx, network_of_one

    if isinstance(model, Module):
        return network_of_one(model)
    if callable(model) and "rngs" in _arguments(model):
        return network_of_nnx(model)
    raise TaskError(
        f"model: found {type(model).__name__} {model!r:.60}, allowed: a Flax Linen "
        "module, an NNX module or a function of rngs that makes one, or a pair of "
        "functions init(key, x) and apply(params, x)"
    )


def _arguments(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # of some built-in functions
        return []


_IN_TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


def _modes(arguments: list[str]) -> Callable[[bool], dict[str, Any]]:
    """Keyword arguments that tell a model whether it is in training."""
    known = {name: value for name, value in _IN_TRAINING.items() if name in arguments}
    return lambda train: {name: value == train for name, value in known.items()}


def _linen(model: nn.Module) -> Network:
    modes = _modes(_arguments(type(model).__call__))

    def init(key, x):
        return dict(model.init(key, x, **modes(False)))

    def apply(params, x, key):
        if key is None:
            return model.apply(params, x, **modes(False)), {}
        collections = [name for name in params if name != "params"]
        outputs, statistics = model.apply(
            params, x, **modes(True), mutable=collections, rngs={"dropout": key}
        )
        return outputs, dict(statistics)

    return Network(init, apply)


def _functions(init: Callable[..., Any], apply: Callable[..., Any]) -> Network:
    """Of a pair; `apply` may take the key in the second place, as Haiku's does, and by
    name the key and whether it is in training."""
    arguments = _arguments(apply)
    modes = _modes(arguments)
    keys = [name for name in ("key", "rng") if name in arguments]
    is_second = keys and arguments.index(keys[0]) == 1

    def applied(params, x, key):
        train = key is not None
        key = key if train else jax.random.key(0)
        if is_second:
            return apply(params["params"], key, x, **modes(train)), {}
        named = dict.fromkeys(keys, key)
        return apply(params["params"], x, **named, **modes(train)), {}

    return Network(lambda key, x: {"params": init(key, x)}, applied)
