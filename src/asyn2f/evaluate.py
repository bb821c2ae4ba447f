"""How good a model is on the test set."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.tasks.base import Task
from asyn2f.types import Params


class Score(NamedTuple):
    accuracy: float  # mean metric over the test set
    loss: float  # mean loss


def make_evaluate(task: Task, batch_size: int = 500) -> Callable[[Params], Score]:
    """A function from parameters to their score on the whole test set.

    The test set is cut into equal batches, the last one padded and masked, so that one
    program is compiled. Sums are taken in float64 on the host.
    """
    count = len(task.test["label"])
    batch_size = min(batch_size, count)
    num_batches = -(-count // batch_size)
    padded = np.arange(num_batches * batch_size)
    rows = np.minimum(padded, count - 1).reshape(num_batches, batch_size)
    masks = (padded < count).reshape(num_batches, batch_size)

    @jax.jit
    def sums(params, batch, mask):
        losses, metrics = task.score(params, batch)
        return jnp.sum(losses, where=mask), jnp.sum(metrics, where=mask)

    def evaluate(params: Params) -> Score:
        parts = [
            sums(params, {k: v[row] for k, v in task.test.items()}, mask)
            for row, mask in zip(rows, masks, strict=True)
        ]
        loss, metric = np.asarray(parts, np.float64).sum(axis=0) / count
        return Score(accuracy=float(metric), loss=float(loss))

    return evaluate
