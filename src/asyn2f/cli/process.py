"""A program's process: standard streams, signals, file descriptors, the fork server.

This module imports nothing that takes time, so that the fork server of `asyn2f run` can
import JAX while the launcher does.
"""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver, util
from types import FrameType
from typing import Any, TextIO, cast

from asyn2f.errors import DescriptorError, OutputError

_ENOUGH_DESCRIPTORS = 65_536  # more than 10,000 workers need; the limit may be infinite
# Descriptors, measured, plus a third for files being written and for peers that
# reconnect before their old connections have closed.
_SERVER, _PER_PEER = 50, 4
_LAUNCHER, _PER_CHILD = 20, 3

_LONGEST_TMPDIR = 104 - len("/pymp-xxxxxxxx/listener-xxxxxxxx") - 1
_PRELOADED = ["asyn2f.cli.children", "flax.linen", "optax"]

# ---------------------------------------------------------------- standard streams


class Output:
    """A text stream that may fail: full disk, reader that has ended, closed terminal.

    Args:
      stream: the underlying stream.
      dispensable: drop what cannot be written, instead of raising an error.
    """

    def __init__(self, stream: TextIO, *, dispensable: bool) -> None:
        self._stream = stream
        self._dispensable = dispensable
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the text, or drops it.

        Raises:
          OutputError, BrokenPipeError: it cannot be written and is not dispensable.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Raises: see `write`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        why = f"standard output cannot be written: {error.strerror}"
        if not self._dispensable:
            if isinstance(error, BrokenPipeError):  # `| head` has ended
                raise error
            raise OutputError(why) from error
        if not self._has_failed and self is sys.stdout:
            print(f"{why}; the run continues", file=sys.stderr, flush=True)
        self._has_failed = True


def open_output(*, dispensable: bool) -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams of class `Output`.

    Characters outside their encodings are replaced. Standard error is always
    dispensable.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python started; see `open_missing_streams`
            stream = open(1 if name == "stdout" else 2, "w", closefd=False)  # noqa: SIM115
        if isinstance(stream, Output):
            continue
        stream.reconfigure(errors="replace")
        drops = dispensable or name == "stderr"
        setattr(sys, name, cast(TextIO, Output(stream, dispensable=drops)))


def open_missing_streams() -> None:
    """Opens /dev/null in place of closed standard streams.

    Otherwise the next file that is opened would get the number of a closed stream, and
    libraries would print into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


# ---------------------------------------------------------------- signals


def stop_on_signals(stop: Callable[[str], None]) -> None:
    """Calls `stop` with the name of the first SIGINT, SIGTERM or SIGHUP; a second one
    ends the process at once. An ignored SIGHUP stays ignored, as under `nohup`."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(128 + number)
        seen.append(number)
        stop(signal.Signals(number).name)

    for number in stopping_signals():
        signal.signal(number, handle)


def stopping_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


# ---------------------------------------------------------------- file descriptors


def raise_descriptor_limit() -> None:
    """Raises the soft limit as far as the hard one allows; children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_ENOUGH_DESCRIPTORS, 10_240):  # macOS allows no more than this
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        return


def descriptors_needed(workers: int) -> int:
    """The descriptors of the largest process of a run with this number of workers.

    >>> descriptors_needed(workers=5), descriptors_needed(workers=300)
    (74, 1254)
    """
    server = _SERVER + _PER_PEER * (workers + 1)
    launcher = _LAUNCHER + _PER_CHILD * (workers + 2)
    return max(server, launcher)


def check_descriptors(workers: int) -> None:
    """Raises the soft limit of descriptors as far as possible.

    Raises:
      DescriptorError: the hard limit is too low for this number of workers.
    """
    raise_descriptor_limit()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_needed(workers)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise DescriptorError(
            f"config.workers: found {workers}, which need {needed} file descriptors, "
            f"and the limit is {limit}; raise it (ulimit -n) or use fewer workers"
        )


# ---------------------------------------------------------------- the fork server


def start_fork_server() -> None:
    """Starts the process from which the children of `asyn2f run` are forked.

    It imports what they need, concurrently with the launcher's own imports, and ends
    with this process.
    """
    raise_descriptor_limit()  # for all of them
    _choose_short_tmpdir()
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    # Several processes share one accelerator: none may take all of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Ignored from its first moment, Ctrl-C shows no traceback while it imports; on
    # SIGHUP the launcher stops its children.
    numbers = (signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    forkserver.ensure_running()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def _choose_short_tmpdir() -> None:
    """Moves the fork server's socket out of a TMPDIR with a long name: the name of a
    socket has at most 104 characters."""
    if len(tempfile.gettempdir()) <= _LONGEST_TMPDIR:
        return
    before = tempfile.tempdir
    for folder in ("/tmp", "/var/tmp", "/dev/shm", os.getcwd()):
        if len(folder) <= _LONGEST_TMPDIR and os.access(folder, os.W_OK | os.X_OK):
            tempfile.tempdir = folder
            util.get_temp_dir()  # which remembers the folder that it has made
            tempfile.tempdir = before
            return
    sys.exit(
        f"error: TMPDIR: found {tempfile.gettempdir()}, too long for the name of a "
        f"socket; allowed: at most {_LONGEST_TMPDIR} characters"
    )
