"""The model store: every version an Orbax checkpoint, whole or not there at all."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp

from asyn2f.runtime import crashes
from asyn2f.trees import params_sha256
from asyn2f.types import ServerState

Record = dict[str, Any]
"""What a version's checkpoint says of it besides the arrays; JSON."""


class StoreError(Exception):
    """The store cannot do what was asked, and why."""


class Stored(NamedTuple):
    """A version as it was read back."""

    state: ServerState
    record: Record


class ModelStore(Protocol):
    """Versions of the global model, for as long as anybody may need them."""

    def save(self, version: int, state: ServerState, record: Record) -> None:
        """Returns once the version is in the store for good. Raises StoreError."""

    def load(self, version: int, like: ServerState) -> Stored:
        """A version, its bytes compared with the digest it was saved under; `like`
        gives shapes and dtypes. Raises StoreError: not there, other shapes, damaged."""

    def versions(self) -> list[int]:
        """All whole versions, in ascending order."""

    def set_aside(self, version: int) -> None:
        """This version is not in the store any more; what there was of it is kept where
        a person can look at it, if there is such a place."""

    def set_best(self, version: int, accuracy: float) -> None:
        """From now on this version is the one kept for ever."""

    def best(self) -> tuple[float | None, int | None]:
        """Accuracy and version of the best, or None twice."""

    def begin_incarnation(self) -> int:
        """A number higher than that of any server that used this store before."""


def superfluous(
    saved_s: dict[int, float],
    best: int | None,
    keep_last: int,
    keep_younger_than_s: float,
    now: float,
) -> list[int]:
    """The versions that may be deleted: neither best, nor among the last, nor young.

    A reader told of a version must find it for a while, however fast others follow.

    Args:
      saved_s: when each version was saved.
      best: never deleted.
      keep_last: how many of the newest stay.
      keep_younger_than_s: how long every version stays.
      now: on the clock of `saved_s`.

    >>> superfluous({1: 0.0, 2: 1.0, 3: 2.0, 4: 9.0}, 1, 1, 5.0, now=10.0)
    [2, 3]
    """
    last = sorted(saved_s)[-keep_last:]
    return [
        version
        for version in sorted(saved_s)
        if version != best
        and version not in last
        and now - saved_s[version] > keep_younger_than_s
    ]


