"""Which examples each local step of a worker trains on."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.tasks.base import Task
from asyn2f.types import Params

_ORDERS_PER_CALL = 512


def steps_per_epoch(num_examples: Any, batch_size: int) -> Any:
    """Batches in one pass over a shard; the last one is filled up from its beginning.

    >>> steps_per_epoch(100, 32)
    4
    """
    return -(-num_examples // batch_size)


def epoch_order(
    key: jax.Array,
    worker: jax.Array,
    epoch: jax.Array,
    num_examples: jax.Array,
    length: int,
) -> jax.Array:
    """The order in which a worker goes through its shard in one epoch.

    A sort of random bits: the same program for every size of shard.

    Args:
      key: the trainer's.
      worker: i32 [].
      epoch: i32 [], counted from 0.
      num_examples: i32 [], of its shard.
      length: n_max, of the largest shard.

    Returns:
      i32 [n_max], places in the shard; those beyond its size come last.
    """
    return jnp.argsort(_epoch_bits(key, worker, epoch, num_examples, length))


def _epoch_bits(key, worker, epoch, num_examples, length):
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, worker), epoch)
    bits = jax.random.bits(epoch_key, (length,)) >> 1
    padding = jnp.uint32(0xFFFFFFFF)
    return jnp.where(jnp.arange(length) < num_examples, bits, padding)


def batch_places(step: Any, num_examples: Any, batch_size: int) -> Any:
    """Which places of the epoch's order local step `step` trains on.

    The last batch of an epoch is filled up from its beginning. Arrays of steps and
    shard sizes, i32 [...], give i32 [..., B]; NumPy's and JAX's alike.
    """
    position = step % steps_per_epoch(num_examples, batch_size)
    first = position * batch_size
    return (first[..., None] + np.arange(batch_size)) % num_examples[..., None]


class Orders(Protocol):
    def __call__(
        self, workers: np.ndarray, epochs: np.ndarray, num_examples: np.ndarray
    ) -> Callable[[], np.ndarray]:
        """`epoch_order` of many: three i32 [N] give i32 [N, n_max], by a function that
        waits for it. NumPy's sort: the same order, and on a CPU many times faster than
        XLA's."""


@partial(jax.jit, static_argnames="length")
@partial(jax.vmap, in_axes=(None, 0, 0, 0, None))
def _many_epoch_bits(key, worker, epoch, num_examples, length):
    return _epoch_bits(key, worker, epoch, num_examples, length)


def make_orders(key: jax.Array, length: int) -> Orders:
    """The orders of epochs under a trainer's key, of shards of up to n_max = `length`
    examples."""

    def orders(workers, epochs, num_examples):
        parts = []
        for begin in range(0, len(workers), _ORDERS_PER_CALL):
            # Always as many: the last ones are repeated.
            part = np.arange(begin, begin + _ORDERS_PER_CALL)
            part = np.minimum(part, len(workers) - 1)
            of_part = workers[part], epochs[part], num_examples[part]
            parts.append(_many_epoch_bits(key, *of_part, length))

        def sort():
            bits = np.concatenate([np.asarray(part) for part in parts])[: len(workers)]
            return np.argsort(bits, axis=1, kind="stable").astype(np.int32)

        return sort

    return orders


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
