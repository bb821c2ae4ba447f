"""How far a worker is, and its mean loss and metric so far: over the present epoch, or
over the cycle where those are counted in steps."""

from typing import Any

import jax
import jax.numpy as jnp

from asyn2f.timing import Timing
from asyn2f.training.batches import steps_per_epoch
from asyn2f.types import WorkerState


def after_step(
    state: WorkerState,
    loss: jax.Array,
    metric: jax.Array,
    timing: Timing,
    batch_size: int,
) -> dict[str, Any]:
    """The fields of the state that count its steps, after one more."""
    if timing.counts_steps:
        fresh = state.epoch_steps == 0
    else:
        num_examples = state.num_examples.astype(jnp.int32)
        fresh = state.step % steps_per_epoch(num_examples, batch_size) == 0
    return {
        "step": state.step + 1,
        "loss_sum": jnp.where(fresh, 0.0, state.loss_sum) + loss,
        "metric_sum": jnp.where(fresh, 0.0, state.metric_sum) + metric,
        "epoch_steps": jnp.where(fresh, 0, state.epoch_steps) + 1,
    }


def means_of(state: WorkerState) -> tuple[jax.Array, jax.Array]:
    """The mean loss and the mean metric, f32 []."""
    steps = jnp.maximum(state.epoch_steps, 1).astype(jnp.float32)
    return state.loss_sum / steps, state.metric_sum / steps


def after_push(state: WorkerState, timing: Timing) -> WorkerState:
    """The state with its next cycle begun. The means stand until its first step."""
    if not timing.counts_steps:
        return state
    loss, metric = means_of(state)
    return state._replace(loss_sum=loss, metric_sum=metric, epoch_steps=jnp.int32(0))
