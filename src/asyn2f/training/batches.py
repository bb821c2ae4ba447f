"""Which examples each local step of a worker trains on."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

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
