"""The order of a run: its events without numbers, as columns; and the numbers.

An order is made under a virtual clock by `schedule`, or from the trace of a run by
`from_trace.order_of`; executors take either. Columns of a few bytes per event hold runs
of many millions of events.
"""

from array import array
from typing import NamedTuple

import numpy as np

from asyn2f.sim import order as o
from asyn2f.types import ServerState

# The meaning of an event's `value` is in brackets.
ADOPT = 0  # a worker drops its model for a version [node]
TRAIN = 1  # a stretch of local steps has ended [steps]
MERGE = 2  # a worker takes a version into its model [node]
PUSH = 3  # a worker sends its model [update]
AGGREGATE = 4  # a version is made [node]
BEGIN = 5  # a worker begins without a state, for the first time or again [-]
LEAVE = 6  # the server takes a worker for gone [1 = for good]
WAITED = 7  # a worker has waited since its last event [-]
SUPERSEDE = 8  # an update is replaced by a newer one of its worker [update]
REJECT = 9  # an update is rejected as stale [update]
LOSE = 10  # an update never arrives: its worker left meanwhile [update]
RETURN = 11  # a worker that was taken for gone is present again [-]
REFUSE = 12  # an update is rejected as not finite [update]
KEEP = 13  # a worker keeps its own state, which is restored later [number]
RESTORE = 14  # a worker that has begun continues from an own state [number]


class Order(NamedTuple):
    """The order of a run: E events, U updates, M versions.

    A *node* is a version in the run's history, which is a tree: node 0 is the initial
    model, every other has a parent. Unless a server was restarted, a version's node is
    its number.
    """

    # events, each after those that it depends on
    time_s: np.ndarray  # f64 [E]
    kind: np.ndarray  # u8 [E]
    worker: np.ndarray  # i32 [E]; -1 = the server's
    value: np.ndarray  # i32 [E]
    # versions
    version: np.ndarray  # i32 [M]: its number
    parent: np.ndarray  # i32 [M]: node; -1 for node 0
    member_starts: np.ndarray  # i64 [M + 1]
    members: np.ndarray  # i32: updates of node m: members[starts[m]:starts[m + 1]]
    receivers: np.ndarray  # i32 [M]: live workers when it was published
    lacking: np.ndarray  # i32 [M]: see `programs.Aggregate`
    # the run
    newest: int  # node: the last version
    num_updates: int
    start_s: float  # of training: when version 0 was published
    end_s: float
    reason: str  # of the end

    def members_of(self, node: int) -> np.ndarray:
        """The updates of a version, in order of arrival."""
        return self.members[self.member_starts[node] : self.member_starts[node + 1]]

    @property
    def num_steps(self) -> int:
        """Local steps of all workers together."""
        return int(self.value[self.kind == TRAIN].sum(dtype=np.int64))


class Log:
    """An order while it is recorded."""

    def __init__(self) -> None:
        self.time_s = array("d")
        self.kind = array("B")
        self.worker = array("i")
        self.value = array("i")
        self.version = array("i", [0])
        self.parent = array("i", [-1])
        self.member_starts = array("q", [0, 0])
        self.members = array("i")
        self.receivers = array("i", [0])
        self.lacking = array("i", [0])
        self.num_updates = 0
        # Bound once: each is called for every event.
        self._note_time_s = self.time_s.append
        self._note_kind = self.kind.append
        self._note_worker = self.worker.append
        self._note_value = self.value.append

    def note(self, time_s: float, kind: int, worker: int, value: int) -> None:
        self._note_time_s(time_s)
        self._note_kind(kind)
        self._note_worker(worker)
        self._note_value(value)

    def add_version(
        self, version: int, parent: int, members: list[int], lacking: int = 0
    ) -> int:
        """Adds a version without its event; returns its node."""
        self.version.append(version)
        self.parent.append(parent)
        self.members.extend(members)
        self.member_starts.append(len(self.members))
        self.receivers.append(0)
        self.lacking.append(lacking)
        return len(self.version) - 1

    def order(
        self, start_s: float, end_s: float, reason: str, newest: int | None = None
    ) -> Order:
        """The order so far, as a copy; None = the newest version is the last one."""
        return Order(
            time_s=np.array(self.time_s, np.float64),
            kind=np.array(self.kind, np.uint8),
            worker=np.array(self.worker, np.int32),
            value=np.array(self.value, np.int32),
            version=np.array(self.version, np.int32),
            parent=np.array(self.parent, np.int32),
            member_starts=np.array(self.member_starts, np.int64),
            members=np.array(self.members, np.int32),
            receivers=np.array(self.receivers, np.int32),
            lacking=np.array(self.lacking, np.int32),
            newest=len(self.version) - 1 if newest is None else newest,
            num_updates=self.num_updates,
            start_s=start_s,
            end_s=end_s,
            reason=reason,
        )


