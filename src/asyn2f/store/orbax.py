"""The model store on a disk: every version whole, or not there at all."""

import contextlib
import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np

from asyn2f import errors, failpoints, rundir
from asyn2f.errors import FencedError, StoreError
from asyn2f.serialization import num_bytes
from asyn2f.store import behind, orbax_files, wal
from asyn2f.store.base import (
    SEALED,
    Stored,
    check_is_there,
    superfluous,
)
from asyn2f.store.behind import Behind
from asyn2f.store.fencing import Fence, numbers, sync_folder
from asyn2f.store.integrity import Record, is_as_signed, other_shapes, signed
from asyn2f.store.orbax_writer import OrbaxWriter
from asyn2f.types import ServerState

_UNFINISHED = ".unfinished"
# At the end: what takes longer over one version, or to begin, does not answer.
_HANGS_S, _BEGINS_S = 4.0, 16.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID_WHEN_FULL = ("No space left", "quota exceeded")
_Write = Callable[[Path, ServerState, Record], None]


class OrbaxStore:
    """A folder of Orbax checkpoints, `<folder>/<version>/{state,record}`.

    One server writes, and finds out if another has taken its place; others may read. A
    version is written beside and gets its name when all of it is on the disk, so it is
    there whole or not at all. Orbax does not notice flipped bits, so each record
    carries a digest of itself and the arrays, compared on reading.

    With `write_ahead` a small version is saved when a single file holds it
    (`write_ahead`), and Orbax, which takes much longer, follows in a process of its
    own, a few versions behind. What only such files hold is as much in the store for
    all who read it.

    Who may read it is left to the umask, as for all of the run's folder.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 10,
        keep_younger_than_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        write_ahead: bool = False,
    ) -> None:
        self._folder = folder.absolute()
        if problem := orbax_files.problem_of(self._folder):
            raise StoreError(problem)
        try:
            rundir.make_folder(self._folder)
        except errors.RunDirError as error:
            raise StoreError(str(error)) from error
        self._ahead = self._folder / "ahead"
        self._behind: Behind | None = None
        if write_ahead:
            self._behind = Behind(self._follow, lambda: len(self._numbers_ahead()))
        self._naming = threading.Lock()  # of versions and of the best
        self._is_sealed = False
        self._ends = False
        self._like: ServerState | None = None  # shapes of what Orbax is to follow with
        self._books = threading.RLock()  # of `_saved_s`, and of what is deleted
        self._fence = Fence(self._folder / "incarnations")
        self._clock = clock
        self._keep = (keep_last, keep_younger_than_s)
        self._accuracy, self._best = self._read_best()
        # What wall clocks say of their age is not to be relied on: all are young.
        self._saved_s = dict.fromkeys(self.versions(), clock())
        self._checkpointer = orbax_files.checkpointer()
        self._writer: OrbaxWriter | None = None  # for what is written ahead

    def save(self, version: int, state: ServerState, record: Record) -> None:
        arrays = jax.tree.map(np.asarray, state)
        record = signed(record, arrays)
        if self._behind is None or num_bytes(arrays) > wal.MOST_BYTES:
            write = partial(orbax_files.write, self._checkpointer)
            self._write(self._folder / str(version), write, arrays, record)
            self._clean()
            return
        if os.path.lexists(self._folder / str(version)):
            raise StoreError(f"version {version} is there already")
        self._ahead.mkdir(exist_ok=True)
        path, self._like = self._ahead / str(version), arrays
        self._behind.wait()
        self._write(path, wal.write, arrays, record)
        failpoints.reach("ahead")
        self._behind.call()

    def _write(
        self, path: Path, write: _Write, arrays: ServerState, record: Record
    ) -> None:
        """Writes a version beside, and gives it its name if this server still may."""
        beside = path.with_name(f"{path.name}.{self._fence.number}{_UNFINISHED}")
        try:
            self._check_may_write(path)
            _delete(beside)
            write(beside, arrays, record)
            with self._naming, self._locked():
                self._check_may_write(path)
                self._name(beside, path)
        except Exception as error:  # Orbax raises whatever its layers raise
            _delete(beside)
            if isinstance(error, StoreError):
                raise
            with contextlib.suppress(OSError):  # unless the folder itself is away
                self._check_may_write(path)
                self._clean()  # what has grown old in the meantime makes room
            why = _why(error, self._folder, num_bytes(arrays))
            raise StoreError(f"cannot save {path}: {why}") from error
        with self._books:
            self._saved_s.setdefault(int(path.name), self._clock())

    def _to_orbax(self, beside: Path, arrays: ServerState, record: Record) -> None:
        if self._writer is None:
            self._writer = OrbaxWriter()
        self._writer.write(beside, arrays, record)

    def _follow(self) -> Iterator[None]:
        """Has Orbax write what has only been written ahead, one after the other. What
        it cannot write stays where it is, and its turn comes again with the next one;
        what is damaged is set aside, so that nothing waits behind it."""
        assert self._like is not None
        waiting = sorted(numbers(self._ahead))
        # Of much that is left the most valuable first: an end may be cut short.
        first = [v for v in (*waiting[-1:], self._best) if v in waiting]
        for version in dict.fromkeys([*first, *waiting] if self._ends else waiting):
            path = self._folder / str(version)
            if not os.path.lexists(path):
                try:
                    found = self._load_ahead(version, self._like)
                except FileNotFoundError:  # cleaned
                    continue
                except (errors.WriteAheadError, StoreError) as error:
                    logging.warning("version %d is set aside: %s", version, error)
                    self.set_aside(version)
                    continue
                self._write(path, self._to_orbax, *found)
            (self._ahead / str(version)).unlink(missing_ok=True)
            yield
        self._clean()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """No other server can begin while inside; one that writes alone needs none."""
        return self._fence.held() if self._fence.number else contextlib.nullcontext()

    def _check_may_write(self, path: Path) -> None:
        if reason := self.lost_reason():
            raise FencedError(reason)
        if os.path.lexists(path):
            raise StoreError(f"{path} is there already")
        # What is written ahead is in the store, and Orbax may follow.
        if self._is_sealed and int(path.name) not in self._numbers_ahead():
            raise StoreError(SEALED)

    def _name(self, beside: Path, path: Path) -> None:
        """From now on the version is there, for good, or it is not."""
        beside.rename(path)
        failpoints.reach("written")
        try:
            sync_folder(path.parent)
        except OSError:
            path.rename(beside)  # it may not be there after a power cut
            raise

    def load(self, version: int, like: ServerState) -> Stored:
        path = self._folder / str(version)
        if version not in self.versions():
            raise StoreError(f"version {version} is not in {self._folder}")
        self._like = like
        try:
            return self._load_ahead(version, like)
        except (OSError, errors.WriteAheadError, StoreError) as error:
            if not os.path.lexists(path):
                ahead = self._ahead / str(version)
                raise StoreError(f"cannot read {ahead}: {error}") from error
        try:
            state, record = orbax_files.read(self._checkpointer, path, like)
        except Exception as error:  # Orbax raises whatever its layers raise
            raise StoreError(f"cannot read {path}: {_in_short(error)}") from error
        return self._checked(version, path, like, state, record)

    def _load_ahead(self, version: int, like: ServerState) -> Stored:
        path = self._ahead / str(version)
        return self._checked(version, path, like, *wal.read(path, like))

    def _checked(
        self,
        version: int,
        path: Path,
        like: ServerState,
        state: ServerState,
        record: Record,
    ) -> Stored:
        """What was read, if it is what was written. Raises StoreError."""
        if problem := other_shapes(state, like):
            raise StoreError(f"version {version}, {problem}")
        if not is_as_signed(record, state):
            raise StoreError(f"{path} is damaged: its digest is another")
        if record.get("version", version) != version:
            raise StoreError(f"{path} is damaged: it is version {record['version']}")
        return Stored(state, record)

    def record(self, version: int) -> Record:
        """What a version's checkpoint says of it, without its arrays; {} if it cannot
        be read."""
        with contextlib.suppress(OSError, errors.WriteAheadError):
            return wal.read_record(self._ahead / str(version))
        path = self._folder / str(version)
        with contextlib.suppress(Exception):  # Orbax raises whatever its layers raise
            return orbax_files.read_record(self._checkpointer, path)
        return {}

    def versions(self) -> list[int]:
        ahead = self._numbers_ahead()
        # In this order: what is written ahead goes when Orbax has it.
        return sorted({*ahead, *numbers(self._folder)})

    def _numbers_ahead(self) -> list[int]:
        return numbers(self._ahead) if self._ahead.is_dir() else []

    def set_aside(self, version: int) -> None:
        aside = self._folder / f"{version}.damaged"
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self._ahead / str(version)).rename(aside)
        if os.path.lexists(path := self._folder / str(version)):
            aside.unlink(missing_ok=True)
            path.rename(aside)
        with self._books:
            self._saved_s.pop(version, None)

    def damaged(self) -> frozenset[int]:
        """The versions that were set aside."""
        names = [path.stem for path in self._folder.glob("*.damaged")]
        return frozenset(int(name) for name in names if name.isdecimal())

    def set_best(self, version: int, accuracy: float) -> None:
        beside = self._folder / ".best.json"
        try:
            check_is_there(version, self.versions())
            if reason := self.lost_reason():
                raise FencedError(reason)
            with self._naming:
                if self._is_sealed:
                    raise StoreError(SEALED)
                with rundir.new_file(beside) as file:
                    best = {"version": version, "accuracy": accuracy}
                    file.write(json.dumps(best).encode())
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self._folder / "best.json")
        except OSError as error:
            why = _why(error, self._folder, 100)
            raise StoreError(f"cannot write {self._folder}/best.json: {why}") from error
        self._best, self._accuracy = version, accuracy

    def best(self) -> tuple[float | None, int | None]:
        return self._accuracy, self._best

    def _read_best(self) -> tuple[float | None, int | None]:
        """As it was written, if its version is there: not set aside."""
        try:
            best = json.loads((self._folder / "best.json").read_text())
            accuracy, version = float(best["accuracy"]), best["version"]
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None, None
        return (accuracy, version) if version in self.versions() else (None, None)

    def begin_incarnation(self) -> int:
        newest = max(self.versions(), default=None)
        made_in = self.record(newest).get("incarnation", 0) if newest is not None else 0
        try:
            number = self._fence.begin(above=made_in)
        except OSError as error:
            raise StoreError(f"cannot begin in {self._folder}: {error}") from error
        # Whatever those before have left half done: they cannot finish it now.
        for pattern in (f"*{_UNFINISHED}", "*.orbax-checkpoint-tmp*", ".deleted-*"):
            for left_over in [*self._folder.glob(pattern), *self._ahead.glob(pattern)]:
                _delete(left_over)
        if self._behind is not None and self._writer is None:
            with contextlib.suppress(OSError):  # who needs it tries again, and says so
                self._writer = OrbaxWriter()  # it imports while the server gets ready
        self._is_sealed = False
        failpoints.reach("begun")
        return number

    def seal(self) -> None:
        # A rename that does not come back cannot be waited for.
        is_held = self._naming.acquire(timeout=_HANGS_S)
        self._is_sealed = True
        if is_held:
            self._naming.release()

    def lost_reason(self) -> str:
        return self._fence.lost_reason()

    def _clean(self) -> None:
        # Those that Orbax is about to write have their turn when it has.
        ahead = self._numbers_ahead()
        if len(ahead) > behind.MOST_WAITING:
            ahead = []  # Orbax fails: what is old does not wait for it for ever
        with self._books:
            now = self._clock()
            old = superfluous(self._saved_s, self._best, *self._keep, now)
            old = [version for version in old if version not in ahead]
            for version in old:
                del self._saved_s[version]
        for version in old:
            (self._ahead / str(version)).unlink(missing_ok=True)
            # Renamed first: a version half deleted must not look like one.
            gone = self._folder / f".deleted-{version}"
            with contextlib.suppress(OSError):  # it stays, then
                (self._folder / str(version)).rename(gone)
            failpoints.reach("cleaning")
            shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        """Lets Orbax follow to the last version, and ends its threads. A process that
        hangs is killed, and what it had not written is left to another."""
        if self._behind is not None:
            self._ends = True
            if self._like is not None and self._numbers_ahead():
                self._behind.call()  # a server that died may have left some
            writer, is_over = self._writer, self._behind.close(_HANGS_S)
            if not is_over and writer is not None and not writer.has_begun:
                is_over = self._behind.close(_BEGINS_S)
            if not is_over and writer is not None:
                self._behind.call()  # once more, and another process
                writer.kill()
                self._behind.close(_HANGS_S)
            if left := self._numbers_ahead():
                logging.warning(
                    "Orbax has not written versions %s; they are in %s, as good as "
                    "the others, and it will have its turn when this run is resumed",
                    left,
                    self._ahead,
                )
        if self._writer is not None:
            self._writer.close()
        self._checkpointer.close()


def _delete(path: Path) -> None:
    """And what Orbax has made beside it, if that is what it was writing."""
    for each in [path, *path.parent.glob(f"{path.name}.*")]:
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)


def _why(error: Exception, folder: Path, needed_bytes: int) -> str:
    """What went wrong; of a full disk, what would help."""
    said = str(error)
    is_full = isinstance(error, OSError) and error.errno in _FULL
    if is_full or any(words in said for words in _SAID_WHEN_FULL):
        free = shutil.disk_usage(folder).free
        full = f"the disk is full: {needed_bytes:,} bytes are needed, {free:,} are free"
        return rundir.why(OSError(errno.ENOSPC, full), folder)
    if isinstance(error, OSError) and error.errno:
        return rundir.why(error, folder)
    return _in_short(error)


def _in_short(error: Exception) -> str:
    """What its layers say can be pages long."""
    return str(error).partition("[tensorstore_spec")[0].strip()[:400]
