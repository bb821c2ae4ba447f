"""Malignant or benign, from the tables of four hospitals: one worker for each."""

from pathlib import Path

import flax.linen as nn

import asyn2f


class Net(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(self.hidden)(x)))


def make_task(
    *, data: Path = Path("hospitals.csv"), hidden: int = 16, workers: int = 4
) -> asyn2f.Task:
    """A task with a worker for each hospital.

    Args:
      data: a table with a column of owners, see make_csv.py.
      hidden: width of the hidden layer.
    """
    return asyn2f.supervised(
        Net(hidden),
        data,
        test=0.25,
        loss="binary_cross_entropy",
        target="malignant",
        split_by="hospital",
        workers=workers,
        normalise=True,
        name="hospitals",
    )
