"""A trained model is used on inputs as a user has them."""

import jax
import numpy as np
import pandas
import pytest

import asyn2f
from asyn2f.config import build
from asyn2f.errors import DataError, TaskError
from asyn2f.training.batches import make_evaluate
from tests.unit.test_supervised import CLASSES, KEY, MODELS, Net, X

FAR = (X.astype(np.float64) + 3.0) * [100.0, 1.0, 0.01]


def accuracy_of(task, params, inputs, target):
    predicted = np.argmax(task.predict(params, inputs), axis=-1)
    return float(np.mean(predicted == target))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_predictions_of_raw_inputs_are_those_of_the_evaluation(model, normalise):
    task = asyn2f.supervised(
        MODELS[model], (FAR, CLASSES), (FAR, CLASSES), normalise=normalise
    )
    params = task.init(KEY)
    scores = make_evaluate(task)(params)
    expected = pytest.approx(scores["accuracy"])
    assert accuracy_of(task, params, FAR, CLASSES) == expected
    assert accuracy_of(task, params, jax.numpy.asarray(FAR), CLASSES) == expected


def test_normalised_inputs_are_those_of_training_to_the_bit():
    task = asyn2f.supervised(Net(3), (FAR, CLASSES), test=0.2, normalise=True)
    plain = asyn2f.supervised(
        Net(3), (task.train["x"], task.train["y"]), (task.test["x"], task.test["y"])
    )
    raw = asyn2f.supervised(Net(3), (FAR, CLASSES), test=0.2).train["x"]
    params = task.init(KEY)
    np.testing.assert_array_equal(
        task.predict(params, raw), plain.predict(params, task.train["x"])
    )


def test_columns_are_found_by_name_in_the_order_of_training():
    table = {"a": FAR[:, 0], "b": FAR[:, 1], "c": FAR[:, 2], "y": CLASSES}
    task = asyn2f.supervised(Net(3), table, test=0.2, normalise=True)
    params = task.init(KEY)
    frame = pandas.DataFrame({name: table[name] for name in ("c", "y", "b", "a")})
    np.testing.assert_array_equal(
        task.predict(params, frame[:9]), task.predict(params, FAR[:9])
    )
    with pytest.raises(DataError, match="predict: the column 'b' is missing"):
        task.predict(params, frame.drop(columns="b"))


def test_several_inputs_are_given_by_name():
    def init(key, x):
        return {"w": jax.numpy.ones((2, 3))}

    def apply(params, x):
        return x["image"].mean((1, 2))[:, None] + x["age"] @ params["w"]

    table = {"image": np.ones((20, 2, 3)), "age": np.ones((20, 2)), "y": CLASSES[:20]}
    task = asyn2f.supervised((init, apply), table, test=0.2)
    inputs = {name: table[name][:4] for name in ("age", "image")}
    found = task.predict(task.init(KEY), inputs)
    np.testing.assert_array_equal(found, np.full((4, 3), 3.0))
    with pytest.raises(DataError, match="found ndarray, needed: arrays by name, image"):
        task.predict(task.init(KEY), table["age"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (FAR[:, :2], r"found float32 \[120, 2\] for x, needed: float32 \[N, 3\]"),
        (FAR[0], r"found float32 \[3, 1\] for x"),
        (FAR * np.nan, "found nan in row 0"),
    ],
)
def test_inputs_that_are_not_as_in_training(inputs, message):
    task = asyn2f.supervised(Net(3), (FAR, CLASSES), test=0.2)
    with pytest.raises(DataError, match=message):
        task.predict(task.init(KEY), inputs)


def test_means_that_are_not_here_are_not_guessed():
    nobody = (FAR[:0], CLASSES[:0])
    task = asyn2f.supervised(Net(3), nobody, nobody, normalise=True)
    with pytest.raises(TaskError, match=r"predict: normalise .* no training rows"):
        task.predict(task.init(KEY), FAR)


def test_built_in_tasks_predict_from_their_own_inputs():
    task = build.build_task(asyn2f.default_config())
    params = task.init(KEY)
    inputs, target = task.test["input"], task.test["label"]
    scores = make_evaluate(task)(params)
    assert accuracy_of(task, params, inputs, target) == pytest.approx(
        scores["accuracy"]
    )
