"""Optimizers of optax under JAX's standard rules of promotion."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import optax


def promoting(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, which may multiply integers with floats whatever rules are set:
    those of optax do. It takes any extra arguments, and uses those it knows."""
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        with _standard():
            return optimizer.init(params)

    def update(gradient: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        with _standard():
            return optimizer.update(gradient, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


@contextlib.contextmanager
def _standard() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
