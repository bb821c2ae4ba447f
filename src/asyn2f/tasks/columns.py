"""Columns of a data set as the arrays of a task: chosen, checked, split by owner."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from asyn2f.errors import DataError
from asyn2f.tasks.readers import Columns

_TARGETS = ("y", "label", "labels", "target")
_INT32 = np.iinfo(np.int32)


class Choice(NamedTuple):
    """Which columns of a data set are what."""

    inputs: tuple[str, ...] = ()  # () = all that are nothing else
    target: str | None = ""  # "" = the first there is of `_TARGETS`
    extras: tuple[str, ...] = ()
    split_by: str = ""


class Arranged(NamedTuple):
    """The arrays of a task."""

    batch: Columns  # x or several inputs by their names, y, extras; each [N, ...]
    inputs: tuple[str, ...]  # names of the inputs in `batch`
    owners: np.ndarray | None  # [N], where there is a column of them
    choice: Choice  # without defaults, for data of the same columns


def arrange(
    columns: Columns, choice: Choice, where: str, *, may_be_empty: bool = False
) -> Arranged:
    """Chooses columns as inputs and target, as int32 and float32 where NumPy has more.

    Inputs that are all numbers [N] become x f32 [N, F], in the order of the columns;
    one array [N, ...] becomes x; others keep their names. The target becomes y.

    Args:
      columns: by name.
      choice: of columns.
      where: the source, for messages.
      may_be_empty: allow 0 rows, which state the columns of data that are elsewhere.

    Raises:
      DataError: a column is missing, of another length than the others, not numbers,
        or not finite; or there are no rows.

    >>> columns = {"a": np.array([1, 2]), "b": np.array([0.5, 1]), "y": np.ones(2)}
    >>> arrange(columns, Choice(), "data").batch["x"]
    array([[1. , 0.5],
           [2. , 1. ]], dtype=float32)
    """
    _check_lengths(columns, where, may_be_empty)
    target = _target_of(columns, choice.target, where)
    others = {*([target] if target else []), *choice.extras, choice.split_by}
    inputs = choice.inputs or tuple(name for name in columns if name not in others)
    _check_present(columns, [*inputs, *choice.extras], where)
    if not inputs:
        raise DataError(f"{where}: found no columns of inputs beside {_listed(others)}")
    owners = None
    if choice.split_by:
        _check_present(columns, [choice.split_by], where)
        owners = columns[choice.split_by]
    found = {name: numbers(columns[name], name, where) for name in inputs}
    if all(array.ndim == 1 for array in found.values()):
        found = {"x": np.stack([*found.values()], axis=1, dtype=np.float32)}
    elif len(found) == 1:
        found = {"x": found[inputs[0]]}
    batch = dict(found)
    if target:
        batch["y"] = numbers(columns[target], target, where)
    for name in choice.extras:
        batch[name] = numbers(columns[name], name, where)
    if len(batch) < len(found) + bool(target) + len(choice.extras):
        raise DataError(
            f"{where}: found the columns {_listed([*found, *choice.extras])}; x and y "
            "are the names of input and target: name others differently"
        )
    chosen = choice._replace(inputs=inputs, target=target)
    return Arranged(batch, tuple(found), owners, chosen)


def _check_lengths(columns: Columns, where: str, may_be_empty: bool) -> None:
    lengths = {
        name: len(array) if array.ndim else -1 for name, array in columns.items()
    }
    if -1 in lengths.values():
        name = next(name for name, length in lengths.items() if length == -1)
        raise DataError(f"{where}: {name!r} is a single value, needed: one per example")
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"{where}: found columns of several lengths ({found})")
    if not may_be_empty and not any(lengths.values()):
        raise DataError(f"{where}: found no rows, needed: at least one")


def _target_of(columns: Columns, target: str | None, where: str) -> str | None:
    if target == "":
        target = next((name for name in _TARGETS if name in columns), None)
        if target is None:
            raise DataError(
                f"{where}: found the columns {_listed(columns)}, and none named "
                f"{', '.join(_TARGETS)}; name the target by target=..., or give "
                "target=None where there is none"
            )
    elif target is not None:
        _check_present(columns, [target], where)
    return target


def _check_present(columns: Columns, names: Iterable[str], where: str) -> None:
    missing = [name for name in names if name not in columns]
    if missing:
        raise DataError(
            f"{where}: the column {missing[0]!r} is missing; found {_listed(columns)}"
        )


def _listed(names: Iterable[str]) -> str:
    names = sorted(filter(None, names))
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def numbers(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """A column as numbers that JAX takes as they are.

    Raises:
      DataError: names the first row that is no finite number.
    """
    column = f"{where}, column {name!r}"
    if array.dtype.kind == "O":
        raise DataError(f"{column}: {_of_objects(array)}")
    if array.dtype.kind in "US":
        row, cell = _first_text(array)
        found = f"found {cell!r}" if cell else "an empty cell"
        raise DataError(
            f"{column}: {found} in row {row} (the first is 0), needed: a number; "
            "number the categories, or choose other columns by inputs=..."
        )
    if array.dtype.kind not in "biuf":
        raise DataError(f"{column}: found {array.dtype}, allowed: integers and floats")
    if array.dtype.kind == "f":
        wide = array
        with np.errstate(over="ignore"):
            array = array.astype(np.float32, copy=False)
        _check_rows(np.isfinite(array), wide, column, "a finite number")
    elif array.dtype.itemsize > 2 and array.dtype != np.int32:
        fits = (array >= _INT32.min) & (array <= _INT32.max)
        _check_rows(fits, array, column, "an integer of 32 bits")
        array = array.astype(np.int32)
    return array


def labels(array: np.ndarray, most: int | None, where: str) -> np.ndarray:
    """Targets as classes, int32.

    Raises:
      DataError: one is no integer in [0, most]; None = no limit.
    """
    wanted = "an integer from 0, the number of a class" if most is None else "0 or 1"
    good = array >= 0
    if array.dtype.kind == "f":
        good &= array == np.floor(array)
    if most is not None:
        good &= array <= most
    _check_rows(good, array, f"{where}, target", wanted)
    return array.astype(np.int32, copy=False)


def _check_rows(good: np.ndarray, array: np.ndarray, column: str, wanted: str) -> None:
    """Raises DataError for the first row in which something is not good."""
    if not good.all():
        places = np.argwhere(~good)[0]
        raise DataError(
            f"{column}: found {array[tuple(places)]} in row {places[0]} (the first is "
            f"0), needed: {wanted}"
        )


def _first_text(array: np.ndarray) -> tuple[int, str]:
    """The first row of a column of text that is no number, and its cell."""
    for row, cell in enumerate(array.reshape(len(array), -1)[:, 0].tolist()):
        try:
            float(cell)
        except ValueError:
            return row, str(cell).strip()
    return 0, str(array.flat[0])


def _of_objects(rows: np.ndarray) -> str:
    """What is wrong with rows that have become no array."""
    shapes = [_shape(row) for row in rows]
    other = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        return (
            f"found rows of different shapes, {shapes[0]} in row 0 and {shapes[other]} "
            f"in row {other} (the first is 0), needed: one shape; cut or pad them"
        )
    return f"found objects of Python, {type(rows[0]).__name__}, needed: numbers"


def _shape(row: object) -> tuple[int, ...]:
    if isinstance(row, list | tuple):
        return (len(row),)
    return np.shape(row) if isinstance(row, np.ndarray) else ()


def as_in(trained: Columns, columns: Columns, where: str) -> Columns:
    """The arrays of those columns that training has, in its dtypes.

    Args:
      trained: arrays [N, ...] of training, for their shapes and dtypes; N may be 0.
      columns: arrays [M, ...].
      where: the source, for messages.

    Raises:
      DataError: an array is missing, has rows of another shape, or floats for integers.
    """
    found = {}
    for name, wanted in trained.items():
        if name not in columns:
            raise DataError(
                f"{where}: found {_listed(columns)}, needed: {_listed(trained)}, as in "
                "training; the shapes of rows decide which columns become x"
            )
        array = columns[name]
        fits = np.can_cast(array.dtype, wanted.dtype, "same_kind")
        if array.shape[1:] != wanted.shape[1:] or not fits:
            needed = ", ".join(["N", *map(str, wanted.shape[1:])])
            raise DataError(
                f"{where}: found {array.dtype} {list(array.shape)} for {name}, needed: "
                f"{wanted.dtype} [{needed}], as in training"
            )
        found[name] = array.astype(wanted.dtype, copy=False)
    return found


def by_owner(
    owners: np.ndarray, workers: int | None, column: str, where: str
) -> tuple[np.ndarray, ...]:
    """The rows of each owner, owners in the order of their ids: worker 0 is the first.

    Args:
      owners: [N], integers or text; text that is integers throughout is ordered so.
      workers: the number wanted; None = as many as there are owners.
      column: for messages.
      where: the source, for messages.

    Raises:
      DataError: an id is missing, or there is another number of owners.

    >>> owners = np.array(["10", "9", "10"])
    >>> [rows.tolist() for rows in by_owner(owners, 2, "id", "data")]
    [[1], [0, 2]]
    """
    name = f"{where}, column {column!r}"
    if owners.ndim != 1 or owners.dtype.kind not in "biufUS":
        found = _of_objects(owners) if owners.dtype == object else owners.dtype
        raise DataError(f"{name}: {found}; allowed: one id per row, an integer or text")
    if owners.dtype.kind == "f":
        _check_rows(owners == np.floor(owners), owners, name, "the id of a worker")
    elif owners.dtype.kind in "US":
        owners = np.char.strip(owners)
        _check_rows(owners != "", owners, name, "the id of a worker")
        if np.char.isdecimal(owners).all():
            owners = owners.astype(np.int64)
    ids, owner_of = np.unique(owners, return_inverse=True)
    if workers is not None and workers != len(ids):
        raise DataError(
            f"{name}: found {len(ids)} workers ({_listed(map(str, ids))}), but "
            f"config.workers is {workers}; set config.workers={len(ids)}"
        )
    order = np.argsort(owner_of, kind="stable").astype(np.int32)
    return tuple(np.split(order, np.cumsum(np.bincount(owner_of))[:-1]))


def held_out(
    parts: Sequence[np.ndarray], fraction: float, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows that remain of each part, and those held out: a fraction of each part,
    drawn at random, but never a whole part.

    >>> (kept,), test = held_out([np.arange(10)], 0.2, seed=0)
    >>> len(kept), len(test)
    (8, 2)
    """
    rng, kept, out = np.random.default_rng(seed), [], []
    for rows in parts:
        count = max(min(round(fraction * len(rows)), len(rows) - 1), 0)
        drawn = rng.permutation(len(rows))
        kept.append(np.sort(rows[drawn[count:]]))
        out.append(np.sort(rows[drawn[:count]]))
    return kept, np.concatenate(out)
