"""Orbax in a process of its own: for whoever cannot wait for Python's lock.

A save of a small version is twenty milliseconds of Python, in several threads, and
leaves some kilobytes behind that are never freed (tensorstore). So a server has it done
elsewhere, and by another process now and then.
"""

import contextlib
import multiprocessing
import os
import shutil
import socket
import struct
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from asyn2f.store import orbax_files
from asyn2f.store.integrity import Record
from asyn2f.types import ServerState

MOST_SAVES = 2000
"""By one process; it has grown by some 8 MB then."""

_STARTS_BEFORE = 200  # saves, in which its successor can import what it needs
_PATIENCE_S = 2.0  # until a process that shall end is killed
_BEGINS_S = 120.0  # on a busy machine: it imports what it needs
_ANSWERS_S = 20.0  # about a version, which takes it 0.05 s


class OrbaxWriter:
    """A process that writes versions, one after the other; it ends with this one.

    For one thread, but for `kill`. If the process dies or hangs, what it was at has
    failed, and the next version has a new one.
    """

    def __init__(self) -> None:
        """Starts it, and does not wait until it is ready."""
        self._process: _Process | None = _Process()
        self._next: _Process | None = None
        self._saves = 0

    def write(self, folder: Path, arrays: ServerState, record: Record) -> None:
        """Like `orbax_files.write`.

        Raises:
          OSError: that was not possible, and what was said of it.
        """
        if self._process is not None and self._saves == MOST_SAVES:
            self._process.close()
            self._process = None
        if self._process is None:
            self._process, self._next, self._saves = self._next or _Process(), None, 0
        self._saves += 1
        if self._saves == MOST_SAVES - _STARTS_BEFORE:
            self._next = _Process()
        try:
            problem = self._process.write(folder, arrays, record)
        except (TimeoutError, BlockingIOError) as error:
            self._process.kill()
            self._process.close()
            self._process = None
            problem = f"the process that has Orbax write hangs, and is killed: {error}"
        except (EOFError, OSError):
            code = self._process.close()
            self._process = None
            problem = f"the process that has Orbax write has ended with {code}"
        if problem:
            raise OSError(problem)

    @property
    def has_begun(self) -> bool:
        """Whether the process is ready to write."""
        return self._process is not None and self._process.has_begun

    def kill(self) -> None:
        """Ends the process at once, and with it the `write` of another thread."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process, and its successor."""
        for process in (self._process, self._next):
            if process is not None:
                process.close()


class _Process:
    """One of them, and the pipe to it."""

    def __init__(self) -> None:
        self._pipe, there = multiprocessing.Pipe()
        number = there.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(number)],
            stdin=subprocess.DEVNULL,
            pass_fds=[number],
            # What the keyboard sends is not for it: it ends when its pipe does.
            process_group=0,
            # It computes nothing, and shall not take an accelerator's memory.
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        there.close()
        self.has_begun = False
        with socket.fromfd(self._pipe.fileno(), socket.AF_UNIX, 0) as end:
            limit = struct.pack("ll", int(_ANSWERS_S), 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def write(self, folder: Path, arrays: ServerState, record: Record) -> str:
        """What went wrong, or "".

        Raises:
          TimeoutError, BlockingIOError: the process hangs.
          EOFError, OSError: it has ended.
        """
        if not self.has_begun:
            self._hear(_BEGINS_S)
            self.has_begun = True
        self._pipe.send((folder, arrays, record))
        return self._hear(_ANSWERS_S)

    def _hear(self, within_s: float) -> str:
        if not self._pipe.poll(within_s):
            raise TimeoutError(f"has not answered for {within_s:g} s")
        return str(self._pipe.recv())

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> int | None:
        """Its exit code; None if the system cannot end it."""
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_PATIENCE_S)
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_PATIENCE_S)
        return None


def _serve(pipe: Connection) -> None:
    if hasattr(os, "sched_setaffinity"):
        # Its threads take turns anyway, and on one core they hand over sooner.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    orbax = orbax_files.checkpointer()
    pipe.send("it has begun")
    while True:
        folder, arrays, record = pipe.recv()
        problem = ""
        try:
            orbax_files.write(orbax, folder, arrays, record)
        except Exception as error:  # it is told, and the next version may work
            problem = str(error) or type(error).__name__
        try:
            pipe.send(problem)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # nobody will give it its name
            raise


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        _serve(Connection(int(sys.argv[1])))
