"""Prepared data sets: a few PNG images in the files that tensorflow-datasets writes.

The cache of what is decoded is tested in `test_cache`.
"""

import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from asyn2f import errors
from asyn2f.config import build
from asyn2f.errors import DataError
from asyn2f.tasks import data
from asyn2f.tasks.tfds import read_prepared
from tests.support.experiments import config_with

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "tensorflow_datasets"
MNIST_VERSION = str(tfds.builder_cls("mnist").VERSION)
FORMATS = ["array_record", "tfrecord"]

Arrays = dict[str, dict[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _no_litter(tmp_path, monkeypatch):
    """tensorflow-datasets leaves a temporary folder for each set it does not find."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cached_here(cache, monkeypatch) -> None:
    """What a config reads is kept in the cache of this test."""
    monkeypatch.setattr(data, "read_prepared", partial(read_prepared, cache=cache))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    grey = pixels.shape[-1] == 1
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "png")
    return file.getvalue()


def features_of(shape: tuple[int | None, ...], classes: int) -> Any:
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=classes),
        }
    )


def drawn(
    seed: int, shape: tuple[int, ...], classes: int, train: int, test: int
) -> Arrays:
    """Examples of any pixels and classes, the last class among them."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for split, count in (("train", train), ("test", test)):
        label = rng.integers(0, classes, count).astype(np.int32)
        label[:1] = classes - 1
        image = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[split] = {"image": image, "label": label}
    return arrays


def write(
    data_dir: Path,
    name: str,
    records: dict[str, list[list[bytes]]],
    features: Any,
    version: str = "1.0.0",
    file_format: str = "array_record",
) -> Path:
    """A prepared data set of these records, by split and file; its folder."""
    folder = data_dir / name / version
    folder.mkdir(parents=True, exist_ok=True)
    features.save_config(str(folder))
    for split, shards in records.items():
        for k, shard in enumerate(shards):
            part = f"{k:05d}-of-{len(shards):05d}"
            path = str(folder / f"{name}-{split}.{file_format}-{part}")
            if file_format == "array_record":
                writer = ArrayRecordWriter(path, "group_size:1")
            else:
                writer = RecordWriter(path)
            for record in shard:
                writer.write(record)
            writer.close()
    info = {
        "name": name,
        "version": version,
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(shard)) for shard in shards],
                "numBytes": str(
                    sum(len(record) for shard in shards for record in shard)
                ),
            }
            for split, shards in records.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def prepare(
    data_dir: Path,
    name: str = "mnist",
    *,
    shape: tuple[int, ...] = (28, 28, 1),
    classes: int = 10,
    train: tuple[int, ...] = (5, 4),
    test: tuple[int, ...] = (3,),
    seed: int = 0,
    file_format: str = "array_record",
    like: Any = None,
) -> Arrays:
    """Makes a prepared data set and tells what it holds.

    Args:
      train, test: examples in each file.
      like: a builder, for its features and version.
    """
    arrays = drawn(seed, shape, classes, sum(train), sum(test))
    features = like.info.features if like else features_of(shape, classes)
    version = MNIST_VERSION if name == "mnist" else "1.0.0"
    if like:
        version = str(like.version)
    records = {}
    for split, lengths in (("train", train), ("test", test)):
        image, label = arrays[split]["image"], arrays[split]["label"]
        all_of_it = [
            features.serialize_example(
                {key: 0 for key in features if key == "coarse_label"}
                | {key: f"{split}_{k}" for key in features if key == "id"}
                | {"image": png(image[k]), "label": int(label[k])}
            )
            for k in range(len(label))
        ]
        ends = np.cumsum(lengths)
        records[split] = [
            all_of_it[end - length : end]
            for end, length in zip(ends, lengths, strict=True)
        ]
    write(data_dir, name, records, features, version, file_format)
    return arrays


def small_set(data_dir: Path, features: Any, *examples: dict, **how: Any) -> str:
    """A folder with a data set of these examples, in training and in test."""
    records = [features.serialize_example(example) for example in examples]
    every = {"train": [records], "test": [records]}
    return str(write(data_dir, "tiny", every, features, **how))


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for split, arrays in expected.items():
        assert found[split].keys() == arrays.keys()
        for key, array in arrays.items():
            assert found[split][key].dtype == array.dtype, (split, key)
            np.testing.assert_array_equal(
                found[split][key], array, f"{split} {key}", strict=True
            )


def file_of(data_dir: Path, split: str, shard: int = 0) -> Path:
    return next(data_dir.rglob(f"*-{split}.*-{shard:05d}-of-*"))


def snapshot(folder: Path) -> dict[str, Any]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def refused(name: str, data_dir: Path | str, cache: Path) -> str:
    """Why it is not read: one line, and nothing of it is in the cache."""
    with pytest.raises(DataError) as caught:
        read_prepared(name, str(data_dir), cache)
    assert entries(cache) == []
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


