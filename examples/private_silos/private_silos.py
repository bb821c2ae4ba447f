"""Handwritten digits in three silos: each worker opens a file that nobody else has."""

from pathlib import Path

import flax.linen as nn
import numpy as np
from sklearn.datasets import load_digits

import asyn2f

COLUMNS = {"x": np.zeros((0, 64), np.float32), "y": np.zeros(0, np.int32)}


class Net(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(self.hidden)(x)))


def public(every: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The rows that everybody may see."""
    digits = load_digits()
    return (digits.data / 16.0)[::every], digits.target[::every]


def make_task(
    *, hidden: int = 32, worker: int | None = None, data: Path | None = None
) -> asyn2f.Task:
    """The task of a worker with its data, or without data the specification of all.

    Args:
      hidden: width of the hidden layer.
    """
    return asyn2f.supervised(
        Net(hidden), COLUMNS if data is None else data, test=public()
    )
