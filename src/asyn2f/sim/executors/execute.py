"""Executing an order: the choice of an executor, and one interface to all of them."""

import contextlib
import json
import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from asyn2f.errors import Asyn2fError, ExecutionError, PlanError, TooLargeError
from asyn2f.sim.executors.calls import Carry
from asyn2f.sim.executors.machine import Machine, Progress
from asyn2f.sim.executors.serial import Watch, execute_serially
from asyn2f.sim.executors.vectorised import Keep, execute_in_lanes, prepare
from asyn2f.sim.order import Numbers, Order, Result
from asyn2f.sim.settings import Executor
from asyn2f.training.experiment import Experiment
from asyn2f.types import Scores

# Measured, see `choose`. A step's cost is its dispatch, and its arithmetic in units of
# that: one per so many parameters times examples.
_ARITHMETIC = 1_000_000
_WORTH_COMPILING, _WORTH_SHARING = 20_000, 2_000
_LANES_ON_CPU, _LANES_ELSEWHERE = 16, 128


class Means(NamedTuple):
    """What the last bits of an execution depend on."""

    executor: str  # "serial" | "vectorised" | "sharded" | "debug"
    lanes: int
    devices: int


class Execution(NamedTuple):
    """An order and the means to execute it."""

    experiment: Experiment
    order: Order
    machine: Machine | None  # None: serially
    watched: frozenset[int]
    why: str  # the choice and its reason, for the log
    debug: bool = False  # serially, without compiling

    @property
    def means(self) -> Means:
        """The means by which it is executed."""
        if self.machine is None:
            return Means("debug" if self.debug else "serial", 1, 1)
        _, devices, lanes = self.machine.plan.row.shape
        return Means("sharded" if devices > 1 else "vectorised", lanes, devices)

    def run(
        self,
        watch: Watch | None = None,
        begin: Progress | None = None,
        keep: Keep | None = None,
    ) -> Result:
        """Executes the order.

        Args:
          watch: called with each of the watched nodes.
          begin: where to resume; ignored by the serial executor.
          keep: called now and then with a function that returns the progress so far;
            never by the serial executor.

        Raises:
          ExecutionError: a function of the task or the strategy has failed.
        """
        if self.machine is not None:
            try:
                return execute_in_lanes(self.machine, self.order, watch, begin, keep)
            except (Asyn2fError, OSError):
                raise
            except Exception as error:
                name = self.experiment.strategy.name
                raise ExecutionError("lanes", name, None, None, None, error) from error
        with debugging(self.means.executor):
            return execute_serially(self.experiment, self.order, self.watched, watch)


def debugging(executor: str) -> contextlib.AbstractContextManager[None]:
    """A context in which nothing is compiled, if the executor is `debug`."""
    return jax.disable_jit() if executor == "debug" else contextlib.nullcontext()


def execution_of(
    experiment: Experiment,
    order: Order,
    executor: Executor = "auto",
    lanes: int = 0,
    watched: Collection[int] = (),
    is_one_of_many: bool = False,
) -> Execution:
    """Prepares the execution of an order.

    Args:
      experiment: what is computed.
      order: in which order.
      executor: `serial`: one worker at a time, one dispatch per step; the oracle.
        `debug`: the same without `jax.jit`, so that prints and breakpoints in a task or
        a strategy work and see values. `vectorised`: lanes on one device. `sharded`:
        lanes on every device. `auto`: see `choose`; serially where lanes cannot execute
        the order.
      lanes: of each device; 0 = `default_lanes`.
      watched: nodes that are looked at as soon as they are made.
      is_one_of_many: whether this process executes others of the experiment, which
        share its compiled programs.

    Raises:
      PlanError, TooLargeError: `vectorised` or `sharded` cannot execute this order.
    """
    watched, everywhere = frozenset(watched), jax.device_count()
    why = "as configured"
    if executor == "auto":
        executor, chosen, why = choose(experiment, order, everywhere, is_one_of_many)
        lanes = lanes or chosen
        if executor == "sharded":
            try:
                machine = prepare(experiment, order, lanes, everywhere, watched)
                why = f"{_in_words(lanes, everywhere)}: {why}"
                return Execution(experiment, order, machine, watched, why)
            except (PlanError, TooLargeError) as error:
                executor, why = "serial", str(error)
    if executor in ("serial", "debug"):
        is_debug = executor == "debug"
        why = f"{executor}: {why}"
        return Execution(experiment, order, None, watched, why, is_debug)
    devices = everywhere if executor == "sharded" else 1
    count = lanes or default_lanes(experiment.workers, devices)
    machine = prepare(experiment, order, count, devices, watched)
    why = f"{executor}: {_in_words(count, devices)}, {why}"
    return Execution(experiment, order, machine, watched, why)


