"""What happened: the events of a run, as every process writes them down.

A trace is a folder of JSON-lines files, one per process, each beginning with a
`ProcessStarted` line. Together they say who did what, in which order, with which
version: enough to draw the run, to check it, and to execute it again.
"""

import contextlib
import fcntl
import io
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from asyn2f import errors, rundir
from asyn2f.trace import ordering, segments
from asyn2f.trace.events import (
    FORMAT,
    Event,
    ProcessStarted,
    Stopped,
    from_line,
    to_line,
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


FULL_BYTES = 8 << 20
"""A file of a trace that is as long is packed, and another one begun."""


class TraceWriter:
    """Appends the events of one process to its file; its threads may share it.

    Every line is handed to the system as it is written: a kill can cut the last line
    short, which `read` leaves out, and loses nothing before it. While the disk is full,
    lines wait in memory for room, and the process goes on. A process that was
    thought dead may still write when its successor begins: then that one's file is
    `NAME.2.jsonl`, and so on. What is full is packed (`segments`).
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Raises RunDirError: a file there cannot be written."""
        rundir.make_folder(folder)
        names = (f"{name}.{n}.jsonl" if n > 1 else f"{name}.jsonl" for n in count(1))
        paths = (folder / each for each in names)
        self._path, self._file = next(
            (path, file) for path in paths if (file := _claim(path)) is not None
        )
        self._full_bytes = FULL_BYTES
        self._unwritten = b""
        self._lock = threading.Lock()
        self._packing = threading.Thread()  # of what was full last

    def write(self, event: Event) -> None:
        line = to_line(event) + "\n"
        with self._lock:
            if not self._file.closed:
                self._append(line.encode())
                if not self._unwritten and self._file.tell() >= self._full_bytes:
                    self._rotate()

    def _append(self, text: bytes) -> None:
        could, self._unwritten = not self._unwritten, self._unwritten + text
        try:
            while self._unwritten:
                written = self._file.write(self._unwritten)
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            if could:  # said once
                why = error.strerror
                logging.warning("cannot write %s: %s; its lines wait", self._path, why)

    def _rotate(self) -> None:
        """Begins another file; the path always names one that this process holds."""
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        file = None
        try:
            part = segments.next_part(self._path)
            beside.unlink(missing_ok=True)
            file = _claim(beside)
            os.link(self._path, part)
            beside.rename(self._path)
        except (OSError, errors.RunDirError) as error:
            logging.warning("cannot begin another file of the trace: %s", error)
            self._full_bytes *= 2  # it is tried again, but not with every line
            if file is not None:
                file.close()
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
                segments.end_rotation(self._path)
            return
        assert file is not None
        self._file.close()
        self._file, self._full_bytes = file, FULL_BYTES
        self._packing = threading.Thread(
            target=segments.pack, args=(part,), name="packing", daemon=True
        )
        self._packing.start()

    def close(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._append(b"")
                self._file.close()
            if self._unwritten:
                lines = self._unwritten.count(b"\n")
                logging.error("%s lacks its last %d lines", self._path, lines)
                self._unwritten = b""
        if self._packing.ident is not None:
            self._packing.join(_PACKING_S)


_PACKING_S = 5.0  # of one part, at the end


def _claim(path: Path) -> io.FileIO | None:
    """The file, to be appended to; None if another process is writing it."""
    file = rundir.append_to(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system that knows no locks
        pass
    segments.end_rotation(path)
    # What a kill has left of a line: nothing may be written behind it.
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def read(folder: Path) -> list[Event]:
    """All events of a run, each after what it depends on, on the server's clock.

    A process's threads write when they get to it: within one life of a process, which
    begins with `ProcessStarted`, the times say what came first. Lives stay in order;
    events of several processes are ordered by cause (`ordering`).

    The last line of a file may be cut short by a kill; it is left out.

    Raises:
      ValueError: any other line that is no event, with its file and number; or a
        format newer than `FORMAT`.
    """
    return in_order(lives_in(*paths) for paths in segments.files_of(folder).values())


def in_order(files: Iterable[list[list[Event]]]) -> list[Event]:
    """The events of all processes in one order: see `read`."""
    return ordering.by_cause(_without_idle([*files]))


def of_run(folder: Path | str) -> list[Event]:
    """All events of the run in a folder, as `read` gives them.

    Raises:
      RunDirError: it holds no trace, or one in which nothing is written.
      ValueError: see `read`.
    """
    if not (Path(folder) / rundir.TRACE).is_dir():
        raise errors.RunDirError(
            f"{str(folder)!r} holds no run: there is no folder {rundir.TRACE!r} in "
            "it; give the folder that was the run's --workdir"
        )
    events = read(Path(folder) / rundir.TRACE)
    if not events:
        raise errors.RunDirError(
            f"{str(Path(folder) / rundir.TRACE)!r} holds no event: nothing happened "
            "in this run, or its trace lies elsewhere"
        )
    return events


def older_format(events: Iterable[Event]) -> str:
    """A sentence that names what an older trace was made by, or "".

    >>> made_by = {"asyn2f": "0.1", "source": "ab12"}
    >>> head = ProcessStarted(0.0, "server", "run-1", 1, made_by)
    >>> older_format([head]).partition(";")[0]
    'the trace has format 1, of asyn2f 0.1 (source ab12)'
    >>> older_format([head._replace(format=FORMAT)])
    ''
    """
    for event in events:
        if isinstance(event, ProcessStarted) and event.format < FORMAT:
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
    return all(isinstance(event, ProcessStarted | Stopped) for event in life)


def _peer_of(life: list[Event]) -> str:
    """Whose life it is; "" of a server."""
    match life[0]:
        case ProcessStarted(_, actor) if actor not in ("server", "simulation"):
            return actor
    return ""


def lives_in(*paths: Path) -> list[list[Event]]:
    """The events of each life of the process that wrote these files, one after the
    other, by time. Raises as `read`."""
    return lives_of(_read_files(paths))


def lives_of(events: Iterable[Event]) -> list[list[Event]]:
    """What one process wrote, cut into its lives; each by time."""
    lives: list[list[Event]] = [[]]
    for event in events:
        if isinstance(event, ProcessStarted):
            lives.append([])
        lives[-1].append(event)
    return [sorted(life, key=lambda event: event.time_s) for life in lives if life]


def _read_files(paths: Iterable[Path]) -> Iterator[Event]:
    cut = ""  # what is wrong with a line, unless it is the last of all
    for path in paths:
        for number, line in enumerate(segments.lines_of(path), start=1):
            if cut:
                raise ValueError(cut)
            try:
                event = from_line(line.decode())
            except ValueError as error:
                cut = f"{path}:{number}: {error}"
                continue
            if isinstance(event, ProcessStarted) and event.format not in range(
                1, FORMAT + 1
            ):
                made_by = event.environment.get("asyn2f", "unknown")
                raise ValueError(
                    f"{path}:{number}: found a trace of format {event.format!r}, "
                    f"written by asyn2f {made_by}; this version reads 1 to {FORMAT}: "
                    "take that one"
                )
            yield event