class MemoryStore:
    """A store that lives as long as its process; the fake of `OrbaxStore`."""

    def __init__(
        self,
        keep_last: int = 10,
        keep_younger_than_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kept: dict[int, Stored] = {}
        self._saved_s: dict[int, float] = {}
        self._best: int | None = None
        self._accuracy: float | None = None
        self._incarnation = 0
        self._clock = clock
        self._keep = (keep_last, keep_younger_than_s)

    def save(self, version: int, state: ServerState, record: Record) -> None:
        if version in self._kept:
            raise StoreError(f"version {version} is in the store already")
        self._kept[version] = Stored(state, json.loads(json.dumps(record)))
        self._saved_s[version] = self._clock()
        for old in superfluous(self._saved_s, self._best, *self._keep, self._clock()):
            del self._kept[old], self._saved_s[old]

    def load(self, version: int, like: ServerState) -> Stored:
        if version not in self._kept:
            raise StoreError(f"version {version} is not in the store")
        stored = self._kept[version]
        _check_shapes(version, stored.state, like)
        return stored

    def versions(self) -> list[int]:
        return sorted(self._kept)

    def set_aside(self, version: int) -> None:
        del self._kept[version], self._saved_s[version]

    def set_best(self, version: int, accuracy: float) -> None:
        self._best, self._accuracy = version, accuracy

    def best(self) -> tuple[float | None, int | None]:
        return self._accuracy, self._best

    def begin_incarnation(self) -> int:
        self._incarnation += 1
        return self._incarnation


class OrbaxStore:
    """A folder of Orbax checkpoints, `<folder>/<version>/{state,record}`.

    One process writes, others may read. Orbax writes beside and renames, so a version
    is there whole or not at all; it does not notice flipped bits, so each record
    carries a SHA-256 of the arrays, compared on reading.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int = 10,
        keep_younger_than_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._keep = (keep_last, keep_younger_than_s)
        self._best: int | None = None
        self._accuracy: float | None = None
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            best = json.loads((self._folder / "best.json").read_text())
            if best["version"] in self.versions():  # not lost before it was saved
                self._best, self._accuracy = best["version"], best["accuracy"]
        self._saved_s: dict[int, float] = {}
        for version in self.versions():
            with contextlib.suppress(FileNotFoundError):  # deleted by its writer
                # From now on a wall clock that is set does not make a version old.
                age_s = time.time() - (self._folder / str(version)).stat().st_mtime
                self._saved_s[version] = self._clock() - max(0.0, age_s)
        # Compression saves 7 % of trained float32 weights and half again the time.
        self._checkpointer = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.PyTreeCheckpointHandler(use_compression=False),
                record=ocp.JsonCheckpointHandler(),
            )
        )

    def save(self, version: int, state: ServerState, record: Record) -> None:
        path = self._folder / str(version)
        arrays = jax.tree.map(np.asarray, state)
        record = {**record, "sha256": params_sha256(arrays)}
        try:
            self._checkpointer.save(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays._asdict()),
                    record=ocp.args.JsonSave(record),
                ),
            )
            crashes.reach("written")
            _sync_folder(self._folder)
        except Exception as error:  # Orbax raises whatever its layers raise
            raise StoreError(f"cannot save {path}: {_in_short(error)}") from error
        self._saved_s[version] = self._clock()
        self._clean()

    def load(self, version: int, like: ServerState) -> Stored:
        path = self._folder / str(version)
        if version not in self.versions():
            raise StoreError(f"version {version} is not in {self._folder}")
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)._asdict()
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
        try:
            restored = self._checkpointer.restore(
                path,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(item=target, restore_args=numpy),
                    record=ocp.args.JsonRestore(),
                ),
            )
        except Exception as error:  # Orbax raises whatever its layers raise
            raise StoreError(f"cannot read {path}: {_in_short(error)}") from error
        state = ServerState(**restored.state)
        _check_shapes(version, state, like)
        if params_sha256(state) != restored.record.get("sha256"):
            raise StoreError(f"{path} is damaged: its digest is another")
        return Stored(state, restored.record)

    def record(self, version: int) -> Record:
        """What a version's checkpoint says of it, without its arrays; {} if it cannot
        be read."""
        try:
            only = ocp.args.Composite(record=ocp.args.JsonRestore())
            restored = self._checkpointer.restore(
                self._folder / str(version), args=only
            )
        except Exception:  # Orbax raises whatever its layers raise
            return {}
        return dict(restored.record)

    def versions(self) -> list[int]:
        return sorted(_numbers(self._folder))

    def set_aside(self, version: int) -> None:
        aside = self._folder / f"{version}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (self._folder / str(version)).rename(aside)
        self._saved_s.pop(version, None)

    def damaged(self) -> frozenset[int]:
        """The versions that were set aside."""
        names = [path.stem for path in self._folder.glob("*.damaged")]
        return frozenset(int(name) for name in names if name.isdigit())

    def set_best(self, version: int, accuracy: float) -> None:
        self._best, self._accuracy = version, accuracy
        text = json.dumps({"version": version, "accuracy": accuracy})
        beside = self._folder / ".best.json"
        beside.write_text(text)
        beside.replace(self._folder / "best.json")

    def best(self) -> tuple[float | None, int | None]:
        return self._accuracy, self._best

    def begin_incarnation(self) -> int:
        # Whatever a writer that was killed has left half done; there is no other one.
        for pattern in ("*.orbax-checkpoint-tmp*", ".deleted-*"):
            for left_over in self._folder.glob(pattern):
                shutil.rmtree(left_over, ignore_errors=True)
        folder = self._folder / "incarnations"
        folder.mkdir(exist_ok=True)
        while True:
            number = max(_numbers(folder), default=0) + 1
            try:  # exclusive: of two servers that start at once, one gets it
                (folder / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            _sync_folder(folder)
            crashes.reach("begun")
            return number

    def _clean(self) -> None:
        now = self._clock()
        for version in superfluous(self._saved_s, self._best, *self._keep, now):
            # Renamed first: a version half deleted must not look like one.
            gone = self._folder / f".deleted-{version}"
            with contextlib.suppress(OSError):  # it stays, then
                (self._folder / str(version)).rename(gone)
            crashes.reach("cleaning")
            shutil.rmtree(gone, ignore_errors=True)
            del self._saved_s[version]

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._checkpointer.close()


def _numbers(folder: Path) -> Iterable[int]:
    return (int(entry.name) for entry in os.scandir(folder) if entry.name.isdigit())


def _sync_folder(folder: Path) -> None:
    """Makes renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_short(error: Exception) -> str:
    """What its layers say can be pages long."""
    return str(error).partition("[tensorstore_spec")[0].strip()[:400]


def _check_shapes(version: int, state: ServerState, like: ServerState) -> None:
    wanted = jax.tree_util.tree_leaves_with_path(like)
    found = jax.tree.leaves(state)
    for (path, leaf), array in zip(wanted, found, strict=False):
        if leaf.shape != array.shape or leaf.dtype != array.dtype:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise StoreError(
                f"version {version}, {name}: found {array.dtype}{list(array.shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}: made with another config"
            )
    if len(wanted) != len(found):
        raise StoreError(
            f"version {version}: found {len(found)} arrays, expected {len(wanted)}"
        )
