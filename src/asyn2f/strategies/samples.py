"""Models and updates for checks of a strategy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.types import Params, UpdateInfo, WorkerUpdate

MASK: Any = np.array([True, True, True, False])
"""Four rows, the last of which is padding."""


def f32(value: Any) -> Any:
    return np.array(value, np.float32)


def i32(value: Any) -> Any:
    return np.array(value, np.int32)


def model(seed: int) -> Params:
    """A model with leaves of all kinds, drawn from a seed."""
    random = np.random.default_rng(seed)
    return {
        "params": {
            "kernel": random.normal(size=(3, 2)).astype(np.float32),
            "half": random.normal(size=(4,)).astype(jnp.bfloat16),
            "temperature": f32(random.normal()),
            "empty": np.zeros((0, 3), np.float32),
        },
        "batch_stats": {
            "mean": random.normal(size=(2,)).astype(np.float32),
            "count": i32(random.integers(100)),
        },
    }


def update(params: Params, **changes: Any) -> WorkerUpdate:
    """An update with these parameters and usual scalars, some of them changed."""
    values: dict[str, Any] = {
        **{"base_version": i32(0), "start_version": i32(0), "step": i32(1)},
        **{"num_examples": f32(100), "loss": f32(0.5), "quality": f32(0.8)},
        **{"metric": f32(0.6), "signal": f32(0.6)},
    }
    values |= changes
    worker: Any = values.pop("worker", i32(0))
    return WorkerUpdate(params, worker, UpdateInfo(**values))


def stack(updates: list[WorkerUpdate]) -> WorkerUpdate:
    """Updates with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *updates)


def four_updates(seed: int = 0) -> WorkerUpdate:
    """Updates of four workers: s = 100, 200, 300, 400; L = 0.5, 0.75, 1, 1.25; Q = 1,
    0.875, 0.75, 0.625. The last row is padding under `MASK`."""
    return stack(
        [
            update(
                model(seed + row),
                worker=i32(row),
                num_examples=f32(100 * (row + 1)),
                loss=f32(0.5 + 0.25 * row),
                quality=f32(1 - 0.125 * row),
            )
            for row in range(4)
        ]
    )
