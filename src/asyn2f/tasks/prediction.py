"""Predictions of a trained model for inputs as a user has them, and their scales."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from asyn2f.errors import DataError, TaskError
from asyn2f.tasks.base import Predict
from asyn2f.tasks.columns import Choice, arrange, as_in
from asyn2f.tasks.readers import Columns
from asyn2f.types import Params


class Scale(NamedTuple):
    """Of each feature of an input."""

    mean: np.ndarray  # f64 [F]
    deviation: np.ndarray  # f64 [F], 1 where a feature is constant


def scale_of(array: np.ndarray) -> Scale:
    """Means and deviations of the features of an array [N, ..., F] with N > 0."""
    axes = tuple(range(array.ndim - 1))
    mean = array.mean(axes, np.float64)
    deviation = array.std(axes, np.float64)
    deviation[deviation <= 1e-12 * np.abs(mean)] = 1.0
    return Scale(mean, deviation)


def normalised(array: np.ndarray, scale: Scale) -> np.ndarray:
    """f32 [N, ..., F]: each feature by its mean and deviation.

    >>> array = np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> normalised(array, scale_of(array))
    array([[-1.,  0.],
           [ 1.,  0.]], dtype=float32)
    """
    return ((array - scale.mean) / scale.deviation).astype(np.float32)


class Form(NamedTuple):
    """What the inputs of a task are before they are normalised."""

    columns: tuple[str, ...]  # of the data, in their order
    rows: Columns  # inputs [0, ...], for their shapes and dtypes
    scales: Mapping[str, Scale] | None  # by input, {} = none; None = not known here


def prediction_of(outputs: Predict, form: Form) -> Predict:
    """`Task.predict` of outputs for inputs that are prepared. Its inputs are the array
    x, or columns by name; it raises DataError where they are not as in training."""

    def predict(params: Params, inputs: Any) -> Any:
        if form.scales is None:
            raise TaskError(
                "predict: normalise is True, but this task has no training rows to "
                "take means and deviations of; make it with those of a worker"
            )
        found = as_in(form.rows, _arranged(inputs, form), "predict")
        for name, scale in form.scales.items():
            found[name] = normalised(found[name], scale)
        return outputs(params, found["x"] if [*found] == ["x"] else found)

    return predict


def _arranged(inputs: Any, form: Form) -> dict[str, np.ndarray]:
    if hasattr(inputs, "keys"):
        columns = {str(name): np.asarray(inputs[name]) for name in [*inputs.keys()]}
        names = form.columns
    elif [*form.rows] == ["x"]:
        columns, names = {"x": np.asarray(inputs)}, ("x",)
    else:
        raise DataError(
            f"predict: found {type(inputs).__name__}, needed: arrays by name, "
            f"{', '.join(form.columns)}"
        )
    columns = {name: array for name, array in columns.items() if name in names}
    return arrange(columns, Choice(names, None), "predict").batch
