"""User data as arrays by name: from memory, files and saved data sets."""

import csv
import gzip
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from asyn2f.errors import DataError
from asyn2f.tasks.tfds import read_prepared

Columns = dict[str, np.ndarray]
"""Arrays by name, one row per example: numbers [N, ...] or text [N]. What has no such
form, such as rows of several lengths, is an array of objects, refused where it is used.
"""

_ROWS = 10_000  # of a CSV file, converted at a time


def read_splits(source: Any, ids: str = "") -> dict[str, Columns]:
    """The columns of a data source by split: "train", and "test" if it has one.

    Args:
      source: arrays by name; a pair (x, y); one array, x; or the path of an .npz, .csv,
        .csv.gz or .parquet file, of a folder saved by `save_to_disk` of Hugging Face's
        datasets, or of one that tensorflow-datasets has prepared. Arrays whose names
        all end in _train or _test are the splits.
      ids: the column of a CSV file whose cells stay text.

    Raises:
      DataError: it is missing, unreadable, or needs a library that is missing.

    >>> splits = read_splits({"x_train": [1.0, 2.0], "x_test": [3.0]})
    >>> {split: list(columns) for split, columns in splits.items()}
    {'train': ['x'], 'test': ['x']}
    """
    if isinstance(source, str | os.PathLike):
        return _read_path(Path(os.path.expanduser(source)), ids)
    if isinstance(source, tuple):
        if len(source) != 2:
            raise DataError(
                f"found a tuple of {len(source)}, allowed: a pair (x, y); give more "
                "arrays by name, in a dict"
            )
        source = dict(zip("xy", source, strict=True))
    elif not hasattr(source, "keys"):
        source = {"x": source}
    return _by_split({str(name): _array(source[name]) for name in [*source.keys()]})


def _by_split(columns: Columns) -> dict[str, Columns]:
    splits: dict[str, Columns] = {"train": {}, "test": {}}
    for name, array in columns.items():
        stem, _, split = name.rpartition("_")
        if not stem or split not in splits:
            return {"train": columns}
        splits[split][stem] = array
    if not splits["train"]:
        return {"train": columns}
    return {split: found for split, found in splits.items() if found}


def _array(values: Any) -> np.ndarray:
    """An array of what a user has, as objects where there is no better."""
    try:
        array = np.asarray(values)
        if array.dtype == object and array.ndim:
            array = np.asarray(array.tolist())
        return array
    except ValueError:  # rows of several shapes
        return as_objects(values)


def as_objects(values: Any) -> np.ndarray:
    """An array of objects [N], also of rows that are arrays themselves."""
    array = np.empty(len(values), object)
    for k, value in enumerate(values):
        array[k] = value
    return array


def _read_path(path: Path, ids: str) -> dict[str, Columns]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _read_folder(path)
    match path.name.lower().removesuffix(".gz").rpartition(".")[2]:
        case "npz":
            return _by_split(_read_npz(path))
        case "csv":
            return {"train": _read_csv(path, ids)}
        case "parquet":
            return {"train": _read_parquet(path)}
    raise DataError(
        f"{path}: allowed: a file ending in .npz, .csv, .csv.gz or .parquet, or the "
        "folder of a data set"
    )


