"""The model store: what is asked of one, and how long versions are kept."""

from collections.abc import Container
from typing import NamedTuple, Protocol

from asyn2f.errors import StoreError
from asyn2f.store.integrity import Record
from asyn2f.types import ServerState

SEALED = "the run has ended without it"


class Stored(NamedTuple):
    """A version as it was read back."""

    state: ServerState
    record: Record


class ModelStore(Protocol):
    """Versions of the global model, for as long as anybody may need them."""

    def save(self, version: int, state: ServerState, record: Record) -> None:
        """Returns once the version is in the store for good.

        Raises:
          StoreError: it is not there, and may be tried again; FencedError: it may not.
        """

    def load(self, version: int, like: ServerState) -> Stored:
        """A version, its bytes compared with the digest it was saved under; `like`
        gives shapes and dtypes. Raises StoreError: not there, other shapes, damaged."""

    def record(self, version: int) -> Record:
        """What it was saved with, without its arrays; {} if that cannot be read."""

    def versions(self) -> list[int]:
        """All whole versions, in ascending order."""

    def set_aside(self, version: int) -> None:
        """This version is not in the store any more; what there was of it is kept where
        a person can look at it, if there is such a place."""

    def set_best(self, version: int, accuracy: float) -> None:
        """From now on this version is the one kept for ever. Raises StoreError: it is
        not in the store, or that cannot be written."""

    def best(self) -> tuple[float | None, int | None]:
        """Accuracy and version of the best, or None twice."""

    def begin_incarnation(self) -> int:
        """A number higher than that of any server that used this store before; those
        are shut out. Raises StoreError."""

    def seal(self) -> None:
        """Until an incarnation begins no further version is saved, and none is made the
        best: one that is on its way is there by now, or never will be."""

    def lost_reason(self) -> str:
        """Why this server may not write any more; nothing if it may. Raises OSError:
        the store cannot be reached."""


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


def check_is_there(version: int, versions: Container[int]) -> None:
    """Nothing, if it is. Raises StoreError: what is not there cannot be the best."""
    if version not in versions:
        raise StoreError(f"version {version} is not in the store, so not the best")
