"""Checks of a task by its shapes, before anything is computed.

What a task's functions return is found by tracing them on abstract arrays, so that a
mistake is one line before any process starts.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.errors import TaskError, in_one_line
from asyn2f.tasks.base import Aux, Evaluation, Task, num_rows
from asyn2f.types import Metric

_EVALUATED = 500  # rows at a time, as in `training.batches.make_evaluate`
_LONGEST = 300  # characters of a value that are shown
_RETURN = "end the function with `return task`, an asyn2f.Task"


def check_task(task: Any, batch_size: int = 32, *, may_be_empty: bool = False) -> None:
    """Checks the record, its data, its split if it has one, and its functions.

    Args:
      task: what should be a `Task`.
      batch_size: of training.
      may_be_empty: allow data of 0 rows, which state their columns.

    Raises:
      TaskError: with the value found, what is allowed, and what to do.

    >>> check_task(None)
    Traceback (most recent call last):
    asyn2f.errors.TaskError: found None, allowed: a Task; end the function with \
`return task`, an asyn2f.Task
    """
    check_record(task, may_be_empty=may_be_empty)
    params = _check_init(task)
    _check_loss(task, params, batch_size)
    _check_evaluation(task, params)


def check_record(task: Any, *, may_be_empty: bool = False) -> None:
    """As `check_task`, without tracing its functions."""
    if not isinstance(task, Task):
        raise TaskError(f"found {_short(task)}, allowed: a Task; {_RETURN}")
    for name, kind in (("metric", Metric), ("evaluation", Evaluation)):
        if not isinstance(value := getattr(task, name), kind):
            raise TaskError(f"Task.{name}: found {_short(value)}, allowed: {kind}")
    for name in ("init", "loss", "init_carry"):
        if not callable(value := getattr(task, name)):
            raise TaskError(f"Task.{name}: found {_short(value)}, allowed: a function")
    if task.predict is not None and not callable(task.predict):
        found = _short(task.predict)
        raise TaskError(f"Task.predict: found {found}, allowed: a function, or None")
    for name in ("train", "test"):
        _check_data(name, getattr(task, name), int(not may_be_empty))
    _check_split(task, may_be_empty)


def _check_data(name: str, data: Any, least: int) -> None:
    if not isinstance(data, Mapping) or not data:
        raise TaskError(
            f"Task.{name}: found {_short(data)}, allowed: a dict of arrays by name, "
            "[N, ...] each"
        )
    rows: dict[str, int] = {}
    for key, array in data.items():
        is_array = isinstance(array, np.ndarray | jax.Array)
        if not is_array or array.dtype.kind not in "biufV":
            raise TaskError(
                f"Task.{name}[{key!r}]: found {_described(array)}, allowed: an array "
                "of numbers; np.asarray(..., np.float32) makes one, and np.unique(..., "
                "return_inverse=True) numbers texts"
            )
        if not array.shape or array.shape[0] < least:
            raise TaskError(
                f"Task.{name}[{key!r}]: found shape {list(array.shape)}, allowed: [N, "
                "...] with N of at least 1"
            )
        rows[key] = array.shape[0]
    if len({*rows.values()}) > 1:
        found = ", ".join(f"{count} in {key!r}" for key, count in rows.items())
        raise TaskError(
            f"Task.{name}: found {found}; all columns need the same number of rows"
        )


def _check_split(task: Task, is_own: bool) -> None:
    rows = num_rows(task.train)
    for worker, shard in enumerate(task.shards):
        _check_rows(f"Task.shards[{worker}]", shard, rows, least=1)
    for worker, own in enumerate(task.held_out):
        _check_rows(f"Task.held_out[{worker}]", own, num_rows(task.test), least=0)
    if task.held_out and not is_own and len(task.held_out) != len(task.shards):
        raise TaskError(
            f"Task.held_out: found {len(task.held_out)}, allowed: one for each of the "
            f"{len(task.shards)} shards, or () if the test set is nobody's own"
        )
    if task.held_out and not is_own and not any(map(len, task.held_out)):
        raise TaskError("Task.held_out: found no row, allowed: some for some worker")
    count = 1 if is_own else len(task.shards)
    if task.qualities and len(task.qualities) != count:
        raise TaskError(
            f"Task.qualities: found {len(task.qualities)}, allowed: one for each of "
            f"the {count} shards"
        )
    if not all(0 < quality <= 1 for quality in task.qualities):
        raise TaskError(f"Task.qualities: found {task.qualities}, allowed: (0, 1] each")
    labels = task.labels
    if labels is not None and not (
        np.shape(labels) == (rows,) and np.asarray(labels).dtype.kind in "iu"
    ):
        raise TaskError(
            f"Task.labels: found {_described(labels)}, allowed: int [{rows}], a class "
            "for each row of the training set, or None"
        )


def _check_rows(name: str, found: Any, rows: int, least: int) -> None:
    """Checks row numbers of a table with so many rows."""
    indices = np.asarray(found)
    are_numbers = indices.dtype.kind in "iu" or not indices.size
    if indices.ndim != 1 or not are_numbers or indices.size < least:
        allowed = f"row numbers, int [n] with n of at least {least}"
        raise TaskError(f"{name}: found {_described(indices)}, allowed: {allowed}")
    if indices.size and (indices.min() < 0 or indices.max() >= rows):
        raise TaskError(
            f"{name}: found rows {indices.min()} to {indices.max()}, allowed: 0 to "
            f"{rows - 1}"
        )


def _check_init(task: Task) -> Any:
    """The shapes of the model."""
    params = _traced("Task.init", lambda: task.init(_key()))
    if not isinstance(params, dict) or "params" not in params:
        raise TaskError(
            f"Task.init: found {_described(params)}, allowed: a dict of collections, "
            '{"params": what is trained, ...}'
        )
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in paths:
        if not hasattr(leaf, "dtype") or leaf.dtype.kind not in "biufV":
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TaskError(
                f"Task.init: found {_described(leaf)} at {name}, allowed: arrays"
            )
    trained = jax.tree.leaves(params["params"])
    if not any(leaf.size for leaf in trained):
        raise TaskError(
            'Task.init: found no array in "params", so there is nothing to train'
        )
    whole = [leaf for leaf in trained if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    if whole:
        raise TaskError(
            f'Task.init: found {_described(whole[0])} in "params", allowed: floating '
            "point; put others into another collection"
        )
    return params


def _check_loss(task: Task, params: Any, batch_size: int) -> None:
    worker = jax.ShapeDtypeStruct((), jnp.int32)
    carry = _traced("Task.init_carry", lambda w: task.init_carry(_key(), w), worker)
    batch = _batch(task.train, batch_size)

    def loss(params, carry, batch):
        return task.loss(params, carry, batch, _key())

    found = _traced("Task.loss", loss, params, carry, batch)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Aux):
        raise TaskError(
            f"Task.loss: found {_described(found)}, allowed: (loss f32 [], asyn2f.Aux)"
        )
    value, aux = found
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TaskError(
            f"Task.loss: found {_described(value)}, allowed: a scalar, f32 []; for "
            "losses of examples return their mean over the batch"
        )
    if jnp.shape(aux.metric) != ():
        raise TaskError(
            f"Task.loss: found Aux.metric of shape {list(jnp.shape(aux.metric))}, "
            "allowed: a scalar, f32 []"
        )
    for name, statistics in aux.statistics.items():
        before = params.get(name) if name != "params" else None
        if _layout(before) != _layout(statistics):
            raise TaskError(
                f"Task.loss: found Aux.statistics[{name!r}] = "
                f"{_described(statistics)}, allowed: as `init` makes it, "
                f"{_described(before)}"
            )
    if _layout(aux.carry) != _layout(carry):
        raise TaskError(
            f"Task.loss: found Aux.carry = {_described(aux.carry)}, allowed: as before "
            f"the step, {_described(carry)}"
        )
    trained = params["params"]
    others = {name: x for name, x in params.items() if name != "params"}

    def gradient(trained, others, carry, batch):
        return jax.grad(lambda p: loss({**others, "params": p}, carry, batch)[0])(
            trained
        )

    _traced("the gradient of Task.loss", gradient, trained, others, carry, batch)


def _check_evaluation(task: Task, params: Any) -> None:
    count = min(_EVALUATED, num_rows(task.test)) or _EVALUATED
    mask = jax.ShapeDtypeStruct((count,), jnp.bool_)
    _traced(
        "Task.evaluation.sums",
        task.evaluation.sums,
        params,
        _batch(task.test, count),
        mask,
    )


def _traced(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The shapes of what a function returns.

    Raises:
      TaskError: it fails.
    """
    try:
        return jax.eval_shape(function, *arguments)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"{what} failed: {in_one_line(error)}") from error


def _key() -> jax.Array:
    """A key inside of `_traced`."""
    return jax.random.key(0)


def _batch(data: Mapping[str, Any], count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of these columns, as training and evaluation read them."""
    return {
        name: jax.ShapeDtypeStruct(
            (count, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype)
        )
        for name, array in data.items()
    }


def _layout(tree: Any) -> Any:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def _described(value: Any) -> str:
    """An array, or a tree of arrays, by dtype and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict | list | tuple) and jax.tree.leaves(value):
        return str(jax.tree.map(_described, value)).replace("'", "")[:_LONGEST]
    return _short(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:60]}..."
