"""How versions are created: drives the server's program through the store.

One version at a time is in flight: aggregated, saved, then published ("after_save"), or
aggregated, published, and saved meanwhile ("before_save"). Either way its updates are
committed only once it is in the store, and no other version is begun before that.
"""

import math
from collections import deque
from collections.abc import Generator, Iterable
from typing import NamedTuple

from asyn2f import programs
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol.ledger import Outcome
from asyn2f.protocol.settings import PublishWhen

Program = Generator[programs.ServerCommand, programs.ServerEvent, None]

_SAVE_AGAIN_S = 1.0
_SAVE_LATE_S = 10.0  # a store that takes longer may never answer
_NO_ANSWER = (
    f"version {{}} was given to the store {_SAVE_LATE_S:g} s ago and is not saved; no "
    "other is created before. If disk and memory are fine and nothing happens, end "
    "this server, with SIGKILL if need be, and start it again with --resume"
)
_REPLACED = Outcome("superseded", -1, "replaced by a newer")


class Save(NamedTuple):
    """Save this version, aggregated from these updates."""

    version: int
    keys: tuple[UpdateKey, ...]


class Settle(NamedTuple):
    """Settle this update."""

    key: UpdateKey
    outcome: Outcome


class Publish(NamedTuple):
    """Publish the newest version; `first`: the one that the server begins with."""

    first: bool


Command = Save | Settle | Publish | p.AggregateVersion


class VersionPipeline:
    """Feeds the program, and translates its commands.

    After each call of another method the caller carries out `next_command` until it is
    None. The program advances only between two of them, so it sees what each has done:
    when the run ends with a publication, for instance, no other version is begun.
    """

    def __init__(
        self,
        program: Program,
        first: p.VersionAggregated,
        when: PublishWhen,
        replaces: bool,
    ) -> None:
        """
        Args:
          program: not yet started; its first version is the one that `first` holds.
          first: the version to begin with, already in the store.
          when: whether a version is published before or after it is saved.
          replaces: whether a worker's newer update replaces its pending one.
        """
        self.newest = first  # the newest version published
        self.until_s: float | None = None  # when the program is due for `Due`
        self.saving: dict[int, tuple[UpdateKey, ...]] = {}  # not yet in the store
        self.lacking = 0  # of the version in flight: see `programs.Aggregate`
        self._program = program
        self._when = when
        self._replaces = replaces
        self._inbox: deque[programs.ServerEvent] = deque()
        self._commands: deque[Command] = deque()
        self._listening = False
        self._reply: type[programs.Done] | type[programs.NotMade] | None = None
        self._is_first = True
        self._made: p.VersionAggregated | None = None  # not yet published
        self._held: programs.Aggregate | None = None  # waits for the store
        self._ended = False
        self._save_again_s = self._save_late_s = math.inf
        self._take(next(program))

    def feed(self, event: programs.ServerEvent) -> None:
        """Queues an event until the program listens. Where a worker's newer update
        replaces its older one, only the newest is queued."""
        if self._replaces and isinstance(event, programs.Arrived):
            for older in [x for x in self._inbox if isinstance(x, programs.Arrived)]:
                if older.key.worker == event.key.worker:
                    self._inbox.remove(older)
                    self._commands.append(Settle(older.key, _REPLACED))
        self._inbox.append(event)

    def on_made(self, made: p.VersionAggregated) -> None:
        """The version in flight has been aggregated."""
        self._made = made
        self._save()
        if self._when == "before_save":
            self._reply = programs.Done

    def on_not_made(self, version: int, reason: str) -> None:
        """The result of an aggregation is invalid. All of its updates are rejected, as
        any of them may be the cause."""
        self._settle(self.saving.pop(version), Outcome("rejected", -1, reason))
        self._reply = programs.NotMade

    def on_saved(self, version: int) -> None:
        """A version is in the store: its updates are committed."""
        self._save_again_s = self._save_late_s = math.inf
        self._settle(self.saving.pop(version), Outcome("committed", version, ""))
        if self._when == "after_save":
            self._reply = programs.Done

    def on_save_failed(self, now: float) -> None:
        """The save of a version has failed; it is repeated."""
        self._save_again_s, self._save_late_s = now + _SAVE_AGAIN_S, math.inf

    def on_tick(self, now: float) -> str:
        """Repeats a save; returns a warning, once, if the store does not answer."""
        if now >= self._save_again_s:
            self._save_again_s = math.inf
            self._save()
        if now < self._save_late_s:
            return ""
        self._save_late_s = math.inf
        return _NO_ANSWER.format(min(self.saving))

    def give_up(self, reason: str) -> None:
        """Abandons the version in flight."""
        self._save_again_s = self._save_late_s = math.inf
        for keys in self.saving.values():
            self._settle(keys, Outcome("rejected", -1, reason))
        self.saving.clear()

    def end(self) -> frozenset[UpdateKey]:
        """Begins no further version; returns the updates of the one in flight."""
        self._ended, self.until_s = True, None
        return frozenset(key for keys in self.saving.values() for key in keys)

    def next_command(self, now: float) -> Command | None:
        """The next command to carry out, or None until something else happens."""
        while not self._commands:
            if self._reply is not None:
                reply, self._reply = self._reply(now), None
                self._take(self._program.send(reply))
            elif self._held is not None and not (self.saving or self._ended):
                version, keys = self.newest.header.version + 1, self._held.keys
                self.lacking, self._held = self._held.lacking, None
                self.saving[version] = keys
                return p.AggregateVersion(version, keys, self.lacking)
            elif self._listening and self._inbox and not self._ended:
                self._take(self._program.send(self._inbox.popleft()))
            else:
                return None
        if isinstance(self._commands[0], Save):
            self._save_late_s = now + _SAVE_LATE_S
        return self._commands.popleft()

    def _take(self, command: programs.ServerCommand) -> None:
        """Translates a command of the program."""
        self._listening, self.until_s = False, None
        match command:
            case programs.Listen(until_s):
                self._listening = True
                self.until_s = None if self._ended else until_s
                return
            case programs.Aggregate():
                self._held = command
                return
            case programs.Supersede() | programs.Reject() if self._ended:
                pass  # all that waited has been settled
            case programs.Supersede(key):
                self._commands.append(Settle(key, _REPLACED))
            case programs.Reject(key, reason):
                self._commands.append(Settle(key, Outcome("rejected", -1, reason)))
            case programs.Publish():
                first, self._is_first = self._is_first, False
                if self._made is not None:
                    self.newest, self._made = self._made, None
                self._commands.append(Publish(first))
        self._reply = programs.Done

    def _save(self) -> None:
        self._commands.extend(Save(*item) for item in self.saving.items())

    def _settle(self, keys: Iterable[UpdateKey], outcome: Outcome) -> None:
        self._commands.extend(Settle(key, outcome) for key in keys)
