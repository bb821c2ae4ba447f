"""What happened: the events of a run, as every process writes them down.

A trace is a folder of JSON-lines files, one per process, each beginning with a
`Recorded` line. Together they say who did what, in which order, with which version:
enough to draw the run, to check it, and to execute it again.
"""

import fcntl
import io
import logging
import threading
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from asyn2f import ordering, workdir
from asyn2f.events import (
    FORMAT as FORMAT,
    TOO_LATE as TOO_LATE,
    Adopted as Adopted,
    Aggregated as Aggregated,
    Concluded as Concluded,
    Evaluated as Evaluated,
    Event as Event,
    Merged as Merged,
    Published as Published,
    Pushed as Pushed,
    Received as Received,
    Recorded as Recorded,
    Resumed as Resumed,
    Saved as Saved,
    Settled as Settled,
    Stopped as Stopped,
    Trained as Trained,
    Waited as Waited,
    Welcomed as Welcomed,
    WorkerJoined as WorkerJoined,
    WorkerLeft as WorkerLeft,
    from_line as from_line,
    to_line as to_line,
)


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
        """Raises WorkdirError: a file there cannot be written."""
        workdir.make_folder(folder)
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
    file = workdir.append_to(path)
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
    """All events of a run, each after what it depends on, on the server's clock.

    A process's threads write when they get to it: within one life of a process, which
    begins with `Recorded`, the times say what came first. Lives stay in order; events
    of several processes are ordered by cause (`ordering`).

    The last line of a file may be cut short by a kill; it is left out.

    Raises:
      ValueError: any other line that is no event, with its file and number; or a
        format newer than `FORMAT`.
    """
    paths = sorted(folder.glob("*.jsonl"))
    return ordering.by_cause(_without_idle([lives_in(path) for path in paths]))


def of_run(folder: Path | str) -> list[Event]:
    """All events of the run in a folder, as `read` gives them.

    Raises:
      WorkdirError: it holds no trace, or one in which nothing is written.
      ValueError: see `read`.
    """
    if not (Path(folder) / workdir.TRACE).is_dir():
        raise workdir.WorkdirError(
            f"{str(folder)!r} holds no run: there is no folder {workdir.TRACE!r} in "
            "it; give the folder that was the run's --workdir"
        )
    events = read(Path(folder) / workdir.TRACE)
    if not events:
        raise workdir.WorkdirError(
            f"{str(Path(folder) / workdir.TRACE)!r} holds no event: nothing happened "
            "in this run, or its trace lies elsewhere"
        )
    return events


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


def _without_idle(files: list[list[list[Event]]]) -> list[list[list[Event]]]:
    """The same without lives of peers that no server let in, if the peer has another:
    such a process changed nothing, and the one before it may have lived on."""
    lives = [life for file in files for life in file]
    active = {_peer_of(life) for life in lives if not _is_idle(life)} - {""}
    return [
        [life for life in file if _peer_of(life) not in active or not _is_idle(life)]
        for file in files
    ]


def _is_idle(life: list[Event]) -> bool:
    return all(isinstance(event, Recorded | Stopped) for event in life)


def _peer_of(life: list[Event]) -> str:
    """Whose life it is; "" of a server."""
    match life[0]:
        case Recorded(_, actor) if actor not in ("server", "simulation"):
            return actor
    return ""


def lives_in(path: Path) -> list[list[Event]]:
    """The events of each life of the process that wrote a file, by time. Raises as
    `read`."""
    lives: list[list[Event]] = [[]]
    for event in _read_file(path):
        if isinstance(event, Recorded):
            lives.append([])
        lives[-1].append(event)
    return [sorted(life, key=lambda event: event.time_s) for life in lives if life]


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