# What is read


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "classes", "train"),
    [((28, 28, 1), 10, (5, 4)), ((5, 7, 3), 200, (6,)), ((8, 8, 1), 2, (1, 2) * 6)],
    ids=["grey", "colour", "twelve files"],
)
def test_what_went_in_comes_out_in_its_order(
    tmp_path, cache, shape, classes, train, file_format
):
    arrays = prepare(
        tmp_path,
        "tiny",
        shape=shape,
        classes=classes,
        train=train,
        file_format=file_format,
    )
    found, num_classes = read_prepared("tiny", str(tmp_path), cache)
    assert_same(found, arrays)
    assert num_classes == classes


@pytest.mark.parametrize(
    ("name", "classes"),
    [("mnist", 10), ("fashion_mnist", 10), ("cifar10", 10), ("cifar100", 100)],
)
def test_a_config_names_sets_as_the_catalogue_does(
    tmp_path, cached_here, name, classes
):
    like = tfds.builder(name, data_dir=str(tmp_path))
    shape = like.info.features["image"].shape
    arrays = prepare(tmp_path, name, shape=shape, classes=classes, like=like)
    dataset = data.DATASETS[name](str(tmp_path))
    assert_same(
        {
            split: {"image": part["input"], "label": part["label"]}
            for split, part in (("train", dataset.train), ("test", dataset.test))
        },
        arrays,
    )
    assert dataset.num_classes == classes
    assert dataset.scale == 1 / 255


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_set_that_is_in_no_catalogue_is_named_by_its_folder(
    tmp_path, cache, file_format
):
    features = tfds.features.FeaturesDict(
        {
            "photo": tfds.features.Image(shape=(4, 6, 3)),
            "kind": tfds.features.ClassLabel(names=["cat", "dog", "owl"]),
            "weight": np.float32,
        }
    )
    photo = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    folder = small_set(
        tmp_path,
        features,
        {"photo": png(photo), "kind": "owl", "weight": 1.5},
        {"photo": png(255 - photo), "kind": "dog", "weight": 2.5},
        file_format=file_format,
    )
    found, num_classes = read_prepared(folder, cache=cache)
    part = {"image": np.stack([photo, 255 - photo]), "label": np.array([2, 1], "i4")}
    assert_same(found, {"train": part, "test": part})
    assert num_classes == 3


def test_without_a_data_dir_the_usual_place_is_looked_at(tmp_path, cache, monkeypatch):
    arrays = prepare(tmp_path)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    assert_same(read_prepared("mnist", "", cache)[0], arrays)


def test_a_data_dir_may_begin_with_a_tilde(tmp_path, cache, monkeypatch):
    arrays = prepare(tmp_path / "sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(read_prepared("mnist", "~/sets", cache)[0], arrays)


@pytest.mark.parametrize("file_format", FORMATS)
def test_reading_writes_nothing_where_the_data_are(tmp_path, cache, file_format):
    prepare(tmp_path / "sets", file_format=file_format)
    before = snapshot(tmp_path / "sets")
    read_prepared("mnist", str(tmp_path / "sets"), cache)
    assert snapshot(tmp_path / "sets") == before


def test_reading_leaves_logging_as_it_was(tmp_path, cache):
    prepare(tmp_path)
    logging.disable(logging.INFO)
    try:
        read_prepared("mnist", str(tmp_path), cache)
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


# The cache


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cache):
    prepare(tmp_path)
    (tmp_path / "file").write_text("in the way")  # a mode would not stop root
    with pytest.raises(DataError, match=r"mnist: cannot write .*/file/cache"):
        read_prepared("mnist", str(tmp_path), tmp_path / "file" / "cache")
    assert (tmp_path / "file").read_text() == "in the way"


# Several processes


# What is refused


def lost_shard(data_dir: Path, number: int = 1) -> Path:
    file = file_of(data_dir, "train", number)
    file.unlink()
    return file


def lose_all(data_dir: Path, pattern: str) -> None:
    files = [path for path in data_dir.rglob(pattern) if path.is_file()]
    assert files
    for file in files:
        file.unlink()


LOSSES: dict[str, Callable[[Path], Any]] = {
    "nothing of it": lambda sets: lose_all(sets, "*"),
    "its metadata": lambda sets: lose_all(sets, "*.json"),
    "its record": lambda sets: lose_all(sets, "dataset_info.json"),
    "half its record": lambda sets: os.truncate(
        next(sets.rglob("dataset_info.json")), 40
    ),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES.keys())
