"""A package of a user's own: a task that is no classification, and a strategy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.tasks.base import Aux, Task, mean_evaluation
from asyn2f.types import Metric

INIT = ""
MINE = '''
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

import asyn2f
import beside
from mypackage.inner import rows
from asyn2f.strategies.base import check_range
from asyn2f.tasks.base import Aux, Task, mean_evaluation
from asyn2f.types import Metric


def init(key):
    return {"params": {"w": jax.random.normal(key, (3, 1)), "b": jnp.zeros((1,))}}


def error_of(params, batch):
    found = batch["x"] @ params["params"]["w"] + params["params"]["b"][None]
    return jnp.square(found - batch["y"])[:, 0]


def loss(params, carry, batch, key):
    errors = error_of(params, batch)
    return jnp.mean(errors), Aux(metric=-jnp.mean(errors))


EVALUATION = mean_evaluation({"error": error_of})


def make_task(
    *,
    count: Annotated[int, asyn2f.Range(at_least=10)] = 120,
    noise: float = 0,
    kind: Literal["plain", "split"] = "plain",
    scales: tuple[float, ...] = (1.0,),
    workers: int,
    seed: int,
) -> Task:
    """A regression.

    Args:
      count: rows of the training set.
      noise: standard deviation.
      kind: whether the task splits its data.
    """
    x, y = rows(count + 40, noise, scales)
    shards = ()
    if kind == "split":
        shards = tuple(np.array_split(np.arange(count), workers))
    return Task(
        name="regression",
        init=init,
        loss=loss,
        evaluation=EVALUATION,
        metric=Metric("error", higher_is_better=False),
        train={"x": x[:count], "y": y[:count]},
        test={"x": x[count:], "y": y[count:]},
        shards=shards,
    )


def agreement(*, power: float = 1.0, rate: float = 1) -> asyn2f.Strategy:
    """The changes of all updates.

    Args:
      power: of nothing.
      rate: of the server.
    """
    check_range("power", power, 0.0)
    return asyn2f.fedbuff(server_rate=rate)


def make_nothing():
    return None


GRIDS = {"mypackage.mine:agreement": {"strategy.args.rate": (0.3, 0.5, 1.0)}}
'''
INNER = """
import numpy as np


def rows(count, noise, scales):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, 3)).astype(np.float32) * np.float32(scales[0])
    y = x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3
    y = y + noise * rng.normal(size=y.shape)
    return x, y.astype(np.float32)
"""
CONFIG = """
from asyn2f.config.default import get_config as default


def get_config():
    config = default()
    config.workers = 3
    config.task.factory = "mypackage.mine:make_task"
    config.task.args.count = 96
    config.strategy.name = "mypackage.mine:agreement"
    config.strategy.args.rate = 0.5
    config.training.learning_rate = 0.02
    config.training.batch_size = 16
    config.timing.min_updates = 2
    config.stop.max_versions = 6
    return config
"""


def write_package(folder: Path) -> Path:
    """Writes the package, a module beside it, and a config file; returns its path."""
    package = folder / "mypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(INIT)
    (package / "mine.py").write_text(MINE)
    (package / "inner.py").write_text(INNER)
    (folder / "beside.py").write_text("VALUE = 1\n")
    (folder / "experiment.py").write_text(CONFIG)
    return folder / "experiment.py"


def task_of() -> Task:
    """A regression of 40 rows, not split."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = (x @ np.float32([1.0, -2.0, 0.5])).astype(np.float32)
    return Task(
        name="regression",
        init=_init,
        loss=_loss,
        evaluation=mean_evaluation({"error": _errors}),
        metric=Metric("error", higher_is_better=False),
        train={"x": x[:40], "y": y[:40]},
        test={"x": x[40:], "y": y[40:]},
    )


def _init(key):
    return {"params": {"w": jax.random.normal(key, (3,)), "b": jnp.zeros((1,))}}


def _errors(params, batch):
    found = batch["x"] @ params["params"]["w"] + params["params"]["b"]
    return jnp.square(found - batch["y"])


def _loss(params, carry, batch, key):
    return jnp.mean(_errors(params, batch)), Aux()
