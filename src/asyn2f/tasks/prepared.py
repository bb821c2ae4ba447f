"""Image data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asyn2f.tasks.array_cache import CACHE, cached_arrays


class DataError(ValueError):
    """A data set that is not there, or not what it should be; says what to do."""


def read_prepared(
    name: str, data_dir: str = "", cache: Path = CACHE
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """A prepared image classification data set, decoded once and then kept.

    Its files may be array_record or tfrecord. Those of parquet are refused:
    tensorflow-datasets loses examples when it writes them.

    Args:
      name: as in the catalogue of tensorflow-datasets, for example "mnist"; or the
        folder of a prepared data set, in which its dataset_info.json is.
      data_dir: where it has been prepared; "" = where tensorflow-datasets puts it. Not
        looked at if `name` is a folder.
      cache: where the decoded arrays are kept, as .npy files that processes share.

    Returns:
      By split ("train", "test") the arrays `image` u8 [N, H, W, C] and `label`
      i32 [N], memory-mapped; and the number of classes.

    Raises:
      DataError: there is none, a part of it is missing, it is no image classification,
        or the library that reads it is missing.
    """
    # Seconds and 200 MB that only those who use such a data set shall pay.
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is read with tensorflow-datasets, which is missing ({error}); "
            'pip install "asyn2f[data]"'
        ) from None
    where = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    try:
        if is_folder(name):
            where = Path(name).expanduser()
            builder: Any = tfds.builder_from_directory(where)
        else:
            builder = tfds.builder(name, data_dir=str(where))
        splits = builder.info.splits
        files = [Path(p) for split in splits.values() for p in split.filepaths]
    except Exception as error:
        raise _missing(name, where, error) from None
    absent = [str(file) for file in files if not file.exists()]
    if not files or absent:
        raise _missing(name, where, f"{absent[0]} is not there" if absent else None)
    if ".parquet" in files[0].name:
        raise DataError(
            f"{name} under {where} is prepared as parquet, which loses examples; "
            "prepare it with file_format='array_record'"
        )
    for split in ("train", "test"):
        if split not in splits:
            raise DataError(
                f"{name} under {where}: found the splits {', '.join(splits)}, needed: "
                "train and test"
            )
    image, label = _keys(name, builder.info.features)

    def make(folder: Path) -> None:
        logging.disable(logging.WARNING)  # of another decoder that might be faster
        try:
            _decode(builder, image, label, folder)
        finally:
            logging.disable(logging.NOTSET)

    try:
        arrays = cached_arrays(builder.name, files, {}, make, cache)
    except OSError as error:
        raise DataError(f"{name}: cannot keep what is decoded: {error}") from None
    return {
        split: {key: arrays[f"{split}-{key}"] for key in ("image", "label")}
        for split in ("train", "test")
    }, int(builder.info.features[label].num_classes)


def is_folder(name: str) -> bool:
    """Whether a data set is named by its folder.

    >>> is_folder("mnist"), is_folder("./mnist/3.0.1")
    (False, True)
    """
    return "/" in name


def _keys(name: str, features: Any) -> tuple[str, str]:
    """The image and the label among the features of a data set."""
    kinds = {key: type(feature).__name__ for key, feature in features.items()}
    images = [key for key, kind in kinds.items() if kind == "Image"]
    labels = [key for key, kind in kinds.items() if kind == "ClassLabel"]
    if len(images) != 1 or not labels:
        found = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
        raise DataError(
            f"{name}: found the features {found}; needed: one Image and a ClassLabel"
        )
    return images[0], "label" if "label" in labels else labels[0]


def _missing(name: str, where: Path, reason: object) -> DataError:
    said = f" ({str(reason).splitlines()[0][:200]})" if reason and str(reason) else ""
    if is_folder(name):
        return DataError(
            f"no prepared data set in {where}{said}; name the folder in which its "
            "dataset_info.json is"
        )
    return DataError(
        f"no prepared {name} under {where}{said}; set task.data_dir, or prepare it "
        'where there is internet: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )


def _decode(builder: Any, image: str, label: str, folder: Path) -> None:
    """Puts the arrays of both splits into a folder."""
    classes = builder.info.features[label].num_classes
    for split in ("train", "test"):
        info = builder.info.splits[split]
        try:
            examples = list(_examples(builder, split))
        except Exception as error:  # of many libraries, and all mean the same
            raise DataError(
                f"{builder.name}, split {split}: cannot be read ({error}); prepare it "
                "anew"
            ) from None
        if len(examples) != info.num_examples:
            raise DataError(
                f"{builder.name}, split {split}: found {len(examples)} examples, its "
                f"record says {info.num_examples}; prepare it anew"
            )
        shapes = {example[image].shape for example in examples}
        if len(shapes) != 1:
            raise DataError(
                f"{builder.name}, split {split}: found images of {len(shapes)} sizes, "
                f"for example {sorted(shapes)[0]} and {sorted(shapes)[-1]}; needed: one"
            )
        labels = np.array([example[label] for example in examples], np.int32)
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"{builder.name}, split {split}: found labels from {labels.min()} to "
                f"{labels.max()}, allowed: 0 to {classes - 1}"
            )
        np.save(folder / f"{split}-image.npy", np.stack([e[image] for e in examples]))
        np.save(folder / f"{split}-label.npy", labels)


def _examples(builder: Any, split: str) -> Iterator[Any]:
    info = builder.info.splits[split]
    if ".tfrecord" not in Path(info.filepaths[0]).name:
        yield from builder.as_data_source(split)
        return
    for path in info.filepaths:
        for record in _tfrecords(Path(path)):
            yield builder.info.features.deserialize_example_np(record)


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a file: each after its length and a checksum of that, before a
    checksum of its own. Those of cut-off files are found by their length; other damage
    by the decoder."""
    with open(path, "rb") as file:
        while head := file.read(12):
            (length,) = struct.unpack("<Q", head[:8])
            record = file.read(length)
            if len(record) + len(file.read(4)) < length + 4:
                raise ValueError(f"{path.name} is cut off")
            yield record
