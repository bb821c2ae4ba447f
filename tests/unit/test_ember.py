"""EMBER: small folders in the formats of its tools; see `test_cache` for the cache."""

import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.npyio import NpzFile

import asyn2f
from asyn2f import errors
from asyn2f.config import build
from asyn2f.errors import DataError
from asyn2f.tasks import data, ember
from asyn2f.tasks.ember import read_ember
from tests.support.experiments import config_with

ROOT = Path(__file__).parents[2]
FEATURES = 2381
BINS = 260
KINDS = ["npy", "dat", "npz"]
NAMES = ["X_train", "y_train", "X_test", "y_test"]

Arrays = dict[str, np.ndarray]


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def loaded(monkeypatch) -> Iterator[list[Any]]:
    """What numpy has loaded; all of it is closed in the end. What a refusal leaves open
    would else be collected, with a warning, in the midst of any other test."""
    load, files = np.load, []

    def remembered(*args, **kwargs):
        files.append(load(*args, **kwargs))
        return files[-1]

    monkeypatch.setattr(np, "load", remembered)
    yield files
    for file in files:
        if isinstance(file, NpzFile):
            file.close()


@pytest.fixture
def cached_here(cache, monkeypatch) -> None:
    """What a config reads is kept in the cache of this test."""
    monkeypatch.setattr(data, "read_ember", partial(read_ember, cache=cache))