def test_a_missing_set_is_named_with_its_place_and_a_remedy(tmp_path, cache, lose):
    sets = tmp_path / "sets"
    prepare(sets)
    lose(sets)
    message = refused("mnist", sets, cache)
    assert f"no prepared mnist under {sets}" in message
    assert "set task.data_dir" in message
    prepared = f"tfds.builder('mnist', data_dir='{sets}', file_format='array_record')"
    assert prepared in message
    assert "download_and_prepare()" in message


@pytest.mark.parametrize(
    ("name", "data_dir", "meant"),
    [
        ("{}/mnist", "", "task.dataset={}/mnist/3.0.1"),
        ("{}/mnist/", "", "task.dataset={}/mnist/3.0.1"),
        ("mnist/3.0.1", "{}", "task.dataset={}/mnist/3.0.1"),
        ("mnist/", "{}", "task.dataset={}/mnist/3.0.1"),
        ("mnist", "{}/mnist", "task.data_dir={}"),
        ("mnist", "{}/mnist/3.0.1", "task.data_dir={}"),
    ],
)
def test_a_set_that_is_named_a_folder_too_high_or_too_low_is_pointed_to(
    tmp_path, cache, name, data_dir, meant
):
    prepare(tmp_path)
    message = refused(name.format(tmp_path), data_dir.format(tmp_path), cache)
    assert f"; did you mean {meant.format(tmp_path)}?" in message


@pytest.mark.parametrize("number", [0, 1])
def test_of_a_partial_set_the_missing_file_is_named(tmp_path, cache, number):
    prepare(tmp_path)
    lost = lost_shard(tmp_path, number)
    message = refused("mnist", tmp_path, cache)
    assert f"{lost} is missing; delete {lost.parent} and prepare it anew" in message


def test_a_folder_without_a_set_is_refused(tmp_path, cache):
    message = refused(str(tmp_path), "", cache)
    assert f"no prepared data set in {tmp_path}" in message
    assert "dataset_info.json" in message


def with_lengths(data_dir: Path, *lengths: int) -> None:
    """Changes the number of examples per training file in dataset_info.json."""
    path = next(data_dir.rglob("dataset_info.json"))
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = [str(length) for length in lengths]
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("file_format", "lengths"),
    [
        ("array_record", (5, 7)),
        ("array_record", (5, 2)),
        ("tfrecord", (5, 7)),
        ("tfrecord", (5, 2)),
    ],
)
def test_a_wrong_count_is_refused(tmp_path, cache, file_format, lengths):
    prepare(tmp_path, file_format=file_format)
    with_lengths(tmp_path, *lengths)
    message = refused("mnist", tmp_path, cache)
    assert message.startswith("mnist, split train: ")
    assert message.endswith(" and prepare it anew")
    if file_format == "tfrecord":
        assert f"found 9 examples, its dataset_info.json has {sum(lengths)}" in message


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file_format", FORMATS)
def test_a_damaged_file_is_refused(tmp_path, cache, file_format, damage):
    prepare(tmp_path, file_format=file_format)
    DAMAGES[damage](file_of(tmp_path, "test"))
    message = refused("mnist", tmp_path, cache)
    assert message.startswith("mnist, split test: ")
    assert message.endswith(" and prepare it anew")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_changed_label_in_a_file_is_refused(tmp_path, cache, file_format):
    features = features_of((4, 4, 1), 3)
    image = png(np.zeros((4, 4, 1), np.uint8))
    one, other = ({"image": image, "label": label} for label in (1, 2))
    folder = small_set(tmp_path, features, one, file_format=file_format)
    before, after = map(features.serialize_example, (one, other))
    file = file_of(tmp_path, "train")
    content = file.read_bytes()
    assert content.count(before) == 1
    assert len(before) == len(after)
    file.write_bytes(content.replace(before, after))
    assert "tiny, split train: " in refused(folder, "", cache)


def test_a_set_without_a_test_split_is_refused(tmp_path, cache):
    prepare(tmp_path)
    path = next(tmp_path.rglob("dataset_info.json"))
    info = json.loads(path.read_text())
    info["splits"].pop()
    path.write_text(json.dumps(info))
    message = refused("mnist", tmp_path, cache)
    assert "found the splits train, needed: train and test" in message


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_split_without_examples_is_refused(tmp_path, cache, file_format):
    features = features_of((4, 4, 1), 3)
    folder = small_set(tmp_path, features, file_format=file_format)
    assert "tiny, split train: " in refused(folder, "", cache)


def test_images_of_several_sizes_are_refused(tmp_path, cache):
    images = [np.zeros((4, width, 3), np.uint8) for width in (5, 6, 5)]
    examples = [{"image": png(image), "label": 0} for image in images]
    folder = small_set(tmp_path, features_of((None, None, 3), 2), *examples)
    message = refused(folder, "", cache)
    assert "found images of 2 kinds" in message
    assert "('uint8', 4, 5, 3) and ('uint8', 4, 6, 3)" in message


