"""Which server may write: each one that begins shuts out those before it."""

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

_PATIENCE_S = 10.0  # another writer holds the lock for as long as a rename takes


class Fence:
    """A folder with a file per incarnation, and the one that is ours.

    The highest number may write. Each file holds a mark, so that a run that was begun
    anew in the same place is not taken for ours.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.number = 0  # none: a reader, or a writer without rivals
        self._mark = ""

    def begin(self, above: int = 0) -> int:
        """Takes the next number, higher than all so far and than `above`.

        Raises:
          TimeoutError: see `held`.
        """
        self._folder.mkdir(exist_ok=True)
        mark = secrets.token_hex(8)
        with self.held():
            while True:
                number = max(above, *numbers(self._folder), 0) + 1
                try:  # exclusive, where the file system knows no locks
                    with (self._folder / str(number)).open("x") as file:
                        file.write(mark)
                        file.flush()
                        os.fsync(file.fileno())
                except FileExistsError:
                    continue
                sync_folder(self._folder)
                self.number, self._mark = number, mark
                return number

    def lost_reason(self) -> str:
        """Why we may not write any more; nothing if we may.

        Raises:
          OSError: nobody can say; the folder may be away for a while.
        """
        if not self.number:
            return ""
        found = numbers(self._folder)
        if not found:
            raise FileNotFoundError(f"{self._folder} is empty")
        if max(found) > self.number:
            return (
                f"another server has taken this run over, as incarnation {max(found)}; "
                f"this is {self.number}"
            )
        ours = self._folder / str(self.number)
        if self.number in found and ours.read_text() == self._mark:
            return ""
        return f"{self._folder.parent} holds another run by now"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While inside, no other server begins, and none gives a version its name.

        Raises:
          TimeoutError: a process stands still in there.
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
        waiting.join(_PATIENCE_S)
        if waiting.is_alive():
            raise TimeoutError(
                f"{folder} has been locked for {_PATIENCE_S:g} s: end the other server "
                "of this run, which stands still"
            ) from None
    except OSError:  # a file system that knows no locks
        return


def numbers(folder: Path) -> list[int]:
    """What is named by a number there, as `str` writes it."""
    names = [entry.name for entry in os.scandir(folder)]
    return [int(n) for n in names if n.isdecimal() and str(int(n)) == n]


def sync_folder(folder: Path) -> None:
    """Makes renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
