"""Image data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

CACHE = Path.home() / ".cache" / "asyn2f" / "data"


class DataError(ValueError):
    """A data set that is not there, or not what it should be; says what to do."""


def read_prepared(
    name: str, data_dir: str = "", cache: Path = CACHE
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """A prepared image classification data set, decoded once and then kept.

    Args:
      name: as in the catalogue of tensorflow-datasets, for example "mnist".
      data_dir: where it has been prepared; "" = where tensorflow-datasets puts it.
      cache: where the decoded arrays are kept, as .npy files that processes share.

    Returns:
      By split ("train", "test") the arrays `image` u8 [N, H, W, C] and `label`
      i32 [N], memory-mapped; and the number of classes.

    Raises:
      DataError: there is none, a part of it is missing, or the library that reads it.
    """
    # Seconds and 200 MB that only those who use such a data set shall pay.
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is read with tensorflow-datasets, which is missing ({error}); "
            'pip install "asyn2f[data]"'
        ) from None
    where = (
        Path(data_dir).expanduser() if data_dir else Path(tfds.core.constants.DATA_DIR)
    )
    try:
        builder = tfds.builder(name, data_dir=str(where))
        info = builder.info
        files = [Path(p) for s in info.splits.values() for p in s.filepaths]
    except Exception as error:
        raise _missing(name, where, error) from None
    if not files or not all(file.exists() for file in files):
        raise _missing(name, where, None)
    stamp = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(repr([str(where), stamp]).encode()).hexdigest()[:16]
    folder = cache / f"{name}-{digest}"
    if not folder.exists():
        _decode(builder, folder)
    arrays = {
        split: {
            key: np.load(folder / f"{split}-{key}.npy", mmap_mode="r")
            for key in ("image", "label")
        }
        for split in ("train", "test")
    }
    return arrays, int(info.features["label"].num_classes)


def _missing(name: str, where: Path, error: Exception | None) -> DataError:
    reason = f" ({str(error).splitlines()[0][:200]})" if error and str(error) else ""
    return DataError(
        f"no prepared {name} under {where}{reason}; set task.data_dir, or prepare it "
        'where there is internet: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )


def _decode(builder: Any, folder: Path) -> None:
    """Writes the arrays beside their place, and then puts all of them there at once."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)  # of another decoder that might be faster
    try:
        _write(builder, beside)
    finally:
        logging.disable(logging.NOTSET)
    try:
        beside.rename(folder)
    except OSError:  # another process was faster
        if not folder.exists():
            raise


def _write(builder: Any, folder: Path) -> None:
    for split in ("train", "test"):
        source = builder.as_data_source(split)
        expected = builder.info.splits[split].num_examples
        if len(source) != expected:
            raise DataError(
                f"{builder.name}, split {split}: found {len(source)} examples, its "
                f"record says {expected}; prepare it anew"
            )
        image = np.stack([example["image"] for example in source])
        label = np.array([example["label"] for example in source], np.int32)
        np.save(folder / f"{split}-image.npy", image)
        np.save(folder / f"{split}-label.npy", label)
