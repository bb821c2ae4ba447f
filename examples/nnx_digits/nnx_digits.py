"""Handwritten digits with an NNX model: batch statistics are averaged, dropout draws
from the key of each step."""

from flax import nnx
from sklearn.datasets import load_digits

import asyn2f


class Net(nnx.Module):
    def __init__(self, hidden: int, dropout: float, *, rngs: nnx.Rngs):
        self.inner = nnx.Linear(64, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.outer = nnx.Linear(hidden, 10, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(nnx.relu(self.norm(self.inner(x)))))


def make_task(*, hidden: int = 64, dropout: float = 0.2, seed: int = 0) -> asyn2f.Task:
    """A task that `config.task.partition` splits, by label if that is wanted.

    Args:
      hidden: width of the hidden layer.
      dropout: fraction of its outputs that a step leaves out.
    """
    digits = load_digits()
    return asyn2f.supervised(
        lambda rngs: Net(hidden, dropout, rngs=rngs),
        (digits.data / 16.0, digits.target),
        test=0.2,
        seed=seed,
        name="nnx_digits",
    )
