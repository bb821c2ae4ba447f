"""The history of versions that the servers of a run have made.

A version is a *node*, identified by the incarnation that made it and its number: a
crash can lose a version, and the next one of its number is another model.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from asyn2f import trace
from asyn2f.errors import IncompleteTraceError

Key = tuple[Any, ...]  # of an update: worker, session, seq
Node = tuple[int, int]  # of a version: incarnation, number; number 0 = the initial one

_BY_SERVERS = {
    trace.ProcessStarted,
    trace.Resumed,
    trace.Aggregated,
    trace.Published,
    trace.UpdateSettled,
}


def zero_s(events: Iterable[trace.Event]) -> float:
    """When the first version was published: zero of all times shown to users.

    Processes start earlier: they load, compile, and wait for each other. Without a
    publication, the time of the first event; NaN without events.

    >>> joined = trace.WorkerJoined(3.0, worker=0, session="a", num_examples=8)
    >>> given = trace.Published(7.5, version=0, num_bytes=80, receivers=1)
    >>> zero_s([joined, given]), zero_s([joined])
    (7.5, 3.0)
    """
    first = math.nan
    for event in events:
        if isinstance(event, trace.Published):
            return event.time_s
        first = event.time_s if math.isnan(first) else first
    return first


def surviving(events: Iterable[trace.Event]) -> list[trace.Aggregated]:
    """The newest version and its ancestors, in ascending order.

    Versions lost in a crash, and a last one that could not be saved, are left out.

    >>> def made(version, incarnation):
    ...     return trace.Aggregated(0.0, version, incarnation, [], [], [], [], 0.1)
    >>> resumed = trace.Resumed(0.0, incarnation=2, version=1, made_in=1)
    >>> events = [made(1, 1), made(2, 1), resumed, made(2, 2)]
    >>> [(event.incarnation, event.version) for event in surviving(events)]
    [(1, 1), (2, 2)]
    """
    history = History(events)
    nodes = reversed(list(history.line_of(history.newest)))
    return [history.made[node] for node in nodes if node in history.made]


def absent(events: Iterable[trace.Event]) -> list[str]:
    """The processes whose traces are missing: the server, and workers named in its
    trace, as far as a session of theirs pushed an update.

    >>> absent([trace.WorkerJoined(1.0, worker=3, session="s", num_examples=9)])
    ['worker-3']
    """
    named: set[tuple[int, str]] = set()  # with their sessions
    joined: set[int] = set()
    pushed: set[tuple[int, str]] = set()
    present: set[int] = set()
    has_server = False
    for event in events:
        match event:
            case trace.ProcessStarted(actor="simulation"):
                return []  # its trace is one file
            case trace.ProcessStarted(_, actor) if actor.startswith("worker-"):
                present.add(int(actor.removeprefix("worker-")))
            case trace.WorkerJoined(_, worker):
                joined.add(worker)
            case trace.Aggregated():
                named |= {(worker, session) for worker, session, _ in event.updates}
            case trace.Pushed(_, worker, session):
                pushed.add((worker, session))
        has_server = has_server or type(event) in _ONLY_SERVERS
    present |= {worker for worker, _ in pushed}
    workers = joined - present | {worker for worker, _ in named - pushed}
    return ["server"] * (not has_server) + [f"worker-{x}" for x in sorted(workers)]


_ONLY_SERVERS = {trace.Published, trace.Aggregated, trace.Resumed, trace.WorkerJoined}


def absence_of(actors: Sequence[str]) -> str:
    """A sentence naming the processes whose traces are missing, or "".

    >>> absence_of(["worker-0", "worker-2"]).partition(":")[0]
    'the traces of worker-0, worker-2 are missing'
    """
    if not actors:
        return ""
    traces = "traces" if len(actors) > 1 else "trace"
    return (
        f"the {traces} of {', '.join(actors)} {'are' if actors[1:] else 'is'} missing: "
        "a process on another machine writes its own into its --workdir there; copy "
        "that folder here and bring it in with asyn2f collect"
    )


def check_complete(events: Iterable[trace.Event]) -> None:
    """Raises IncompleteTraceError unless the trace of every process is present.

    Raises:
      IncompleteTraceError: names the missing ones.
    """
    if absence := absence_of(absent(events)):
        raise IncompleteTraceError(absence)


class History:
    """The versions made and published by servers, and the updates pushed by workers."""

    def __init__(self, events: Iterable[trace.Event]) -> None:
        self.made: dict[Node, trace.Aggregated] = {}
        self.given: dict[Node, trace.Event] = {}  # by the publishing incarnation
        self.resumed: dict[int, trace.Resumed] = {}
        self.pushed: dict[Key, trace.Pushed] = {}
        self.newest: Node = (1, 0)
        self._incarnation = 1
        self._in_doubt: set[Key] = set()  # updates of the newest version
        for event in events:
            if isinstance(event, trace.Pushed):
                self.pushed[event.worker, event.session, event.seq] = event
            elif type(event) in _BY_SERVERS:
                self._add(event)

    def _add(self, event: trace.Event) -> None:
        match event:
            case trace.ProcessStarted(actor="server" | "simulation"):
                self._incarnation = event.incarnation
                self._in_doubt = set()
            case trace.Resumed(_, incarnation, version, made_in):
                self._incarnation = incarnation
                self.resumed[incarnation] = event
                self.given[incarnation, version] = event
                self.newest = made_in, version
                self._in_doubt = set()
            case trace.Aggregated(_, version, incarnation):
                self._incarnation = incarnation
                self.newest = incarnation, version
                self.made.setdefault(self.newest, event)
                self.given.setdefault(self.newest, event)
                self._in_doubt = {tuple(update) for update in event.updates}
            case trace.Published(time_s, version):
                node = self._incarnation, version
                made = self.given.get(node)
                if version == 0:
                    self.newest = node
                if version == 0 or (made is not None and made.time_s <= time_s):
                    self.given[node] = event
            case trace.UpdateSettled(_, worker, session, seq, "rejected") if (
                self._in_doubt
            ):
                key = worker, session, seq
                if self._in_doubt == {key}:  # it could not be saved
                    self.newest = self.parent_of(self.newest)
                self._in_doubt.discard(key)
            case trace.UpdateSettled(outcome="committed"):
                self._in_doubt = set()

    def parent_of(self, node: Node) -> Node:
        """The predecessor of a version above 0."""
        incarnation, version = node
        return self.maker_of(incarnation, version - 1), version - 1

    def maker_of(self, incarnation: int, version: int) -> int:
        """The incarnation that made the version of this number in the history of
        `incarnation`."""
        while resumed := self.resumed.get(incarnation):
            if version > resumed.version or resumed.made_in >= incarnation:
                break
            incarnation = resumed.made_in
        return incarnation

    def line_of(self, node: Node) -> Iterator[Node]:
        """This version and its ancestors above 0, newest first."""
        while node[1] > 0:
            yield node
            node = self.parent_of(node)