def drawn(train: int = 30, test: int = 9, seed: int = 0) -> Arrays:
    """Features over many orders of magnitude, of both signs; all labels are known."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for split, count in (("train", train), ("test", test)):
        size = 10.0 ** rng.uniform(-6, 9, (count, FEATURES))
        sign = rng.choice([-1, 1], (count, FEATURES))
        arrays[f"X_{split}"] = (sign * size).astype(np.float32)
        arrays[f"y_{split}"] = (np.arange(count) % 2).astype(np.float32)
    return arrays


def write(folder: Path, arrays: Arrays, kind: str = "npy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez(folder / "ember.npz", **arrays)
    for name, array in arrays.items():
        if kind == "npy":
            np.save(folder / f"{name}.npy", array)
        elif kind == "dat":
            array.astype(np.float32).tofile(folder / f"{name}.dat")
    return folder


def flat(found: dict[str, Arrays]) -> Arrays:
    return {
        f"{split}-{key}": array
        for split, arrays in found.items()
        for key, array in arrays.items()
    }


def assert_same(found: dict[str, Arrays], expected: dict[str, Arrays]) -> None:
    assert flat(found).keys() == flat(expected).keys()
    for name, array in flat(expected).items():
        np.testing.assert_array_equal(flat(found)[name], array, name, strict=True)


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


# ------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_has_the_shapes_and_types_that_are_promised(tmp_path, cache, kind):
    arrays = drawn()
    found = read_ember(str(write(tmp_path / "sets", arrays, kind)), cache)
    for split, count in (("train", 30), ("test", 9)):
        features, label = found[split]["input"], found[split]["label"]
        assert (features.dtype, features.shape) == (np.uint16, (count, FEATURES))
        assert (label.dtype, label.shape) == (np.int32, (count,))
        assert 0 <= features.min() <= features.max() < BINS
        np.testing.assert_array_equal(label, arrays[f"y_{split}"])
        assert all(isinstance(array, np.memmap) for array in (features, label))


def test_all_forms_of_the_files_give_the_same_arrays(tmp_path, cache):
    arrays = drawn()
    found = [read_ember(str(write(tmp_path / k, arrays, k)), cache) for k in KINDS]
    mixed = write(tmp_path / "mixed", {k: arrays[k] for k in NAMES[:2]}, "dat")
    write(mixed, {k: arrays[k] for k in NAMES[2:]}, "npy")
    for other in (*found[1:], read_ember(str(mixed), cache)):
        assert_same(other, found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_unknown_label_are_left_out(tmp_path, cache, kind):
    """Of both splits, whatever is in them: no border depends on it."""
    arrays = drawn()
    expected = read_ember(str(write(tmp_path / "known", arrays)), cache)
    more: Arrays = {}
    for split, at in (("train", [0, 7, 7, 30]), ("test", [0, 3, 9])):
        unknown = np.full((len(at), FEATURES), np.nan, np.float32)
        unknown[1] = 1e30
        more[f"X_{split}"] = np.insert(arrays[f"X_{split}"], at, unknown, axis=0)
        more[f"y_{split}"] = np.insert(arrays[f"y_{split}"], at, -1)
    assert_same(read_ember(str(write(tmp_path / "all", more, kind)), cache), expected)


def test_a_data_dir_may_begin_with_a_tilde(tmp_path, cache, monkeypatch):
    expected = read_ember(str(write(tmp_path / "sets", drawn())), cache)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(read_ember("~/sets", cache), expected)


# ------------------------------------------------------------- bins


@pytest.mark.parametrize("each", [1, 2])
def test_distinct_training_values_fill_the_bins_evenly(tmp_path, cache, each):
    """260 m values from -1e20 to 1e20, in another order in each feature: the quantile
    k/260 is at k (260 m - 1) / 260 = m k - k/260, between the values of rank m k - 1
    and m k, so the bin is the rank over m."""
    size = np.geomspace(1e-20, 1e20, each * BINS // 2)
    values = np.sort(np.concatenate([size, -size])).astype(np.float32)
    rng = np.random.default_rng(0)
    rank = np.tile(np.arange(each * BINS), (FEATURES, 1))
    rank = rng.permuted(rank, axis=1).T
    arrays = drawn(each * BINS, 4) | {"X_train": values[rank]}
    found = read_ember(str(write(tmp_path / "sets", arrays)), cache)
    np.testing.assert_array_equal(found["train"]["input"], rank // each)


def test_borders_are_quantiles_of_the_training_rows(tmp_path, cache):
    """A bin is the number of quantiles k/260, 0 < k < 260, that a value reaches."""
    arrays = drawn(37, 20)
    found = read_ember(str(write(tmp_path / "sets", arrays)), cache)
    places = np.arange(1, BINS) / BINS * 36
    for feature in (0, 1, 1234, FEATURES - 1):
        column = np.sort(arrays["X_train"][:, feature].astype(np.float64))
        borders = np.interp(places, np.arange(37), column)
        for split in ("train", "test"):
            values = arrays[f"X_{split}"][:, feature].astype(np.float64)
            reached = (values[:, None] >= borders).sum(axis=1)
            np.testing.assert_array_equal(found[split]["input"][:, feature], reached)


@pytest.mark.parametrize("values", [2, 5, 1000], ids="{} values".format)
def test_bins_rise_with_the_value_and_equal_values_share_one(tmp_path, cache, values):
    rng = np.random.default_rng(values)
    arrays = drawn(40, 40)
    for split in ("train", "test"):
        integers = rng.integers(-values, values, (40, FEATURES))
        arrays[f"X_{split}"] = integers.astype(np.float32) ** 3
    found = read_ember(str(write(tmp_path / "sets", arrays)), cache)
    value = np.concatenate([arrays["X_train"], arrays["X_test"]])
    bins = np.concatenate([found["train"]["input"], found["test"]["input"]])
    order = np.argsort(value, axis=0)
    steps = np.diff(np.take_along_axis(value, order, axis=0), axis=0)
    rises = np.diff(np.take_along_axis(bins.astype(int), order, axis=0), axis=0)
    assert (steps == 0).any()
    assert (rises >= 0).all()
    assert not rises[steps == 0].any()


def test_what_lies_beyond_the_training_range_falls_in_the_end_bins(tmp_path, cache):
    arrays = drawn(30, 4)
    low, high = arrays["X_train"].min(axis=0), arrays["X_train"].max(axis=0)
    beyond = [low - 1, low - np.float32(1e20), high + 1, high + np.float32(1e20)]
    arrays["X_test"] = np.stack(beyond)
    bins = read_ember(str(write(tmp_path / "sets", arrays)), cache)["test"]["input"]
    assert not bins[:2].any()
    assert (bins[2:] == BINS - 1).all()


def test_reading_in_several_blocks_gives_the_same(tmp_path, cache, monkeypatch):
    arrays = drawn(30, 9)
    arrays["y_train"][[3, 8, 20]] = -1
    folder = str(write(tmp_path / "sets", arrays))
    whole = read_ember(folder, cache)
    monkeypatch.setattr(ember, "_BLOCK", 7)
    assert_same(read_ember(folder, tmp_path / "another cache"), whole)


def test_of_many_rows_the_borders_are_placed_by_some_evenly_spread(
    tmp_path, cache, monkeypatch
):
    """Of 30 known rows by 10: as if the others were not there."""
    monkeypatch.setattr(ember, "_SAMPLE", 10)
    arrays = drawn(33, 9)
    arrays["y_train"][[1, 2, 31]] = -1
    known = np.flatnonzero(arrays["y_train"] != -1)
    third = {name: arrays[name][known[::3]] for name in ("X_train", "y_train")}
    found = read_ember(str(write(tmp_path / "all", arrays)), cache)
    by_third = read_ember(str(write(tmp_path / "third", arrays | third)), cache)
    assert len(found["train"]["label"]) == 30
    assert_same({"test": found["test"]}, {"test": by_third["test"]})
    np.testing.assert_array_equal(
        found["train"]["input"][::3], by_third["train"]["input"]
    )


# ------------------------------------------------------------- the cache


# ------------------------------------------------------------- what is refused


def refused(folder: Path, cache: Path) -> str:
    """Why it is not read: one line, and nothing of it is in the cache."""
    with pytest.raises(DataError) as caught:
        read_ember(str(folder), cache)
    assert entries(cache) == []
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


@pytest.mark.parametrize("kind", ["npy", "dat"])
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_with_where_and_what_to_do(tmp_path, cache, name, kind):
    folder = write(tmp_path / "sets", drawn(), kind)
    (folder / f"{name}.{kind}").unlink()
    message = refused(folder, cache)
    assert message.startswith(f"no {name}.npy or {name}.dat under {folder}; set ")
    assert "task.data_dir" in message


@pytest.mark.parametrize("name", NAMES)
def test_an_array_missing_in_an_npz_is_named(tmp_path, cache, name):
    arrays = drawn()
    del arrays[name]
    folder = write(tmp_path / "sets", arrays, "npz")
    message = refused(folder, cache)
    assert message.startswith(f"{folder / 'ember.npz'}: cannot read {name}: ")


def with_value(name: str, at: Any, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        arrays[name][at] = value
        return arrays

    return change


def cut(name: str, part: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: arrays[name][part]}


UNSOUND: dict[str, tuple[Callable[[Arrays], Arrays], list[str]]] = {
    "NaN in training": (
        with_value("X_train", (4, 17), np.nan),
        ["X_train: row 4, feature 17: found nan, needed: a finite number"],
    ),
    "inf in test": (
        with_value("X_test", (8, 2380), np.inf),
        ["X_test: row 8, feature 2380: found inf, needed: a finite number"],
    ),
    "-inf in training": (
        with_value("X_train", (29, 0), -np.inf),
        ["X_train: row 29, feature 0: found -inf, needed: a finite number"],
    ),
    "a label 2": (
        with_value("y_train", 3, 2),
        ["y_train: found the label 2, allowed: 0, 1, and -1"],
    ),
    "a label -2": (with_value("y_test", 3, -2), ["y_test: found the label -2"]),
    "a label 0.5": (with_value("y_train", 3, 0.5), ["y_train: found the label 0.5"]),
    "a label NaN": (with_value("y_test", 3, np.nan), ["y_test: found the label nan"]),
    "no known training row": (
        with_value("y_train", slice(None), -1),
        ["y_train: no row has a label"],
    ),
    "no known test row": (
        with_value("y_test", slice(None), -1),
        ["y_test: no row has a label"],
    ),
    "a label too few": (
        cut("y_train", slice(1, None)),
        ["y_train: found (29,), but X_train has 30 rows; needed: a label for each"],
    ),
    "a test row too few": (
        cut("X_test", slice(1, None)),
        ["y_test: found (9,), but X_test has 8 rows; needed: a label for each"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "words"), UNSOUND.values(), ids=UNSOUND.keys())
def test_what_is_not_sound_is_refused_with_the_place(
    tmp_path, cache, change, words, kind
):
    folder = write(tmp_path / "sets", change(drawn()), kind)
    message = refused(folder, cache)
    assert message.startswith("ember, ")
    assert all(part in message for part in words)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("name", ["X_train", "X_test"])
@pytest.mark.parametrize("count", [2351, 2382], ids=["version 1", "one too many"])
def test_another_number_of_features_is_refused(tmp_path, cache, name, kind, count):
    arrays = drawn()
    arrays[name] = np.zeros((len(arrays[name]), count), np.float32)
    message = refused(write(tmp_path / "sets", arrays, kind), cache)
    shape = arrays[name].shape
    assert message == f"ember, {name}: found the shape {shape}, needed: (rows, 2381)"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_an_array_of_objects_is_refused_unread(tmp_path, cache, name, kind):
    arrays = drawn()
    arrays[name] = arrays[name].astype(object)
    folder = write(tmp_path / "sets", arrays, kind)
    assert f": cannot read {name}: " in refused(folder, cache)


class Trap:
    """What would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["X_train.npy", "y_test.npy", "ember.npz"])
