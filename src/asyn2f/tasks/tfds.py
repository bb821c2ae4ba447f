"""Image data sets that tensorflow-datasets has prepared, read without TensorFlow."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asyn2f.errors import DataError
from asyn2f.tasks.cache import CACHE, cached_arrays

_RECORDS = 1000  # read at a time


def read_prepared(
    name: str, data_dir: str = "", cache: Path = CACHE
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """A prepared image classification data set, decoded once and then cached.

    Its files are array_record or tfrecord; parquet is refused, as tensorflow-datasets
    loses examples when it writes it.

    Args:
      name: as in the catalogue of tensorflow-datasets, for example "mnist"; or the
        folder that holds the dataset_info.json of a prepared data set.
      data_dir: of tensorflow-datasets; "" = its default. Ignored if `name` is a folder.
      cache: of the decoded arrays, .npy files that processes share.

    Returns:
      By split ("train", "test") the arrays `image` u8 [N, H, W, C] and `label`
      i32 [N], memory-mapped; and the number of classes.

    Raises:
      DataError: it is missing or incomplete, is not an image classification, or
        tensorflow-datasets is missing.
    """
    builder, home, files = _find(name, data_dir)
    image, label = _keys(name, builder.info.features)

    def make(folder: Path) -> None:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # hints at faster decoders
        try:
            _decode(builder, image, label, folder)
        finally:
            logging.disable(before)

    records = [home / "dataset_info.json", home / "features.json"]
    try:
        arrays = cached_arrays(builder.name, [*records, *files], {}, make, cache)
    except OSError as error:
        raise DataError(
            f"{name}: cannot write the decoded arrays into {cache} ({error}); make "
            "room there, and make it writable"
        ) from None
    return {
        split: {key: arrays[f"{split}-{key}"] for key in ("image", "label")}
        for split in ("train", "test")
    }, int(builder.info.features[label].num_classes)


def _find(name: str, data_dir: str) -> tuple[Any, Path, list[Path]]:
    """The builder of a prepared data set, its folder and its files."""
    # Imported here: it takes seconds and 200 MB.
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            f"{name} is read with tensorflow-datasets, which is missing ({error}); "
            'pip install "asyn2f[data]"'
        ) from None
    where = Path(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))
    try:
        if is_folder(name):
            where = Path(os.path.expanduser(name))
            builder: Any = tfds.builder_from_directory(where)
        else:
            builder = tfds.builder(name, data_dir=str(where))
        splits, home = builder.info.splits, Path(builder.data_dir)
        files = [Path(p) for split in splits.values() for p in split.filepaths]
    except Exception as error:
        raise _missing(name, data_dir, where, error) from None
    if not files:
        raise _missing(name, data_dir, where, None)
    absent = [file for file in files if not file.exists()]
    if absent:
        raise DataError(f"{name}: {absent[0]} is missing; {_anew(home)}")
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
    return builder, home, files


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


def _missing(name: str, data_dir: str, where: Path, reason: object) -> DataError:
    why = f" ({_first_line(reason)})" if reason and str(reason) else ""
    meant = _meant(name, data_dir, where)
    if meant:
        return DataError(f"no prepared {name} under {where}; did you mean {meant}?")
    if is_folder(name):
        return DataError(
            f"no prepared data set in {where}{why}; name the folder that holds its "
            "dataset_info.json"
        )
    place = f"data_dir='{data_dir}', " if data_dir else ""
    return DataError(
        f"no prepared {name} under {where}{why}; set task.data_dir, or prepare it "
        'where there is internet: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', {place}file_format='array_record')"
        '.download_and_prepare()"'
    )


def _meant(name: str, data_dir: str, where: Path) -> str:
    """The setting that finds a data set one folder higher or lower, if there is one."""
    if not is_folder(name) and where.parent.name == name and _is_prepared(where):
        return f"task.data_dir={where.parent.parent}"
    if not is_folder(name) and where.name == name and _versions(where):
        return f"task.data_dir={where.parent}"
    inside = Path(os.path.expanduser(data_dir or ".")) / name
    found = [inside] if data_dir and _is_prepared(inside) else []
    found += [*_versions(where), *_versions(inside)]
    return f"task.dataset={found[0]}" if is_folder(name) and found else ""


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists()


def _versions(folder: Path) -> list[Path]:
    """Prepared versions of a data set in its folder, the newest first."""
    return [path.parent for path in sorted(folder.glob("*/dataset_info.json"))[::-1]]


def _anew(home: Path) -> str:
    # tensorflow-datasets does not notice what is missing.
    return f"delete {home} and prepare it anew"


def _first_line(reason: object) -> str:
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:200]


def _decode(builder: Any, image: str, label: str, folder: Path) -> None:
    """Decodes both splits into arrays in a folder."""
    classes, shapes = builder.info.features[label].num_classes, set()
    anew = _anew(Path(builder.data_dir))
    for split in ("train", "test"):
        info, name = builder.info.splits[split], f"{builder.name}, split {split}"
        try:
            examples = list(_examples(builder, split))
        except ImportError as error:
            raise DataError(
                f"{name}: a library is missing ({_first_line(error)}); "
                'pip install "asyn2f[data]"'
            ) from None
        except Exception as error:  # of several libraries
            raise DataError(
                f"{name}: cannot be read ({_first_line(error)}); {anew}"
            ) from None
        if len(examples) != info.num_examples or not examples:
            raise DataError(
                f"{name}: found {len(examples)} examples, its dataset_info.json has "
                f"{info.num_examples}, needed: at least one; {anew}"
            )
        images = [example[image] for example in examples]
        shapes |= {(array.dtype.name, *array.shape) for array in images}
        if len(shapes) != 1 or images[0].dtype != np.uint8:
            raise DataError(
                f"{name}: found images of {len(shapes)} kinds, for example "
                f"{min(shapes)} and {max(shapes)}; needed: uint8, all of one size"
            )
        labels = np.array([example[label] for example in examples], np.int32)
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"{name}: found labels from {labels.min()} to {labels.max()}, allowed: "
                f"0 to {classes - 1}"
            )
        np.save(folder / f"{split}-image.npy", np.stack(images))
        np.save(folder / f"{split}-label.npy", labels)


def _examples(builder: Any, split: str) -> Iterator[Any]:
    """All examples of a split, in the order of its files."""
    for file in builder.info.splits[split].filepaths:
        path = Path(file)
        read = _tfrecords if ".tfrecord" in path.name else _array_records
        for record in read(path):
            yield builder.info.features.deserialize_example_np(record)


def _array_records(path: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    count = reader.num_records()
    for begin in range(0, count, _RECORDS):
        yield from reader.read(begin, min(begin + _RECORDS, count))
    reader.close()


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a file: length, checksum of the length, record, its checksum."""
    with open(path, "rb") as file:
        while head := file.read(12):
            length = int.from_bytes(head[:8], "little")
            if len(head) < 12 or _masked_crc(head[:8]) != head[8:]:
                raise ValueError(f"{path.name} is damaged")
            record, checksum = file.read(length), file.read(4)
            if len(record) < length or _masked_crc(record) != checksum:
                raise ValueError(f"{path.name} is damaged, or cut off")
            yield record


def _masked_crc(data: bytes) -> bytes:
    """TFRecord's checksum: a CRC-32C, rotated by 15 bits, plus a constant."""
    import google_crc32c

    crc = google_crc32c.value(data)
    turned = (crc >> 15 | crc << 17) + 0xA282EAD8
    return (turned & 0xFFFFFFFF).to_bytes(4, "little")
