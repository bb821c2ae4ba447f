"""Assigns the workers of an order to lanes and waves, on the host.

A *wave* gathers up to `lanes` ready workers per device, has each take in a version if
that is its next event, runs the same number of local steps for all of them, and
scatters them back. It is as long as the shortest of its stretches; a worker with steps
left joins a later wave. Stretches of similar length are put together, so that few waves
are short. After a wave's pushes, the versions that are complete are made.

Versions, pending updates and the states of workers (in *rows*) are stored in numbered
slots of the device's memory, which are reused as soon as they are not needed: the plan
knows their number.
"""

from array import array
from collections.abc import Collection, Sequence
from heapq import heappop, heappush

import numpy as np

from asyn2f.errors import PlanError
from asyn2f.sim.executors.barriers import Barriers
from asyn2f.sim.executors.free_slots import FreeSlots
from asyn2f.sim.executors.plan import Plan
from asyn2f.sim.executors.stretches import KEEP, START, Stretches
from asyn2f.sim.order import BEGIN, RESTORE, Order, uses_of

# The overhead of a wave, in steps of all its lanes.
_WAVE_COST_STEPS = 1.0


_COLUMNS = Plan._fields[1:10]  # of lanes


def plan(
    order: Order,
    devices: int,
    lanes: int,
    max_steps: int = 64,
    max_versions: int = 256,
    watched: Collection[int] = (),
    keeps: bool = False,
    epochs: Sequence[int] | None = None,
) -> Plan:
    """Plans the waves of an order. Raises PlanError if its history forks, or a worker
    was restarted and that cannot be planned.

    Args:
      order: of a run.
      devices: D.
      lanes: L, of each device.
      max_steps, max_versions: of one wave.
      watched: nodes that are the last ones made by their waves.
      keeps: whether workers keep a part of the model, looked at with these nodes.
      epochs: see `Stretches`.
    """
    is_line = np.array_equal(order.parent, np.arange(len(order.parent)) - 1)
    if not is_line or order.newest != len(order.version) - 1:
        raise PlanError(
            "a server was restarted and workers had used versions that the crash took, "
            "so the history forks; only --executor=serial can execute that"
        )
    begins, what = order.worker[order.kind == BEGIN], ""
    if (order.kind == RESTORE).any():
        what = "a restarted worker has continued from its own state"
    elif keeps and len(np.unique(begins)) < len(begins):
        what = "a worker was restarted without its part of the model"
    if what:
        raise PlanError(f"{what}; only --executor=serial can execute that")
    stretches = Stretches(order, epochs)
    barred = watched if keeps else ()
    planner = _Planner(order, stretches, devices, lanes, max_steps, barred)
    return planner.run(max_versions, frozenset(watched))