def test_a_pickle_is_refused_and_not_run(tmp_path, cache, name):
    folder = write(tmp_path / "sets", drawn())
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert f"{folder / name}: cannot read " in refused(folder, cache)
    assert not (tmp_path / "sprung").exists()


def truncated(size: int) -> Callable[[Path], Any]:
    return lambda path: os.truncate(path, size)


def saved(save: Callable[..., None]) -> Callable[[Path], Any]:
    """What another function of numpy writes, under this name."""

    def put(path: Path) -> None:
        with open(path, "wb") as file:
            save(file, np.zeros((30, FEATURES)))

    return put


DAMAGES: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "npy cut off": ("npy", "X_train.npy", truncated(5000)),
    "npy cut in its head": ("npy", "X_train.npy", truncated(50)),
    "npy empty": ("npy", "X_train.npy", truncated(0)),
    "npy that is an npz": ("npy", "X_train.npy", saved(np.savez)),
    "text": ("npy", "X_train.npy", lambda path: path.write_text("1,2\n")),
    "dat cut off": ("dat", "X_train.dat", truncated(5000)),
    "dat cut in a number": ("dat", "X_train.dat", truncated(5001)),
    "dat empty": ("dat", "y_test.dat", truncated(0)),
    "npz cut off": ("npz", "ember.npz", truncated(5000)),
    "npz that is an npy": ("npz", "ember.npz", saved(np.save)),
}


