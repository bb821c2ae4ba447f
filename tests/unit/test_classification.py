import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import f1_score

from asyn2f.tasks import data
from asyn2f.tasks.classification import (
    crop_and_flip,
    evaluation_of,
    make_classification_task,
)
from asyn2f.tasks.data import Dataset
from asyn2f.tasks.models import CNN, MLP
from asyn2f.training.batches import make_evaluate

KEY = jax.random.key(0)


def images(count=40, classes=3, dtype=np.uint8, seed=0) -> Dataset:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (count, 6, 6, 2))
    values[..., 1] //= 4  # another mean and deviation
    label = rng.integers(0, classes, count).astype(np.int32)
    label[:4] = 1  # not balanced
    arrays = {"input": values.astype(dtype), "label": label}
    return Dataset(arrays, arrays, classes, scale=1 / 255)


def task_of(dataset: Dataset, model=None, **settings):
    shards = [np.arange(len(dataset.train["label"]))]
    model = model or MLP((5,), dataset.num_classes)
    task = make_classification_task("any", model, dataset, shards, [1.0], **settings)
    # Compiled as one program, not operation by operation.
    sums = jax.jit(task.evaluation.sums)
    evaluation = task.evaluation._replace(sums=sums)
    init, loss = jax.jit(task.init), jax.jit(task.loss)
    return task._replace(init=init, loss=loss, evaluation=evaluation)


def losses_of(task, params, batch):
    """The loss of each example, in evaluation mode."""
    count = len(batch["label"])
    return np.array(
        [
            task.evaluation.sums(params, batch, row)[0]
            for row in np.eye(count, dtype=bool)
        ]
    )


def batch_of(dataset: Dataset, rows=slice(None)):
    return {name: jnp.asarray(array[rows]) for name, array in dataset.train.items()}


class Seen(MLP):
    """A network that gives its inputs away."""

    def __call__(self, x, train):
        self.sow("seen", "x", x)
        return super().__call__(x, train)


def seen_by(task, dataset):
    params = {**task.init(KEY), "seen": {}}
    _, aux = task.loss(params, (), batch_of(dataset), KEY)
    return aux.statistics["seen"]["x"][0]


# ------------------------------------------------------------- inputs


def test_bytes_come_to_zero_to_one_on_the_device():
    dataset = images()
    task = task_of(dataset, Seen((5,), 3))
    x = seen_by(task, dataset)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, dataset.train["input"] / 255.0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_channel_is_brought_to_mean_0_and_deviation_1(dtype):
    dataset = images(dtype=dtype)
    task = task_of(dataset, Seen((5,), 3), normalise=True)
    x = np.asarray(seen_by(task, dataset), np.float64)
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1.0, atol=1e-5)


def test_a_channel_that_never_changes_stays_finite():
    dataset = images()
    dataset.train["input"][..., 1] = 7
    task = task_of(dataset, Seen((5,), 3), normalise=True)
    assert jnp.isfinite(seen_by(task, dataset)).all()


def test_images_vary_in_training_and_never_in_evaluation():
    dataset = images()
    task = task_of(dataset, augment="crop_flip")
    batch, params = batch_of(dataset), task.init(KEY)
    keys = [jax.random.key(k) for k in range(5)]
    losses = {float(task.loss(params, (), batch, key)[0]) for key in keys}
    assert len(losses) == 5
    same = [task.loss(params, (), batch, KEY)[0] for _ in range(2)]
    assert same[0] == same[1]
    plain = task_of(dataset)
    np.testing.assert_array_equal(
        losses_of(task, params, batch), losses_of(plain, params, batch)
    )


# ------------------------------------------------------------- crops and flips


def windows(image: np.ndarray) -> set[bytes]:
    """Every result there can be, by definition."""
    height, width, _ = image.shape
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    cuts = [padded[i : i + height, j : j + width] for i in range(9) for j in range(9)]
    return {np.ascontiguousarray(x[:, ::s]).tobytes() for x in cuts for s in (1, -1)}


def test_every_result_is_a_window_of_the_padded_image_perhaps_mirrored():
    rng = np.random.default_rng(0)
    batch = rng.integers(1, 256, (50, 7, 5, 3)).astype(np.uint8)
    found = np.asarray(crop_and_flip(jnp.asarray(batch), KEY))
    assert found.dtype == np.uint8
    assert found.shape == batch.shape
    for image, result in zip(batch, found, strict=True):
        assert result.tobytes() in windows(image)


