"""Data sets by name, as arrays."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from asyn2f.tasks.prepared import read_prepared


class Dataset(NamedTuple):
    """Images in [0, 1] and labels, split for training and test."""

    train: dict[str, np.ndarray]  # image f32 [N, H, W, C], label i32 [N]
    test: dict[str, np.ndarray]
    num_classes: int


def digits() -> Dataset:
    """Handwritten digits, 8x8 grey, 1,437 for training and 360 for test.

    1,797 images of the UCI set, embedded in scikit-learn: nothing is downloaded. Every
    fifth image is a test image, so the split depends on no generator.
    """
    # Imported here: half a second that only those who use this data set shall pay.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    image = (bunch.images / 16.0).astype(np.float32)[..., None]
    label = bunch.target.astype(np.int32)
    test = np.arange(len(label)) % 5 == 0
    return Dataset(
        train={"image": image[~test], "label": label[~test]},
        test={"image": image[test], "label": label[test]},
        num_classes=10,
    )


def prepared(name: str, data_dir: str) -> Dataset:
    """A data set that tensorflow-datasets has prepared, scaled to [0, 1].

    Raises:
      DataError: see `prepared.read_prepared`.
    """
    arrays, num_classes = read_prepared(name, data_dir)
    train, test = (
        {
            "image": np.asarray(arrays[split]["image"], np.float32) / np.float32(255),
            "label": np.asarray(arrays[split]["label"]),
        }
        for split in ("train", "test")
    )
    return Dataset(train, test, num_classes)


DATASETS: dict[str, Callable[[str], Dataset]] = {
    "digits": lambda data_dir: digits(),
    **{
        name: partial(prepared, name)
        for name in ("mnist", "fashion_mnist", "cifar10", "cifar100")
    },
}
"""Every data set by the name a config gives it, as a function of `task.data_dir`."""
