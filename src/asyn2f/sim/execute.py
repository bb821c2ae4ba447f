"""Executing an order by the means that is fastest here, or that is named."""

import contextlib
import json
import math
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from asyn2f.errors import PlanError, TooLargeError
from asyn2f.sim import order as o
from asyn2f.sim.checkpoint import Progress
from asyn2f.sim.machine import Call, Machine
from asyn2f.sim.order import (
    Order,
    Result,
)
from asyn2f.sim.serial import Watch, execute_serially
from asyn2f.sim.settings import Executor
from asyn2f.sim.vectorised import (
    Keep,
    calls_of,
    execute_in_lanes,
    prepare,
)
from asyn2f.training.experiment import Experiment, initial_server_state
from asyn2f.training.trainer import shard_of

# An execution shorter than this is not worth compiling anything for.
_WORTHWHILE_S = 5.0
_TRIAL_S = 2.0  # of serial work, at most, in a trial of lanes
_LANES_ON_CPU, _LANES_ELSEWHERE = 16, 128


class Means(NamedTuple):
    """What the last bits of an execution depend on."""

    executor: str  # "serial" | "vectorised" | "sharded"
    lanes: int
    devices: int


class Execution(NamedTuple):
    """An order and the means to execute it."""

    experiment: Experiment
    order: Order
    machine: Machine | None  # None = serially
    watched: frozenset[int]
    why: str  # what was chosen, and for what reason

    @property
    def means(self) -> Means:
        """By what means it is executed."""
        if self.machine is None:
            return Means("serial", 1, 1)
        _, devices, lanes = self.machine.plan.row.shape
        return Means("sharded" if devices > 1 else "vectorised", lanes, devices)

    def run(
        self,
        watch: Watch | None = None,
        begin: Progress | None = None,
        keep: Keep | None = None,
    ) -> Result:
        """Executes it; `watch` is called with the nodes that are watched. In lanes it
        may `begin` in the middle, and `keep` how far it is; serially it does neither.
        """
        if self.machine is None:
            return execute_serially(self.experiment, self.order, self.watched, watch)
        return execute_in_lanes(self.machine, self.order, watch, begin, keep)


def execution_of(
    experiment: Experiment,
    order: Order,
    executor: Executor = "auto",
    lanes: int = 0,
    watched: Collection[int] = (),
    memory: Path | None = None,
) -> Execution:
    """How to execute an order.

    Args:
      experiment: what is computed.
      order: in which order.
      executor: `serial`: one worker at a time, one dispatch a step; the oracle.
        `vectorised`: lanes on one device. `sharded`: lanes on every device. `auto`:
        what is measured to be fastest, by a trial of each.
      lanes: of each device; 0 = 16 or a little less on a CPU, 128 elsewhere; under
        `auto` one lane (no `vmap`) is tried as well.
      watched: nodes that somebody wants to look at as soon as they are made.
      memory: a file that remembers what trials have shown, so that the same experiment
        is always executed by the same means here, and gives the same bits.

    Raises:
      PlanError, TooLargeError: what is named cannot execute this order.
    """
    watched, everywhere = frozenset(watched), jax.device_count()

    def serially(why: str) -> Execution:
        return Execution(experiment, order, None, watched, f"serial{why}")

    if executor == "serial":
        return serially(", as asked for")
    if executor != "auto":
        devices = everywhere if executor == "sharded" else 1
        count = lanes or default_lanes(experiment.workers, devices)
        machine = prepare(experiment, order, count, devices, watched)
        why = f"{executor}, as asked for: {_in_words(count, devices)}"
        return Execution(experiment, order, machine, watched, why)
    many = lanes or default_lanes(experiment.workers, everywhere)
    trials = _recall(memory, experiment, many, everywhere)
    remembered = "" if trials is None else ", as remembered"
    trials = trials or {"serial": 1.0 / _serial_step_s(experiment, order)}
    expected_s = order.num_steps / trials["serial"]
    if expected_s < _WORTHWHILE_S:
        _remember(memory, experiment, many, everywhere, trials)
        return serially(f": about {expected_s:.1f} s{remembered}, less than compiling")
    counts = {_in_words(count, everywhere): count for count in (1, many)}
    machines: dict[str, Machine] = {}
    for name, count in counts.items():
        is_best = name == max(trials, key=lambda known: trials[known])
        if name in trials and not is_best:
            continue
        try:
            machines[name] = prepare(experiment, order, count, everywhere, watched)
        except (PlanError, TooLargeError) as error:
            if name == list(counts)[-1] and not machines:
                return serially(f": {error}")
            trials.pop(name, None)
            continue
        if name not in trials:
            trials[name] = _rate(machines[name], _TRIAL_S * trials["serial"])
    _remember(memory, experiment, many, everywhere, trials)
    best = max(trials, key=lambda name: trials[name])
    others = ", ".join(
        f"{name} {rate:,.0f}" for name, rate in trials.items() if name != best
    )
    why = f": {trials[best]:,.0f} steps/s in a trial{remembered} ({others})"
    if best not in machines:
        return serially(why)
    return Execution(experiment, order, machines[best], watched, best + why)


