"""Supervised classification: cross-entropy loss and accuracy; augmentation."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyn2f.tasks.base import Aux, Batch, Evaluation, Init, Loss, Metric, Predict, Task
from asyn2f.tasks.data import Dataset
from asyn2f.tasks.networks import network_of
from asyn2f.types import Params, Scores

ACCURACY = Metric("accuracy", higher_is_better=True, is_fraction=True)

Augment = Literal["none", "crop_flip"]
ClassWeights = Literal["none", "balanced"]


def make_classification_task(
    name: str,
    model: nn.Module,
    dataset: Dataset,
    shards: Sequence[np.ndarray],
    qualities: Sequence[float] | None = None,
    *,
    normalise: bool = False,
    augment: Augment = "none",
    class_weights: ClassWeights = "none",
) -> Task:
    """A classification task over `dataset`, its training part cut into `shards`.

    Inputs are scaled to [0, 1] on the device. The loss is the mean over the batch of
    `w_y` times the cross-entropy, the metric is the accuracy.

    Args:
      name: for messages.
      model: maps inputs [B, ...] and `train` to logits [B, num_classes].
      dataset: inputs and labels.
      shards: one array of training rows per worker, none empty.
      qualities: Q_k per worker, in (0, 1]; None = 1 for all.
      normalise: each channel to mean 0 and deviation 1 over the whole training set.
      augment: `crop_flip`: images in training are shifted and mirrored at random at
        each step, see `crop_and_flip`.
      class_weights: `balanced`: w_c = N / (C n_c) with the counts n_c of the C classes
        in the whole training set; else 1.
    """
    counts = np.bincount(dataset.train["label"], minlength=dataset.num_classes)
    weights = None
    if class_weights == "balanced":
        balanced = counts.sum() / (len(counts) * np.maximum(counts, 1))
        weights = tuple(balanced.astype(np.float32).tolist())
    channels = _of_channels(dataset) if normalise else None
    first = dataset.train["input"][:1]
    kind = _Kind(
        shape=first.shape,
        dtype=first.dtype.str,
        num_classes=dataset.num_classes,
        scale=dataset.scale,
        channels=channels,
        augment=augment,
        weights=weights,
    )
    try:
        init, loss, evaluation, predict = _functions(model, kind)
    except TypeError:  # a model that cannot be hashed
        init, loss, evaluation, predict = _functions.__wrapped__(model, kind)
    return Task(
        name=name,
        init=init,
        loss=loss,
        evaluation=evaluation,
        metric=ACCURACY,
        train=dataset.train,
        test=dataset.test,
        shards=tuple(shards),
        qualities=tuple(qualities or [1.0] * len(shards)),
        labels=dataset.train["label"],
        predict=predict,
    )


class _Kind(NamedTuple):
    """The dependencies of the functions, besides the model."""

    shape: tuple[int, ...]  # of an input, [1, ...]
    dtype: str
    num_classes: int
    scale: float | None
    # Mean and deviation of each channel; None = inputs are not normalised.
    channels: tuple[tuple[float, ...], ...] | None
    augment: Augment
    weights: tuple[float, ...] | None  # w_c of each class; None = 1


@lru_cache(maxsize=32)
def _functions(model: nn.Module, kind: _Kind) -> tuple[Init, Loss, Evaluation, Predict]:
    """The functions of a task; cached, so that tasks of one kind share compiled
    programs."""
    network = network_of(model)
    weight = None if kind.weights is None else np.array(kind.weights, np.float32)

    def prepared(inputs: jax.Array) -> jax.Array:
        if kind.scale is None:
            return inputs.astype(jnp.int32)
        x = inputs.astype(jnp.float32) * np.float32(kind.scale)
        if kind.channels is None:
            return x
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        mean, deviation = np.array(kind.channels, np.float32)
        return (x - mean.reshape(shape)) / deviation.reshape(shape)

    def init(key: jax.Array) -> Params:
        return network.init(key, prepared(jnp.zeros(kind.shape, kind.dtype)))

    def loss(params: Params, carry: tuple[()], batch: Batch, key: jax.Array):
        inputs = batch["input"]
        if kind.augment == "crop_flip":
            inputs = crop_and_flip(inputs, jax.random.fold_in(key, 1))
        logits, statistics = network.apply(params, prepared(inputs), key)
        losses, predicted = _score(logits, batch["label"])
        hits = (predicted == batch["label"]).astype(jnp.float32)
        if weight is not None:
            losses = losses * jnp.asarray(weight)[batch["label"]]
        return jnp.mean(losses), Aux(jnp.mean(hits), statistics)

    def score(params: Params, batch: Batch):
        logits, _ = network.apply(params, prepared(batch["input"]), None)
        return _score(logits, batch["label"])

    @jax.jit
    def predict(params: Params, inputs: jax.Array) -> jax.Array:
        return network.apply(params, prepared(jnp.asarray(inputs)), None)[0]

    return init, loss, evaluation_of(score, kind.num_classes), predict


def _score(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return losses, jnp.argmax(logits, axis=-1)


def evaluation_of(
    score: Callable[[Params, Batch], tuple[jax.Array, jax.Array]], num_classes: int
) -> Evaluation:
    """Accuracy, mean loss and F1, of class 1 where there are two classes, else the mean
    over the classes.

    Args:
      score: (params, batch) -> loss f32 [B] and predicted class i32 [B].
      num_classes: C.
    """

    def sums(params: Params, batch: Batch, mask: jax.Array):
        losses, predicted = score(params, batch)
        label, ones = batch["label"], mask.astype(jnp.int32)
        is_right = (predicted == label).astype(jnp.int32)
        # Per class: true positives, and the actual plus the predicted positives.
        right = jnp.bincount(label, ones * is_right, length=num_classes)
        both = sum(
            jnp.bincount(x, ones, length=num_classes) for x in (predicted, label)
        )
        return jnp.sum(losses, where=mask), right, both

    def values(sums: tuple[Any, Any, Any], count: int) -> Scores:
        loss, right, both = sums
        accuracy = float(right.sum() / count)
        return {
            "accuracy": accuracy,
            "loss": float(loss / count),
            "f1": _f1(right, both),
        }

    return Evaluation(sums, values)


def _f1(right: np.ndarray, both: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN), of the true positives of each class, and its actual plus
    predicted positives."""
    each = 2 * right / np.maximum(both, 1)
    return float(each[1] if len(each) == 2 else each[both > 0].mean())


