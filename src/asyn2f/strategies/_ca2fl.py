"""CA2FL: a buffer of differences, calibrated by each worker's last (Wang et al.)."""

import jax
import jax.numpy as jnp

from asyn2f.kernels.deltas import difference, mean_change, moved, trained, with_trained
from asyn2f.strategies.base import (
    BUFFERED,
    Strategy,
    advanced,
    check_range,
    initial_state,
    shares_of,
)
from asyn2f.types import Params, ServerState, WorkerUpdate


def ca2fl(*, server_rate: float = 1.0) -> Strategy:
    """The CA2FL strategy (Wang et al., 2024), for workers whose data differ.

        v = mean over all workers of h + (1 / M) sum_k (Delta_k - h_k)
        W <- W + eta v,    then h_k <- Delta_k of the M in the buffer

    h_k is the last difference of worker k, 0 before the first: the server keeps one
    model per worker. Two updates of one worker are both taken against the h_k of
    before; its last becomes h_k. M = `timing.min_updates`.

    Args:
      server_rate: eta > 0.

    Raises:
      ValueError: it is not above 0.

    >>> ca2fl().timing.after_push
    'adopt'
    """
    check_range("server_rate", server_rate, 0.0, open_low=True)

    def init(params: Params, workers: int) -> ServerState:
        cache = jax.tree.map(
            lambda x: jnp.zeros((workers, *x.shape), jnp.float32), trained(params)
        )
        return initial_state(params, workers)._replace(memory=cache)

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        cache = state.memory
        worker = jnp.where(mask, updates.worker, 0)
        ones = jnp.ones(mask.shape, jnp.float32)
        known = jax.tree.map(lambda h: h[worker], cache)
        change = mean_change(updates.params, ones, mask)
        stale = mean_change(known, ones, mask)
        step = jax.tree.map(
            lambda h, fresh, old: jnp.mean(h, axis=0) + fresh - old,
            cache,
            trained(change),
            stale,
        )
        params = moved(state.model.params, with_trained(change, step), server_rate)

        def keep(cache, row):
            worker, pushed, is_real = row
            cache = jax.tree.map(
                lambda h, new: h.at[worker].set(
                    jnp.where(is_real, new.astype(jnp.float32), h[worker])
                ),
                cache,
                pushed,
            )
            return cache, None

        rows = worker, trained(updates.params), mask
        cache, _ = jax.lax.scan(keep, cache, rows)
        return advanced(state, params, updates, mask, shares_of(ones, mask), cache)

    return Strategy(
        "ca2fl", init, aggregate, BUFFERED, push=difference, uses=frozenset()
    )
