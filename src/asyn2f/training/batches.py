"""The examples of each local step, and the evaluation of a model."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.tasks.base import Metric, Task, num_rows
from asyn2f.types import Params, Scores, Shard, scores_problem

_ORDERS_PER_CALL = 512


def shard_of(task: Task, worker: int) -> Shard:
    """The data of a worker, padded to the largest shard, so that one compiled step
    serves all workers.

    Raises:
      ValueError: there is no such shard.
    """
    if not 0 <= worker < len(task.shards):
        raise ValueError(
            f"worker: found {worker}, allowed 0 to {len(task.shards) - 1}; raise "
            "config.workers to have more"
        )
    rows = task.shards[worker]
    longest = max(len(shard) for shard in task.shards)
    # Its own rows first; the padding is never trained on.
    padded = np.resize(rows, longest)
    own = np.arange(longest, dtype=np.int32)
    return Shard(
        arrays={name: jnp.asarray(array[padded]) for name, array in task.train.items()},
        indices=jnp.asarray(np.where(own < len(rows), own, 0)),
        num_examples=jnp.int32(len(rows)),
    )


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
    """The permutation of a worker's shard in one epoch, by sorting random bits: one
    program for every size of shard.

    Args:
      key: the trainer's.
      worker: i32 [].
      epoch: i32 [], from 0.
      num_examples: i32 [], of its shard.
      length: n_max, of the largest shard.

    Returns:
      i32 [n_max], indices into the shard; those beyond its size come last.
    """
    return jnp.argsort(_epoch_bits(key, worker, epoch, num_examples, length))


def _epoch_bits(key, worker, epoch, num_examples, length):
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, worker), epoch)
    bits = jax.random.bits(epoch_key, (length,)) >> 1
    padding = jnp.uint32(0xFFFFFFFF)
    return jnp.where(jnp.arange(length) < num_examples, bits, padding)


def batch_places(step: Any, num_examples: Any, batch_size: int) -> Any:
    """The indices into the epoch's order of local step `step`.

    The last batch of an epoch is filled up from its beginning. Steps and shard sizes
    i32 [...], of NumPy or JAX, give i32 [..., B].
    """
    position = step % steps_per_epoch(num_examples, batch_size)
    first = position * batch_size
    return (first[..., None] + np.arange(batch_size)) % num_examples[..., None]


class Orders(Protocol):
    def __call__(
        self, workers: np.ndarray, epochs: np.ndarray, num_examples: np.ndarray
    ) -> Callable[[], np.ndarray]:
        """`epoch_order` of many: three i32 [N] give a function that waits for i32 [N,
        n_max]. NumPy's sort gives the same order many times faster than XLA's on a
        CPU."""


@partial(jax.jit, static_argnames="length")
@partial(jax.vmap, in_axes=(None, 0, 0, 0, None))
def _many_epoch_bits(key, worker, epoch, num_examples, length):
    return _epoch_bits(key, worker, epoch, num_examples, length)


def make_orders(key: jax.Array, length: int) -> Orders:
    """The orders of epochs under a trainer's key, of shards of at most n_max = `length`
    examples."""

    def orders(workers, epochs, num_examples):
        parts = []
        for begin in range(0, len(workers), _ORDERS_PER_CALL):
            # Padded to one shape by repeating the last.
            part = np.arange(begin, begin + _ORDERS_PER_CALL)
            part = np.minimum(part, len(workers) - 1)
            of_part = workers[part], epochs[part], num_examples[part]
            parts.append(_many_epoch_bits(key, *of_part, length))

        def sort():
            bits = np.concatenate([np.asarray(part) for part in parts])[: len(workers)]
            return np.argsort(bits, axis=1, kind="stable").astype(np.int32)

        return sort

    return orders


def make_evaluate(
    task: Task, batch_size: int = 500, rows: np.ndarray | None = None
) -> Callable[[Params], Scores]:
    """A function from parameters to their named numbers on the test set.

    The test set is cut into equal batches, the last one padded and masked, so that one
    program is compiled. Sums are taken in float64 on the host.

    Args:
      task: its evaluation and test set.
      batch_size: examples at a time; without `rows`, at most as many as there are.
      rows: numbers of the rows that count; None = all.
    """
    evaluation, own = task.evaluation, rows
    if own is None:
        own = np.arange(num_rows(task.test))
        batch_size = min(batch_size, len(own))
    count = len(own)
    num_batches = -(-count // batch_size)
    padded = np.arange(num_batches * batch_size)
    batches = own[np.minimum(padded, count - 1)].reshape(num_batches, batch_size)
    masks = (padded < count).reshape(num_batches, batch_size)

    def evaluate(params: Params) -> Scores:
        parts = []
        for row, mask in zip(batches, masks, strict=True):
            batch = {name: array[row] for name, array in task.test.items()}
            parts.append(_sums(evaluation.sums, params, batch, mask))
        sums = jax.tree.map(
            lambda *x: np.sum([np.asarray(part, np.float64) for part in x], axis=0),
            *parts,
        )
        return _checked(evaluation.values(sums, count), task.metric)

    return evaluate


@partial(jax.jit, static_argnums=0)
def _sums(sums, params, batch, mask):
    return sums(params, batch, mask)


def _checked(scores: Scores, metric: Metric) -> Scores:
    """The scores as numbers of Python. Raises ValueError without the headline."""
    if metric.name not in scores:
        raise ValueError(
            f"evaluation: found {', '.join(scores) or 'nothing'}, but the metric of "
            f"the task is {metric.name}: let `values` return it, or name another one"
        )
    if problem := scores_problem(scores):
        raise ValueError(f"evaluation: {problem}")
    return {name: float(value) for name, value in scores.items()}
