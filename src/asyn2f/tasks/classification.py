"""The task of telling classes apart: cross-entropy and accuracy on labelled images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyn2f.tasks.base import Batch, Task
from asyn2f.tasks.data import Dataset
from asyn2f.types import Params


def classification(
    name: str,
    model: nn.Module,
    dataset: Dataset,
    shards: Sequence[np.ndarray],
    qualities: Sequence[float],
) -> Task:
    """A classification task over `dataset`, its training part cut into `shards`.

    Args:
      name: for people to read.
      model: maps image [B, ...] and `train` to logits [B, num_classes].
      dataset: images and labels.
      shards: one array of training rows per worker, none empty.
      qualities: Q_k per worker, in (0, 1].

    Returns:
      The task; its loss is the mean cross-entropy, its metric the accuracy.
    """

    def init(key: jax.Array) -> Params:
        image = jnp.zeros((1, *dataset.train["image"].shape[1:]))
        return dict(model.init(key, image, train=False))

    def loss(params: Params, batch: Batch, key: jax.Array):
        collections = [name for name in params if name != "params"]
        logits, statistics = model.apply(
            params,
            batch["image"],
            train=True,
            mutable=collections,
            rngs={"dropout": key},
        )
        losses, hits = _score(logits, batch["label"])
        return jnp.mean(losses), (dict(statistics), jnp.mean(hits))

    def score(params: Params, batch: Batch):
        logits: Any = model.apply(params, batch["image"], train=False)
        return _score(logits, batch["label"])

    return Task(
        name=name,
        init=init,
        loss=loss,
        score=score,
        train=dataset.train,
        test=dataset.test,
        shards=tuple(shards),
        qualities=tuple(qualities),
    )


def _score(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses, (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)
