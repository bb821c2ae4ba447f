"""How good a model is on the test set."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.tasks.base import Task
from asyn2f.types import Params


class Score(NamedTuple):
    accuracy: float  # share of the test set that is told right
    loss: float  # mean loss
    f1: float  # of class 1 where there are two, else the mean over the classes


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

    def evaluate(params: Params) -> Score:
        parts = [
            _sums(
                task.score,
                task.num_classes,
                params,
                {k: v[row] for k, v in task.test.items()},
                mask,
            )
            for row, mask in zip(rows, masks, strict=True)
        ]
        loss, right, both = (
            np.sum([np.asarray(part[k], np.float64) for part in parts], axis=0)
            for k in range(3)
        )
        f1 = _f1(right, both)
        return Score(float(right.sum() / count), float(loss / count), f1)

    return evaluate


@partial(jax.jit, static_argnums=(0, 1))
def _sums(score, classes, params, batch, mask):
    """Of one batch: the loss f32 [], and by class, i32 [classes], the examples that are
    told right, and those that are of it plus those that are held for it."""
    losses, predicted = score(params, batch)
    label, ones = batch["label"], mask.astype(jnp.int32)
    is_right = (predicted == label).astype(jnp.int32)
    right = jnp.bincount(label, ones * is_right, length=classes)
    both = sum(jnp.bincount(x, ones, length=classes) for x in (predicted, label))
    return jnp.sum(losses, where=mask), right, both


def _f1(right: np.ndarray, both: np.ndarray) -> float:
    """From the examples of each class that are told right, and those that are of it
    plus those that are held for it: 2 TP / (2 TP + FP + FN)."""
    each = 2 * right / np.maximum(both, 1)
    return float(each[1] if len(each) == 2 else each[both > 0].mean())
