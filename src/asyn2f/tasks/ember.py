"""EMBER: features of executable files, malware or not (Anderson and Roth, 2018)."""

import os
from pathlib import Path

import numpy as np

from asyn2f.errors import DataError
from asyn2f.tasks.cache import CACHE, Arrays, cached_arrays

NUM_FEATURES = 2381
BINS = 260  # of which EmberNet embeds one more

_SAMPLE = 20_000  # rows that the bins are placed by
_BLOCK = 10_000  # rows read at a time


def read_ember(data_dir: str, cache: Path = CACHE) -> dict[str, Arrays]:
    """Vectorised EMBER features in bins, made once and then cached.

    The folder has X_train, y_train, X_test and y_test: each as .npy, or as the raw
    float32 .dat files of the data set's own tools; or one ember.npz with all four.
    Labels are 0 (benign), 1 (malware) and -1 (unknown: left out).

    The borders of a feature's 260 bins are its quantiles k/260 in the training rows (in
    20,000 of them, evenly spaced): a feature with few values uses few bins. The paper
    gives only the range; quantiles, because the features span many orders of magnitude.

    Args:
      data_dir: the folder.
      cache: of the arrays.

    Returns:
      By split ("train", "test") the arrays `input` u16 [N, 2381] and `label` i32 [N],
      memory-mapped.

    Raises:
      DataError: a file is missing, or has another number of features, a value that is
        not a number, or labels other than -1, 0 and 1.
    """
    folder = Path(os.path.expanduser(data_dir or "."))
    files = _files(folder)

    def make(target: Path) -> None:
        found = _open(files)
        rows = {split: _labelled(split, found[split][1]) for split in ("train", "test")}
        train, kept = found["train"][0], rows["train"]
        step = max(len(kept) // _SAMPLE, 1)
        sample = _sound("train", train, kept[::step])
        borders = np.quantile(sample, np.arange(1, BINS) / BINS, axis=0).T
        for split, (features, label) in found.items():
            path = target / f"{split}-input.npy"
            shape = (len(rows[split]), NUM_FEATURES)
            out = np.lib.format.open_memmap(path, "w+", np.uint16, shape)
            for begin in range(0, len(out), _BLOCK):
                part = _sound(split, features, rows[split][begin : begin + _BLOCK])
                for k in range(NUM_FEATURES):
                    column = np.searchsorted(borders[k], part[:, k], side="right")
                    out[begin : begin + _BLOCK, k] = column
            out.flush()
            np.save(target / f"{split}-label.npy", label[rows[split]].astype(np.int32))

    try:
        arrays = cached_arrays("ember", list(files.values()), {}, make, cache)
    except OSError as error:
        raise DataError(f"ember: cannot read or cache it: {error}") from None
    return {
        split: {key: arrays[f"{split}-{key}"] for key in ("input", "label")}
        for split in ("train", "test")
    }


_NAMES = ("X_train", "y_train", "X_test", "y_test")


def _files(folder: Path) -> dict[str, Path]:
    """The file of each of the four arrays."""
    whole = folder / "ember.npz"
    if whole.exists():
        return dict.fromkeys(_NAMES, whole)
    found = {}
    for name in _NAMES:
        paths = [folder / f"{name}{ending}" for ending in (".npy", ".dat")]
        existing = [path for path in paths if path.exists()]
        if not existing:
            raise DataError(
                f"no {name}.npy or {name}.dat under {folder}; set task.data_dir to the "
                "folder of the vectorised EMBER features"
            )
        found[name] = existing[0]
    return found


def _open(files: dict[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features and labels of the files, by split."""
    arrays: Arrays = {}
    for name, path in files.items():
        try:
            arrays[name] = _load(name, path)
        except Exception as error:  # of many kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{path}: cannot read {name}: {reason}") from None
        if arrays[name].dtype.kind not in "iuf":
            raise DataError(
                f"{path}: {name} has the type {arrays[name].dtype}, needed: numbers"
            )
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split in ("train", "test"):
        features, label = arrays[f"X_{split}"], arrays[f"y_{split}"]
        if features.ndim == 1 and features.size % NUM_FEATURES == 0:
            features = features.reshape(-1, NUM_FEATURES)
        if features.ndim != 2 or features.shape[1] != NUM_FEATURES:
            raise DataError(
                f"ember, X_{split}: found the shape {features.shape}, needed: (rows, "
                f"{NUM_FEATURES})"
            )
        if label.shape != (len(features),):
            raise DataError(
                f"ember, y_{split}: found {label.shape}, but X_{split} has "
                f"{len(features)} rows; needed: a label for each"
            )
        found[split] = features, label
    return found


def _load(name: str, path: Path) -> np.ndarray:
    if path.suffix == ".dat":
        return np.memmap(path, np.float32, "r")
    with open(path, "rb") as file:
        if path.suffix == ".npz":
            with np.load(file, allow_pickle=False) as whole:
                return whole[name]
        np.lib.format.read_magic(file)  # for its error message
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _labelled(split: str, label: np.ndarray) -> np.ndarray:
    """The rows with a label."""
    others = np.setdiff1d(label, [-1, 0, 1])
    if len(others):
        raise DataError(
            f"ember, y_{split}: found the label {others[0]:g}, allowed: 0, 1, and -1 "
            "for unknown"
        )
    rows = np.flatnonzero(label != -1)
    if not len(rows):
        raise DataError(f"ember, y_{split}: no row has a label")
    return rows


def _sound(split: str, features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    part = features[rows]
    if not np.isfinite(part).all():
        row, column = np.argwhere(~np.isfinite(part))[0]
        raise DataError(
            f"ember, X_{split}: row {rows[row]}, feature {column}: found "
            f"{part[row, column]}, needed: a finite number"
        )
    return part
