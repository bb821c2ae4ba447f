"""What happened: the events of a run, as every process writes them down.

A trace is a folder of JSON-lines files, one per process, each beginning with a
`Recorded` line. Together they say who did what, in which order, with which version:
enough to draw the run, to check it, and to execute it again.
"""

import fcntl
import heapq
import io
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

# Times are seconds on the wall clock, taken once per process and carried on by its
# monotonic clock: comparable within one machine, and never running backwards.

FORMAT = 2
"""Of the traces written here. In format 1 a worker pushed before it merged a version
that was at hand at the last batch boundary of its cycle; since 2 it merges first."""


class Recorded(NamedTuple):
    """The head of a process's file: what the numbers below it depend on."""

    time_s: float
    actor: str  # "server", "worker-3", "evaluator"
    run: str
    incarnation: int
    environment: dict[str, Any]
    format: int = 1  # see `FORMAT`; traces of format 1 do not say


class Welcomed(NamedTuple):
    """The server has let this process in; again after the server has come back."""

    time_s: float
    actor: str
    run: str
    incarnation: int


class WorkerJoined(NamedTuple):
    time_s: float
    worker: int
    session: str
    num_examples: int


class WorkerLeft(NamedTuple):
    time_s: float
    worker: int
    session: str
    reason: str


class Received(NamedTuple):
    """A version has reached a worker's process; it need not have looked at it yet."""

    time_s: float
    worker: int
    version: int


class Waited(NamedTuple):
    """A worker stood still from `start_s` to `time_s`, for want of a newer version."""

    time_s: float
    worker: int
    start_s: float
    newest: int


class Adopted(NamedTuple):
    """`incarnation`: of the server that gave the version out. A crash can take a
    version that was announced early; the next one of that number is another model."""

    time_s: float
    worker: int
    version: int
    step: int
    incarnation: int = 1


class Trained(NamedTuple):
    """A stretch of local steps without interruption, ending with local step `step`."""

    time_s: float
    worker: int
    start_s: float
    steps: int
    step: int
    base_version: int
    loss: float
    metric: float


class Merged(NamedTuple):
    """`from_version` was the base before; `epoch_fraction` says where in an epoch."""

    time_s: float
    worker: int
    version: int
    from_version: int
    step: int
    epoch_fraction: float
    share: float
    incarnation: int = 1  # as in `Adopted`


class Pushed(NamedTuple):
    time_s: float
    worker: int
    session: str
    seq: int
    base_version: int
    start_version: int
    step: int
    num_examples: float
    loss: float
    quality: float
    metric: float


TOO_LATE = "the run is over"
"""Why an update is rejected that nobody has looked at any more."""


class Settled(NamedTuple):
    """The last word on an update: committed in a version, superseded, or rejected.

    A worker writes "withdrawn" when it gives up one whose verdict it has not heard;
    where the server has written something of the same update, that stands.
    """

    time_s: float
    worker: int
    session: str
    seq: int
    verdict: str  # "committed" | "superseded" | "rejected" | "withdrawn"
    version: int  # the version that holds it, or -1
    reason: str


class Aggregated(NamedTuple):
    """Version `version` was made of these updates; the lists run in parallel."""

    time_s: float
    version: int
    incarnation: int
    updates: list[list[Any]]  # [worker, session, seq], in order of arrival
    base_versions: list[int]
    staleness: list[int]
    coefficients: list[float]
    learning_rate: float
    # What `guards` did to each update or, observing, would have; [] = nothing to any.
    guards: list[str] = []  # noqa: RUF012
    lacking: int = 0  # updates that it should have had besides: `programs.Aggregate`


class Saved(NamedTuple):
    """A version is in the store, whole and for good."""

    time_s: float
    version: int
    incarnation: int


class Concluded(NamedTuple):
    """A worker has heard the last word on an update, and keeps it no longer."""

    time_s: float
    worker: int
    session: str
    seq: int
    verdict: str
    version: int
    incarnation: int  # of the server that said so


class Resumed(NamedTuple):
    """A server goes on from a version in the store, which that incarnation made."""

    time_s: float
    incarnation: int
    version: int
    made_in: int


class Published(NamedTuple):
    time_s: float
    version: int
    num_bytes: int
    receivers: int


class Evaluated(NamedTuple):
    time_s: float
    version: int
    accuracy: float
    loss: float


class Stopped(NamedTuple):
    time_s: float
    actor: str
    reason: str


Event = (
    Recorded
    | Welcomed
    | WorkerJoined
    | WorkerLeft
    | Received
    | Waited
    | Adopted
    | Trained
    | Merged
    | Pushed
    | Settled
    | Aggregated
    | Saved
    | Concluded
    | Resumed
    | Published
    | Evaluated
    | Stopped
)

_KINDS: dict[str, Callable[..., Event]] = {
    kind.__name__: kind for kind in Event.__args__
}


def to_line(event: Event) -> str:
    """The event as one line of JSON.

    >>> to_line(Evaluated(time_s=1.5, version=7, accuracy=0.9, loss=0.25))
    '{"kind": "Evaluated", "time_s": 1.5, "version": 7, "accuracy": 0.9, "loss": 0.25}'
    """
    return json.dumps({"kind": type(event).__name__, **event._asdict()})


def from_line(line: str) -> Event:
    """The event that `to_line` wrote.

    Raises:
      ValueError: not such a line.
    """
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("kind")]
        return kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a line of a trace: {line[:120]!r} ({error})") from error


