"""Global to local: a new global model merged into one that is being trained.

The worker's side of Asyn2F (Cao et al., arXiv 2403.01417, and its appendix).
"""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from asyn2f.types import Params

Convention = Literal["appendix", "reference_code"]


@partial(jax.jit, static_argnames=("convention",))
def local_share(
    *,
    local_examples: jax.Array,
    local_quality: jax.Array,
    local_loss: jax.Array,
    global_examples: jax.Array,
    global_quality: jax.Array,
    global_loss: jax.Array,
    beta: jax.Array | float,
    convention: Convention = "appendix",
) -> jax.Array:
    """The share alpha of the local model in the interpolation.

        D = Q_k s_k / (Q_k s_k + Q S)         data part
        R = L / (L_k + L)                     loss part: a poor local model keeps less
        alpha = beta D + (1 - beta) R         "appendix" (its eq. (1)), the default
        alpha = (1 - beta) D + beta R         "reference_code"

    The authors' code swaps the roles of the two parts: its beta = 0.6 is the appendix's
    0.4. Both are here so that either can be reproduced.

    Args:
      local_examples: f32 [], s_k > 0.     global_examples: f32 [], S >= 0.
      local_quality: f32 [], Q_k > 0.      global_quality: f32 [], Q > 0.
      local_loss: f32 [], L_k >= 0.        global_loss: f32 [], L >= 0.
      beta: weight between the two parts, in [0, 1].
      convention: which of the two formulas.

    Returns:
      f32 [], in [0, 1]. Two losses of 0 count as equal.

    Raises:
      ValueError: an unknown convention.

    >>> share = local_share(local_examples=100.0, local_quality=1.0, local_loss=0.6,
    ...                     global_examples=300.0, global_quality=1.0, global_loss=0.2,
    ...                     beta=0.4, convention="appendix")
    >>> round(float(share), 3)
    0.25
    """
    if convention not in get_args(Convention):
        raise ValueError(
            f"convention: found {convention!r}, allowed {list(get_args(Convention))}"
        )
    data = _part(local_quality * local_examples, global_quality * global_examples)
    loss = _part(global_loss, local_loss)
    if convention == "reference_code":
        data, loss = loss, data
    return beta * data + (1.0 - beta) * loss


def _part(mine: jax.Array | float, other: jax.Array | float) -> jax.Array:
    """`mine / (mine + other)`; one half for 0 and 0, and unchanged bits otherwise."""
    tiny = jnp.finfo(jnp.float32).tiny
    mine = jnp.asarray(mine, jnp.float32) + tiny
    return mine / (mine + (jnp.asarray(other, jnp.float32) + tiny))


@jax.jit
def linear_merge(
    current: Params, global_params: Params, share: jax.Array | float
) -> Params:
    """`(1 - share) G + share W` in every element, clipped between the two; in float32,
    kept in each leaf's own dtype (integers rounded).

    Args:
      current: the local parameters (W).
      global_params: the arrived global parameters (G).
      share: f32 [], in [0, 1].

    >>> print(linear_merge(jnp.array([1.0, 1.0]), jnp.array([3.0, 1.0]), 0.25))
    [2.5 1. ]
    """
    return jax.tree.map(
        lambda now, target: _between(now, target, share), current, global_params
    )


def _between(now: jax.Array, target: jax.Array, share: jax.Array | float) -> jax.Array:
    w, g = now.astype(jnp.float32), target.astype(jnp.float32)
    between = (1.0 - share) * g + share * w
    between = jnp.clip(between, jnp.minimum(w, g), jnp.maximum(w, g))
    if now.dtype == jnp.float32:  # held between two that are equal, it is the same
        return between
    if not jnp.issubdtype(now.dtype, jnp.inexact):
        between = jnp.round(between)
    return jnp.where(now == target, now, between.astype(now.dtype))


@jax.jit
def directional_merge(
    previous: Params, current: Params, global_params: Params, share: jax.Array | float
) -> Params:
    """The local model with the global one merged in, each element by its direction.

        d = (W - W_prev) * (G - W)
        merged = G                            where d > 0
        merged = (1 - alpha) G + alpha W      elsewhere

    Where the last local step moved towards the global value, the global value is taken;
    elsewhere the two are interpolated (Asyn2F, appendix, local aggregation). All arrays
    are merged, batch-norm statistics included.

    The interpolation is clipped between the two, against rounding, so merging a model
    with itself returns the same bits. The sign of d is found by comparisons, as
    differences or products of tiny numbers would lose it. Arithmetic is in float32, the
    result in each leaf's own dtype (integers rounded).

    Args:
      previous: parameters before the last local step (W_prev).
      current: parameters after it (W).
      global_params: the arrived global parameters (G).
      share: f32 [], alpha in [0, 1].

    Returns:
      A pytree like `current`.

    >>> import jax.numpy as jnp
    >>> print(directional_merge(jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0]),
    ...                         jnp.array([3.0, 3.0]), 0.25))
    [3.  2.5]
    """

    def merge(before, now, target):
        rising = (now > before) & (target > now)
        falling = (now < before) & (target < now)
        return jnp.where(rising | falling, target, _between(now, target, share))

    return jax.tree.map(merge, previous, current, global_params)