@pytest.mark.parametrize(
    ("kind", "name", "damage"), DAMAGES.values(), ids=DAMAGES.keys()
)
def test_a_damaged_file_is_refused(tmp_path, cache, kind, name, damage):
    folder = write(tmp_path / "sets", drawn(), kind)
    damage(folder / name)
    refused(folder, cache)


def test_an_npz_that_is_refused_is_closed(tmp_path, cache, loaded):
    arrays = cut("y_train", slice(1, None))(drawn())
    refused(write(tmp_path / "sets", arrays, "npz"), cache)
    files = [file for file in loaded if isinstance(file, NpzFile)]
    assert all(file.fid is None for file in files)


# ------------------------------------------------------------- through a config


def config_of(folder: Path | str, **changes: Any) -> dict[str, Any]:
    return config_with(
        task__dataset="ember",
        task__model="ember",
        task__data_dir=str(folder),
        workers=2,
        **changes,
    )


def test_a_config_of_missing_data_is_refused(tmp_path, cached_here):
    words = "config.task.dataset: no X_train.npy or X_train.dat under "
    with pytest.raises(errors.ConfigError, match=words) as e:
        build.build_experiment(config_of(tmp_path))
    assert len(str(e.value).splitlines()) == 1


def test_a_config_of_data_that_are_there_builds(tmp_path, cache, cached_here):
    folder = write(tmp_path / "sets", drawn())
    task = build.build_experiment(config_of(folder)).task
    np.testing.assert_array_equal(np.sort(np.concatenate(task.shards)), np.arange(30))
    assert task.labels.max() == 1
    found = read_ember(str(folder), cache)
    assert_same({"train": task.train, "test": task.test}, found)


def telling(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Separable features: those of malware are larger."""
    rng = np.random.default_rng(count)
    label = rng.permutation(np.arange(count) % 2)
    features = rng.uniform(0, 1, (count, FEATURES)) + 2 * label[:, None]
    return features.astype(np.float32), label.astype(np.float32)


def test_a_simulated_run_learns_to_detect_malware(tmp_path, cached_here):
    arrays = dict(zip(NAMES, [*telling(24), *telling(11)], strict=True))
    folder = write(tmp_path / "sets", arrays, "dat")
    config = config_of(
        folder,
        task__class_weights="balanced",
        training__batch_size=4,
        timing__epochs_per_push=1,
        timing__min_updates=2,
        stop__max_versions=3,
        sim__evaluate_every=1,
    )
    scores = asyn2f.simulate(config).scores
    assert list(scores) == [0, 1, 2, 3]
    assert scores[3]["f1"] == scores[3]["accuracy"] == 1.0