class _Planner:
    def __init__(self, order, stretches, devices, lanes, max_steps, barred):
        self._order: Order = order
        self._devices, self._lanes, self._max_steps = devices, lanes, max_steps
        self._stretches: Stretches = stretches
        self._barriers = Barriers(order, self._stretches, barred) if barred else None
        self._uses = uses_of(order)
        self._version_uses = self._uses.versions.tolist()
        # nodes
        count = len(order.version)
        self._lacking = np.diff(order.member_starts).tolist()  # members not yet pushed
        self._node_of = [-1] * order.num_updates
        for node in range(1, count):
            for update in order.members_of(node).tolist():
                self._node_of[update] = node
        self._next = 1  # node to be made
        self._versions, self._version_slot = FreeSlots(), [-1] * count
        self._updates = [FreeSlots() for _ in range(devices)]
        self._update_slot = [-1] * order.num_updates
        self._update_device = [-1] * order.num_updates
        # workers
        self._rows = [FreeSlots() for _ in range(devices)]
        self._row_of: dict[int, int] = {}
        # By device and by the number of bits of the steps left: 0, 1, 2-3, 4-7, ...
        self._ready: list[list[list[int]]] = [
            [[] for _ in range(max_steps.bit_length() + 1)] for _ in range(devices)
        ]
        self._waiting: dict[int, list[int]] = {}  # for a node
        # results
        self._steps = array("i")
        self._columns = {name: array("i") for name in _COLUMNS}
        self._made_starts = array("i", [0])
        self._made_node, self._made_slot = array("i"), array("i")

    def run(self, max_versions: int, watched: frozenset[int]) -> Plan:
        if self._version_uses[0]:
            self._version_slot[0] = self._versions.take()
        for stretch in self._stretches.firsts():
            self._offer(stretch)
        while (bits := self._best_class()) is not None or self._is_complete():
            self._add_wave(bits, max_versions, watched)
        if self._next < len(self._order.version):
            raise PlanError(
                f"the order is not causal: version {self._order.version[self._next]} "
                "is made of later updates"
            )
        if self._waiting:
            node = min(self._waiting)
            raise PlanError(f"the order is not causal: node {node} is never made")
        return self._plan(watched)

    def _offer(self, stretch: int) -> None:
        """Queues a stretch, or lets it wait for its version."""
        node = self._stretches.node[stretch]
        if node >= self._next:
            self._waiting.setdefault(node, []).append(stretch)
        elif self._barriers is None or not self._barriers.holds(stretch):
            self._queue(stretch)

    def _queue(self, stretch: int) -> None:
        device = self._stretches.worker[stretch] % self._devices
        steps = min(self._stretches.steps[stretch], self._max_steps)
        # Stretches are numbered in order of time: the earliest first.
        heappush(self._ready[device][steps.bit_length()], stretch)

    def _best_class(self) -> int | None:
        """The length of the next wave's shortest stretches, in bits, with the best
        ratio of work to cost; None if no worker is ready."""
        best, best_worth = None, -1.0
        riders = [0] * self._devices
        for bits in reversed(range(len(self._ready[0]))):
            if not any(classes[bits] for classes in self._ready):
                continue
            for device, classes in enumerate(self._ready):
                riders[device] += len(classes[bits])
            steps = (1 << bits) >> 1
            lanes = sum(min(self._lanes, count) for count in riders)
            worth = lanes * steps / (steps + _WAVE_COST_STEPS)
            if worth > best_worth:
                best, best_worth = bits, worth
        return best

    def _riders(self, classes: list[list[int]], bits: int) -> list[int]:
        """Dequeues the stretches of one device's lanes, the longest first."""
        riders: list[int] = []
        for ready in reversed(classes[bits:]):
            while ready and len(riders) < self._lanes:
                riders.append(heappop(ready))
        return riders

    def _add_wave(
        self, bits: int | None, max_versions: int, watched: frozenset[int]
    ) -> None:
        """Adds a wave of stretches of at least that many bits, or one without steps
        that only makes the versions that are complete."""
        riding: list[list[int]] = [[] for _ in self._ready]
        steps = 0
        left = self._stretches.steps
        if bits is not None:
            riding = [self._riders(classes, bits) for classes in self._ready]
            steps = min(left[stretch] for lane in riding for stretch in lane)
            steps = min(steps, self._max_steps)
        self._steps.append(steps)
        pushed: list[int] = []
        for device, lane in enumerate(riding):
            for stretch in lane:
                self._ride(stretch, steps, device, pushed)
            for column in self._columns.values():
                column.extend([-1] * (self._lanes - len(lane)))
        # After the wave's take-ins: the versions made now may reuse their slots.
        for update in pushed:
            self._lacking[self._node_of[update]] -= 1
        self._make(max_versions, watched)
        for stretch in (stretch for lane in riding for stretch in lane):
            if left[stretch]:
                self._queue(stretch)
            else:
                self._go_on(stretch)

    def _go_on(self, stretch: int) -> None:
        """Queues the worker's next stretch; gives its row back if that needs none of
        it, or there is none."""
        table = self._stretches
        worker, following = table.worker[stretch], table.next[stretch]
        is_last = following < 0 and self._barriers is None
        if is_last or (following >= 0 and table.take[following] == START):
            self._rows[worker % self._devices].give_back(self._row_of[worker])
        if following >= 0:
            self._offer(following)

    def _ride(self, stretch: int, steps: int, device: int, pushed: list[int]) -> None:
        table, columns = self._stretches, self._columns
        take, node = table.take[stretch], table.node[stretch]
        slot = merge_event = train_event = push_event = push_slot = -1
        worker = table.worker[stretch]
        if take == START:
            self._row_of[worker] = self._rows[device].take()
        first = table.first[stretch]
        if take:
            slot, merge_event = self._version_slot[node], table.merge_event[stretch]
            table.take[stretch], table.node[stretch] = KEEP, -1
            self._version_uses[node] -= 1
            if not self._version_uses[node]:
                self._versions.give_back(slot)
        table.first[stretch] += steps
        table.steps[stretch] -= steps
        if not table.steps[stretch]:
            if self._barriers is not None:
                self._barriers.end(stretch)
            train_event = table.train_event[stretch]
            push_event = table.push_event[stretch]
            update = table.update[stretch]
            if update >= 0 and self._node_of[update] >= 0:
                push_slot = self._update_slot[update] = self._updates[device].take()
                self._update_device[update] = device
                pushed.append(update)
        of_it = self._row_of[worker], worker, first
        events = merge_event, train_event, push_event
        values = *of_it, take, slot, *events, push_slot
        for name, value in zip(_COLUMNS, values, strict=True):
            columns[name].append(value)

    def _is_complete(self) -> bool:
        # Whether the next version can be made: all its updates have been pushed.
        if self._next == len(self._lacking) or self._lacking[self._next]:
            return False
        return self._barriers is None or self._barriers.is_open(self._next)

    def _make(self, max_versions: int, watched: frozenset[int]) -> None:
        """Makes the versions that are complete, up to a watched one, and queues the
        stretches that waited for them."""
        order, made = self._order, list[int]()
        while self._is_complete() and len(made) < max_versions:
            if made and made[-1] in watched:
                break
            node = self._next
            self._next += 1
            slot = -1
            if self._version_uses[node]:
                slot = self._version_slot[node] = self._versions.take()
            self._made_node.append(node)
            self._made_slot.append(slot)
            made.append(node)
            released = self._waiting.pop(node, [])
            if self._barriers is not None:
                released = released + self._barriers.make(node)
            for stretch in released:
                self._offer(stretch)
        for node in made:
            for update in order.members_of(node).tolist():
                device = self._update_device[update]
                self._updates[device].give_back(self._update_slot[update])
        self._made_starts.append(len(self._made_node))

    def _plan(self, watched: frozenset[int]) -> Plan:
        shape = (len(self._steps), self._devices, self._lanes)
        columns, members = self._columns, self._order.members
        sizes = np.diff(self._order.member_starts)
        return Plan(
            steps=np.array(self._steps, np.int32),
            **{k: np.array(x, np.int32).reshape(shape) for k, x in columns.items()},
            made_starts=np.array(self._made_starts, np.int32),
            made_node=np.array(self._made_node, np.int32),
            made_slot=np.array(self._made_slot, np.int32),
            member_starts=self._order.member_starts,
            member_device=np.array(self._update_device, np.int32)[members],
            member_slot=np.array(self._update_slot, np.int32)[members],
            rows=max(rows.count for rows in self._rows),
            version_slots=self._versions.count,
            update_slots=max(slots.count for slots in self._updates),
            max_members=int(sizes.max(initial=1)),
            watched=watched,
            row_of=self._row_of,
        )
