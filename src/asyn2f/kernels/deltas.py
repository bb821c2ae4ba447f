"""Differences of models: what methods exchange that add up what workers have changed.

Statistics (every collection but `"params"`) are no sum of changes: a running variance
that differences are added to can become negative. They travel as they are, and are
averaged.
"""

import jax
import jax.numpy as jnp

from asyn2f.kernels.aggregation import cast, weighted_sum
from asyn2f.types import Params


def trained(params: Params) -> Params:
    """The collection that is trained; the whole of what is no Flax dictionary."""
    is_flax = isinstance(params, dict) and "params" in params
    return params["params"] if is_flax else params


def with_trained(params: Params, values: Params) -> Params:
    """`params` with other values for what is trained."""
    is_flax = isinstance(params, dict) and "params" in params
    return {**params, "params": values} if is_flax else values


def difference(params: Params, start: Params) -> Params:
    """`params - start` of what is trained; statistics as they are in `params`.

    The push of FedBuff and its kin. Differences are taken in float32 and kept in each
    leaf's dtype.

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
    """`params + rate * change` of what is trained, statistics as they are in `change`;
    in float32, kept in each leaf's dtype (integers rounded)."""

    def add(before, step):
        after = before.astype(jnp.float32) + rate * step.astype(jnp.float32)
        return cast(after, before.dtype)

    return with_trained(change, jax.tree.map(add, trained(params), trained(change)))


def mean_change(pushed: Params, weights: jax.Array, mask: jax.Array) -> Params:
    """`(1 / M) sum_k weights[k] Delta_k` of M real differences; statistics: their plain
    mean, whatever the weights.

    Args:
      pushed: what `difference` made, stacked to leaves [K, ...].
      weights: f32 [K]; of rows that are not real, anything.
      mask: bool [K], True = real.

    Returns:
      One such tree; what is trained in float32.
    """
    share = mask.astype(jnp.float32)
    share = share / jnp.maximum(jnp.sum(share), 1.0)
    f32 = jax.tree.map(lambda x: x.astype(jnp.float32), trained(pushed))
    statistics = weighted_sum(with_trained(pushed, ()), share)
    shares = share * jnp.where(mask, weights, 0.0)
    return with_trained(statistics, weighted_sum(f32, shares))
