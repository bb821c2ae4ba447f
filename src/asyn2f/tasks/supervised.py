"""Tasks made of a user's model, data, loss and metrics."""

import difflib
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Never

import numpy as np

from asyn2f.errors import DataError, TaskError
from asyn2f.tasks.base import Task, num_rows
from asyn2f.tasks.columns import (
    Arranged,
    Choice,
    arrange,
    as_in,
    by_owner,
    held_out,
    labels,
)
from asyn2f.tasks.functions import functions_of
from asyn2f.tasks.objectives import Objective, Rows, objective_of
from asyn2f.tasks.prediction import Form, normalised, prediction_of, scale_of
from asyn2f.tasks.readers import Columns, read_splits
from asyn2f.types import Metric

_MOST_CLASSES = 1000  # of integers that nothing else tells to be classes


def supervised(
    model: Any,
    train: Any,
    test: Any = None,
    *,
    loss: str | Rows = "cross_entropy",
    metrics: str | Rows | Sequence[str | Rows] | Mapping[str, str | Rows] | None = None,
    metric: str | Metric = "",
    inputs: str | Sequence[str] = (),
    target: str | None = "",
    extras: Sequence[str] = (),
    split_by: str = "",
    workers: int | None = None,
    shards: Sequence[np.ndarray] = (),
    normalise: bool = False,
    seed: int = 0,
    name: str = "supervised",
    **unknown: Never,
) -> Task:
    """A task of a model, data, a loss and metrics; the guide is docs/your_own_model.md.

    Args:
      model: see `networks.network_of`; its variables are float32.
      train: arrays by name, a pair (x, y), or a path: see `readers.read_splits`. Arrays
        of 0 rows state the columns of data that are elsewhere.
      test: as `train`; or a fraction of each worker's rows, drawn by `seed`; or None:
        the test set that `train` has.
      loss: of `objectives.NAMED`, or (outputs, batch) -> f32 [B], or f32 [], the mean.
      metrics: names and functions (outputs, batch) -> f32 [B], or either by name; None
        = what suits a named loss. Their means are reported, and that of the loss.
      metric: the headline, one of the metrics or "loss"; "" = the first.
      inputs, target, extras: columns, see `columns.arrange`; () = all others, "" = y,
        label, labels or target, None = there is none.
      split_by: the column of worker ids: a worker for each, in the order of the ids.
      workers: the number that `split_by` has to give; None = any.
      shards: rows of each worker, in place of `split_by`; () = not split yet.
      normalise: each input column or channel to mean 0, deviation 1 of `train`.
      seed: of the rows held out.
      name: for messages.

    Raises:
      TypeError: an unknown argument.
      TaskError: an argument has another value, or model, loss or metric do not fit.
      DataError: the data are missing, malformed or do not fit.

    >>> import flax.linen as nn
    >>> x = np.linspace(0, 1, 20)
    >>> task = supervised(nn.Dense(1), (x, 2 * x), test=0.2, loss="mse")
    >>> task.metric.name, task.train["x"].shape, task.test["y"].shape
    ('mae', (16, 1), (4,))
    """
    if unknown:
        raise TypeError(_unknown(next(iter(unknown))))
    objective = objective_of(loss, metrics, metric)
    inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    choice = Choice(inputs, target, tuple(extras), split_by)
    data = _read(train, test, choice, objective, workers, seed)
    if shards:
        data = _with_shards(data, shards, split_by, test)
    rows = {name: data.train[name][:0].copy() for name in data.inputs}
    form = Form(data.columns, rows, scales={})
    if normalise:
        data, form = _normalised(data, form)
    return _task(name, model, objective, data, form)


def _unknown(argument: str) -> str:
    near = difflib.get_close_matches(argument, inspect.signature(supervised).parameters)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"supervised() got an unexpected keyword argument {argument!r}{hint}"


def _task(
    name: str, model: Any, objective: Objective, data: "_Data", form: Form
) -> Task:
    functions = functions_of(model, objective, data.inputs, data.train)
    if functions.classes is not None:
        _check_classes(data, functions.classes)
    return Task(
        name=name,
        init=functions.init,
        loss=functions.loss,
        evaluation=functions.evaluation,
        metric=objective.headline,
        train=data.train,
        test=data.test,
        shards=data.shards,
        qualities=(1.0,) * len(data.shards),
        labels=_labels(data.train.get("y"), objective),
        predict=prediction_of(functions.outputs, form),
    )


# ---------------------------------------------------------------- data


class _Data(NamedTuple):
    train: Columns
    test: Columns
    inputs: tuple[str, ...]  # of the model, in `train` and `test`
    shards: tuple[np.ndarray, ...]  # of `train`; () = not split
    columns: tuple[str, ...]  # of the source, that `inputs` are made of


