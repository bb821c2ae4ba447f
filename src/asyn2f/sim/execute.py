"""Executing an order by the means that is fastest here, or that is named."""

import time
from collections.abc import Collection
from typing import Literal, NamedTuple

import jax

from asyn2f.experiment import Experiment, initial_server_state
from asyn2f.sim.machine import Machine
from asyn2f.sim.numbers import Result
from asyn2f.sim.order import Order
from asyn2f.sim.plan import PlanError
from asyn2f.sim.serial import Watch, execute_serially
from asyn2f.sim.vectorised import TooLarge, calls_of, execute_in_lanes, prepare
from asyn2f.trainer import shard_of

Executor = Literal["auto", "serial", "vectorised", "sharded"]

# An execution shorter than this is not worth compiling anything for.
_WORTHWHILE_S = 5.0
_LANES_ON_CPU, _LANES_ELSEWHERE = 16, 128


class Execution(NamedTuple):
    """An order and the means to execute it."""

    experiment: Experiment
    order: Order
    machine: Machine | None  # None = serially
    why: str  # what was chosen, and for what reason

    def run(self, watched: Collection[int] = (), watch: Watch | None = None) -> Result:
        """Executes it; see `execute_serially` for the arguments."""
        if self.machine is None:
            return execute_serially(self.experiment, self.order, watched, watch)
        return execute_in_lanes(self.machine, self.order, watched, watch)


def execution_of(
    experiment: Experiment, order: Order, executor: Executor = "auto", lanes: int = 0
) -> Execution:
    """How to execute an order.

    Args:
      experiment: what is computed.
      order: in which order.
      executor: `serial`: one worker at a time, one dispatch a step; the oracle.
        `vectorised`: lanes on one device. `sharded`: lanes on every device. `auto`:
        what is measured to be fastest, by a trial of each.
      lanes: of each device; 0 = 16 or a little less on a CPU, 128 elsewhere; where it
        matters, one lane (no `vmap`) is tried as well.

    Raises:
      PlanError, TooLarge: what is named cannot execute this order.
    """
    if executor == "serial":
        return Execution(experiment, order, None, "serial, as asked for")
    everywhere = jax.device_count()
    if executor != "auto":
        devices = everywhere if executor == "sharded" else 1
        count = lanes or default_lanes(experiment.workers, devices)
        machine = prepare(experiment, order, count, devices)
        why = f"{executor}, as asked for: {_in_words(count, devices)}"
        return Execution(experiment, order, machine, why)
    step_s = _serial_step_s(experiment)
    if order.num_steps * step_s < _WORTHWHILE_S:
        expected_s = order.num_steps * step_s
        why = f"serial: about {expected_s:.1f} s, less than compiling anything else"
        return Execution(experiment, order, None, why)
    return _fastest(experiment, order, lanes, everywhere, step_s)


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


def _serial_step_s(experiment: Experiment) -> float:
    """Seconds per local step of the serial executor, on the first worker's data."""
    trainer, shard = experiment.trainer, shard_of(experiment.task, 0)
    model = initial_server_state(experiment).model
    state = trainer.start(model, 0, int(shard.num_examples), 1.0)
    for _ in range(2):
        state, metrics = trainer.advance(state, shard)
        jax.block_until_ready(metrics)
    steps, begin_s = 0, time.perf_counter()
    while steps < 3 or (time.perf_counter() - begin_s < 0.05 and steps < 100):
        state, metrics = trainer.advance(state, shard)
        jax.block_until_ready(metrics)
        steps += 1
    return (time.perf_counter() - begin_s) / steps


def _fastest(
    experiment: Experiment, order: Order, lanes: int, devices: int, step_s: float
) -> Execution:
    """The means that did most local steps per second in a trial."""
    many = lanes or default_lanes(experiment.workers, devices)
    rates, machines = {"serial": 1.0 / step_s}, dict[str, Machine]()
    for count in sorted({1, many}):
        name = _in_words(count, devices)
        try:
            machine = prepare(experiment, order, count, devices)
        except (PlanError, TooLarge) as error:
            if len(rates) > 1 or isinstance(error, TooLarge):
                continue
            return Execution(experiment, order, None, f"serial: {error}")
        rates[name], machines[name] = _rate(machine), machine
    best = max(rates, key=lambda name: rates[name])
    others = ", ".join(
        f"{name} {rate:,.0f}" for name, rate in rates.items() if name != best
    )
    why = f"{best}: {rates[best]:,.0f} local steps/s in a trial ({others})"
    return Execution(experiment, order, machines.get(best), why)


def _rate(machine: Machine) -> float:
    """Local steps per second of a machine's first call, once it is compiled."""
    planned = machine.plan
    call = next(calls_of(planned, machine.limits, frozenset()))
    for _ in range(2):  # the first one compiles
        begin_s = time.perf_counter()
        jax.block_until_ready([notes for _, notes in machine.execute([call])])
        wall_s = time.perf_counter() - begin_s
    riders = (planned.row[call.begin : call.end] >= 0).sum(axis=(1, 2))
    return float(riders @ planned.steps[call.begin : call.end]) / wall_s
