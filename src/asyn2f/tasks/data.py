"""Data sets by name, as arrays."""

from typing import NamedTuple

import numpy as np


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


DATASETS = {"digits": digits}
"""Every data set by the name a config gives it."""
