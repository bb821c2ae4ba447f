"""FedASMU: updates are mixed in as they arrive; workers merge once per cycle."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from asyn2f.kernels.merging import linear_merge
from asyn2f.kernels.staleness import versions_behind
from asyn2f.strategies.base import (
    Strategy,
    check_range,
    initial_state,
    mixed_one_by_one,
)
from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, Params, ServerState, WorkerUpdate

TIMING = Timing(while_training="merge_once", after_push="wait", quorum="each")


def fedasmu(
    *,
    mu: float = 1.0,
    scale: float = 1.0,
    sigma: float = 0.5,
    iota: float = 0.0,
    gamma: float = 1.0,
    upsilon: float = 0.5,
    slot: float = 0.5,
) -> Strategy:
    """The FedASMU strategy (arXiv 2312.05770, AAAI 2024), the closest to Asyn2F.

    The server, at every arrival, with tau = t - o_k + 1:

        xi = lambda / (sqrt(t) tau^sigma) + iota,    a = mu xi / (1 + mu xi)
        W_{t+1} = (1 - a) W_t + a W_k

    A worker, once per cycle, with the newest version g if that is newer than o_k:

        phi = (gamma / sqrt(g)) (1 - upsilon / sqrt(g - o_k + 1))
        b = mu phi / (1 + mu phi),    w <- (1 - b) w + b W_g

    The paper learns when that is, and lambda, sigma, iota, gamma and upsilon; here they
    are constants.

    Args:
      mu: > 0.
      scale: lambda > 0.
      sigma, iota, gamma: >= 0.
      upsilon: in [0, 1].
      slot: share of a cycle's steps after which a worker merges, in (0, 1].

    Raises:
      ValueError: a number out of range.

    >>> fedasmu().timing.while_training
    'merge_once'
    """
    check_range("mu", mu, 0.0, open_low=True)
    check_range("scale", scale, 0.0, open_low=True)
    for name, value in {"sigma": sigma, "iota": iota, "gamma": gamma}.items():
        check_range(name, value, 0.0)
    check_range("upsilon", upsilon, 0.0, 1.0)
    check_range("slot", slot, 0.0, 1.0, open_low=True)

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        version = state.model.version
        tau = _one_more(versions_behind(version, updates.info.start_version))
        xi = scale / (_root(version) * tau**sigma) + iota
        return mixed_one_by_one(state, updates, mask, mu * xi / (1.0 + mu * xi))

    def merge(local: WorkerUpdate, previous: Params, model: GlobalModel):
        behind = _one_more(versions_behind(model.version, local.info.start_version))
        phi = gamma / _root(model.version) * (1.0 - upsilon / jnp.sqrt(behind))
        share = 1.0 - jnp.clip(mu * phi / (1.0 + mu * phi), 0.0, 1.0)
        merged = linear_merge(local.params, model.params, share)
        return merged, {"share": share.astype(jnp.float32)}

    timing = replace(TIMING, merge_slot=slot)
    return Strategy(
        "fedasmu", initial_state, aggregate, timing, merge=merge, uses=frozenset()
    )


def _one_more(behind: jax.Array) -> jax.Array:
    return 1.0 + behind.astype(jnp.float32)


def _root(version: jax.Array) -> jax.Array:
    # The paper's versions count from 1.
    return jnp.sqrt(jnp.maximum(version, 1).astype(jnp.float32))
