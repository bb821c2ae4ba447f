"""Asyn2F: asynchronous, with bidirectional aggregation (arXiv 2403.01417)."""

from typing import Literal

import jax
import jax.numpy as jnp

from asyn2f.kernels.aggregation import (
    coefficients,
    coordinate_median,
    trimmed_mean,
    weighted_sum,
)
from asyn2f.kernels.merging import (
    Convention,
    directional_merge,
    linear_merge,
    local_share,
)
from asyn2f.kernels.staleness import versions_behind
from asyn2f.strategies.base import (
    Aggregate,
    Merge,
    Strategy,
    advanced,
    check_choice,
    check_range,
    initial_state,
    shares_of,
)
from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, Params, ServerState, WorkerUpdate

MergeRule = Literal["directional", "linear", "none"]
AggregateRule = Literal["quality", "plain", "median", "trimmed_mean"]

ROBUST = ("median", "trimmed_mean")
"""Aggregations without coefficients: every update counts the same."""


def asyn2f(
    *,
    beta: float = 0.4,
    convention: Convention = "appendix",
    max_share: float = 1.0,
    merge: MergeRule = "directional",
    aggregate: AggregateRule = "quality",
    trim: float = 0.2,
) -> Strategy:
    """The Asyn2F strategy.

    The server sums the pending updates, weighted by quality, size, loss and staleness
    (`aggregation.coefficients`); a worker merges each new version into the model that
    it is training, in mid-epoch (`merging.directional_merge`). There is no barrier.

    Args:
      beta: weight between the data part and the loss part of a merge, in [0, 1].
      convention: the formula that beta belongs to, see `merging.local_share`. The
        authors' runs used 0.6 under "reference_code", which is 0.4 under "appendix".
      max_share: largest coefficient of one update, in (0, 1]; 1 = the paper.
      merge: "linear" (interpolate every element) and "none" (adopt the newest version
        after each push) are ablations.
      aggregate: "plain" (weights by examples alone) is an ablation. "median" and
        "trimmed_mean" are robust and unweighted, see `aggregation.coordinate_median`
        and `trimmed_mean`; not in the paper.
      trim: of "trimmed_mean": the fraction left out at either end, in [0, 0.5).

    Raises:
      ValueError: beta, max_share or trim out of range, an unknown choice.

    >>> asyn2f().timing.while_training
    'merge'
    >>> asyn2f(merge="none").timing.while_training
    'ignore'
    """
    check_range("beta", beta, 0.0, 1.0)
    check_choice("convention", convention, Convention)
    check_range("max_share", max_share, 0.0, 1.0, open_low=True)
    check_choice("merge", merge, MergeRule)
    check_choice("aggregate", aggregate, AggregateRule)
    if not 0.0 <= trim < 0.5:
        raise ValueError(f"trim: found {trim}, allowed [0, 0.5)")

    merges = merge != "none"
    is_robust = aggregate in ROBUST
    uses = {"size", "loss", "quality"}
    if not merges and (is_robust or aggregate == "plain"):
        uses = set() if is_robust else {"size"}
    return Strategy(
        name="asyn2f",
        init=initial_state,
        aggregate=_robust(aggregate, trim)
        if is_robust
        else _weighted(aggregate == "plain", max_share),
        merge=_merging(beta, convention, merge == "linear"),
        timing=Timing(
            while_training="merge" if merges else "ignore",
            after_push="continue" if merges else "adopt",
            quorum="some",
            min_updates=3,
        ),
        uses=frozenset(uses),
    )


def _weighted(is_plain: bool, max_share: float) -> Aggregate:
    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        behind = versions_behind(state.model.version, updates.info.base_version)
        loss, quality = updates.info.loss, updates.info.quality
        if is_plain:
            loss, quality, behind = (jnp.ones_like(x) for x in (loss, quality, behind))
        shares = coefficients(
            updates.info.num_examples, loss, quality, behind, mask, max_share=max_share
        )
        params = weighted_sum(updates.params, shares)
        return advanced(state, params, updates, mask, shares)

    return aggregate


def _robust(rule: AggregateRule, trim: float) -> Aggregate:
    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        if rule == "median":
            params = coordinate_median(updates.params, mask)
        else:
            params = trimmed_mean(updates.params, mask, trim)
        equal = shares_of(jnp.ones_like(updates.info.loss), mask)
        return advanced(state, params, updates, mask, equal)

    return aggregate


def _merging(beta: float, convention: Convention, is_linear: bool) -> Merge:
    def merge(local: WorkerUpdate, previous: Params, model: GlobalModel):
        share = local_share(
            local_examples=local.info.num_examples,
            local_quality=local.info.quality,
            local_loss=local.info.loss,
            global_examples=model.num_examples,
            global_quality=model.quality,
            global_loss=model.loss,
            beta=beta,
            convention=convention,
        )
        if is_linear:
            merged = linear_merge(local.params, model.params, share)
        else:
            merged = directional_merge(previous, local.params, model.params, share)
        return merged, {"share": share}

    return merge
