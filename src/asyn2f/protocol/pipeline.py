"""How versions come about: the server's program, driven through the store.

One version at a time is in flight: aggregated, saved, then published ("after_save"), or
aggregated, published, and saved meanwhile ("before_save"). Either way its updates are
committed only when it is in the store, and the next one is not begun before that.
"""

from collections import deque
from collections.abc import Callable, Generator

from asyn2f import programs
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol.ledger import Verdict
from asyn2f.protocol.settings import PublishWhen

Program = Generator[programs.ServerCommand, programs.ServerEvent, None]


class VersionPipeline:
    """Drives the program: tells it what happens, has its commands carried out."""

    def __init__(
        self,
        program: Program,
        first: p.VersionAggregated,
        when: PublishWhen,
        replaces: bool,
        outlet: p.EffectQueue,
        save: Callable[[int, tuple[UpdateKey, ...]], None],
        settle: Callable[[UpdateKey, Verdict], None],
        publish: Callable[[bool], None],
    ) -> None:
        """
        Args:
          program: not yet started; its first version is the one that `first` holds.
          first: the version to begin with, already in the store.
          when: a version is published: before or after it is saved.
          replaces: whether a worker's newer update replaces its pending one.
          outlet: takes the effects.
          save: has a version, made of these updates, put into the store.
          settle: writes the last word on an update.
          publish: gives out `newest`; its argument says whether it is the first.
        """
        self.newest = first  # the newest version given out
        self.until_s: float | None = None  # when the program wants to hear `Due`
        self.saving: dict[int, tuple[UpdateKey, ...]] = {}  # on the way to the store
        self.lacking = 0  # of the version that is being made: see `Aggregate`
        self._program = program
        self._when = when
        self._replaces = replaces
        self._outlet = outlet
        self._save = save
        self._settle = settle
        self._publish = publish
        self._inbox: deque[programs.ServerEvent] = deque()
        self._listening = False
        self._is_first = True
        self._made: p.VersionAggregated | None = None  # computed, not given out
        self._held: programs.Aggregate | None = None  # waits for the store
        self._ended = False
        self._carry_out(next(program))

    def feed(self, event: programs.ServerEvent) -> None:
        """Tells the program, now or as soon as it listens. Of a worker's updates only
        the newest waits for that, where it replaces the others."""
        if self._replaces and isinstance(event, programs.Arrived):
            for older in [x for x in self._inbox if isinstance(x, programs.Arrived)]:
                if older.key.worker == event.key.worker:
                    self._inbox.remove(older)
                    replaced = Verdict("superseded", -1, "replaced by a newer")
                    self._settle(older.key, replaced)
        self._inbox.append(event)
        self._drain_inbox()

    def on_made(self, made: p.VersionAggregated) -> None:
        """The version that was asked for has been computed."""
        self._made = made
        self.save_again()
        if self._when == "before_save":
            self._go_on()

    def on_not_made(self, version: int, reason: str) -> None:
        """The version that was asked for cannot be used: its updates, each of which may
        have spoilt it, are rejected."""
        for key in self.saving.pop(version):
            self._settle(key, Verdict("rejected", -1, reason))
        self._carry_out(self._program.send(programs.NotMade(self._outlet.now)))
        self._drain_inbox()

    def save_again(self) -> None:
        """Has the version that is on its way put into the store."""
        for version, keys in self.saving.items():
            self._save(version, keys)

    def on_saved(self, version: int) -> None:
        """It is in the store: what went into it is committed."""
        for key in self.saving.pop(version):
            self._settle(key, Verdict("committed", version, ""))
        if self._when == "after_save":
            self._go_on()
        self._aggregate()

    def give_up(self, reason: str) -> None:
        """The version on its way does not come into being."""
        for keys in self.saving.values():
            for key in keys:
                self._settle(key, Verdict("rejected", -1, reason))
        self.saving.clear()

    def end(self) -> frozenset[UpdateKey]:
        """Begins no further version; the updates in the one on its way, if any."""
        self._ended, self.until_s = True, None
        return frozenset(key for keys in self.saving.values() for key in keys)

    def _drain_inbox(self) -> None:
        while self._listening and self._inbox and not self._ended:
            self._carry_out(self._program.send(self._inbox.popleft()))

    def _go_on(self) -> None:
        """The command that the program was waiting for has been carried out."""
        self._carry_out(self._program.send(programs.Done(self._outlet.now)))
        self._drain_inbox()

    def _carry_out(self, command: programs.ServerCommand) -> None:
        """Carries out commands until the program listens or waits for a version."""
        self._listening, self.until_s = False, None
        while True:
            match command:
                case programs.Listen(until_s):
                    self._listening = True
                    self.until_s = None if self._ended else until_s
                    return
                case programs.Aggregate():
                    self._held = command
                    self._aggregate()
                    return
                case programs.Supersede() | programs.Reject() if self._ended:
                    pass  # the end has settled what waited
                case programs.Supersede(key):
                    self._settle(key, Verdict("superseded", -1, "replaced by a newer"))
                case programs.Reject(key, reason):
                    self._settle(key, Verdict("rejected", -1, reason))
                case programs.Publish():
                    first, self._is_first = self._is_first, False
                    if self._made is not None:
                        self.newest, self._made = self._made, None
                    self._publish(first)
            command = self._program.send(programs.Done(self._outlet.now))

    def _aggregate(self) -> None:
        """Has the next version made, once the one before is in the store."""
        if self._held is None or self.saving or self._ended:
            return
        version, keys = self.newest.header.version + 1, self._held.keys
        self.lacking, self._held, self.saving[version] = self._held.lacking, None, keys
        self._outlet.do(p.AggregateVersion(version, keys, self.lacking))
