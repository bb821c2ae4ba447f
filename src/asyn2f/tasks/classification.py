"""Telling classes apart: cross-entropy and accuracy on labelled examples."""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyn2f.tasks.augmentation import crop_and_flip
from asyn2f.tasks.base import Batch, Task
from asyn2f.tasks.data import Dataset
from asyn2f.types import Params

Augment = Literal["none", "crop_flip"]
ClassWeights = Literal["none", "balanced"]


def classification(
    name: str,
    model: nn.Module,
    dataset: Dataset,
    shards: Sequence[np.ndarray],
    qualities: Sequence[float],
    *,
    normalise: bool = False,
    augment: Augment = "none",
    class_weights: ClassWeights = "none",
) -> Task:
    """A classification task over `dataset`, its training part cut into `shards`.

    Inputs are brought to [0, 1] on the device. Then the loss is the mean over the batch
    of `w_y` times the cross-entropy, and the metric the accuracy.

    Args:
      name: for people to read.
      model: maps inputs [B, ...] and `train` to logits [B, num_classes].
      dataset: inputs and labels.
      shards: one array of training rows per worker, none empty.
      qualities: Q_k per worker, in (0, 1].
      normalise: each channel to mean 0 and deviation 1 over the whole training set.
      augment: `crop_flip`: images in training are shifted and mirrored, see
        `augmentation.crop_and_flip`, drawn afresh at each step.
      class_weights: `balanced`: w_c = N / (C n_c) with the counts n_c of the C classes
        in the whole training set; else 1.
    """
    counts = np.bincount(dataset.train["label"], minlength=dataset.num_classes)
    weight = None
    if class_weights == "balanced":
        weight = jnp.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)))
    mean, deviation = _of_channels(dataset) if normalise else (0.0, 1.0)

    def prepared(inputs: jax.Array) -> jax.Array:
        if dataset.scale is None:
            return inputs.astype(jnp.int32)
        x = inputs.astype(jnp.float32) * np.float32(dataset.scale)
        return (x - mean) / deviation if normalise else x

    def init(key: jax.Array) -> Params:
        first = jnp.asarray(dataset.train["input"][:1])
        return dict(model.init(key, prepared(first), train=False))

    def loss(params: Params, batch: Batch, key: jax.Array):
        collections = [name for name in params if name != "params"]
        inputs = batch["input"]
        if augment == "crop_flip":
            inputs = crop_and_flip(inputs, jax.random.fold_in(key, 1))
        logits, statistics = model.apply(
            params,
            prepared(inputs),
            train=True,
            mutable=collections,
            rngs={"dropout": key},
        )
        losses, predicted = _score(logits, batch["label"])
        hits = (predicted == batch["label"]).astype(jnp.float32)
        if weight is not None:
            losses = losses * weight[batch["label"]]
        return jnp.mean(losses), (dict(statistics), jnp.mean(hits))

    def score(params: Params, batch: Batch):
        logits: Any = model.apply(params, prepared(batch["input"]), train=False)
        return _score(logits, batch["label"])

    return Task(
        name=name,
        init=init,
        loss=loss,
        score=score,
        train=dataset.train,
        test=dataset.test,
        num_classes=dataset.num_classes,
        shards=tuple(shards),
        qualities=tuple(qualities),
    )


def _score(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses, jnp.argmax(logits, axis=-1)


def _of_channels(dataset: Dataset) -> tuple[np.ndarray, ...]:
    """Mean and standard deviation of each channel of the training set, f32 [1, .., C],
    of as many dimensions as a batch."""
    inputs, scale = dataset.train["input"], dataset.scale or 1.0
    sums = np.zeros((2, *inputs.shape[1:]))
    for part in np.array_split(inputs, max(len(inputs) // 1000, 1)):
        values = part.astype(np.float32)
        sums += [x.sum(axis=0, dtype=np.float64) for x in (values, values**2)]
    sums = sums.reshape(2, -1, inputs.shape[-1]).sum(axis=1)
    mean, square = sums / (inputs.size / inputs.shape[-1])
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-12))
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    found = mean * scale, deviation * scale
    return tuple(x.astype(np.float32).reshape(shape) for x in found)