class WallClock:
    """Wall time that never jumps: read once, then carried by the monotonic clock."""

    def __init__(self) -> None:
        # Of several pairs of readings the closest: a process that is put aside between
        # the two would shift all of its trace.
        pairs = [(time.monotonic(), time.time(), time.monotonic()) for _ in range(8)]
        before_s, wall_s, after_s = min(pairs, key=lambda pair: pair[2] - pair[0])
        self._offset_s = wall_s - (before_s + after_s) / 2

    def at(self, monotonic_s: float) -> float:
        """Seconds since 1970 for a reading of `time.monotonic()`."""
        return self._offset_s + monotonic_s

    def stamp(self, event: Event) -> Event:
        """The event with its times, readings of `time.monotonic()`, as wall time."""
        names = [name for name in ("time_s", "start_s") if name in event._fields]
        times: dict[str, Any] = {name: self.at(getattr(event, name)) for name in names}
        return event._replace(**times)


class TraceWriter:
    """Appends the events of one process to its file; its threads may share it.

    Every line is handed to the system as it is written: a kill can cut the last line
    short, which `read` leaves out, and loses nothing before it. While the disk is full,
    lines wait in memory for room, and the process goes on. A process that was
    thought dead may still write when its successor begins: then that one's file is
    `NAME.2.jsonl`, and so on.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = (f"{name}.{n}.jsonl" if n > 1 else f"{name}.jsonl" for n in count(1))
        self._file = next(filter(None, (_claim(folder / each) for each in names)))
        self._unwritten = b""
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        line = to_line(event) + "\n"
        with self._lock:
            if not self._file.closed:
                self._append(line.encode())

    def _append(self, text: bytes) -> None:
        could, self._unwritten = not self._unwritten, self._unwritten + text
        try:
            while self._unwritten:
                written = self._file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            if could:  # said once
                name, why = self._file.name, error.strerror
                logging.warning("cannot write %s: %s; its lines wait", name, why)

    def close(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._append(b"")
                self._file.close()
            if self._unwritten:
                lines = self._unwritten.count(b"\n")
                logging.error("%s lacks its last %d lines", self._file.name, lines)
                self._unwritten = b""


def _claim(path: Path) -> io.FileIO | None:
    """The file, to be appended to; None if another process is writing it."""
    file = io.FileIO(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system that knows no locks
        pass
    # What a kill has left of a line: nothing may be written behind it.
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return file


def read(folder: Path) -> list[Event]:
    """All events of a run, by time.

    A process's threads write when they get to it: within one life of a process, which
    begins with `Recorded`, the times say what came first. Lives stay in order.

    The last line of a file may be cut short by a kill; it is left out. So is what a
    server wrote that did not yet know that another had taken its place.

    Raises:
      ValueError: any other line that is no event, with its file and number; or a
        format newer than `FORMAT`.
    """
    files = [_lives(_read_file(path)) for path in sorted(folder.glob("*.jsonl"))]
    by_time = [
        chain.from_iterable(
            _until_replaced(life, [x for x in files if x is not lives])
            for life in lives
        )
        for lives in files
    ]
    return list(heapq.merge(*by_time, key=lambda event: event.time_s))


def older_format(events: Iterable[Event]) -> str:
    """A sentence that names what an older trace was made by, or "".

    >>> head = Recorded(0.0, "server", "run-1", 1, {"asyn2f": "0.1", "source": "ab12"})
    >>> older_format([head]).partition(";")[0]
    'the trace has format 1, of asyn2f 0.1 (source ab12)'
    >>> older_format([head._replace(format=FORMAT)])
    ''
    """
    for event in events:
        if isinstance(event, Recorded) and event.format < FORMAT:
            made_by = event.environment
            return (
                f"the trace has format {event.format}, of asyn2f "
                f"{made_by.get('asyn2f', 'unknown')} (source "
                f"{made_by.get('source', 'unknown')}); its workers pushed before they "
                "merged a version at hand at a cycle's last batch, and are executed "
                "as they did; to run its config to the same events, take that version"
            )
    return ""


def _lives(events: Iterable[Event]) -> list[list[Event]]:
    """The events of each life of a process, by time."""
    lives: list[list[Event]] = [[]]
    for event in events:
        if isinstance(event, Recorded):
            lives.append([])
        lives[-1].append(event)
    return [sorted(life, key=lambda event: event.time_s) for life in lives]


def _until_replaced(
    life: list[Event], others: Iterable[list[list[Event]]]
) -> list[Event]:
    """A server's life until a later incarnation began; any other life whole. Of one
    file there is one process at a time: a clock that was set back replaces nobody."""
    match life:
        case [Recorded(actor="server", incarnation=own), *_]:
            heads = [each[0] for file in others for each in file if each]
            began_s = [
                head.time_s
                for head in heads
                if isinstance(head, Recorded)
                and (head.actor == "server" and head.incarnation > own)
            ]
            end_s = min(began_s, default=math.inf)
            return [event for event in life if event.time_s < end_s]
    return life


def _read_file(path: Path) -> Iterable[Event]:
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            event = from_line(line.decode())
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: {error}") from error
            return
        if isinstance(event, Recorded) and event.format not in range(1, FORMAT + 1):
            made_by = event.environment.get("asyn2f", "unknown")
            raise ValueError(
                f"{path}:{number}: found a trace of format {event.format!r}, written "
                f"by asyn2f {made_by}; this version reads 1 to {FORMAT}: take that one"
            )
        yield event
