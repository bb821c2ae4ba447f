"""Standard output and error of a program, which may not be there or may go away."""

import os
import sys
from typing import Any, TextIO, cast

from asyn2f.errors import OutputError


class Output:
    """A text stream over another one, which may fail: its disk is full, its reader has
    ended, its terminal is gone.

    Args:
      stream: what is written to, when it can be.
      dispensable: what cannot be written is dropped; otherwise it is an error.
    """

    def __init__(self, stream: TextIO, *, dispensable: bool) -> None:
        self._stream = stream
        self._dispensable = dispensable
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes it, or drops it.

        Raises:
          OutputError, BrokenPipeError: it cannot be written, and is not dispensable.
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
            if isinstance(error, BrokenPipeError):  # `| head` has seen enough
                raise error
            raise OutputError(why) from error
        if not self._has_failed and self is sys.stdout:
            print(f"{why}; the run goes on", file=sys.stderr, flush=True)
        self._has_failed = True


def open_output(*, dispensable: bool) -> None:
    """Makes `sys.stdout` and `sys.stderr` streams that can be written whatever there
    is: characters that they do not know are replaced, and what is said on standard
    error is always dispensable."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began; see `launch`
            stream = open(1 if name == "stdout" else 2, "w", closefd=False)  # noqa: SIM115
        if isinstance(stream, Output):
            continue
        stream.reconfigure(errors="replace")
        drops = dispensable or name == "stderr"
        setattr(sys, name, cast(TextIO, Output(stream, dispensable=drops)))


def open_missing_streams() -> None:
    """Otherwise the next file that is opened gets the number of a closed standard
    stream, and what libraries print is written into it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
