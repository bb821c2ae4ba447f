"""The kernels: merging a model in, and aggregating updates, against memory's speed.

The floor is what has to be read and written, at the best speed at which two threads
copy in the same run. The other yardstick is the obvious way in numpy: a list of
arrays, one after the other, with temporaries.
"""

import statistics
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.kernels.aggregation import weighted_sum
from asyn2f.kernels.merging import directional_merge
from asyn2f.strategies.base import blended
from asyn2f.tasks.models import resnet18
from asyn2f.types import Params
from tests.bench.figures import Figure, compared, in_turns

ROUNDS = 15
K = 10
SMALL = [(64, 32), (32,), (32, 10), (10,)]  # the digits MLP: 2,410 parameters
HALF = jnp.float32(0.5)


def measure() -> Iterator[Figure]:
    models = [resnet18_params(seed) for seed in range(K)]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(models[0]))
    yield from _merge(models, size)
    yield from _aggregation(models, size)
    yield from _small()


def resnet18_params(seed: int) -> Params:
    """11.2 million float32 and batch norm's statistics, as random as they begin."""
    model, image = resnet18(num_classes=10), jnp.zeros((1, 32, 32, 3))
    init = jax.jit(lambda key: model.init(key, image, train=False))
    return jax.block_until_ready(init(jax.random.key(seed)))


def copier(size: int, passes: int) -> Callable[[], None]:
    """Copies half of `passes * size` bytes: as many are then read or written."""
    source = np.ones(size // 2, np.uint8), np.ones(size // 2, np.uint8)
    target = np.empty_like(source[0]), np.empty_like(source[1])

    def copy_half(half: int) -> None:
        for _ in range(passes // 2):
            np.copyto(target[half], source[half])
        if passes % 2:
            middle = size // 4
            np.copyto(target[half][:middle], source[half][:middle])

    def copy() -> None:
        other = threading.Thread(target=copy_half, args=(1,))
        other.start()
        copy_half(0)
        other.join()

    return copy


def _against(
    what: str,
    ours: Callable[[], Any],
    in_numpy: dict[str, Callable[[], Any]],
    size: int,
    passes: int,
    most: float,
    speedups: tuple[float | None, ...],
) -> Iterator[Figure]:
    """Held against the floor of so many passes over a model, and against numpy."""
    floor = f"{passes} passes over {size / 1e6:.1f} MB, copied by two threads"
    candidates = {what: ours, floor: copier(size, passes)} | in_numpy
    turns = in_turns(candidates, ROUNDS)
    yield compared(what, turns, what, floor, most)
    for numpy, wanted in zip(in_numpy, speedups, strict=True):
        yield compared(what, turns, what, numpy, wanted, speedup=True)


def _merge(models: list[Params], size: int) -> Iterator[Figure]:
    """Three reads and one write; the state's memory is given up, as in the trainer."""
    before, now, target = models[:3]
    arrays = [_as_numpy(model) for model in models[:3]]
    merge = jax.jit(directional_merge, donate_argnums=1)
    current = jax.tree.map(jnp.copy, now)

    def ours() -> None:
        nonlocal current
        current = jax.block_until_ready(merge(before, current, target, HALF))

    def in_numpy() -> list[np.ndarray]:
        half = np.float32(0.5)
        return [
            np.where((w - p) * (g - w) > 0, g, (1 - half) * g + half * w)
            for p, w, g in zip(*arrays, strict=True)
        ]

    numpy = {"numpy, a list of arrays": in_numpy}
    yield from _against("merge, ResNet-18", ours, numpy, size, 4, 1.3, (10,))


def _aggregation(models: list[Params], size: int) -> Iterator[Figure]:
    """Per arrival: `W <- (1 - a) W + a W_k`, two reads and one write. At once: K reads
    and one write."""
    arrays = [_as_numpy(model) for model in models]
    shares = jnp.full(K, 1 / K, jnp.float32)
    mix = jax.jit(blended, donate_argnums=0)
    stack = lambda rows: jax.tree.map(lambda *x: jnp.stack(x), *rows)
    at_once = jax.jit(lambda rows, shares: weighted_sum(stack(rows), shares))
    mixed = jax.tree.map(jnp.copy, models[0])
    one = jax.tree.map(lambda x: x[None], models[1])
    a = np.float32(0.1)

    def per_arrival() -> None:
        nonlocal mixed
        mixed = jax.block_until_ready(mix(mixed, one, 1 - HALF, HALF[None]))

    def per_arrival_in_numpy() -> list[np.ndarray]:
        return [(1 - a) * g + a * w for g, w in zip(*arrays[:2], strict=True)]

    def together() -> None:
        jax.block_until_ready(at_once(models, shares))

    def together_in_numpy() -> list[np.ndarray]:
        total = [a * x for x in arrays[0]]
        for model in arrays[1:]:
            total = [t + a * x for t, x in zip(total, model, strict=True)]
        return total

    again = f"numpy, the list of {K} summed anew"
    numpy = {again: together_in_numpy, "numpy, a running sum": per_arrival_in_numpy}
    what = "aggregation per arrival, ResNet-18"
    yield from _against(what, per_arrival, numpy, size, 3, 1.5, (15, None))
    numpy = {"numpy, a list of arrays": together_in_numpy}
    what = f"aggregation of {K} at once, ResNet-18"
    yield from _against(what, together, numpy, size, K + 1, 1.5, (3,))


def _as_numpy(model: Params) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(model)]


def _small() -> Iterator[Figure]:
    """Where nothing counts but the call."""
    keys = jax.random.split(jax.random.key(0), len(SMALL))
    model = [jax.random.normal(k, s) for k, s in zip(keys, SMALL, strict=True)]
    other = [x + 1 for x in model]
    shares = jnp.full(3, 1 / 3, jnp.float32)
    stacked = [jnp.stack([x, x, x]) for x in model]
    calls = {
        "merge, 2,410 parameters": lambda: directional_merge(model, other, model, HALF),
        "aggregation of 3, 2,410 parameters": lambda: weighted_sum(stacked, shares),
    }
    turns = in_turns(
        {k: partial(_wait_for, v) for k, v in calls.items()}, ROUNDS, least_s=0.05
    )
    for what, seconds in turns.items():
        us = 1e6 * statistics.median(seconds)
        yield Figure(what, us, "us", None, "the call itself", us, 60.0)


def _wait_for(call: Callable[[], Any]) -> None:
    jax.block_until_ready(call())
