"""Ten workers who call the ten digits by other names: one body, ten heads."""

import flax.linen as nn
import numpy as np
from sklearn.datasets import load_digits

import asyn2f


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for width in (64, 32):
            x = nn.relu(nn.Dense(width, name=f"body_{width}")(x))
        return nn.Dense(10, name="head")(x)


def make_task(*, workers: int, seed: int, rows: int = 40) -> asyn2f.Task:
    """Each worker has `rows` images, and its own permutation of the labels.

    Args:
      rows: images of each worker; the others are the test set of all.
    """
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    x, y = x[order].astype(np.float32) / 16, y[order]
    names = np.array([rng.permutation(10) for _ in range(workers)])
    own, rest = np.split(np.arange(len(x)), [workers * rows])
    shards = np.split(own, workers)
    owner = np.repeat(np.arange(workers), rows)
    # The test set once for every worker, by its names.
    test = {
        "x": np.tile(x[rest], (workers, 1)),
        "y": np.concatenate([names[k, y[rest]] for k in range(workers)]),
    }
    train = {"x": x[own], "y": names[owner, y[own]]}
    task = asyn2f.supervised(Net(), train, test, shards=shards, name="heads")
    return task._replace(held_out=tuple(np.split(np.arange(len(test["y"])), workers)))
