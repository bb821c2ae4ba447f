"""Four workers whose scanners differ: upright, inverted, rotated and noisy digits."""

import flax.linen as nn
import numpy as np
from sklearn.datasets import load_digits

import asyn2f


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for width in (64, 32):
            x = nn.Dense(width)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


def scanned(images: np.ndarray, worker: int, rng: np.random.Generator) -> np.ndarray:
    """The images [n, 8, 8] as a worker sees them, [n, 64]."""
    contrast, light = [(1, 0), (0.2, 0.8), (3, -2), (1, 0)][worker % 4]
    images = contrast * images + light
    if worker % 4 == 3:
        images = images + rng.normal(0, 0.3, images.shape)
    return images.reshape(len(images), 64).astype(np.float32)


def make_task(*, workers: int, seed: int, rows: int = 30) -> asyn2f.Task:
    """Each worker has `rows` images of its own scanner, and scans the others too.

    Args:
      rows: images of each worker; the others are the test set of all.
    """
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    x, y = x[order].reshape(-1, 8, 8) / 16, y[order]
    own, rest = np.split(np.arange(len(x)), [workers * rows])
    shards, everyone = np.split(own, workers), range(workers)
    train = {
        "x": np.concatenate([scanned(x[shards[k]], k, rng) for k in everyone]),
        "y": y[own],
    }
    test = {
        "x": np.concatenate([scanned(x[rest], k, rng) for k in everyone]),
        "y": np.tile(y[rest], workers),
    }
    task = asyn2f.supervised(Net(), train, test, shards=shards, name="scanners")
    return task._replace(held_out=tuple(np.split(np.arange(len(test["y"])), workers)))
