"""NNX modules as two pure functions of a dict of collections."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from asyn2f.tasks.networks import Network
from asyn2f.types import Params

Module = nnx.Module


def network_of_one(module: nnx.Module) -> Network:
    """The functions of a module as it is now: every key gives its own variables."""
    now = nnx.clone(module)
    return network_of_nnx(lambda rngs: nnx.clone(now))


def network_of_nnx(make: Callable[..., nnx.Module]) -> Network:
    """Of an NNX module: variables other than `nnx.Param` are collections by the name of
    their type, and streams of random numbers begin at the key of each step."""

    def split(train: bool) -> tuple[Any, list[Any]]:
        def abstract():
            module = make(rngs=nnx.Rngs(0))
            module.train() if train else module.eval()
            return module

        graph, state = nnx.split(nnx.eval_shape(abstract))
        return graph, list(nnx.to_flat_state(state))

    splits = {train: split(train) for train in (True, False)}

    def init(key, x):
        module = make(rngs=nnx.Rngs(key))
        return _collections(nnx.to_flat_state(nnx.state(module)))

    def apply(params, x, key):
        train = key is not None
        graph, variables = splits[train]
        values = _values(params, variables, key if train else jax.random.key(0))
        module = nnx.merge(graph, nnx.from_flat_state(values))
        outputs = module(x)
        if not train:
            return outputs, {}
        found = _collections(nnx.to_flat_state(nnx.state(module)))
        return outputs, {k: found[k] for k in params if k != "params"}

    return Network(init, apply)


def _collections(flat: Any) -> Params:
    """Collections as nested dicts of arrays, without the state of random numbers."""
    found: Params = {"params": {}}
    for path, variable in flat:
        if not isinstance(variable, nnx.RngState | nnx.Intermediate):
            *above, last = _place(path, variable)
            inner = found
            for name in above:
                inner = inner.setdefault(name, {})
            inner[last] = variable.get_value()
    return found


def _place(path: tuple[Any, ...], variable: Any) -> list[str]:
    if isinstance(variable, nnx.Param):
        return ["params", *map(str, path)]
    kind = type(variable)
    name = nnx.variable_name_from_type(kind, allow_register=True)
    return [name, *map(str, path)]


def _values(params: Params, variables: list[Any], key: jax.Array) -> list[Any]:
    """The variables of a module with the values of collections, and counters of random
    numbers from 0 under keys folded from `key`."""
    found = []
    for number, (path, variable) in enumerate(variables):
        shape = variable.get_value().shape
        if isinstance(variable, nnx.RngKey):
            own = jax.random.fold_in(key, number)
            value: Any = jax.random.split(own, shape) if shape else own
        elif isinstance(variable, nnx.RngState):
            value = jnp.zeros(shape, jnp.uint32)
        else:
            value = params
            for name in _place(path, variable):
                value = value[name]
        found.append((path, variable.replace(value)))
    return found
