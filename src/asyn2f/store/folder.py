"""The files of a store: versions in either format, under their names."""

import contextlib
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np

from asyn2f import failpoints, rundir
from asyn2f.errors import RunDirError, StoreError, WriteAheadError
from asyn2f.store import formats
from asyn2f.store.arrays import read_ahead_arrays, read_checkpoint_arrays
from asyn2f.store.base import Record, Stored, is_as_signed, shape_mismatch
from asyn2f.store.fencing import numbers, sync_folder
from asyn2f.types import Best, ServerState

UNFINISHED = ".unfinished"


class VersionFolder:
    """`<folder>/<version>/` are checkpoints, `<folder>/ahead/<version>` write-ahead
    files. A version may have both; its checkpoint is then as good as its file.

    Attributes:
      checkpointer: Orbax's, for all checkpoints of this process.
    """

    def __init__(self, folder: Path) -> None:
        """Raises StoreError: there can be no such folder."""
        self.path = folder.absolute()
        self.ahead = self.path / "ahead"
        if problem := formats.unreadable_reason(self.path):
            raise StoreError(problem)
        try:
            rundir.make_folder(self.path)
        except RunDirError as error:
            raise StoreError(str(error)) from error
        self.checkpointer = formats.new_checkpointer()

    def versions(self) -> list[int]:
        """All versions, in ascending order."""
        ahead = self.versions_ahead()
        # In this order: a write-ahead file is deleted once there is a checkpoint.
        return sorted({*ahead, *numbers(self.path)})

    def versions_ahead(self) -> list[int]:
        """The versions that have a write-ahead file."""
        return numbers(self.ahead) if self.ahead.is_dir() else []

    def has_checkpoint(self, version: int) -> bool:
        return os.path.lexists(self.path / str(version))

    def load(self, version: int, like: ServerState) -> Stored:
        """Reads a version in whichever format is intact. Raises StoreError."""
        path = self.path / str(version)
        if version not in self.versions():
            raise StoreError(f"version {version} is not in {self.path}")
        try:
            return self.load_ahead(version, like)
        except (OSError, WriteAheadError, StoreError) as error:
            if not self.has_checkpoint(version):
                ahead = self.ahead / str(version)
                raise StoreError(f"cannot read {ahead}: {error}") from error
        try:
            state, record = formats.read_checkpoint(self.checkpointer, path, like)
        except Exception as error:  # Orbax raises whatever its layers raise
            why = formats.shortened(error)
            raise StoreError(f"cannot read {path}: {why}") from error
        return _verified(version, path, like, state, record)

    def arrays(self, version: int) -> dict[str, np.ndarray]:
        """The arrays of a version by path, whatever they are. Raises StoreError."""
        if version not in self.versions():
            there = ", ".join(map(str, self.versions())) or "none"
            raise StoreError(
                f"version {version} is not in {self.path}; those there are: {there}"
            )
        with contextlib.suppress(OSError, WriteAheadError):
            return read_ahead_arrays(self.ahead / str(version))
        path = self.path / str(version)
        try:
            return read_checkpoint_arrays(self.checkpointer, path)
        except Exception as error:  # Orbax raises whatever its layers raise
            why = formats.shortened(error)
            raise StoreError(f"cannot read {path}: {why}") from error

    def load_ahead(self, version: int, like: ServerState) -> Stored:
        """Reads a version's write-ahead file.

        Raises:
          OSError: there is none, or it cannot be read.
          WriteAheadError, StoreError: it is damaged.
        """
        path = self.ahead / str(version)
        return _verified(version, path, like, *formats.read_ahead(path, like))

    def record(self, version: int) -> Record:
        """The record of a version; {} if it cannot be read."""
        with contextlib.suppress(OSError, WriteAheadError):
            return formats.read_ahead_record(self.ahead / str(version))
        path = self.path / str(version)
        with contextlib.suppress(Exception):  # Orbax raises whatever its layers raise
            return formats.read_checkpoint_record(self.checkpointer, path)
        return {}

    def set_aside(self, version: int) -> None:
        """Renames a version to `<version>.damaged`."""
        aside = self.path / f"{version}.damaged"
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (self.ahead / str(version)).rename(aside)
        if self.has_checkpoint(version):
            aside.unlink(missing_ok=True)
            (self.path / str(version)).rename(aside)

    def damaged(self) -> frozenset[int]:
        """The versions that were set aside."""
        names = [path.stem for path in self.path.glob("*.damaged")]
        return frozenset(int(name) for name in names if name.isdecimal())

    def delete(self, version: int) -> None:
        """Deletes a version in both formats; what cannot be deleted stays complete."""
        with contextlib.suppress(OSError):
            (self.ahead / str(version)).unlink()
        # Renamed first: a version half deleted must not look complete.
        gone = self.path / f".deleted-{version}"
        with contextlib.suppress(OSError):
            (self.path / str(version)).rename(gone)
        failpoints.reach("cleaning")
        shutil.rmtree(gone, ignore_errors=True)

    def delete_unfinished(self) -> None:
        """Deletes what writers that were killed have left unfinished."""
        for pattern in (f"*{UNFINISHED}", "*.orbax-checkpoint-tmp*", ".deleted-*"):
            for left_over in [*self.path.glob(pattern), *self.ahead.glob(pattern)]:
                formats.delete(left_over)

    def read_best(self) -> Best | None:
        """The best version, unless it has been set aside."""
        try:
            found = json.loads((self.path / "best.json").read_text())
            best = Best(found["version"], str(found["metric"]), float(found["value"]))
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return None
        is_valid = best.version in self.versions() and math.isfinite(best.value)
        return best if is_valid else None

    def write_best(self, best: Best) -> None:
        """Raises OSError: the file cannot be written; the previous one remains."""
        beside = self.path / ".best.json"
        with rundir.new_file(beside) as file:
            file.write(json.dumps(best._asdict()).encode())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path / "best.json")


def rename_durably(beside: Path, path: Path) -> None:
    """Makes a version durable under its name, or leaves it unnamed. Raises OSError."""
    beside.rename(path)
    failpoints.reach("written")
    try:
        sync_folder(path.parent)
    except OSError:
        path.rename(beside)  # it might be gone after a power failure
        raise


def _verified(
    version: int, path: Path, like: ServerState, state: ServerState, record: Record
) -> Stored:
    """What was read. Raises StoreError unless it is what was written."""
    if problem := shape_mismatch(state, like):
        raise StoreError(f"version {version}, {problem}")
    if not is_as_signed(record, state):
        raise StoreError(f"{path} is damaged: checksum mismatch")
    if record.get("version", version) != version:
        raise StoreError(f"{path} is damaged: it holds version {record['version']}")
    return Stored(state, record)