def test_all_162_results_are_as_likely():
    image = np.arange(1, 82, dtype=np.uint8).reshape(9, 9, 1)
    batch = jnp.asarray(np.repeat(image[None], 16200, axis=0))
    found = np.asarray(crop_and_flip(batch, KEY)).reshape(16200, -1)
    _, counts = np.unique(found, axis=0, return_counts=True)
    assert len(counts) == 162
    chi_squared = ((counts - 100) ** 2 / 100).sum()
    assert chi_squared < 250  # of 161 degrees of freedom: 1 in 100,000


# ------------------------------------------------------------- losses


def test_balanced_weights_are_N_over_C_n_c():
    dataset = images()
    plain, balanced = task_of(dataset), task_of(dataset, class_weights="balanced")
    params, batch = plain.init(KEY), batch_of(dataset, slice(10))
    losses = losses_of(plain, params, batch)
    counts = np.bincount(dataset.train["label"])
    weights = 40 / (3 * counts[dataset.train["label"][:10]])
    found, _ = balanced.loss(params, (), batch, KEY)
    np.testing.assert_allclose(found, (losses * weights).mean(), rtol=1e-5)
    # Over the whole set they are 1 in the mean.
    assert np.isclose((40 / (3 * counts[dataset.train["label"]])).mean(), 1.0)
    np.testing.assert_array_equal(losses_of(balanced, params, batch), losses)


def test_bfloat16_computes_so_and_keeps_its_parameters_in_float32():
    dataset = images()
    with jax.numpy_dtype_promotion("standard"):  # Flax relies on it
        task = task_of(dataset, CNN((4, 8), 3, batch_norm=True, dtype=jnp.bfloat16))
        exact = task_of(dataset, CNN((4, 8), 3, batch_norm=True))
        params, batch = task.init(KEY), batch_of(dataset)
        for a, b in zip(*map(jax.tree.leaves, (params, exact.init(KEY))), strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_array_equal(a, b)
        (loss, _), (same, _) = (t.loss(params, (), batch, KEY) for t in (task, exact))
        assert loss.dtype == jnp.float32
        assert loss != same
        np.testing.assert_allclose(loss, same, rtol=0.03)
        of = jax.jit(
            jax.grad(lambda p: task.loss({**params, "params": p}, (), batch, KEY)[0])
        )
        grads = jax.tree.leaves(of(params["params"]))
        assert all(leaf.dtype == jnp.float32 for leaf in grads)


# ------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [7, 40, 500])
@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_scikit_learn(classes, batch_size):
    dataset = images(40, classes)
    task = task_of(dataset)
    params = task.init(jax.random.key(3))
    score = make_evaluate(task, batch_size)(params)
    logits = MLP((5,), classes).apply(
        params, jnp.asarray(dataset.test["input"], jnp.float32) / 255, train=False
    )
    predicted, label = np.argmax(logits, axis=1), dataset.test["label"]
    assert score["accuracy"] == np.mean(np.asarray(predicted) == label)
    average = "binary" if classes == 2 else "macro"
    expected = f1_score(label, predicted, average=average, zero_division=0.0)
    np.testing.assert_allclose(score["f1"], expected, rtol=1e-6)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(label))
    np.testing.assert_allclose(score["loss"], losses.mean(), rtol=1e-5)


def test_f1_worked_by_hand():
    """Labels 1 1 1 0 0, held for 1 1 0 1 0: TP 2, FP 1, FN 1: 4 / (4 + 1 + 1)."""
    label = np.array([1, 1, 1, 0, 0], np.int32)
    held = jnp.array([1, 1, 0, 1, 0])
    arrays = {"input": np.arange(5), "label": label}
    task = task_of(images())._replace(
        test=arrays,
        evaluation=evaluation_of(
            lambda params, batch: (jnp.zeros(5), held[batch["input"]]), num_classes=2
        ),
    )
    score = make_evaluate(task)({})
    assert score["accuracy"] == 0.6
    np.testing.assert_allclose(score["f1"], 2 / 3)


def test_digits_are_those_of_scikit_learn_however_they_are_read(monkeypatch):
    from sklearn.datasets import load_digits

    bunch, read = load_digits(), data.digits()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    through_it = data.digits()
    test = np.arange(len(bunch.target)) % 5 == 0
    for found in (read, through_it):
        for split, rows in ((found.train, ~test), (found.test, test)):
            assert split["input"].dtype == np.float32
            np.testing.assert_array_equal(
                split["input"][..., 0] * 16, bunch.images[rows]
            )
            np.testing.assert_array_equal(split["label"], bunch.target[rows])
