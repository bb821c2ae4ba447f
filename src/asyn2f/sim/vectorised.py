"""Executing an order with many workers at a time."""

from collections.abc import Collection, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from asyn2f.experiment import Experiment
from asyn2f.sim.lanes import Lanes, Limits, Notes
from asyn2f.sim.numbers import Numbers, Result, empty_numbers
from asyn2f.sim.order import AGGREGATE, Order
from asyn2f.sim.plan import Plan, plan
from asyn2f.sim.serial import Watch


def execute_in_lanes(
    experiment: Experiment,
    order: Order,
    watched: Collection[int] = (),
    watch: Watch | None = None,
    *,
    lanes: int,
    devices: int = 1,
    limits: Limits = Limits(),  # noqa: B008 - a tuple of numbers
) -> Result:
    """The numbers of an order, `lanes` workers at a time on each of `devices`.

    With one lane, workers are executed one after the other inside the compiled loop;
    with more, under `vmap`. The results differ from those of `execute_serially` by
    rounding only.

    Args:
      experiment: what is computed.
      order: in which order.
      watched: nodes that `watch` is called with, each as soon as it is made.
      watch: see `Watch`.
      lanes: L, of each device.
      devices: D, of those that JAX has.
      limits: the shape of one call.

    Raises:
      PlanError: see `plan`.
      ValueError: there are not so many devices.
    """
    mesh = mesh_of(devices)
    planned = plan(order, devices, lanes, max_steps=min(64, limits.ticks))
    machine = Lanes(experiment, mesh, planned, limits)
    numbers = empty_numbers(order)
    watched = frozenset(watched)
    made_s = np.zeros(len(order.version))
    is_made = order.kind == AGGREGATE
    made_s[order.value[is_made]] = order.time_s[is_made]
    kept: list[tuple[int, int, Notes]] = []
    end_s = order.end_s
    for begin, end in calls_of(planned, limits, watched):
        kept.append((begin, end, machine.execute(begin, end)))
        last = planned.made_starts[end]
        if last and watch is not None:
            node = int(planned.made_node[last - 1])
            if node in watched and last > planned.made_starts[begin]:
                time_s = float(made_s[node])
                if watch(node, time_s, machine.carry.server):
                    end_s = time_s
                    break
        # Calls run behind; their notes are fetched when there are some.
        if len(kept) >= 16:
            _fetch(kept, planned, order, numbers)
    _fetch(kept, planned, order, numbers)
    return Result(machine.carry.server, numbers, end_s)


def mesh_of(devices: int) -> Mesh:
    """The first so many devices, in a row.

    Raises:
      ValueError: there are not so many.
    """
    found = jax.devices()
    if not 1 <= devices <= len(found):
        raise ValueError(
            f"devices: found {devices}, allowed 1 to {len(found)}; on a CPU more can "
            "be had with jax.config.update('jax_num_cpu_devices', ...) at the start"
        )
    return Mesh(np.array(found[:devices]), ("devices",))


def calls_of(
    planned: Plan, limits: Limits, watched: frozenset[int]
) -> Iterator[tuple[int, int]]:
    """The waves cut into calls: as many as fit, and none beyond a watched version."""
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
            yield begin, wave
            begin, ticks = wave, 0
        ticks += steps
        if any(node in watched for node in nodes[starts[wave] : starts[wave + 1]]):
            yield begin, wave + 1
            begin, ticks = wave + 1, 0
    if begin < len(planned.steps):
        yield begin, len(planned.steps)


def _fetch(
    kept: list[tuple[int, int, Notes]], planned: Plan, order: Order, numbers: Numbers
) -> None:
    """Brings the notes of past calls to the host and sorts them into the numbers."""
    for begin, end, on_device in kept:
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
        for row, node in enumerate(nodes.tolist()):
            span = slice(order.member_starts[node], order.member_starts[node + 1])
            size = span.stop - span.start
            numbers.coefficients[span] = notes.coefficients[row, :size]
            numbers.staleness[span] = notes.staleness[row, :size]
    kept.clear()
