"""Asyn2F: asynchronous, with bidirectional aggregation (arXiv 2403.01417)."""

import jax
import jax.numpy as jnp

from asyn2f.aggregation import coefficients, weighted_sum
from asyn2f.merging import (
    Convention,
    check_convention,
    directional_merge,
    local_share,
)
from asyn2f.strategies.base import Strategy, initial_state, next_model, staleness
from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, Params, ServerState, WorkerUpdate


def asyn2f(
    *,
    beta: float = 0.4,
    convention: Convention = "appendix",
    max_share: float = 1.0,
) -> Strategy:
    """The Asyn2F strategy.

    The server sums what is pending, weighted by quality, size, loss and staleness
    (`aggregation.coefficients`); a worker merges each fresh version into the model it
    is training, in the middle of an epoch (`merging.directional_merge`). Nobody waits.

    Args:
      beta: weight between the data part and the loss part of a merge, in [0, 1].
      convention: whose formula beta belongs to; see `merging.local_share`. The authors'
        runs used 0.6 under "reference_code", which is 0.4 under "appendix".
      max_share: largest coefficient of one update, in (0, 1]; 1 = the paper.

    Returns:
      The strategy.

    Raises:
      ValueError: beta or max_share out of range, an unknown convention.

    >>> asyn2f().timing.while_training
    'merge'
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta: found {beta}, allowed [0, 1]")
    check_convention(convention)
    if not 0.0 < max_share <= 1.0:
        raise ValueError(f"max_share: found {max_share}, allowed (0, 1]")

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        model = state.model
        behind = staleness(model.version, updates.base_version)
        shares = coefficients(
            updates.num_examples,
            updates.loss,
            updates.quality,
            behind,
            mask,
            max_share=max_share,
        )
        params = weighted_sum(updates.params, shares)
        model = next_model(model, params, updates, mask)
        metrics = {"coefficients": shares, "staleness": jnp.where(mask, behind, 0)}
        return ServerState(model=model, memory=state.memory), metrics

    def merge(local: WorkerUpdate, previous: Params, model: GlobalModel):
        share = local_share(
            local_examples=local.num_examples,
            local_quality=local.quality,
            local_loss=local.loss,
            global_examples=model.num_examples,
            global_quality=model.quality,
            global_loss=model.loss,
            beta=beta,
            convention=convention,
        )
        merged = directional_merge(previous, local.params, model.params, share)
        return merged, {"share": share}

    return Strategy(
        name="asyn2f",
        init=initial_state,
        aggregate=aggregate,
        merge=merge,
        timing=Timing(while_training="merge", after_push="continue", quorum="some"),
    )