def test_images_of_floats_are_refused(tmp_path, cache):
    pixels = np.full((4, 4, 1), 0.5, np.float32)
    # Such an image is kept as one whose four channels are the four bytes of a float.
    example = {"image": png(pixels.view(np.uint8)), "label": 0}
    record = features_of((4, 4, 1), 2).serialize_example(example)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
    )
    every = {"train": [[record]], "test": [[record]]}
    folder = write(tmp_path, "tiny", every, features)
    assert "float32" in refused(str(folder), "", cache)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_no_class_are_refused(tmp_path, cache, label):
    image = png(np.zeros((4, 4, 1), np.uint8))
    # Of a feature that allows the label, under the record of one that does not.
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(4, 4, 1)), "label": np.int64}
    )
    folder = small_set(tmp_path, features, {"image": image, "label": label})
    features_of((4, 4, 1), 3).save_config(folder)
    message = refused(folder, "", cache)
    assert f"found labels from {label} to {label}, allowed: 0 to 2" in message


def test_a_set_of_other_things_than_labelled_images_is_refused(tmp_path, cache):
    features = tfds.features.FeaturesDict({"length": np.float32, "width": np.float32})
    folder = small_set(tmp_path, features, {"length": 1.0, "width": 2.0})
    message = refused(folder, "", cache)
    assert "found the features " in message
    assert "width (Tensor)" in message
    assert "needed: one Image and a ClassLabel" in message


def test_parquet_is_refused_with_another_format(tmp_path, cache):
    prepare(tmp_path)
    path = next(tmp_path.rglob("dataset_info.json"))
    path.write_text(path.read_text().replace("array_record", "parquet"))
    for file in list(tmp_path.rglob("*.array_record-*")):
        file.rename(file.with_name(file.name.replace("array_record", "parquet")))
    message = refused("mnist", tmp_path, cache)
    assert "parquet" in message
    assert "file_format='array_record'" in message


def test_without_the_library_the_error_names_the_extra(tmp_path, cache, monkeypatch):
    prepare(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = refused("mnist", tmp_path, cache)
    assert "tensorflow-datasets, which is missing" in message
    assert 'pip install "asyn2f[data]"' in message


@pytest.fixture
def _no_pillow(monkeypatch) -> None:
    """The error of tensorflow-datasets without Pillow and OpenCV."""

    def decode(self, example):
        raise ImportError(
            "Decoding images with NumPy requires either OpenCV or PIL.\nWe recommend "
            "using OpenCV because it is faster according to our benchmarks.\nInstall "
            "them with: `pip install opencv-python` or `pip install pillow`."
        )

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", decode)


@pytest.mark.usefixtures("_no_pillow")
def test_without_pillow_the_data_are_not_blamed(tmp_path, cache):
    prepare(tmp_path)
    assert "prepare it anew" not in refused("mnist", tmp_path, cache)


# Through a config


def test_a_config_of_missing_data_is_refused(tmp_path, cached_here):
    config = config_with(task__dataset="mnist", task__data_dir=str(tmp_path))
    words = "config.task.dataset: no prepared mnist under "
    with pytest.raises(errors.ConfigError, match=words) as e:
        build.build_experiment(config)
    assert len(str(e.value).splitlines()) == 1


def test_a_config_of_data_that_are_there_builds(tmp_path, cached_here):
    arrays = prepare(tmp_path, train=(30, 20))
    config = config_with(task__dataset="mnist", task__data_dir=str(tmp_path))
    task = build.build_experiment(config).task
    np.testing.assert_array_equal(np.sort(np.concatenate(task.shards)), np.arange(50))
    for split, part in (("train", task.train), ("test", task.test)):
        np.testing.assert_array_equal(part["input"], arrays[split]["image"])
        np.testing.assert_array_equal(part["label"], arrays[split]["label"])


# The real one


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "mnist").exists(), reason=f"no mnist in {REAL}")
def test_mnist_is_what_its_authors_made(cache):
    before = snapshot(REAL)
    found, num_classes = read_prepared("mnist", str(REAL), cache)
    again, _ = read_prepared("mnist", str(REAL), cache)
    assert snapshot(REAL) == before
    assert num_classes == 10
    # Examples of each digit, and mean and deviation of a pixel, as often published.
    counts = {
        "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for split, num_examples in (("train", 60_000), ("test", 10_000)):
        image, label = found[split]["image"], found[split]["label"]
        assert (image.shape, image.dtype) == ((num_examples, 28, 28, 1), np.uint8)
        assert (label.shape, label.dtype) == ((num_examples,), np.int32)
        assert np.bincount(label).tolist() == counts[split]
        assert (image.min(), image.max()) == (0, 255)
    pixels = found["train"]["image"]
    assert pixels.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert_same(again, found)
