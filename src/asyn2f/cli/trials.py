"""The trials of a comparison: one simulated run each, and its evaluations."""

import hashlib
import inspect
import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash

import asyn2f
from asyn2f import errors
from asyn2f.api.results import bytes_by
from asyn2f.api.simulation import order_of_config
from asyn2f.cli import machine
from asyn2f.config import build, identity, schema, user_code
from asyn2f.config import config_file as config_file
from asyn2f.config.private import NO_ROOTS, Roots
from asyn2f.config.schema import RunSettings, StrategyChoice, section
from asyn2f.config.task import TaskSettings
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.report.comparison import Trial
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.executors.execute import execution_of
from asyn2f.sim.order import ended_by_divergence
from asyn2f.sim.settings import SimSettings
from asyn2f.strategies import BUILDERS
from asyn2f.tasks.base import Task
from asyn2f.timing import Stop
from asyn2f.training.agreement import flags
from asyn2f.training.evaluation import initial, make_scores
from asyn2f.training.experiment import initial_server_state
from asyn2f.types import P10, WORST

TIMES = 60  # evaluations of each run
_ROWS = 4096  # of the data, hashed at a time: they may be larger than memory


class Job(NamedTuple):
    """A trial to run."""

    config: dict[str, Any]
    settings: dict[str, Any]  # by dotted key, those that were chosen for this trial
    phase: str
    half: int | None  # rows of the test set: even (0), odd (1), or all
    inputs: str  # see `inputs_digest`
    data: Roots = NO_ROOTS  # where each worker's own data are

    @property
    def method(self) -> str:
        """The strategy as the config names it."""
        return section(self.config, StrategyChoice).name

    @property
    def key(self) -> str:
        """A digest of everything that its numbers depend on, sources included."""
        parts = ("min_workers", "sim", "stop", "worker_speeds")
        flat = schema.canonical(self.config)
        content: list[Any] = [
            [key, flat[key]] for key in flat if key.split(".")[0] in parts
        ]
        runtime = section(self.config, RuntimeSettings)
        content += [runtime.heartbeat_timeout_s, self.half, TIMES]
        content += [self.inputs, _foreign_source(self.method)]
        content += [identity.experiment_digest(self.config), jax.__version__, flags()]
        content.append(machine.source_digest(leave_out=("report", "runtime")))
        text = json.dumps(content, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def inputs_digest(config: build.Config, task: Task) -> str:
    """A digest of the files that a config names (data, a partition, profiles), as a
    file may be edited under the same name."""
    found = xxhash.xxh3_128()
    for part in (task.train, task.test):
        for name, array in sorted(part.items()):
            found.update(f"{name} {array.dtype} {array.shape};".encode())
            for start in range(0, len(array), _ROWS):
                found.update(np.ascontiguousarray(array[start : start + _ROWS]).data)
    paths = section(config, TaskSettings).indices, section(config, SimSettings).profiles
    for path in paths:
        if path and Path(path).is_file():
            found.update(Path(path).read_bytes())
        found.update(b";")
    return found.hexdigest()


def _foreign_source(strategy: str) -> str:
    """The source of a strategy that the config's file has added to `BUILDERS`; those
    of references are in the digest of the experiment."""
    if strategy not in BUILDERS:
        return ""
    path = inspect.getsourcefile(BUILDERS[strategy])
    if path is None or Path(asyn2f.__file__).parent in Path(path).parents:
        return ""
    return Path(path).read_text(encoding="utf-8")


def prepare_process(source: Path | None) -> None:
    """Prepares a process of the pool: one thread, one device; it ends when its parent
    has ended. `source` is the config's file, which may register what the config names.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["PJRT_NPROC"] = "1"
    machine.prepare_jax()
    if source is not None:
        config_file.import_file(source)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def in_turns(jobs: Iterable[Job], processes: int) -> list[Job]:
    """The jobs in an order in which each of so many processes, which take them in turn,
    gets those that share a compiled program: all but seed and learning rate are equal.
    """
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        rest = {k: x for k, x in job.settings.items() if k != "training.learning_rate"}
        program = job.method, json.dumps(rest, sort_keys=True, default=str)
        groups.setdefault(program, []).append(job)
    found, together = [], [*groups.values()]
    for begin in range(0, len(together), processes):
        columns = zip_longest(*together[begin : begin + processes])
        found += [job for column in columns for job in column if job is not None]
    return found


def run_trial(job: Job) -> Trial:
    """Runs a trial."""
    start_s = time.monotonic()
    config = job.config
    experiment = build.build_experiment(config, _task_of(config, job.data))
    order = order_of_config(config, experiment)
    ends_s = np.linspace(0.0, section(config, Stop).max_time_s, TIMES + 1)
    nodes = _newest_at(order, order.start_s + ends_s)
    settings = section(config, SimSettings)
    execution = execution_of(
        experiment,
        order,
        settings.executor,
        settings.lanes,
        set(nodes.tolist()) - {0},
        is_one_of_many=True,
    )
    scores_of = make_scores(experiment, _part_of(experiment.task, job.half))
    first = initial_server_state(experiment)
    metric = experiment.task.metric
    scores = {0: scores_of(first, initial(experiment))}

    def watch(node, time_s, state, kept_of):
        scores[node] = scores_of(state, kept_of)
        return False

    result = execution.run(watch)
    jax.block_until_ready(result.state)
    # A run that has diverged has no model from then on: the worst value, if there is
    # one.
    worst = float(not metric.higher_is_better) if metric.is_fraction else math.nan
    ended = ended_by_divergence(order, result.numbers)
    has_diverged, order = ended is not None, ended or order
    times_s, last = order.start_s + ends_s, result.state.model
    updates = np.searchsorted(order.time_s[order.kind == o.PUSH], times_s, side="right")
    values = [scores.get(node, {}).get(metric.name, worst) for node in nodes.tolist()]
    ends = {} if has_diverged else scores.get(int(nodes[-1]), {})
    moved = bytes_by(config, experiment, order, times_s)
    return Trial(
        strategy=schema.strategy_of(config)[0],
        settings=job.settings,
        seed=section(config, RunSettings).seed,
        phase=job.phase,
        key=job.key,
        time_s=ends_s.tolist(),
        values=[_finite(value) for value in values],
        updates=updates.tolist(),
        num_bytes=(moved.up + moved.down).tolist(),
        broadcast_bytes=(moved.up + moved.broadcast_down).tolist(),
        staleness=np.bincount(result.numbers.staleness[: len(order.members)]).tolist(),
        versions=len(order.version) - 1,
        incomplete_versions=int((order.lacking > 0).sum()),
        local_steps=order.num_steps,
        wall_s=time.monotonic() - start_s,
        params_sha256="" if has_diverged else params_sha256(last.params),
        worst=_finite(ends.get(metric.name + WORST, math.nan)),
        p10=_finite(ends.get(metric.name + P10, math.nan)),
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _task_of(config: dict[str, Any], data: Roots) -> Task:
    """The task of a trial. That of a user-defined factory is kept, so that the trials
    of a process share its compiled programs."""
    if not section(config, TaskSettings).factory:
        return build.build_task(config)
    flat = schema.canonical(config)
    kept = {key: x for key, x in flat.items() if key.startswith("task.")}
    filled = {key: flat[key] for key in ("workers", "seed", "training.batch_size")}
    taken = user_code.filled_of(config, "task.factory")
    filled = {k: x for k, x in filled.items() if k in (*taken, "training.batch_size")}
    key = json.dumps([kept, filled, user_code.digests(config)], default=list)
    if key not in _TASKS:
        _TASKS.clear()  # data may be large
        _TASKS[key] = build.unsplit_task(config, "all", data)
    return build.split_task(config, _TASKS[key])


_TASKS: dict[str, Task] = {}


def _newest_at(order: o.Order, times_s: np.ndarray) -> np.ndarray:
    """The newest node at each of these times."""
    made_s = order.time_s[order.kind == o.AGGREGATE]
    return np.searchsorted(made_s, times_s, side="right")


def _part_of(task: Task, half: int | None) -> Task:
    if half is None:
        return task
    if task.held_out:
        return task._replace(held_out=tuple(rows[half::2] for rows in task.held_out))
    return task._replace(test={name: rows[half::2] for name, rows in task.test.items()})


class Results:
    """The trials that were run, one line each in a file, durable after each."""

    def __init__(self, path: Path) -> None:
        """Reads the file; drops a last line that was cut off."""
        self._path = path
        self.trials: dict[str, Trial] = {}
        for line in _lines(path):
            trial = Trial(**line)
            self.trials[trial.key] = trial
        text = "".join(_as_line(trial) for trial in self.trials.values())
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)

    def add(self, trial: Trial) -> None:
        """Appends a trial."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_as_line(trial))
            file.flush()
            os.fsync(file.fileno())
        self.trials[trial.key] = trial


def _as_line(trial: Trial) -> str:
    return json.dumps(trial._asdict()) + "\n"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or set(found) != set(Trial._fields):
                raise ValueError
        except ValueError:
            if number == len(text.splitlines()):
                return
            raise errors.RunDirError(
                f"{path}, line {number}: damaged, or written by another version of "
                "this program; remove that line, or give another --workdir"
            ) from None
        yield found
