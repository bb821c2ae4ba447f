"""Reads the order of a run off its trace, and compares its numbers."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from asyn2f import trace
from asyn2f.errors import OrderError
from asyn2f.sim import order as o
from asyn2f.sim.order import Log, Numbers, Order
from asyn2f.trace.history import History, Key, Node

_INITIAL: Node = (0, 0)


Computed = trace.Trained | trace.Merged | trace.Pushed | trace.Aggregated


class Recording(NamedTuple):
    """A recorded run: its order, and the events of its trace that hold numbers."""

    order: Order
    computed: list[Computed]  # one for each TRAIN, MERGE, PUSH, AGGREGATE of the order


def order_of(events: Iterable[trace.Event]) -> Order:
    """The order of a recorded run. Raises as `recording_of`."""
    return recording_of(events).order


def recording_of(events: Iterable[trace.Event], last: int | None = None) -> Recording:
    """The order of a recorded run, without versions that were lost in a crash before a
    worker used them.

    Args:
      events: of `trace.read`: each after those that it depends on.
      last: the run's last version, if a later one was made and never saved; None = the
        newest.

    Raises:
      OrderError: an event depends on one that is not in the trace.
    """
    events = list(events)
    history = History(events)
    line = [history.newest, *history.line_of(history.newest)]
    newest = next((node for node in line if node[1] == last), history.newest)
    return _Reader(history, newest, events).read(events)


def _counts(event: trace.Event) -> bool:
    """Whether the order has an event."""
    match event:
        case trace.ProcessStarted():
            return event.actor.startswith("worker-")
        case trace.UpdateSettled():
            return event.outcome in ("superseded", "rejected")
        case trace.Stopped():
            return event.actor in ("server", "simulation")
    return isinstance(event, _COUNTED)


_COUNTED = (
    *(trace.Adopted, trace.StateKept, trace.Trained, trace.Merged, trace.Pushed),
    *(trace.Aggregated, trace.Published, trace.WorkerLeft),
)


class _Reader:
    """Reads the events in turn."""

    def __init__(
        self, history: History, newest: Node, events: list[trace.Event]
    ) -> None:
        self._history, self._newest = history, newest
        self._restored = {
            (event.worker, event.restored)
            for event in events
            if isinstance(event, trace.Adopted) and event.restored
        }
        self._kept_states: dict[tuple[int, str], int] = {}
        used = [
            self._node(event)
            for event in events
            if isinstance(event, trace.Adopted | trace.Merged)
        ]
        # The newest version, those that workers have used, and all ancestors.
        self._kept: set[Node] = set()
        for node in {newest, *used}:
            self._kept.update(history.line_of(node))
        self._log = Log()
        self._computed: list[Computed] = []
        self._nodes: dict[Node, int] = {_INITIAL: 0}
        self._updates: dict[Key, int] = {}
        self._begun: set[int] = set()  # workers ...
        self._holding: set[int] = set()  # ... and those that have a model
        self._now_s = -math.inf  # times of an order ascend
        self._start_s: float | None = None
        self._reason = "the trace ends"

    def read(self, events: list[trace.Event]) -> Recording:
        for event in filter(_counts, events):
            if lack := self._lacks(event):
                raise OrderError(f"the trace lacks {lack}, required by {event}")
            self._now_s = max(self._now_s, event.time_s)
            self._take(event)
        end_s = max((event.time_s for event in events), default=0.0)
        start_s = end_s if self._start_s is None else self._start_s
        node = self._nodes[self._newest if self._newest[1] else _INITIAL]
        order = self._log.order(start_s, end_s, self._reason, node)
        return Recording(order, self._computed)

    def _lacks(self, event: trace.Event) -> str:
        """The missing dependency of an event; "" if there is none."""
        match event:
            case trace.Adopted() | trace.Merged():
                node = self._node(event)
                if node not in self._nodes:
                    return f"the making of version {node[1]}"
                digest = getattr(event, "restored", "")
                if digest and (event.worker, digest) not in self._kept_states:
                    return f"the own state {digest} of worker {event.worker}"
            case trace.Trained() | trace.Pushed():
                holds = event.worker in self._holding
                return "" if holds else f"an adoption of worker {event.worker}"
            case trace.Aggregated() if self._is_kept(event):
                parent = self._parent_of(event)
                if parent not in self._nodes:
                    return f"the making of version {parent[1]}"
                for worker, session, seq in event.updates:
                    if (worker, session, seq) not in self._updates:
                        return f"update {seq} of worker {worker} (session {session})"
            case trace.UpdateSettled():
                key = (event.worker, event.session, event.seq)
                return "" if key in self._updates else f"update {key}"
        return ""

    def _is_kept(self, event: trace.Aggregated) -> bool:
        return (event.incarnation, event.version) in self._kept

    def _parent_of(self, event: trace.Aggregated) -> Node:
        """The version that this one was made from."""
        if event.version == 1:
            return _INITIAL
        return self._history.parent_of((event.incarnation, event.version))

    def _node(self, event: trace.Adopted | trace.Merged) -> Node:
        """The version that a worker took in."""
        if not event.version:
            return _INITIAL
        maker = self._history.maker_of(event.incarnation, event.version)
        return maker, event.version

    def _take(self, event: trace.Event) -> None:
        note, now = self._log.note, self._now_s
        match event:
            case trace.ProcessStarted():
                worker = int(event.actor.removeprefix("worker-"))
                self._begun.add(worker)
                self._holding.discard(worker)
                note(now, o.BEGIN, worker, 0)
            case trace.Adopted():
                if event.worker not in self._begun:  # simulated: without a process
                    self._begun.add(event.worker)
                    note(now, o.BEGIN, event.worker, 0)
                if event.restored:
                    number = self._kept_states[event.worker, event.restored]
                    note(now, o.RESTORE, event.worker, number)
                self._holding.add(event.worker)
                note(now, o.ADOPT, event.worker, self._nodes[self._node(event)])
            case trace.StateKept() if (event.worker, event.digest) in self._restored:
                # By its content: equal states are as good as each other.
                number = len(self._kept_states)
                key = event.worker, event.digest
                number = self._kept_states.setdefault(key, number)
                note(now, o.KEEP, event.worker, number)
            case trace.Merged():
                note(now, o.MERGE, event.worker, self._nodes[self._node(event)])
                self._computed.append(event)
            case trace.Trained():
                note(now, o.TRAIN, event.worker, event.steps)
                self._computed.append(event)
            case trace.Pushed():
                update = self._log.num_updates
                self._log.num_updates += 1
                self._updates[event.worker, event.session, event.seq] = update
                note(now, o.PUSH, event.worker, update)
                self._computed.append(event)
            case trace.Aggregated() if self._is_kept(event):
                before = self._nodes[self._parent_of(event)]
                members = [self._updates[w, s, q] for w, s, q in event.updates]
                node = self._log.add_version(
                    event.version, before, members, event.lacking
                )
                self._nodes[event.incarnation, event.version] = node
                note(now, o.AGGREGATE, -1, node)
                self._computed.append(event)
            case trace.UpdateSettled():
                what = o.SUPERSEDE if event.outcome == "superseded" else o.REJECT
                update = self._updates[event.worker, event.session, event.seq]
                note(now, what, event.worker, update)
            case trace.Published():
                if self._start_s is None:
                    self._start_s = now
                self._log.receivers[-1] = event.receivers
            case trace.WorkerLeft():
                note(now, o.LEAVE, event.worker, 0)
            case trace.Stopped():
                self._reason = event.reason


_COMPUTED = (o.TRAIN, o.MERGE, o.PUSH, o.AGGREGATE)


def differences(
    recording: Recording, numbers: Numbers, tolerance: float
) -> Iterator[str]:
    """A line per number of the trace that differs: losses and metrics of stretches and
    updates, shares of merges, coefficients, staleness and rates of versions.

    Args:
      recording: of the run.
      numbers: of its execution.
      tolerance: relative, or absolute below 1; 0 = bit for bit, as float32.
    """
    order = recording.order
    (places,) = np.nonzero(np.isin(order.kind, _COMPUTED))
    for place, event in zip(places.tolist(), recording.computed, strict=True):
        node = int(order.value[place])
        for name, now in _numbers_of(event, place, node, recording, numbers).items():
            where = event.info if isinstance(event, trace.Pushed) else event
            recorded = getattr(where, name)
            if not agree(recorded, now, tolerance):
                name = f"{_name(event)}: {name}"
                yield f"{name} is {recorded} in the trace, {now} in the execution"


def _numbers_of(
    event: Computed, place: int, node: int, recording: Recording, numbers: Numbers
) -> dict[str, Any]:
    match event:
        case trace.Trained() | trace.Pushed():
            return {"loss": numbers.loss[place], "metric": numbers.metric[place]}
        case trace.Merged():
            return {"share": numbers.share[place]}
        case trace.Aggregated():
            starts = recording.order.member_starts
            span = slice(starts[node], starts[node + 1])
            return {
                "coefficients": numbers.coefficients[span],
                "staleness": numbers.staleness[span],
                "learning_rate": numbers.learning_rate[node],
            }


def agree(recorded: Any, now: Any, tolerance: float) -> bool:
    """Whether they are equal as float32, up to the tolerance of `differences`; NaN now
    is not computed by this executor, and None is NaN in JSON."""
    recorded, now = np.asarray(recorded, np.float32), np.asarray(now, np.float32)
    if recorded.shape != now.shape:
        return False
    near = np.abs(recorded - now) <= tolerance * np.maximum(1.0, np.abs(now))
    return bool(np.all(np.isnan(now) | (recorded == now) | near))


def _name(event: Computed) -> str:
    if isinstance(event, trace.Aggregated):
        return f"version {event.version}"
    kind = {trace.Trained: "stretch", trace.Merged: "merge", trace.Pushed: "update"}
    step = event.info.step if isinstance(event, trace.Pushed) else event.step
    return f"{kind[type(event)]} of worker {event.worker} at step {step}"