def _read_npz(path: Path) -> Columns:
    arrays, name = {}, ""
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                arrays[name] = file[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if name and "allow_pickle" in str(error):
            raise DataError(
                f"{path}: the array {name!r} holds pickled Python objects, which are "
                "never loaded, as they can run code; save an array of numbers"
            ) from None
        raise DataError(f"{path}: not an .npz file that can be read: {error}") from None
    return arrays


def _read_csv(path: Path, ids: str) -> Columns:
    opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = _header(path, next(rows, []))
            whole = _rows(path, rows, len(header))
            parts: list[list[np.ndarray]] = [[] for _ in header]
            while block := list(islice(whole, _ROWS)):
                for part, name, cells in zip(
                    parts, header, zip(*block, strict=True), strict=True
                ):
                    part.append(_cells(cells, is_text=name == ids))
    except (OSError, EOFError, ValueError, csv.Error, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a CSV file that can be read: {error}") from None
    return {
        # A column that is text in one part is text in all.
        name: np.concatenate(part) if part else np.zeros(0)
        for name, part in zip(header, parts, strict=True)
    }


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not names or "" in names or len(set(names)) < len(names):
        raise DataError(
            f"{path}: found the first line {','.join(names)[:200]!r}, needed: a name "
            "for each column, all different, separated by commas"
        )
    return names


def _rows(path: Path, rows: Any, width: int) -> Iterator[list[str]]:
    """The rows of a CSV file but empty ones, all with `width` cells."""
    for row in rows:
        if row and len(row) != width:
            raise DataError(
                f"{path}, line {rows.line_num}: found {len(row)} cells, needed "
                f"{width}, as many as the first line has"
            )
        if row:
            yield row


def _cells(cells: Sequence[str], is_text: bool) -> np.ndarray:
    """i64 or f64 [N], or text where a cell is no number."""
    for kind in () if is_text else (np.int64, np.float64):
        try:
            return np.array(cells, kind)
        except (ValueError, OverflowError):
            pass
    return np.array(cells)


def _read_parquet(path: Path) -> Columns:
    _arrow(path)
    import pyarrow.parquet

    try:
        return _of_table(path, pyarrow.parquet.read_table(path))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a parquet file that can be read: {error}") from (
            None
        )


def _arrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path} is read with pyarrow, which is missing ({error}); "
            'pip install "asyn2f[data]"'
        ) from None
    return pyarrow


def _read_folder(path: Path) -> dict[str, Columns]:
    if (path / "dataset_dict.json").exists():
        found = [split for split in ("train", "test") if (path / split).is_dir()]
        if "train" not in found:
            raise DataError(f"{path}: found no split train; name the folder of a split")
        return {split: _read_saved(path / split) for split in found}
    if (path / "state.json").exists():
        return {"train": _read_saved(path)}
    if (path / "features.json").exists():
        return read_prepared(str(path.resolve()))[0]
    raise DataError(
        f"{path}: found none of dataset_dict.json and state.json (saved by Hugging "
        "Face's datasets) and features.json (prepared by tensorflow-datasets); name "
        "the folder that holds one"
    )


def _read_saved(path: Path) -> Columns:
    """A `Dataset` of Hugging Face, saved to disk: streams of Arrow."""
    pa, files = _arrow(path), [path / "state.json"]
    try:
        state = json.loads(files[0].read_text(encoding="utf-8"))
        files = [path / each["filename"] for each in state["_data_files"]]
        tables = [pa.ipc.open_stream(pa.memory_map(str(f))).read_all() for f in files]
        return _of_table(path, pa.concat_tables(tables))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: not a data set that can be read ({type(error).__name__}: {error})"
            "; save it anew with save_to_disk"
        ) from None


def _of_table(path: Path, table: Any) -> Columns:
    table = table.combine_chunks()
    return {name: _of_arrow(path, table.column(name)) for name in table.column_names}


def _of_arrow(path: Path, column: Any) -> np.ndarray:
    """A column of Arrow: numbers, text, images, or lists of one length of these."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([])
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return column.to_numpy(zero_copy_only=False)  # NaN where a cell is empty
    if pa.types.is_struct(kind) and {x.name for x in kind} >= {"bytes", "path"}:
        return _images(path, column.field("bytes").to_pylist())
    if isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        lengths = set(column.value_lengths().to_pylist())
        if len(lengths) == 1 and None not in lengths:
            inner = _of_arrow(path, column.flatten())
            return inner.reshape(len(column), *lengths, *inner.shape[1:])
    return _array(as_objects(column.to_pylist()))


def _images(path: Path, encoded: Sequence[bytes | None]) -> np.ndarray:
    """Images u8 [N, H, W, C], or objects where they are of several sizes."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f"{path}: images are decoded with pillow, which is missing ({error}); "
            'pip install "asyn2f[data]"'
        ) from None
    if None in encoded:
        raise DataError(
            f"{path}: row {encoded.index(None)} holds the path of an image, needed: "
            "the image itself; save the data set anew with save_to_disk"
        )
    images = [np.asarray(Image.open(io.BytesIO(each or b""))) for each in encoded]
    return _array([x[..., None] if x.ndim == 2 else x for x in images])
