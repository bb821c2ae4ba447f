"""How good each worker's data are, by the paper's six scores.

    python -m launch.quality --config=configs/digits.py --config.workers=3

prints a table and the value of `config.task.quality` that makes a run use it.
"""

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from asyn2f.cli import app
from asyn2f.config import build
from asyn2f.tasks.base import Task
from asyn2f.tasks.quality import Quality, quality_of

app.takes("config")
_MOST = flags.DEFINE_integer(
    "max_examples", 2000, "Looked at of each worker, drawn by the seed.", lower_bound=10
)
_CELLS = 8  # an image is looked at as so many cells in a row and in a column


def main() -> int:
    config = app.plain(app.CONFIG.value)
    task = build.build_task(config)
    seed, count = config["seed"], len(task.shards)
    found = [_of_worker(task, seed, worker) for worker in range(count)]
    table = Table("worker", "examples")
    for name in (*Quality._fields, "quality"):
        table.add_column(name.split("_")[-1], justify="right")
    for worker, (rows, each) in enumerate(zip(task.shards, found, strict=True)):
        scores = [f"{score:.3f}" for score in (*each, each.score)]
        table.add_row(str(worker), str(len(rows)), *scores)
    Console(width=120).print(table)
    values = ",".join(f"{each.score:.4f}" for each in found)
    print(f"--config.task.quality={values}")
    return 0


def _of_worker(task: Task, seed: int, worker: int) -> Quality:
    rows = task.shards[worker]
    if len(rows) > _MOST.value:
        rng = np.random.default_rng([seed, worker])
        rows = np.sort(rng.permutation(rows)[: _MOST.value])
    try:
        features = _features(task.train["input"][rows])
        return quality_of(features, task.train["label"][rows], task.num_classes)
    except ImportError as error:
        app.fail(f'{error}; pip install "asyn2f[quality]"')
    except ValueError as error:
        app.fail(f"worker {worker}: {error}")


def _features(inputs: np.ndarray) -> np.ndarray:
    """Features as they are; of images the mean brightness in each of 8 x 8 cells."""
    if inputs.ndim < 4:
        return inputs.reshape(len(inputs), -1)
    bands = [np.array_split(np.arange(n), min(n, _CELLS)) for n in inputs.shape[1:3]]
    grey = inputs.mean(axis=-1, dtype=np.float64)
    rows = np.stack([grey[:, band].mean(axis=1) for band in bands[0]], axis=1)
    cells = np.stack([rows[:, :, band].mean(axis=2) for band in bands[1]], axis=2)
    return cells.reshape(len(inputs), -1)
