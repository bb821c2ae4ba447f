"""The server under a virtual clock: its program, and the version in the making."""

from collections import deque
from collections.abc import Callable
from typing import Any

from asyn2f import programs
from asyn2f.programs import Aggregate, Done, Listen, Publish
from asyn2f.sim import order as o
from asyn2f.sim.order import Log
from asyn2f.timing import Stop, Timing

Handler = Callable[[Any, float, int], None]
"""Called with the subject, time and tie of an event."""


class VirtualServer:
    """Interprets the server's program; versions are logged, not computed."""

    def __init__(
        self,
        timing: Timing,
        stop: Stop,
        aggregate_s: float,
        log: Log,
        schedule: Callable[[float, Handler, Any], int],
        on_published: Callable[[int, float], None],
    ) -> None:
        self._stop = stop
        self._aggregate_s = aggregate_s
        self._log, self._note = log, log.note
        self._schedule = schedule
        self._on_published = on_published
        program = programs.server_program(timing)
        self._inbox: deque[programs.ServerEvent] = deque()
        self._making: Aggregate | None = None
        self._due_s: float | None = None
        self.published_s: list[float] = []  # by version
        self.ended: str | None = None  # the reason
        next(program)  # up to its first Listen
        self._resume = program.send

    def send(self, event: programs.ServerEvent, now: float) -> None:
        """Sends an event to the program, once it is not making a version."""
        if self._making is None:
            self._execute(self._resume(event), now)
        else:
            self._inbox.append(event)

    def _execute(self, command: programs.ServerCommand, now: float) -> None:
        """Executes commands up to one that takes time."""
        while self.ended is None:
            if isinstance(command, Listen):
                if self._inbox:
                    command = self._resume(self._inbox.popleft())
                    continue
                before_s, self._due_s = self._due_s, command.until_s
                if self._due_s is not None and self._due_s != before_s:
                    self._schedule(max(now, self._due_s), self._due, self._due_s)
                return
            if isinstance(command, Aggregate):
                self._making = command
                self._due_s = None
                if self._aggregate_s:
                    self._schedule(now + self._aggregate_s, self._made, None)
                    return
                self._log_version(now)
            elif isinstance(command, Publish):
                self._publish(now)
            else:
                replaced = isinstance(command, programs.Supersede)
                what = o.SUPERSEDE if replaced else o.REJECT
                self._note(now, what, command.key.worker, command.key.seq)
            command = self._resume(Done(now))

    def _due(self, due_s: float, now: float, tie: int) -> None:
        if self._due_s == due_s:
            self._due_s = None
            self.send(programs.Due(now), now)

    def _made(self, _: None, now: float, tie: int) -> None:
        self._log_version(now)
        self._execute(self._resume(Done(now)), now)

    def _log_version(self, now: float) -> None:
        assert self._making is not None
        before = len(self._log.version) - 1
        members = [key.seq for key in self._making.keys]
        lacking = self._making.lacking
        node = self._log.add_version(before + 1, before, members, lacking)
        self._note(now, o.AGGREGATE, -1, node)
        self._making = None

    def _publish(self, now: float) -> None:
        version, limit = len(self.published_s), self._stop.max_versions
        self.published_s.append(now)
        if limit and version >= limit:
            self.ended = f"max_versions = {limit} reached"
        self._on_published(version, now)
