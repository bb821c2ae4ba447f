"""A check of a strategy by shapes, before anything is computed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from asyn2f.errors import ContractError, in_one_line
from asyn2f.strategies.base import Strategy
from asyn2f.strategies.requirements import require, require_layout
from asyn2f.strategies.samples import update
from asyn2f.types import Params, UpdateInfo


def check_shapes(strategy: Strategy, shapes: Params, workers: int) -> None:
    """Checks what a strategy's functions return for a model, by tracing them.

    Args:
      strategy: a user-defined one.
      shapes: of the model.
      workers: their number.

    Raises:
      ContractError: a function fails, or changes structure, shapes or dtypes.
    """

    def traced(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return jax.eval_shape(function, *arguments)
        except Exception as error:
            raise ContractError(f"{name} failed: {in_one_line(error)}") from error

    def rows(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), tree
        )

    state = traced("init", lambda params: strategy.init(params, workers), shapes)
    pushed = traced("push", strategy.push, shapes, shapes)
    require_layout(pushed, shapes, "push")
    own = update(shapes)
    info = jax.eval_shape(lambda: UpdateInfo(*map(jnp.asarray, own.info)))
    worker: Any = jax.ShapeDtypeStruct((), jnp.int32)
    own = own._replace(worker=worker, info=info)
    mask = jax.ShapeDtypeStruct((2,), jnp.bool_)
    after, metrics = traced("aggregate", strategy.aggregate, state, rows(own), mask)
    require_layout(after, state, "the state that aggregate returns")
    for name in ("coefficients", "staleness"):
        require(name in metrics, f"aggregate returned metrics without {name}")
    merged, metrics = traced("merge", strategy.merge, own, shapes, state.model)
    require_layout(merged, shapes, "merge")
    require("share" in metrics, "merge returned metrics without share")