def _of_channels(dataset: Dataset) -> tuple[tuple[float, ...], ...]:
    """Mean and standard deviation of each channel of the training set, as float32."""
    inputs, scale = dataset.train["input"], dataset.scale or 1.0
    sums = np.zeros((2, *inputs.shape[1:]))
    for part in np.array_split(inputs, max(len(inputs) // 1000, 1)):
        values = part.astype(np.float32)
        sums += [x.sum(axis=0, dtype=np.float64) for x in (values, values**2)]
    sums = sums.reshape(2, -1, inputs.shape[-1]).sum(axis=1)
    mean, square = sums / (inputs.size / inputs.shape[-1])
    deviation = np.sqrt(np.maximum(square - mean**2, 1e-12))
    found = mean * scale, deviation * scale
    return tuple(tuple(x.astype(np.float32).tolist()) for x in found)


_PAD = 4


def crop_and_flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image shifted by up to four pixels and mirrored with probability 1/2.

    Padded with four zeros on each side, a window of the old size is cut out at a
    uniformly drawn place: the usual augmentation for CIFAR (He et al., 2016, section
    4.2), before normalisation. [B, H, W, C] in and out, any dtype.

    >>> import jax, jax.numpy as jnp
    >>> images = jnp.ones((2, 32, 32, 3), jnp.uint8)
    >>> crop_and_flip(images, jax.random.key(0)).shape
    (2, 32, 32, 3)
    """
    count, height, width, _ = images.shape
    place_key, flip_key = jax.random.split(key)
    places = jax.random.randint(place_key, (count, 2), 0, 2 * _PAD + 1)
    flips = jax.random.bernoulli(flip_key, shape=(count,))
    padded = jnp.pad(images, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)))
    # Indices rather than slices: a column is read from its mirror image at once.
    rows = places[:, :1] + jnp.arange(height)[None]
    columns = jnp.arange(width)[None]
    columns = jnp.where(flips[:, None], columns[:, ::-1], columns) + places[:, 1:]
    one = jnp.arange(count)[:, None, None]
    return padded[one, rows[:, :, None], columns[:, None, :]]
