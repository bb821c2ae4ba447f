"""The model store on disk: every version is complete, or absent."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from asyn2f import failpoints
from asyn2f.errors import FencedError, StoreError, WriteAheadError
from asyn2f.serialization import num_bytes
from asyn2f.store import formats
from asyn2f.store.base import (
    SEALED,
    Record,
    Stored,
    StoreSettings,
    check_is_there,
    signed,
    superfluous,
)
from asyn2f.store.fencing import Fence
from asyn2f.store.folder import UNFINISHED, VersionFolder, rename_durably
from asyn2f.types import Best, ServerState

CHECKPOINT_EVERY_S = 60.0
"""The period in which checkpoints follow write-ahead files. Each of them leaks 7 kB in
tensorstore; two per minute stay below 1 MiB per hour."""

_HANGS_S = 10.0  # on close: a checkpoint that takes longer is given up
_Write = Callable[[Path, ServerState, Record], None]


class OrbaxStore:
    """A folder of Orbax checkpoints, `<folder>/<version>/{state,record}`.

    One server writes, and notices when a newer one has fenced it off; any number of
    processes read. A version is written under a temporary name and renamed once all of
    it is on the disk, so it is complete or absent. Orbax does not detect flipped bits,
    so each record carries a digest of itself and the arrays, compared on reading.

    With `write_ahead`, a small version is saved as a single file in `<folder>/ahead`
    (see `formats`), which is as good a version to every reader. A thread converts the
    newest and the best of them to checkpoints, once per `checkpoint_every_s` seconds;
    `close` converts the best and the last `keep_last`. Versions in between stay files
    until retention deletes them.

    Access by other users is left to the umask, as for all of the run's folder.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = StoreSettings.keep_last,
        keep_younger_than_s: float = StoreSettings.keep_younger_than_s,
        clock: Callable[[], float] = time.monotonic,
        write_ahead: bool = StoreSettings.write_ahead,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        self._folder = VersionFolder(folder)
        self._fence = Fence(self._folder.path / "incarnations")
        self._keep = (keep_last, keep_younger_than_s)
        self._clock = clock
        self._best = self._folder.read_best()
        # The age of files is unknown, as wall clocks may jump: all count as new.
        self._saved_s = dict.fromkeys(self.versions(), clock())
        self._retaining = threading.Lock()  # guards `_saved_s`
        self._naming = threading.Lock()  # of versions and of the best
        self._is_sealed = False
        self._writes_ahead = write_ahead
        self._checkpoint_every_s = checkpoint_every_s
        self._like: ServerState | None = None  # the shapes of this run's versions
        self._converter: threading.Thread | None = None
        self._closing = threading.Event()
        self._conversions = 0  # attempted
        self._warned = ""  # the last failure of a conversion that was logged

    def save(self, version: int, state: ServerState, record: Record) -> None:
        arrays = jax.tree.map(np.asarray, state)
        record = signed(record, arrays)
        self._like = arrays
        if self._writes_ahead and num_bytes(arrays) <= formats.MAX_WRITE_AHEAD_BYTES:
            if self._folder.has_checkpoint(version):
                raise StoreError(f"version {version} already exists")
            self._folder.ahead.mkdir(exist_ok=True)
            path = self._folder.ahead / str(version)
            self._write(path, formats.write_ahead, arrays, record)
            failpoints.reach("ahead")
            self._start_converter()
        else:
            self._checkpoint(version, arrays, record)
        self._clean()

    def _checkpoint(self, version: int, arrays: ServerState, record: Record) -> None:
        write = partial(formats.write_checkpoint, self._folder.checkpointer)
        self._write(self._folder.path / str(version), write, arrays, record)

    def _write(
        self, path: Path, write: _Write, arrays: ServerState, record: Record
    ) -> None:
        """Writes a version beside its path, then renames it unless this server has been
        fenced off. Raises StoreError."""
        beside = path.with_name(f"{path.name}.{self._fence.token}{UNFINISHED}")
        try:
            self._check_may_write(path)
            formats.delete(beside)
            write(beside, arrays, record)
            with self._naming, self._locked():
                self._check_may_write(path)
                rename_durably(beside, path)
        except Exception as error:  # Orbax raises whatever its layers raise
            formats.delete(beside)
            if isinstance(error, StoreError):
                raise
            with contextlib.suppress(OSError):  # unless the folder itself is missing
                self._check_may_write(path)
                self._clean()  # what has aged in the meantime makes room
            why = formats.write_failure(error, self._folder.path, num_bytes(arrays))
            raise StoreError(f"cannot save {path}: {why}") from error
        with self._retaining:
            self._saved_s.setdefault(int(path.name), self._clock())

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other servers from beginning; an unfenced writer needs no lock."""
        return self._fence.held() if self._fence.token else contextlib.nullcontext()

    def _check_may_write(self, path: Path) -> None:
        if reason := self.lost_reason():
            raise FencedError(reason)
        if os.path.lexists(path):
            raise StoreError(f"{path} already exists")
        # A version written ahead is in the store, and may still become a checkpoint.
        if self._is_sealed and int(path.name) not in self._folder.versions_ahead():
            raise StoreError(SEALED)

    def _start_converter(self) -> None:
        if self._converter is None:
            self._converter = threading.Thread(
                target=self._convert_regularly, name="checkpoints", daemon=True
            )
            self._converter.start()

    def _convert_regularly(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._closing.wait(self._checkpoint_every_s)
            try:
                self._convert_newest(is_last)
            except OSError as error:  # the folder is unavailable
                self._warn(error)

    def _convert_newest(self, is_last: bool) -> None:
        """Converts write-ahead files to checkpoints. A file that cannot be converted
        serves until a later round."""
        for version in self._unconverted(is_last):
            try:
                self._convert(version)
            except Exception as error:  # Orbax raises whatever its layers raise
                self._warn(error)
            self._conversions += 1

    def _warn(self, error: Exception) -> None:
        """Logs a failed conversion, once per failure that may last for long."""
        if str(error) != self._warned:
            self._warned = str(error)
            logging.warning("%s; it will be tried again", error)

    def _convert(self, version: int) -> None:
        if not self._folder.has_checkpoint(version):
            assert self._like is not None
            try:
                found = self._folder.load_ahead(version, self._like)
            except FileNotFoundError:  # deleted by retention
                return
            except (WriteAheadError, StoreError) as error:
                logging.warning("version %d is set aside: %s", version, error)
                self.set_aside(version)
                return
            self._checkpoint(version, *found)
        (self._folder.ahead / str(version)).unlink(missing_ok=True)

    def load(self, version: int, like: ServerState) -> Stored:
        self._like = like
        return self._folder.load(version, like)

    def record(self, version: int) -> Record:
        return self._folder.record(version)

    def versions(self) -> list[int]:
        return self._folder.versions()

    def set_aside(self, version: int) -> None:
        self._folder.set_aside(version)
        with self._retaining:
            self._saved_s.pop(version, None)

    def damaged(self) -> frozenset[int]:
        """The versions that were set aside."""
        return self._folder.damaged()

    def set_best(self, best: Best) -> None:
        try:
            check_is_there(best.version, self.versions())
            if reason := self.lost_reason():
                raise FencedError(reason)
            with self._naming:
                if self._is_sealed:
                    raise StoreError(SEALED)
                self._folder.write_best(best)
        except OSError as error:
            folder = self._folder.path
            why = formats.write_failure(error, folder, 100)
            raise StoreError(f"cannot write {folder}/best.json: {why}") from error
        self._best = best

    def best(self) -> Best | None:
        return self._best

    def begin_incarnation(self) -> int:
        newest = max(self.versions(), default=None)
        made_in = self.record(newest).get("incarnation", 0) if newest is not None else 0
        try:
            token = self._fence.begin(above=made_in)
        except OSError as error:
            raise StoreError(f"cannot begin in {self._folder.path}: {error}") from error
        self._folder.delete_unfinished()  # its writers are fenced off
        self._is_sealed = False
        failpoints.reach("begun")
        return token

    def seal(self) -> None:
        # A rename that does not return cannot be waited for.
        is_held = self._naming.acquire(timeout=_HANGS_S)
        self._is_sealed = True
        if is_held:
            self._naming.release()

    def lost_reason(self) -> str:
        return self._fence.lost_reason()

    def _best_version(self) -> int | None:
        return self._best.version if self._best else None

    def _clean(self) -> None:
        """Deletes the versions that retention does not keep."""
        with self._retaining:
            now = self._clock()
            old = superfluous(self._saved_s, self._best_version(), *self._keep, now)
            for version in old:
                del self._saved_s[version]
        for version in old:
            self._folder.delete(version)

    def close(self) -> None:
        """Converts the best and the last versions to checkpoints and ends the thread. A
        conversion that hangs is given up; its write-ahead file stays."""
        if not self._writes_ahead:
            self._folder.checkpointer.close()
            return
        if self._like is not None and self._folder.versions_ahead():
            self._start_converter()  # an earlier server may have left some
        self._closing.set()
        is_over = self._converter is None or self._has_converted(self._converter)
        left: list[int] = []
        with contextlib.suppress(OSError):  # the folder is gone
            left = self._unconverted(is_last=True)
        if left:
            logging.warning(
                "versions %s have no Orbax checkpoint; their write-ahead files in %s "
                "serve as well, and are converted when this run is resumed",
                sorted(left),
                self._folder.ahead,
            )
        if is_over:
            self._folder.checkpointer.close()

    def _unconverted(self, is_last: bool) -> list[int]:
        """The versions that are to be Orbax checkpoints and are not yet: the newest and
        the best, in the last round also the others that are kept by number."""
        saved = self.versions()
        rest = saved[-self._keep[0] :] if is_last else []
        ahead = self._folder.versions_ahead()
        wanted = dict.fromkeys([*saved[-1:], self._best_version(), *rest])
        return [version for version in wanted if version in ahead]

    def _has_converted(self, thread: threading.Thread) -> bool:
        """Waits for the last round; False if it hangs."""
        while thread.is_alive():
            before = self._conversions
            thread.join(_HANGS_S)
            if thread.is_alive() and self._conversions == before:
                return False
        return True
