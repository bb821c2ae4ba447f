"""FedAvg: synchronous rounds, weighted by examples (McMahan et al., 2017)."""

import jax

from asyn2f.kernels.aggregation import weighted_sum
from asyn2f.strategies.base import Strategy, advanced, initial_state, shares_of
from asyn2f.timing import Timing
from asyn2f.types import ServerState, WorkerUpdate


def fedavg() -> Strategy:
    """The FedAvg strategy, with every live worker in every round.

        W_{t+1} = sum_k (n_k / sum_j n_j) W_k       (McMahan et al. 2017, Algorithm 1)

    A round ends when all workers that were live at its start have pushed, or at
    `timing.deadline_s`; an update that arrives after its round is rejected as stale.

    >>> fedavg().timing.after_push
    'wait'
    """

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        shares = shares_of(updates.info.num_examples, mask)
        params = weighted_sum(updates.params, shares)
        return advanced(state, params, updates, mask, shares)

    return Strategy(
        name="fedavg",
        init=initial_state,
        aggregate=aggregate,
        uses=frozenset({"size"}),
        timing=Timing(
            while_training="ignore", after_push="wait", quorum="all", max_staleness=0
        ),
    )
