"""Which examples each lane's steps train on, found on the host."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from asyn2f.training.batches import batch_places, make_orders, steps_per_epoch
from asyn2f.training.experiment import Experiment


class Drawn(NamedTuple):
    """Batches that are being drawn; ticks T, workers [T, ...] in whatever shape."""

    worker: np.ndarray  # i32 [T, ...]
    step: np.ndarray  # i32 [T, ...]: the worker's, of this batch
    epoch: np.ndarray  # i64 [T, ...]: which of the orders
    orders: Callable[[], np.ndarray]  # i32 [number of epochs, n_max]


class Batches:
    """The batches of all workers, as rows of the training set."""

    def __init__(self, experiment: Experiment) -> None:
        shards = experiment.task.shards
        self._sizes = np.array([len(rows) for rows in shards], np.int32)
        self._rows = np.zeros((len(shards), max(self._sizes)), np.int32)
        for worker, rows in enumerate(shards):
            self._rows[worker, : len(rows)] = rows
        self._batch_size = experiment.training.batch_size
        key = jax.random.wrap_key_data(experiment.hyperparams.train_key)
        self._orders = make_orders(key, self._rows.shape[1])

    def draw(self, worker: np.ndarray, step: np.ndarray) -> Drawn:
        """Has the random bits computed that the orders of these epochs need; does not
        wait for them."""
        epoch = step // steps_per_epoch(self._sizes[worker], self._batch_size)
        pairs = worker.astype(np.int64) << 32 | epoch
        unique, index = np.unique(pairs, return_inverse=True)
        workers, epochs = (unique >> 32).astype(np.int32), unique.astype(np.int32)
        orders = self._orders(workers, epochs, self._sizes[workers])
        return Drawn(worker, step, index.reshape(worker.shape), orders)

    def rows(self, drawn: Drawn) -> np.ndarray:
        """The rows of the training set, i32 [T, ..., B]."""
        worker, step, epoch, orders = drawn
        if not worker.size:
            return np.zeros((*worker.shape, self._batch_size), np.int32)
        places = batch_places(step, self._sizes[worker], self._batch_size)
        return self._rows[worker[..., None], orders()[epoch[..., None], places]]
