"""The record `Task`: a model with its loss, and data cut into shards."""

from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from asyn2f.types import Params

Batch = dict[str, jax.Array]
"""A minibatch by name: `input` [B, ...], `label` i32 [B]."""


class Init(Protocol):
    def __call__(self, key: jax.Array) -> Params:
        """Fresh variables: a dict of Flax collections, `"params"` the trained one."""


class Loss(Protocol):
    def __call__(
        self, params: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, Any], jax.Array]]:
        """Training loss f32 [] without the L2 term; the new statistics (every
        collection but `"params"`) and the training metric f32 []."""


class Score(Protocol):
    def __call__(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Per example, in evaluation mode: loss f32 [B] and predicted class i32 [B]."""


class Task(NamedTuple):
    """A learning problem, spread over workers."""

    name: str
    init: Init
    loss: Loss
    score: Score
    train: dict[str, np.ndarray]  # [N, ...]
    test: dict[str, np.ndarray]  # [N_test, ...]
    num_classes: int
    shards: tuple[np.ndarray, ...]  # one array of row numbers per worker
    qualities: tuple[float, ...]  # Q_k per worker, in (0, 1]


def class_counts(task: Task) -> list[list[int]]:
    """The number of examples of each class of each worker, [workers][classes]."""
    labels, classes = task.train["label"], task.num_classes
    return [np.bincount(labels[s], minlength=classes).tolist() for s in task.shards]