# What reading a file can raise that is not there, or not what was written.
_DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError)

Trials = dict[str, float]
"""Local steps per second, by means in words."""


def _key(experiment: Experiment, lanes: int, devices: int) -> str:
    device, training = jax.devices()[0].device_kind, experiment.training
    model, task = experiment.template.fingerprint, experiment.task.name
    strategy = experiment.strategy.name
    return (
        f"jax {jax.__version__}, {devices} x {device}, {task} {model}, {strategy}, "
        f"{experiment.workers} workers, batch {training.batch_size}, {lanes} lanes"
    )


def _recall(
    memory: Path | None, experiment: Experiment, lanes: int, devices: int
) -> Trials | None:
    """What earlier trials have shown, if there were any."""
    if memory is None or not memory.exists():
        return None
    with contextlib.suppress(*_DAMAGED):
        known = json.loads(memory.read_text(encoding="utf-8"))
        found = known[_key(experiment, lanes, devices)]
        trials = {str(name): float(rate) for name, rate in found.items()}
        if "serial" in trials and all(0 < rate < math.inf for rate in trials.values()):
            return trials
    return None


def _remember(
    memory: Path | None,
    experiment: Experiment,
    lanes: int,
    devices: int,
    trials: Trials,
) -> None:
    if memory is None:
        return
    known: dict[str, Trials] = {}
    with contextlib.suppress(*_DAMAGED):
        known = dict(json.loads(memory.read_text(encoding="utf-8")))
    known[_key(experiment, lanes, devices)] = trials
    with contextlib.suppress(OSError):  # then the next run tries again
        memory.parent.mkdir(parents=True, exist_ok=True)
        beside = memory.with_name(f".{memory.name}.{os.getpid()}")
        beside.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        beside.replace(memory)


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


def _serial_step_s(experiment: Experiment, order: Order) -> float:
    """Seconds per local step of the serial executor, on the first worker's data, with
    its part of the pushes."""
    trainer, shard = experiment.trainer, shard_of(experiment.task, 0)
    model = initial_server_state(experiment).model
    state = trainer.start(model, 0, int(shard.num_examples), 1.0)
    pushes = int((order.kind == o.PUSH).sum())
    cycle = -(-order.num_steps // max(pushes, 1))
    steps, begin_s = -2, 0.0  # two to compile
    while steps < 3 or (time.perf_counter() - begin_s < 0.05 and steps < 100):
        if steps == 0:
            begin_s = time.perf_counter()
        state, metrics = trainer.advance(state, shard)
        steps += 1
        if steps % cycle == 0:
            _, state = trainer.push(state)
        jax.block_until_ready((state, metrics))
    return (time.perf_counter() - begin_s) / steps


def _rate(machine: Machine, enough: float) -> float:
    """Local steps per second of a machine's first call, once it is compiled: of the
    whole call, or of so many waves that they have `enough` local steps."""
    planned = machine.plan
    call = next(calls_of(planned, machine.limits, frozenset()))
    riders = (planned.row[: call.end] >= 0).sum(axis=(1, 2))
    done = np.cumsum(riders * planned.steps[: call.end])
    end = min(int(np.searchsorted(done, enough)) + 1, call.end)
    for waves in (1, end):  # the first one compiles
        begin_s = time.perf_counter()
        trial = [Call(0, waves)]
        jax.block_until_ready([notes for _, notes in machine.execute(trial)])
        wall_s = time.perf_counter() - begin_s
    return float(done[end - 1]) / wall_s
