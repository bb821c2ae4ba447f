"""The model store: interface, digests of versions, retention, and a store in memory."""

import json
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import xxhash

from asyn2f.errors import StoreError
from asyn2f.settings import setting
from asyn2f.types import Best, ServerState

Record = dict[str, Any]
"""The metadata stored with a version, beside its arrays; JSON."""

SEALED = "the store is sealed: the run has ended without this version"


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """What the model store keeps, and how it writes."""

    keep_last: int = setting(
        10,
        "newest versions that stay in the store, beside the best one",
        unit="versions",
        at_least=1,
    )
    keep_younger_than_s: float = setting(
        120.0, "every version stays in the store for this long", unit="s", at_least=0
    )
    write_ahead: bool = setting(
        False,
        "small versions (4 MiB at most) are durable once a plain file holds them, and "
        "their Orbax checkpoints are written asynchronously",
        config=True,
    )


class Stored(NamedTuple):
    """A version read from the store."""

    state: ServerState
    record: Record


class ModelStore(Protocol):
    """Versions of the global model, kept by the rule of `superfluous`."""

    def save(self, version: int, state: ServerState, record: Record) -> None:
        """Returns once the version is durable.

        Raises:
          StoreError: the version is not in the store; the save may be retried.
          FencedError: a newer server owns the store; it must not be retried.
        """

    def load(self, version: int, like: ServerState) -> Stored:
        """Reads a version and compares it with the digest it was saved under.

        Args:
          version: which one.
          like: arrays of the expected shapes and dtypes.

        Raises:
          StoreError: the version is missing, damaged, or has other shapes.
        """

    def record(self, version: int) -> Record:
        """The record of a version without its arrays; {} if it cannot be read."""

    def versions(self) -> list[int]:
        """All complete versions, in ascending order."""

    def set_aside(self, version: int) -> None:
        """Removes a damaged version from the store, keeping its files for inspection
        where there are any."""

    def set_best(self, best: Best) -> None:
        """Marks the best version, which retention never deletes.

        Raises:
          StoreError: the version is not in the store, or the mark cannot be written.
        """

    def best(self) -> Best | None:
        """The best version, if one has been marked."""

    def begin_incarnation(self) -> int:
        """Takes the next fencing token, which shuts all earlier servers out.

        Raises:
          StoreError: the token cannot be written.
        """

    def seal(self) -> None:
        """Refuses every later `save` and `set_best` until an incarnation begins. A save
        in progress has either completed when this returns, or never will."""

    def lost_reason(self) -> str:
        """Why this server has lost the right to write, or "".

        Raises:
          OSError: the store cannot be reached.
        """


def superfluous(
    saved_s: dict[int, float],
    best: int | None,
    keep_last: int,
    keep_younger_than_s: float,
    now: float,
) -> list[int]:
    """The versions to delete: neither the best, nor among the last, nor young.

    Young versions stay, so that a reader notified of a version can still load it,
    however fast others follow.

    Args:
      saved_s: when each version was saved, in seconds.
      best: the best version, if there is one.
      keep_last: the number of newest versions kept.
      keep_younger_than_s: the age up to which every version is kept.
      now: the time, on the clock of `saved_s`.

    >>> superfluous({1: 0.0, 2: 1.0, 3: 2.0, 4: 9.0}, 1, 1, 5.0, now=10.0)
    [2, 3]
    """
    in_order = sorted(saved_s)
    return [
        version
        for version in in_order[:-keep_last]
        if now - saved_s[version] > keep_younger_than_s and version != best
    ]


def check_is_there(version: int, versions: Container[int]) -> None:
    """Raises StoreError unless the version is in the store."""
    if version not in versions:
        raise StoreError(f"version {version} is not in the store, so not the best")


# ------------------------------------------------------------- integrity


def signed(record: Record, arrays: ServerState) -> Record:
    """The record as JSON represents it, with a digest of record and arrays in place of
    any earlier one."""
    unsigned = _unsigned(json.loads(json.dumps(record)))
    return {**unsigned, "digest": _digest(unsigned, arrays)}


def is_as_signed(record: Record, arrays: ServerState) -> bool:
    """Whether record and arrays still match the record's digest."""
    return bool(record.get("digest") == _digest(_unsigned(record), arrays))


def _unsigned(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "digest"}


def _digest(record: Record, arrays: ServerState) -> str:
    """XXH3-128, hex, over the record and the arrays' bytes in tree order.

    It detects damage, at the speed of memory. It does not detect tampering, nor would
    SHA-256: a process that can write the version can write a matching digest.
    """
    digest = xxhash.xxh3_128(json.dumps(record, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        digest.update(bytes_of(leaf))
    return digest.hexdigest()


def bytes_of(leaf: np.ndarray) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


def shape_mismatch(state: ServerState, like: ServerState) -> str:
    """The first difference in number, shape or dtype of the arrays; "" if none."""
    wanted = jax.tree_util.tree_leaves_with_path(like)
    found = jax.tree.leaves(state)
    for (path, leaf), array in zip(wanted, found, strict=False):
        if leaf.shape != array.shape or leaf.dtype != array.dtype:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return (
                f"{name}: found {array.dtype}{list(array.shape)}, expected "
                f"{leaf.dtype}{list(leaf.shape)}: made with another config"
            )
    if len(wanted) != len(found):
        return f"found {len(found)} arrays, expected {len(wanted)}"
    return ""


# ------------------------------------------------------------- in memory


class MemoryStore:
    """A store in the memory of its process: the fake of `OrbaxStore`."""

    def __init__(
        self,
        keep_last: int = StoreSettings.keep_last,
        keep_younger_than_s: float = StoreSettings.keep_younger_than_s,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._versions: dict[int, Stored] = {}
        self._saved_s: dict[int, float] = {}
        self._best: Best | None = None
        self._incarnation = 0
        self._is_sealed = False
        self._clock = clock
        self._keep = (keep_last, keep_younger_than_s)

    def save(self, version: int, state: ServerState, record: Record) -> None:
        if self._is_sealed:
            raise StoreError(SEALED)
        if version in self._versions:
            raise StoreError(f"version {version} already exists in the store")
        self._versions[version] = Stored(state, json.loads(json.dumps(record)))
        self._saved_s[version] = self._clock()
        best = self._best.version if self._best else None
        for old in superfluous(self._saved_s, best, *self._keep, self._clock()):
            self.set_aside(old)

    def load(self, version: int, like: ServerState) -> Stored:
        if version not in self._versions:
            raise StoreError(f"version {version} is not in the store")
        stored = self._versions[version]
        if problem := shape_mismatch(stored.state, like):
            raise StoreError(f"version {version}, {problem}")
        return stored

    def record(self, version: int) -> Record:
        return self._versions[version].record if version in self._versions else {}

    def versions(self) -> list[int]:
        return sorted(self._versions)

    def set_aside(self, version: int) -> None:
        del self._versions[version], self._saved_s[version]

    def set_best(self, best: Best) -> None:
        check_is_there(best.version, self._versions)
        if self._is_sealed:
            raise StoreError(SEALED)
        self._best = best

    def best(self) -> Best | None:
        return self._best

    def begin_incarnation(self) -> int:
        self._incarnation += 1
        self._is_sealed = False
        return self._incarnation

    def seal(self) -> None:
        self._is_sealed = True

    def lost_reason(self) -> str:
        return ""  # no other process can reach this store
