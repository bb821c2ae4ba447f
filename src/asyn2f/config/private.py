"""Private data: each worker opens its own, and no other process does.

A factory that takes `worker` is called with None for the specification of a task: its
functions, a public test set if there is one, and training data of 0 rows. Called for a
worker it returns the same with that worker's rows. The functions are always those of
the specification, so that a simulation with all data computes what the processes do.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from asyn2f.config import user_code
from asyn2f.config.run import RunSettings
from asyn2f.config.schema import Config, section
from asyn2f.errors import ConfigError, TaskError
from asyn2f.privacy import SCORES, Privacy
from asyn2f.tasks import checks
from asyn2f.tasks.base import Task, num_rows
from asyn2f.tasks.readers import Columns
from asyn2f.timing import Stop
from asyn2f.training.settings import Training

_KEY = "task.factory"
_PLACE = "{worker}"
_ONE = re.compile(r"\s*(\d+):(.+)\Z", re.DOTALL)
_FORMS = f"0:PATH,1:PATH,..., or a path with {_PLACE} in it"


Whose = int | Literal["all", "nobody"]
"""Which workers' data a process opens."""


class Roots(NamedTuple):
    """Where the data of workers are, on this machine."""

    pattern: str = ""  # with a place for the worker, or one path for any of them
    paths: Mapping[int, str] = {}

    def of(self, worker: int) -> Path | None:
        """The path of one worker's data; None if none is given."""
        found = self.paths.get(worker) or self.pattern.replace(_PLACE, str(worker))
        return Path(found).expanduser().absolute() if found else None

    def only(self, worker: int | None = None) -> "Roots":
        """Those of one worker, or of none."""
        path = None if worker is None else self.of(worker)
        return Roots() if path is None else Roots(paths={worker or 0: str(path)})

    def of_each(self, workers: int) -> list[Path]:
        """The path of each worker's data.

        Raises:
          ConfigError: one is missing.
        """
        found = [self.of(worker) for worker in range(workers)]
        missing = [worker for worker, path in enumerate(found) if path is None]
        if self.pattern and _PLACE not in self.pattern and workers > 1:
            raise ConfigError(
                f"--data: found one path, {self.pattern}, for {workers} workers; "
                f"allowed: {_FORMS}"
            )
        if missing:
            names = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
            raise ConfigError(
                f"--data: the data of worker {names} are missing, which each worker "
                f"has of its own; give {_FORMS}"
            )
        return [path for path in found if path is not None]


NO_ROOTS = Roots()


def roots_of(data: "str | Path | Mapping[int, str | Path] | Roots | None") -> Roots:
    """Where the data of workers are: a path, a path with {worker} in it, paths by
    number as "0:PATH,1:PATH", or a dict of them.

    Raises:
      ConfigError: another form.

    >>> roots_of("silo-{worker}.npz").of(3).name, roots_of("0:a,2:b").of(1)
    ('silo-3.npz', None)
    """
    if data is None or isinstance(data, Roots):
        return data or NO_ROOTS
    if isinstance(data, Mapping):
        return Roots(paths={int(worker): str(path) for worker, path in data.items()})
    parts = [_ONE.match(part) for part in str(data).split(",")]
    if not parts[0]:
        return Roots(pattern=str(data))
    if not all(parts):
        raise ConfigError(f"--data: found {str(data)!r}, allowed: {_FORMS}")
    return Roots(paths={int(found[1]): found[2] for found in parts if found})


def is_private(config: Config) -> bool:
    """Whether the config's task is made of data that each worker has of its own."""
    return user_code.WORKER in user_code.filled_of(config, _KEY)


def takes_path(config: Config) -> bool:
    """Whether the factory is passed the path of a worker's data."""
    return user_code.DATA in user_code.filled_of(config, _KEY)


def has_evaluator(config: Config, task: Task) -> bool:
    """Whether versions can be evaluated without the data and parts of the model that
    workers keep."""
    return bool(num_rows(task.test)) and not section(config, RunSettings).share


def check_roots(config: Config, roots: Roots) -> None:
    """Raises ConfigError if paths are given, and no factory takes them."""
    if roots == NO_ROOTS or takes_path(config):
        return
    raise ConfigError(
        "--data: found a path, but the task takes none: config.task.factory must name "
        "a function with the arguments `worker` and `data`; or leave it out"
    )


def task_of(config: Config, whose: Whose, roots: Roots) -> Task:
    """The task with the data of one worker, of nobody, or of all: for a simulation or a
    replay.

    Raises:
      ConfigError: data are not given, missing, or not as specified.
    """
    if whose == "nobody":
        return specification(config)
    if whose == "all":
        return whole(config, roots)
    return of_worker(config, roots, whose)


