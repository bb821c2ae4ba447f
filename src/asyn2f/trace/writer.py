"""Writing the trace of one process, on a clock that never jumps."""

import contextlib
import fcntl
import io
import logging
import os
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from asyn2f import errors, rundir
from asyn2f.trace import segments
from asyn2f.trace.events import Event
from asyn2f.trace.lines import to_line


class WallClock:
    """Wall time that never jumps: read once, then carried by the monotonic clock."""

    def __init__(self) -> None:
        # The tightest of several readings: a process preempted between the two clocks
        # would shift its whole trace.
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
"""Size at which a file of a trace is compressed and another one begun."""


class TraceWriter:
    """Appends the events of one process to its file; its threads may share it.

    Every line is passed to the operating system as it is written: a kill can tear the
    last line, which `read` ignores, and loses nothing before it. While the disk is
    full, events are buffered in memory and the process continues. If a process that
    was believed dead still holds its file, its successor writes `NAME.2.jsonl`, and so
    on. Full files are compressed (`segments`).
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Opens the file. Raises RunDirError if it cannot be written."""
        rundir.make_folder(folder)
        names = (f"{name}.{n}.jsonl" if n > 1 else f"{name}.jsonl" for n in count(1))
        paths = (folder / each for each in names)
        self._path, self._file = next(
            (path, file) for path in paths if (file := _claim(path)) is not None
        )
        self._full_bytes = FULL_BYTES
        self._unwritten = b""
        self._lock = threading.Lock()
        self._packing = threading.Thread()  # of the latest full file

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
            if could:  # logged once
                logging.warning(
                    "cannot write %s: %s; buffering events", self._path, error.strerror
                )

    def _rotate(self) -> None:
        """Begins another file; the path always names a file that is locked."""
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        file = None
        try:
            part = segments.next_part(self._path)
            beside.unlink(missing_ok=True)
            file = _claim(beside)
            os.link(self._path, part)
            beside.rename(self._path)
        except (OSError, errors.RunDirError) as error:
            logging.warning("cannot rotate the trace: %s", error)
            self._full_bytes *= 2  # retried, but not with every line
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
            target=_pack, args=(part, self._packing), name="packing", daemon=True
        )
        self._packing.start()

    def close(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._append(b"")
                self._file.close()
            if self._unwritten:
                lines = self._unwritten.count(b"\n")
                logging.error("%s is missing its last %d events", self._path, lines)
                self._unwritten = b""
        if self._packing.ident is not None:
            self._packing.join(_PACKING_S)


def _pack(part: Path, before: threading.Thread) -> None:
    """Compresses a part, after the one before it."""
    if before.ident is not None:
        before.join()
    segments.pack(part)


_PACKING_S = 5.0  # allowed to the last compression


def _claim(path: Path) -> io.FileIO | None:
    """The file, opened for appending; None if another process holds it."""
    file = rundir.append_to(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    segments.end_rotation(path)
    # Drops a torn last line: nothing may be appended to it.
    file.truncate(path.read_bytes().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file
