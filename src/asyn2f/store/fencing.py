"""Fencing tokens: a newer server incarnation shuts out the writers before it."""

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

_LOCK_TIMEOUT_S = 10.0  # a writer holds the lock for the duration of a rename


class Fence:
    """A folder with one file per incarnation; the highest number may write.

    Each file holds a random mark, so that a run begun anew in the same folder is not
    mistaken for the previous one.

    Attributes:
      token: the incarnation of this process; 0 for a reader, or an unfenced writer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.token = 0
        self._mark = ""

    def begin(self, above: int = 0) -> int:
        """Takes and returns the next token, higher than all before and than `above`.

        Raises:
          TimeoutError: see `held`.
        """
        self._folder.mkdir(exist_ok=True)
        mark = secrets.token_hex(8)
        with self.held():
            while True:
                token = max(above, *numbers(self._folder), 0) + 1
                try:  # exclusive, where the file system supports no locks
                    with (self._folder / str(token)).open("x") as file:
                        file.write(mark)
                        file.flush()
                        os.fsync(file.fileno())
                except FileExistsError:
                    continue
                sync_folder(self._folder)
                self.token, self._mark = token, mark
                return token

    def lost_reason(self) -> str:
        """Why this process may no longer write, or "".

        Raises:
          OSError: the folder cannot be read; it may be unavailable for a while.
        """
        if not self.token:
            return ""
        found = numbers(self._folder)
        if not found:
            raise FileNotFoundError(f"{self._folder} is empty")
        if max(found) > self.token:
            return (
                "another server has taken this run over, as incarnation "
                f"{max(found)}; this is {self.token}"
            )
        ours = self._folder / str(self.token)
        if self.token in found and ours.read_text() == self._mark:
            return ""
        return f"{self._folder.parent} now holds another run"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock under which tokens are taken and versions are renamed.

        Raises:
          TimeoutError: another process does not release the lock.
        """
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            _lock(handle, self._folder)
            yield
        finally:
            os.close(handle)  # which unlocks


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting = threading.Thread(
            target=fcntl.flock, args=(handle, fcntl.LOCK_EX), daemon=True
        )
        waiting.start()
        waiting.join(_LOCK_TIMEOUT_S)
        if waiting.is_alive():
            raise TimeoutError(
                f"{folder} has been locked for {_LOCK_TIMEOUT_S:g} s: end the other "
                "server of this run, which does not respond"
            ) from None
    except OSError:  # a file system without locks
        return


def numbers(folder: Path) -> list[int]:
    """The entries of a folder whose names are numbers, as `str` writes them."""
    names = [entry.name for entry in os.scandir(folder)]
    return [int(n) for n in names if n.isdecimal() and str(int(n)) == n]


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