def specification(config: Config) -> Task:
    """The task of a process that has no worker's data.

    Raises:
      ConfigError: the factory fails, or returns no valid task without rows.
    """
    task = _made(config, None, None)
    if num_rows(task.train):
        raise ConfigError(
            f"{_where(config)}: found {num_rows(task.train):,} training rows for "
            "worker=None, allowed: none, as each worker opens its own: return arrays "
            "of 0 rows there, np.zeros((0, 64), np.float32), which state the columns"
        )
    nobody = (np.zeros(0, np.int32),) * section(config, RunSettings).workers
    reveal, stop = section(config, Privacy).reveal, section(config, Stop)
    if not (num_rows(task.test) or SCORES in reveal or stop.target is None):
        raise ConfigError(
            f"config.stop.target: found {stop.target:g}, but nobody may score "
            f"versions: {task.name} has no test set for all, and config.privacy.reveal "
            f"is without {SCORES}; give one of them, or None"
        )
    # Without a test set for all, workers evaluate on rows that they hold out.
    held_out = () if num_rows(task.test) else nobody
    return task._replace(shards=nobody, held_out=held_out, labels=None, is_private=True)


def of_worker(config: Config, roots: Roots, worker: int) -> Task:
    """The task of one worker's process: its rows alone. Raises as `task_of`."""
    if takes_path(config) and roots.of(worker) is None:
        raise ConfigError(
            f"--data: found nothing, but worker {worker} opens its own data: give "
            "--data=PATH"
        )
    task = specification(config)
    rows = _rows_of(config, task, roots, worker)
    shards, held_out = [*task.shards], [*task.held_out]
    shards[worker] = _numbers(rows.train)
    if held_out:
        held_out[worker] = _numbers(rows.test)
    return task._replace(
        train=rows.train,
        test=rows.test if held_out else task.test,
        shards=tuple(shards),
        held_out=tuple(held_out),
        qualities=rows.qualities * len(shards),  # of which only its own is used
    )


def whole(config: Config, roots: Roots) -> Task:
    """The task with the rows of all workers. Raises as `task_of`."""
    task, workers = specification(config), section(config, RunSettings).workers
    if takes_path(config):
        roots.of_each(workers)  # names all that are missing at once
    parts = [_rows_of(config, task, roots, worker) for worker in range(workers)]
    train, shards = _joined([part.train for part in parts])
    test, held_out = task.test, task.held_out
    if held_out:
        test, held_out = _joined([part.test for part in parts])
    labels = [part.labels for part in parts if part.labels is not None]
    qualities = tuple(quality for part in parts for quality in part.qualities[:1])
    return task._replace(
        train=train,
        test=test,
        shards=shards,
        held_out=held_out,
        labels=np.concatenate(labels) if len(labels) == workers else None,
        qualities=qualities if len(qualities) == workers else (),
        is_private=False,
    )


def _rows_of(config: Config, task: Task, roots: Roots, worker: int) -> Task:
    """A worker's task as its factory makes it, compared with the specification."""
    path = roots.of(worker)
    found = _made(config, worker, path)
    where = f"{_where(config)}: the data of worker {worker}"
    where += f" in {path}" if path is not None else ""
    rows, most = num_rows(found.train), section(config, Privacy).max_examples
    if not 1 <= rows <= most:
        raise ConfigError(
            f"{where}: found {rows:,} rows, allowed: 1 to {most:,}, which is "
            "config.privacy.max_examples"
        )
    here, there = _columns(found.train), _columns(task.train)
    if here == there and task.held_out:
        here, there = _columns(found.test), _columns(task.test)
    if here != there:
        raise ConfigError(
            f"{where}: found {_in_words(here)}, allowed: as specified for worker=None, "
            f"{_in_words(there)}"
        )
    return found


def _made(config: Config, worker: int | None, path: Path | None) -> Task:
    run = section(config, RunSettings)
    task = user_code.call(
        config, _KEY, workers=run.workers, seed=run.seed, worker=worker, data=path
    )
    try:
        if worker is None:
            batch_size = section(config, Training).batch_size
            checks.check_task(task, batch_size, may_be_empty=True)
        else:  # its functions are not used: see above
            checks.check_record(task, may_be_empty=True)
    except TaskError as error:
        raise ConfigError(f"{_where(config)}: {error}") from error
    if task.shards:
        raise ConfigError(
            f"{_where(config)}: found Task.shards, allowed: none where the factory "
            "takes `worker`: all rows are that worker's"
        )
    return task


def _where(config: Config) -> str:
    return f"config.{_KEY}: {user_code.found_in(config)[_KEY].label}"


Form = dict[str, tuple[str, list[int]]]


def _columns(data: Mapping[str, Any]) -> Form:
    return {k: (str(x.dtype), list(x.shape[1:])) for k, x in sorted(data.items())}


def _in_words(columns: Form) -> str:
    return ", ".join(f"{k} {dtype}{shape}" for k, (dtype, shape) in columns.items())


def _numbers(data: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.arange(num_rows(data), dtype=np.int32)


def _joined(parts: list[Columns]) -> tuple[Columns, tuple[np.ndarray, ...]]:
    """The rows of all parts, and the numbers of those of each."""
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.cumsum([num_rows(part) for part in parts])
    return rows, tuple(np.split(_numbers(rows), ends[:-1]))
