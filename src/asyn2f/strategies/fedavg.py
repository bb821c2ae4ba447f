"""FedAvg: synchronous rounds, weighted by examples (McMahan et al., 2017)."""

import jax
import jax.numpy as jnp

from asyn2f.aggregation import weighted_sum
from asyn2f.strategies.base import Strategy, initial_state, next_model, staleness
from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, Params, ServerState, WorkerUpdate


def fedavg() -> Strategy:
    """The FedAvg strategy, with every live worker in every round.

        W_{t+1} = sum_k (n_k / sum_j n_j) W_k       (McMahan et al. 2017, Algorithm 1)

    A round ends when all workers that were live at its start have pushed, or at
    `timing.deadline_s`; an update that comes after its round is refused as stale.

    >>> fedavg().timing.after_push
    'wait'
    """

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        examples = jnp.where(mask, updates.num_examples, 0.0).astype(jnp.float32)
        shares = examples / jnp.sum(examples)
        params = weighted_sum(updates.params, shares)
        behind = staleness(state.model.version, updates.base_version)
        model = next_model(state.model, params, updates, mask)
        metrics = {"coefficients": shares, "staleness": jnp.where(mask, behind, 0)}
        return ServerState(model=model, memory=state.memory), metrics

    def merge(local: WorkerUpdate, previous: Params, model: GlobalModel):
        # Never called by its own timing; a worker that merges all the same adopts.
        return model.params, {"share": jnp.float32(0.0)}

    return Strategy(
        name="fedavg",
        init=initial_state,
        aggregate=aggregate,
        merge=merge,
        timing=Timing(
            while_training="ignore", after_push="wait", quorum="all", max_staleness=0
        ),
    )
