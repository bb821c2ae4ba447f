"""A store with the faults of disks: slow, full, damaged, and shared by two servers."""

from typing import Any, NamedTuple

from asyn2f.programs import UpdateKey


class Kept(NamedTuple):
    """A saved version; `content` distinguishes models of one number."""

    version: int
    content: str
    keys: tuple[UpdateKey, ...]
    results: tuple[str, ...]  # what these updates held
    accounting: dict[str, Any]
    incarnation: int  # that made it


class StoreFault(Exception):
    """Why a version cannot be saved."""


class Disk:
    """Durable versions, and those that have been set aside.

    What is written and not final when its writer dies is not there at all. A server
    that has begun owns the store: what an older one saves later is refused.
    """

    def __init__(self) -> None:
        self.kept = {0: Kept(0, "0", (), (), {}, 1)}
        self.rotted: list[Kept] = []  # set aside
        self.last_known_to: dict[str, int] = {}  # of those contents, which incarnation
        self.incarnation = 0
        self.full = False

    @property
    def newest(self) -> Kept:
        return self.kept[max(self.kept)]

    def begin_incarnation(self) -> int:
        """The incarnation of another server."""
        self.incarnation += 1
        return self.incarnation

    def save(self, kept: Kept) -> None:
        """Makes a version durable.

        Raises:
          StoreFault: no space, or another server owns the store.
        """
        if self.full:
            raise StoreFault("no space left on device")
        if kept.incarnation != self.incarnation:
            raise StoreFault(f"server {self.incarnation} has taken over")
        if kept.version in self.kept:
            raise StoreFault(f"version {kept.version} is in the store already")
        self.kept[kept.version] = kept

    def set_aside_newest(self) -> None:
        """Sets the newest version aside as damaged, unless it is version 0."""
        if len(self.kept) > 1:
            damaged = self.kept.pop(max(self.kept))
            self.rotted.append(damaged)
            self.last_known_to[damaged.content] = self.incarnation

    def committed(self) -> dict[tuple[str, int], int]:
        """The version of each committed update, by session and number."""
        return {key[1:]: v for v, kept in self.kept.items() for key in kept.keys}

    def was_committed(self) -> dict[tuple[str, int], int]:
        """Those that were in a version which has been set aside, and the last
        incarnation that can have known of it."""
        return {
            key[1:]: self.last_known_to[kept.content]
            for kept in self.rotted
            for key in kept.keys
        }
