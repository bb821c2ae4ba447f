"""ASAFL: workers push when they have drifted; steps are weighted by similarity."""

from typing import Literal

import jax
import jax.numpy as jnp

from asyn2f.kernels.deltas import difference, mean_change, moved, trained
from asyn2f.strategies.base import (
    Strategy,
    advanced,
    check_choice,
    check_range,
    count_of,
    initial_state,
    shares_of,
)
from asyn2f.timing import Timing
from asyn2f.types import Params, ServerState, WorkerUpdate

Unsent = Literal["drop", "keep"]


def asafl(*, rate: float = 1.0, unsent: Unsent = "drop") -> Strategy:
    """The ASAFL strategy, one of those that Asyn2F's authors compared with.

        c = mean over layers of cos(W_k, W_o)
        W <- W - (1/2) tanh(2 c) lr g_k,    g_k = -Delta_k / lr_local

    A worker pushes at the end of a cycle only if c is at most the mean of its c so far,
    this one included: its first cycle always ends with a push. W_o is the version that
    it last adopted; a layer is one trained array. Timing depends on values, so a
    simulation executes each step while it schedules.

    Args:
      rate: lr / lr_local > 0.
      unsent: after a cycle without a push, once there is a newer version: "drop" the
        cycle and adopt that version, or "keep" training from it. The published
        descriptions leave this open.

    Raises:
      ValueError: rate is not above 0, an unknown choice.

    >>> asafl().timing.push_below_mean
    True
    """
    check_range("rate", rate, 0.0, open_low=True)
    check_choice("unsent", unsent, Unsent)

    def signal(params: Params, start: Params) -> jax.Array:
        cosines = jax.tree.map(_cosine, trained(params), trained(start))
        return jnp.mean(jnp.stack(jax.tree.leaves(cosines)))

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        # One by one in theory; a sum of steps does not depend on their order.
        weights = 0.5 * jnp.tanh(2.0 * jnp.where(mask, updates.info.signal, 0.0))
        change = mean_change(updates.params, weights, mask)
        params = moved(state.model.params, change, rate * count_of(mask))
        # Updates that all move nothing count the same.
        sizes = jnp.maximum(jnp.abs(weights), jnp.finfo(jnp.float32).eps)
        return advanced(state, params, updates, mask, shares_of(sizes, mask))

    return Strategy(
        name="asafl",
        init=initial_state,
        aggregate=aggregate,
        uses=frozenset(),
        timing=Timing(
            while_training="ignore",
            after_push="wait",
            quorum="each",
            push_below_mean=True,
            keep_unsent=unsent == "keep",
        ),
        push=difference,
        signal=signal,
    )


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32 []; 1 for two arrays of zeros, 0 for one."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    product = jnp.sqrt(jnp.sum(a * a)) * jnp.sqrt(jnp.sum(b * b))
    tiny = jnp.finfo(jnp.float32).tiny
    same = jnp.all(a == b)
    return jnp.where(same, 1.0, jnp.sum(a * b) / jnp.maximum(product, tiny))
