"""Data sets by name, as arrays."""

import gzip
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyn2f.tasks.ember import read_ember
from asyn2f.tasks.tfds import is_folder, read_prepared


class Dataset(NamedTuple):
    """Inputs and labels, split for training and test."""

    train: dict[str, np.ndarray]  # input [N, ...], label i32 [N]
    test: dict[str, np.ndarray]
    num_classes: int
    scale: float | None = 1.0  # an input times this is in [0, 1]; None = no quantities


def digits() -> Dataset:
    """Handwritten digits, 8x8 grey, 1,437 for training and 360 for test.

    1,797 images of the UCI set, included in scikit-learn. Every fifth image is a test
    image.
    """
    rows = _digits_rows()
    image = (rows[:, :-1] / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    label = rows[:, -1].astype(np.int32)
    test = np.arange(len(label)) % 5 == 0
    return Dataset(
        train={"input": image[~test], "label": label[~test]},
        test={"input": image[test], "label": label[test]},
        num_classes=10,
    )


def _digits_rows() -> np.ndarray:
    """[1797, 65]: the pixels, 0 to 16, and the label of each image.

    Of scikit-learn's own file, if it is found: importing scikit-learn takes a second
    and a half.
    """
    found = importlib.util.find_spec("sklearn")
    for place in (found and found.submodule_search_locations) or []:
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            with gzip.open(path, "rt") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def prepared(name: str, data_dir: str) -> Dataset:
    """A data set prepared by tensorflow-datasets. Raises as `tfds.read_prepared`."""
    arrays, num_classes = read_prepared(name, data_dir)
    train, test = (
        {"input": arrays[split]["image"], "label": arrays[split]["label"]}
        for split in ("train", "test")
    )
    return Dataset(train, test, num_classes, scale=1 / 255)


def ember(data_dir: str) -> Dataset:
    """EMBER's features in bins: integers for an embedding. Raises as `read_ember`."""
    arrays = read_ember(data_dir)
    return Dataset(arrays["train"], arrays["test"], num_classes=2, scale=None)


DATASETS: dict[str, Callable[[str], Dataset]] = {
    "digits": lambda data_dir: digits(),
    **{
        name: partial(prepared, name)
        for name in ("mnist", "fashion_mnist", "cifar10", "cifar100")
    },
    "ember": ember,
}
"""Every data set by its name in a config, as a function of `task.data_dir`."""


def read_dataset(name: str, data_dir: str) -> Dataset:
    """The data set of that name, or the prepared one in that folder.

    Raises:
      DataError: it is missing or malformed.
    """
    read = partial(prepared, name) if is_folder(name) else DATASETS[name]
    return read(data_dir)
