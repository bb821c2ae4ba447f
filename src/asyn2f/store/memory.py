"""A model store without a disk."""

import json
import time
from collections.abc import Callable

from asyn2f.errors import StoreError
from asyn2f.store.base import (
    SEALED,
    Stored,
    check_is_there,
    superfluous,
)
from asyn2f.store.integrity import Record, other_shapes
from asyn2f.types import ServerState


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
        self._is_sealed = False
        self._clock = clock
        self._keep = (keep_last, keep_younger_than_s)

    def save(self, version: int, state: ServerState, record: Record) -> None:
        if self._is_sealed:
            raise StoreError(SEALED)
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
        if problem := other_shapes(stored.state, like):
            raise StoreError(f"version {version}, {problem}")
        return stored

    def record(self, version: int) -> Record:
        return self._kept[version].record if version in self._kept else {}

    def versions(self) -> list[int]:
        return sorted(self._kept)

    def set_aside(self, version: int) -> None:
        del self._kept[version], self._saved_s[version]

    def set_best(self, version: int, accuracy: float) -> None:
        check_is_there(version, self._kept)
        if self._is_sealed:
            raise StoreError(SEALED)
        self._best, self._accuracy = version, accuracy

    def best(self) -> tuple[float | None, int | None]:
        return self._accuracy, self._best

    def begin_incarnation(self) -> int:
        self._incarnation += 1
        self._is_sealed = False
        return self._incarnation

    def seal(self) -> None:
        self._is_sealed = True

    def lost_reason(self) -> str:
        return ""  # its process is the only one that has it