def choose(
    experiment: Experiment, order: Order, devices: int, is_one_of_many: bool = False
) -> tuple[Executor, int, str]:
    """The executor that is probably the fastest, by shapes and backend alone: the same
    config gives the same bits on every machine of a kind.

    A serial step costs its dispatch (0.2 to 0.3 ms) and its arithmetic, for which
    parameters times examples of a batch stand: c = 1 + parameters * batch / 10^6.

    * Serially, where steps * c < 20,000: compiling lanes takes as long, 5 s and more. A
      tenth of that where others share what is compiled.
    * In lanes on every device otherwise: `default_lanes` of them, or on a CPU one lane
      without `vmap` where arithmetic is most of a step (c > 2), or where a device has
      fewer than 8 workers.

    Args:
      experiment: its model, batch size and number of workers.
      order: its number of steps.
      devices: D.
      is_one_of_many: as in `execution_of`.

    Returns:
      `serial` or `sharded`, lanes of each device, and the reason in words.
    """
    steps, batch_size = order.num_steps, experiment.training.batch_size
    cost = 1.0 + experiment.whole_template.num_bytes / 4 * batch_size / _ARITHMETIC
    if steps * cost < (_WORTH_SHARING if is_one_of_many else _WORTH_COMPILING):
        return "serial", 1, f"{steps:,} local steps, too few to compile lanes for"
    workers = experiment.workers
    if jax.default_backend() == "cpu" and (cost > 2.0 or workers < 8 * devices):
        return "sharded", 1, f"{steps:,} local steps of {workers} workers on a CPU"
    why = f"{steps:,} local steps of {workers} workers"
    return "sharded", default_lanes(workers, devices), why


def default_lanes(workers: int, devices: int) -> int:
    """Lanes of each device: about as many as pay, cut so that few are idle when all
    workers are ready at once.

    >>> default_lanes(workers=100, devices=2)  # 50 workers in 4 waves, not 3 and a bit
    13
    """
    most = _LANES_ON_CPU if jax.default_backend() == "cpu" else _LANES_ELSEWHERE
    each = -(-workers // devices)
    return -(-each // -(-each // most))


def _in_words(lanes: int, devices: int) -> str:
    riders = "one lane" if lanes == 1 else f"{lanes} lanes"
    where = "one device" if devices == 1 else f"each of {devices} devices"
    return f"{riders} on {where}"


Evaluated = Mapping[int, Scores]
"""The scores of evaluated nodes."""


def write_progress(path: Path, key: str, progress: Progress, scores: Evaluated) -> None:
    """Writes a progress file, which is replaced atomically.

    Args:
      path: the file, .npz.
      key: identifies everything that the execution depends on.
      progress: of the execution.
      scores: so far.
    """
    leaves = jax.tree.leaves(progress.carry)
    arrays: dict[str, Any] = {
        f"carry-{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)
    }
    arrays |= {f"numbers-{k}": v for k, v in progress.numbers._asdict().items()}
    arrays |= {"key": np.array(key), "wave": np.array(progress.wave)}
    # Not as an array: two versions may have scores of different names.
    arrays["scores"] = np.array(json.dumps([*scores.items()]))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_progress(
    path: Path, key: str, like: Carry
) -> tuple[Progress, Evaluated] | None:
    """Reads a progress file; None if it belongs to another execution or is missing.

    Args:
      path: the file.
      key: of `write_progress`.
      like: a carry of this execution, for the structure and dtypes.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return None
            leaves, structure = jax.tree.flatten(like)
            # NumPy's files have no bfloat16.
            carry = [
                found[f"carry-{number}"].view(leaf.dtype).reshape(leaf.shape)
                for number, leaf in enumerate(leaves)
            ]
            numbers = Numbers(*(found[f"numbers-{name}"] for name in Numbers._fields))
            progress = Progress(
                int(found["wave"]), jax.tree.unflatten(structure, carry), numbers
            )
            scores = dict(json.loads(str(found["scores"])))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return progress, scores