def line_of(order: Order) -> list[int]:
    """The nodes of the newest version and of its ancestors, without node 0."""
    node, line = order.newest, []
    while node > 0:
        line.append(node)
        node = int(order.parent[node])
    return line


def until(order: Order, end_s: float) -> int:
    """The number of events up to that time, inclusive."""
    return int(np.searchsorted(order.time_s, end_s, side="right"))


def cut(order: Order, count: int, reason: str, end_s: float | None = None) -> Order:
    """The order of a run that ended after that many events: with the last of them, or
    at `end_s`."""
    if end_s is None:
        end_s = float(order.time_s[count - 1]) if count else order.start_s
    kind, value = order.kind[:count], order.value[:count]
    nodes = int(value[kind == AGGREGATE].max(initial=0)) + 1
    return order._replace(
        time_s=order.time_s[:count],
        kind=kind,
        worker=order.worker[:count],
        value=value,
        version=order.version[:nodes],
        parent=order.parent[:nodes],
        member_starts=order.member_starts[: nodes + 1],
        members=order.members[: order.member_starts[nodes]],
        receivers=order.receivers[:nodes],
        lacking=order.lacking[:nodes],
        newest=nodes - 1,
        num_updates=int(value[kind == PUSH].max(initial=-1)) + 1,
        end_s=end_s,
        reason=reason,
    )


class Numbers(NamedTuple):
    """The numbers of a run of E events and M versions; NaN where there is none."""

    # per event
    loss: np.ndarray  # f32 [E]: of a worker's epoch, at TRAIN and PUSH
    metric: np.ndarray  # f32 [E]
    share: np.ndarray  # f32 [E]: of the local model, at MERGE
    # per version
    coefficients: np.ndarray  # f32, in parallel to `order.members`
    staleness: np.ndarray  # i32, likewise
    model_loss: np.ndarray  # f32 [M]
    learning_rate: np.ndarray  # f32 [M]
    finite: np.ndarray  # bool [M]: False = it holds a NaN or an infinity


def empty_numbers(order: Order) -> Numbers:
    """Numbers to be filled in by an executor."""
    events, versions = len(order.kind), len(order.version)

    def blank(length: int) -> np.ndarray:
        return np.full(length, np.nan, np.float32)

    return Numbers(
        loss=blank(events),
        metric=blank(events),
        share=blank(events),
        coefficients=blank(len(order.members)),
        staleness=np.zeros(len(order.members), np.int32),
        model_loss=blank(versions),
        learning_rate=blank(versions),
        finite=np.ones(versions, bool),
    )


class Result(NamedTuple):
    """The end of an execution: of the order, where `watch` has ended it, or soon after
    the first version that is not finite."""

    state: ServerState  # of the newest version made
    numbers: Numbers
    num_events: int  # fewer than the order's if `watch` has ended it


def ended_by_divergence(order: Order, numbers: Numbers) -> Order | None:
    """The order before its first version that is not finite; None if all are finite.
    The runtime's server rejects such a version as well."""
    if numbers.finite.all():
        return None
    node = int(np.argmin(numbers.finite))
    (events,) = np.nonzero((order.kind == o.AGGREGATE) & (order.value == node))
    time_s = float(order.time_s[events[0]])
    reason = (
        f"version {order.version[node]} is not finite, at "
        f"{time_s - order.start_s:g} virtual s: training has diverged; a smaller "
        "training.learning_rate may help"
    )
    return o.cut(order, int(events[0]), reason, time_s)


class Uses(NamedTuple):
    """The number of uses of versions and updates; unused ones are not kept."""

    versions: np.ndarray  # i64 [M]: adoptions and merges
    updates: np.ndarray  # i64 [U]: aggregations


def uses_of(order: Order) -> Uses:
    taken = order.value[(order.kind == o.ADOPT) | (order.kind == o.MERGE)]
    return Uses(
        versions=np.bincount(taken, minlength=len(order.version)),
        updates=np.bincount(order.members, minlength=order.num_updates),
    )