def _read(
    train: Any,
    test: Any,
    choice: Choice,
    objective: Objective,
    workers: int | None,
    seed: int,
) -> _Data:
    where = _where(train, "train")
    splits = read_splits(train, choice.split_by)
    rows = _arranged(splits["train"], choice, objective, where)
    parts: tuple[np.ndarray, ...] = ()
    if rows.owners is not None:
        parts = by_owner(rows.owners, workers, choice.split_by, where)
    if isinstance(test, float):
        return _without_held_out(rows, parts, test, seed)
    if test is not None:
        splits, where = read_splits(test), _where(test, "test")
        splits.setdefault("test", splits["train"])
    elif "test" in splits:
        where = f"{where}, test set"
    else:
        raise DataError(
            f"{where}: found no test set; give one by test=..., or a fraction of the "
            "rows, as test=0.2"
        )
    chosen = rows.choice._replace(split_by="")
    held = _arranged(splits["test"], chosen, objective, where)
    test = as_in(rows.batch, held.batch, where)
    return _Data(rows.batch, test, rows.inputs, parts, rows.choice.inputs)


def _with_shards(
    data: _Data, shards: Sequence[np.ndarray], split_by: str, test: Any
) -> _Data:
    if split_by or isinstance(test, float):
        raise TaskError(
            "shards: these are rows of train: leave split_by out, and give test as data"
        )
    return data._replace(shards=tuple(np.asarray(x, np.int32) for x in shards))


def _where(source: Any, otherwise: str) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else otherwise


def _arranged(
    columns: Columns, choice: Choice, objective: Objective, where: str
) -> Arranged:
    """Columns as arrays, with the kind of target that the loss has."""
    # A file without rows is a mistake; arrays without rows are a specification.
    rows = arrange(columns, choice, where, may_be_empty=where in ("train", "test"))
    if objective.target == "any":
        return rows
    if choice.target is None:
        raise TaskError("target: found None, but this loss needs a target")
    y, batch = rows.batch["y"], rows.batch
    if objective.target == "number":
        return rows._replace(batch={**batch, "y": y.astype(np.float32)})
    y = labels(y, 1 if objective.target == "0 or 1" else None, where)
    return rows._replace(batch={**batch, "y": y})


def _without_held_out(
    rows: Arranged, parts: tuple[np.ndarray, ...], fraction: float, seed: int
) -> _Data:
    if not 0 < fraction < 1:
        raise TaskError(
            f"test: found {fraction}, allowed: data, or a fraction in (0, 1)"
        )
    whole = parts or (np.arange(num_rows(rows.batch)),)
    kept, out = held_out(whole, fraction, seed)
    if not len(out) and num_rows(rows.batch):
        raise TaskError(
            f"test: found {fraction}, which is not a single row of "
            f"{max(map(len, whole))}; give more, or a test set"
        )
    order = np.concatenate(kept)
    train, test = (
        {name: array[chosen] for name, array in rows.batch.items()}
        for chosen in (order, out)
    )
    ends = np.cumsum([len(part) for part in kept])
    places = np.split(np.arange(len(order), dtype=np.int32), ends[:-1])
    shards = tuple(places) if parts else ()
    return _Data(train, test, rows.inputs, shards, rows.choice.inputs)


def _normalised(data: _Data, form: Form) -> tuple[_Data, Form]:
    """Both sets by the means and deviations of the training set."""
    train, test = dict(data.train), dict(data.test)
    if num_rows(train):
        scales = {name: scale_of(train[name]) for name in data.inputs}
        for name, scale in scales.items():
            train[name] = normalised(train[name], scale)
            test[name] = normalised(test[name], scale)
        return data._replace(train=train, test=test), form._replace(scales=scales)
    if num_rows(test):
        raise TaskError(
            "normalise: found True, but no training rows to take means and deviations "
            "of, and a test set to apply them to; bring both to scale yourself"
        )
    for name in data.inputs:
        train[name], test[name] = (x[name].astype(np.float32) for x in (train, test))
    return data._replace(train=train, test=test), form._replace(scales=None)


def _labels(y: np.ndarray | None, objective: Objective) -> np.ndarray | None:
    """The targets as classes of the rows, i32 [N], if that is what they are: by the
    loss, by an accuracy among the metrics, or as integers from 0 that are few."""
    if y is None or y.ndim != 1:
        return None
    if objective.target in ("class", "0 or 1"):
        return y
    if objective.counts_hits:
        are_classes = bool(np.all((y >= 0) & (y == np.floor(y))))
    else:  # a named loss of numbers has made them floats
        is_whole = y.dtype.kind in "biu"
        are_classes = is_whole and bool(np.all((y >= 0) & (y < _MOST_CLASSES)))
    return y.astype(np.int32) if are_classes else None


def _check_classes(data: _Data, outputs: int) -> None:
    most = max(int(part["y"].max(initial=0)) for part in (data.train, data.test))
    if most >= outputs:
        raise TaskError(
            f"model: found {outputs} outputs for each target, but the targets go up to "
            f"{most}; needed: an output for each class, so {most + 1}"
        )
