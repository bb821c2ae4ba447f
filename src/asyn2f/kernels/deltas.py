"""Differences of models, for methods that sum the changes of workers.

Statistics (every collection but `"params"`) are sent unchanged and averaged: a running
variance to which differences are added can become negative.
"""

import jax
import jax.numpy as jnp

from asyn2f.kernels.aggregation import cast, weighted_sum
from asyn2f.types import Params


def trained(params: Params) -> Params:
    """The trained collection of a Flax dictionary; other pytrees as a whole."""
    is_flax = isinstance(params, dict) and "params" in params
    return params["params"] if is_flax else params


def with_trained(params: Params, values: Params) -> Params:
    """`params` with other values of the trained parameters."""
    is_flax = isinstance(params, dict) and "params" in params
    return {**params, "params": values} if is_flax else values


def difference(params: Params, start: Params) -> Params:
    """`params - start` of the trained parameters; statistics as in `params`.

    The push of FedBuff and similar methods. In float32, kept in each leaf's dtype.

    >>> w, s = jnp.array([3.0]), jnp.array([2.0])
    >>> print(difference({"params": w, "batch_stats": s}, {"params": s}))
    {'params': Array([1.], dtype=float32), 'batch_stats': Array([2.], dtype=float32)}
    """

    def subtract(after, before):
        change = after.astype(jnp.float32) - before.astype(jnp.float32)
        return cast(change, after.dtype)

    change = jax.tree.map(subtract, trained(params), trained(start))
    return with_trained(params, change)


def moved(params: Params, change: Params, rate: jax.Array | float) -> Params:
    """`params + rate * change` of the trained parameters, statistics as in `change`; in
    float32, kept in each leaf's dtype (integers rounded)."""

    def add(before, step):
        after = before.astype(jnp.float32) + rate * step.astype(jnp.float32)
        return cast(after, before.dtype)

    return with_trained(change, jax.tree.map(add, trained(params), trained(change)))


def mean_change(pushed: Params, weights: jax.Array, mask: jax.Array) -> Params:
    """`(1 / M) sum_k weights[k] Delta_k` of M real differences; statistics: their plain
    mean, whatever the weights.

    Args:
      pushed: of `difference`, stacked to leaves [K, ...].
      weights: f32 [K]; of padding rows, anything.
      mask: bool [K], True = real.

    Returns:
      One such tree; the trained parameters in float32.
    """
    share = mask.astype(jnp.float32)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    f32 = jax.tree.map(lambda x: x.astype(jnp.float32), trained(pushed))
    statistics = weighted_sum(with_trained(pushed, ()), share)
    shares = share * jnp.where(mask, weights, 0.0)
    return with_trained(statistics, weighted_sum(f32, shares))
