"""The records of a task, and what is computed of them."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.tasks.base import Evaluation, Metric, Task, class_counts, mean_evaluation
from asyn2f.training.batches import make_evaluate

UP, DOWN = Metric("return"), Metric("loss", higher_is_better=False)
NAN, INF = math.nan, math.inf


def square(params, batch):
    return (batch["x"] - params) ** 2


def distance(params, batch):
    return jnp.abs(batch["x"] - params)


def task_of(x, evaluation, metric=DOWN, **fields) -> Task:
    return Task("t", None, None, evaluation, metric, {}, {"x": x}, **fields)


# ------------------------------------------------------------- the headline


@pytest.mark.parametrize(
    ("metric", "value", "than", "better"),
    [
        (UP, 475.0, 20.0, True),
        (UP, 20.0, 475.0, False),
        (UP, 20.0, 20.0, False),
        (UP, -3.0, None, True),
        (UP, INF, 20.0, False),
        (UP, NAN, None, False),
        (DOWN, 0.1, 0.2, True),
        (DOWN, 0.2, 0.1, False),
        (DOWN, -INF, 0.1, False),
        (DOWN, NAN, 0.1, False),
        (DOWN, 7.0, None, True),
    ],
)
def test_better_follows_the_direction_and_is_always_finite(metric, value, than, better):
    assert metric.is_better(value, than) is better


@pytest.mark.parametrize(
    ("metric", "value", "target", "reaches"),
    [
        (UP, 475.0, 475.0, True),
        (UP, 474.0, 475.0, False),
        (UP, INF, 475.0, False),
        (UP, 1.0, None, False),
        (UP, 0.0, 0.0, True),
        (DOWN, 0.3, 0.3, True),
        (DOWN, 0.4, 0.3, False),
        (DOWN, -INF, 0.3, False),
        (DOWN, NAN, 0.3, False),
    ],
)
def test_a_target_is_reached_in_the_direction(metric, value, target, reaches):
    assert metric.reaches(value, target) is reaches


# ------------------------------------------------------------- evaluation


@pytest.mark.parametrize("batch_size", [1, 3, 5, 500])
def test_means_are_over_the_examples_however_the_set_is_cut(batch_size):
    """Of 1 2 4 8 5 around 2: squares 1 0 4 36 9, distances 1 0 2 6 3."""
    x = np.array([1.0, 2.0, 4.0, 8.0, 5.0], np.float32)
    evaluation = mean_evaluation({"loss": square, "distance": distance})
    scores = make_evaluate(task_of(x, evaluation), batch_size)(jnp.float32(2.0))
    assert scores == {"loss": 10.0, "distance": pytest.approx(2.4, rel=1e-12)}


def test_sums_are_any_arrays_and_are_added_in_float64():
    """Perplexity, of a sum of log-losses and a number of tokens."""

    def sums(params, batch, mask):
        return {"nll": jnp.sum(batch["x"], where=mask), "tokens": mask.sum()}

    def values(sums, count):
        assert sums["tokens"] == count
        return {"perplexity": math.exp(sums["nll"] / sums["tokens"])}

    task = task_of(
        np.full(7, math.log(5), np.float32),
        Evaluation(sums, values),
        Metric("perplexity", higher_is_better=False),
    )
    scores = make_evaluate(task, 2)({})
    assert scores["perplexity"] == pytest.approx(5.0, rel=1e-6)


def test_an_evaluation_without_the_headline_is_an_error():
    task = task_of(np.ones(3, np.float32), mean_evaluation({"mse": square}))
    with pytest.raises(
        ValueError, match="found mse, but the metric of the task is los"
    ):
        make_evaluate(task)(jnp.float32(0.0))


def test_equal_evaluations_are_one_so_that_programs_are_shared():
    again = mean_evaluation({"loss": square})
    assert mean_evaluation({"loss": square}) is again
    assert mean_evaluation({"loss": distance}) != again


# ------------------------------------------------------------- labels


def test_classes_are_counted_where_there_are_labels():
    shards = np.array([0, 1, 2]), np.array([3, 4])
    labels = np.array([0, 2, 2, 1, 1])
    evaluation = mean_evaluation({"loss": square})
    task = task_of(np.ones(1), evaluation, shards=shards, labels=labels)
    assert class_counts(task) == [[1, 0, 2], [0, 2, 0]]
    assert class_counts(task._replace(labels=None)) is None
