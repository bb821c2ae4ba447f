"""Executing an order in lanes: many workers at a time."""

from collections.abc import Callable, Collection, Iterator
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from asyn2f.errors import TooLargeError
from asyn2f.sim.executors.calls import AXIS, Limits, Notes
from asyn2f.sim.executors.machine import Call, Machine, Progress
from asyn2f.sim.executors.memory import check_fits, free_bytes, need_of
from asyn2f.sim.executors.plan import Plan
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import Watch
from asyn2f.sim.order import AGGREGATE, Numbers, Order, Result, empty_numbers
from asyn2f.training.batches import steps_per_epoch
from asyn2f.training.computation import Computation, any_hyperparams, functions_of
from asyn2f.training.experiment import Experiment
from asyn2f.types import ServerState

_FEW_BYTES = 2**25

Keep = Callable[[Callable[[], Progress]], None]
"""Called with a function that fetches the progress of an execution."""


def prepare(
    experiment: Experiment,
    order: Order,
    lanes: int,
    devices: int,
    watched: Collection[int] = (),
) -> Machine:
    """The machine for an order, before its first wave. One lane executes workers in
    sequence inside the compiled loop; several are under `vmap`.

    Args:
      experiment: what is computed.
      order: in which order.
      lanes: L, of each device.
      devices: D, of those that JAX has.
      watched: nodes that are looked at as soon as they are made.

    Raises:
      PlanError: see `plan`.
      TooLargeError: it does not fit into memory; lists the bytes needed.
      ValueError: there are fewer devices.
    """
    limits = limits_of(experiment, lanes * devices)
    mesh = mesh_of(devices)
    keeps = not experiment.sharing.is_whole
    steps = min(64, limits.ticks)
    planned = plan(
        *(order, devices, lanes, steps, limits.versions, watched, keeps),
        _epochs(experiment),
    )
    most = experiment.strategy.timing.most_updates(experiment.workers)
    # Rounded up, so that orders of one experiment share a compiled program: with few
    # bytes to what hardly any order of so many workers exceeds.
    roomy = planned._replace(max_members=min(_rounded_up(planned.max_members), most))
    usual, each = 4 * experiment.workers, -(-experiment.workers // devices)
    if usual * experiment.template.num_bytes > _FEW_BYTES:
        usual = 4
    roomy = roomy._replace(
        version_slots=_rounded_up(max(planned.version_slots, usual // 2)),
        update_slots=_rounded_up(max(planned.update_slots, usual)),
        rows=min(_rounded_up(max(planned.rows, lanes)), each),
    )
    free = free_bytes()
    try:
        check_fits(need_of(experiment, roomy, limits), free)
    except TooLargeError:
        roomy = planned
        check_fits(need_of(experiment, roomy, limits), free)
    return Machine(experiment, mesh, roomy, limits)


def _epochs(experiment: Experiment) -> list[int] | None:
    """The steps in each worker's epochs, or 1 where losses are not counted by epochs;
    None if something of a worker outlives its adoption of a version."""
    training = experiment.training
    if training.optimizer_at_adopt == "keep" or _has_own(experiment.computation):
        return None
    if experiment.strategy.timing.counts_steps:
        return [1] * experiment.workers
    shards = experiment.task.shards
    return [steps_per_epoch(len(rows), training.batch_size) for rows in shards]


@lru_cache(maxsize=32)
def _has_own(computation: Computation) -> bool:
    """Whether workers have a carry, a part of the model, or a residual of pushes."""

    def start():
        functions = functions_of(computation, any_hyperparams())
        return functions.trainer.start(functions.init_server().model, 0, 1, 1.0)

    state = jax.eval_shape(start)
    return bool(jax.tree.leaves((state.own, state.memory)))


def _rounded_up(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def execute_in_lanes(
    machine: Machine,
    order: Order,
    watch: Watch | None = None,
    begin: Progress | None = None,
    keep: Keep | None = None,
) -> Result:
    """Executes an order, with the numbers of `execute_serially` up to rounding.

    Args:
      machine: prepared for this order.
      order: in which order.
      watch: called with each of the machine's watched nodes; see `Watch`.
      begin: the progress to resume from; None = the beginning.
      keep: called after each call; see `Keep`.
    """
    machine.reset()
    planned = machine.plan
    numbers, done = empty_numbers(order), 0
    if begin is not None:
        machine.restore(begin.carry)
        numbers, done = begin.numbers, begin.wave
    watched = planned.watched if watch is not None else frozenset()
    made_at = {
        int(order.value[event]): int(event)
        for event in np.flatnonzero(order.kind == AGGREGATE)
    }
    kept: list[tuple[Call, Notes]] = []
    state: ServerState | None = None  # at the end, if `watch` has ended it
    num_events, last_wave = len(order.kind), len(planned.steps)

    def progress() -> Progress:
        _fetch(kept, planned, order, numbers)
        return Progress(call.end, jax.device_get(machine.carry), numbers)

    calls = calls_of(planned, machine.limits, watched)
    rest = (call for call in calls if call.begin >= done)
    for call, notes in machine.execute(rest):
        kept.append((call, notes))
        first, last = planned.made_starts[call.begin], planned.made_starts[call.end]
        node = int(planned.made_node[last - 1]) if last > first else 0
        if watch is not None and state is None and node in watched:
            _fetch(kept, planned, order, numbers)
            if not numbers.finite.all():
                break
            event = made_at[node]
            time_s, server = float(order.time_s[event]), machine.carry.server
            if watch(node, time_s, server, machine.kept_of):
                # Copied, as the next call donates the carry; there is one if some
                # lanes are behind the one that made this version.
                state = jax.tree.map(jnp.copy, machine.carry.server)
                num_events = event + 1
                last_wave = _last_wave(planned, num_events)
        # Calls are asynchronous: their notes are fetched several at a time.
        if len(kept) >= 16:
            _fetch(kept, planned, order, numbers)
            if not numbers.finite.all():
                break
        if state is not None and call.end >= last_wave:
            break
        if keep is not None and state is None:
            keep(progress)
    _fetch(kept, planned, order, numbers)
    return Result(state or machine.carry.server, numbers, num_events)


def _last_wave(planned: Plan, num_events: int) -> int:
    """The number of waves that execute this many events."""
    columns = (planned.train_event, planned.merge_event, planned.push_event)
    needed = [((c >= 0) & (c < num_events)).any(axis=(1, 2)) for c in columns]
    return int(np.flatnonzero(np.any(needed, axis=0)).max(initial=-1)) + 1


def limits_of(experiment: Experiment, lanes: int) -> Limits:
    """The shape of one call, for lanes on all devices together: the rows of its batches
    take at most 16 MiB."""
    row_bytes = 4 * lanes * experiment.training.batch_size
    ticks = max(16, min(512, 2**24 // row_bytes))
    return Limits(waves=min(256, ticks), ticks=ticks, versions=256)


def mesh_of(devices: int) -> Mesh:
    """The first devices, in a row. Raises ValueError if there are fewer."""
    found = jax.devices()
    if not 1 <= devices <= len(found):
        raise ValueError(
            f"devices: found {devices}, allowed 1 to {len(found)}; on a CPU more can "
            "be had with jax.config.update('jax_num_cpu_devices', ...) at the start"
        )
    return Mesh(np.array(found[:devices]), (AXIS,))


def calls_of(planned: Plan, limits: Limits, watched: frozenset[int]) -> Iterator[Call]:
    """The waves cut into calls of at most these limits, each up to a watched
    version."""
    begin = ticks = 0
    starts = planned.made_starts.tolist()
    nodes = planned.made_node.tolist()
    for wave, steps in enumerate(planned.steps.tolist()):
        made = starts[wave + 1] - starts[begin]
        if (
            wave - begin >= limits.waves
            or ticks + steps > limits.ticks
            or made > limits.versions
        ):
            yield Call(begin, wave)
            begin, ticks = wave, 0
        ticks += steps
        if any(node in watched for node in nodes[starts[wave] : starts[wave + 1]]):
            yield Call(begin, wave + 1)
            begin, ticks = wave + 1, 0
    if begin < len(planned.steps):
        yield Call(begin, len(planned.steps))


def _fetch(
    kept: list[tuple[Call, Notes]], planned: Plan, order: Order, numbers: Numbers
) -> None:
    """Copies the notes of past calls to the host, into the numbers."""
    for (begin, end), on_device in kept:
        notes = jax.device_get(on_device)
        waves = slice(begin, end)
        count = end - begin
        for events in (planned.train_event[waves], planned.push_event[waves]):
            there = events >= 0
            numbers.loss[events[there]] = notes.loss[:count][there]
            numbers.metric[events[there]] = notes.metric[:count][there]
        there = planned.merge_event[waves] >= 0
        merges = planned.merge_event[waves][there]
        numbers.share[merges] = notes.share[:count][there]
        first, last = planned.made_starts[begin], planned.made_starts[end]
        nodes = planned.made_node[first:last]
        numbers.model_loss[nodes] = notes.model_loss[: len(nodes)]
        numbers.learning_rate[nodes] = notes.learning_rate[: len(nodes)]
        numbers.finite[nodes] = notes.finite[: len(nodes)]
        for row, node in enumerate(nodes.tolist()):
            span = slice(order.member_starts[node], order.member_starts[node + 1])
            size = span.stop - span.start
            numbers.coefficients[span] = notes.coefficients[row, :size]
            numbers.staleness[span] = notes.staleness[row, :size]
    kept.clear()
