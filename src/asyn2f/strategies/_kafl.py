"""M-step KAFL: K-async FL, the first M arrivals, frequent uploaders held back."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from asyn2f.kernels.deltas import trained
from asyn2f.strategies.base import (
    BUFFERED,
    Strategy,
    advanced,
    blended,
    check_choice,
    check_range,
    initial_state,
    shares_of,
)
from asyn2f.types import Params, ServerState, WorkerUpdate

Weighting = Literal["full", "plain"]
DistanceOver = Literal["all", "trained"]


def kafl(
    *,
    weighting: Weighting = "full",
    mixing: float = 0.8,
    rho: float = 1.0,
    distance_over: DistanceOver = "all",
) -> Strategy:
    """The M-step KAFL strategy.

        q_k = uploads of worker k / uploads of all
        l_k = <W_t, W_k> / ||W_t||^2 - 1
        w_k = n_k exp(-rho |l_k / q_k|), made to sum to 1
        W_{t+1} = (1 - a) W_t + a sum_k w_k W_k

    (M-step KAFL, ICDCS 2022), over M = `timing.min_updates` arrivals in order, usually
    3, perhaps two of one worker. The uploads include those of this aggregation. After a
    push a worker adopts the newest version.

    Args:
      weighting: w_k as above ("full"), or in proportion to n_k ("plain"): what Asyn2F's
        authors compared with, at a = 0.8.
      mixing: a, in (0, 1].
      rho: >= 0, of "full".
      distance_over: the arrays of the product and the norm: "all" of W, statistics
        included, as in the paper and its code; or those that are "trained".

    Raises:
      ValueError: a number out of range, or an unknown choice.

    >>> kafl().timing.min_updates
    3
    """
    check_choice("weighting", weighting, Weighting)
    check_choice("distance_over", distance_over, DistanceOver)
    check_range("mixing", mixing, 0.0, 1.0, open_low=True)
    check_range("rho", rho, 0.0)
    over = trained if distance_over == "trained" else lambda params: params

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        worker = jnp.where(mask, updates.worker, 0)
        uploads = state.memory.at[worker].add(mask.astype(jnp.int32))
        # In logarithms: the exponent may be anything, and the largest weight is 1.
        examples = jnp.where(mask, updates.info.num_examples, 1.0).astype(jnp.float32)
        weights = jnp.log(examples)
        if weighting == "full":
            often = uploads[worker].astype(jnp.float32)
            often = often / jnp.sum(uploads).astype(jnp.float32)
            off = _likeness(over(state.model.params), over(updates.params)) - 1.0
            weights = weights - rho * jnp.abs(off / often)
        weights = jnp.where(mask, weights, -jnp.inf)
        shares = shares_of(jnp.exp(weights - jnp.max(weights)), mask)
        params = blended(
            state.model.params, updates.params, 1.0 - mixing, mixing * shares
        )
        return advanced(state, params, updates, mask, shares, memory=uploads)

    return Strategy(
        name="kafl",
        init=_init,
        aggregate=aggregate,
        uses=frozenset({"size"}),
        timing=replace(BUFFERED, min_updates=3),
    )


def _init(params: Params, workers: int) -> ServerState:
    uploads = jnp.zeros(workers, jnp.int32)
    return initial_state(params, workers)._replace(memory=uploads)


def _likeness(params: Params, rows: Params) -> jax.Array:
    """`<W, W_k> / ||W||^2` over all of their arrays, f32 [K]."""

    def product(one, several):
        one, several = one.astype(jnp.float32), several.astype(jnp.float32)
        axes = tuple(range(1, several.ndim))
        return jnp.sum(one[None] * several, axis=axes)

    products = jax.tree.leaves(jax.tree.map(product, params, rows))
    leaves = jax.tree.leaves(params)
    norm = sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves)
    return sum(products) / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
