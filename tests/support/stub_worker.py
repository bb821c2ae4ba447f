"""A worker that trains nothing: its protocol over real sockets, updates of bytes."""

import math
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyn2f import trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.peer import PeerProtocol
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import IoThread, Journal
from asyn2f.transport.base import Transport
from tests.support.messages import hello_of, produced
from tests.support.patience import PATIENCE_S

WINDOW = 4  # updates under way: as many as a worker keeps
RUNTIME = RuntimeSettings(server_timeout_s=PATIENCE_S, join_timeout_s=PATIENCE_S)


class Changes:
    """A condition variable: waits for predicates."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def until(
        self, what: str, holds: Callable[[], Any], timeout_s: float = PATIENCE_S
    ) -> float:
        """Waits until it holds; returns the seconds. Raises AssertionError if never."""
        start_s = time.monotonic()
        with self._changed:
            held = self._changed.wait_for(holds, timeout_s)
        assert held, f"after {timeout_s:g} s it is still not so that {what}"
        return time.monotonic() - start_s


def open_journal(folder: Path, name: str, actor: str, incarnation: int = 0) -> Journal:
    """The trace file of one process."""
    journal = Journal(trace.TraceWriter(folder / "trace", name))
    journal.write(
        trace.ProcessStarted(time.monotonic(), actor, "run-1", incarnation, {})
    )
    return journal


def body_of(session: str, seq: int, size: int) -> bytes:
    """The payload of an update, which names session and number."""
    return f"{session}:{seq}:".encode().ljust(size, b".")


# ------------------------------------------------------------- a worker


class Producer:
    """A worker's protocol that has an update ready whenever one more may be sent.

    Never more than `WINDOW` wait for their outcomes, so none is withdrawn.
    """

    def __init__(
        self,
        inner: PeerProtocol,
        worker: int,
        session: str,
        size: int,
        total: float,
        every_s: float,
        changes: Changes,
    ) -> None:
        """`total` updates of `size` bytes, at most one per `every_s`."""
        self._inner, self._worker, self._session = inner, worker, session
        self._size, self._every_s, self._changes = size, every_s, changes
        self.total = total
        self.made = self.sends = 0
        self.base = -1
        self.delivered: list[tuple[float, int]] = []  # when which version came
        self.heard: Counter[str] = Counter()  # messages on CONTROL, by kind
        self.heard_s = self.pulsed_s = -math.inf  # when it last heard anything; a pulse
        self.reasons: set[str] = set()  # of outcomes
        self.other_run = ""
        self._next_s = 0.0

    @property
    def unsettled(self) -> int:
        """The number of unsettled updates."""
        return len(self._inner._outbox.entries)

    @property
    def is_done(self) -> bool:
        return self.made >= self.total and not self.unsettled

    @property
    def due_s(self) -> float:
        if self._may_make:
            return min(self._inner.due_s, self._next_s)
        return self._inner.due_s

    @property
    def _may_make(self) -> bool:
        return self.base >= 0 and self.made < self.total and self.unsettled < WINDOW

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        effects = self._tell(event, now)
        while self._may_make and now >= self._next_s:
            body = body_of(self._session, self._inner._outbox._next, self._size)
            self.made += 1
            self._next_s = now + self._every_s
            effects += self._tell(produced(body, self.base)._replace(time_s=now), now)
            if any(isinstance(effect, p.Finish) for effect in effects):
                break
        self._changes.note()
        return effects

    def _tell(self, event: p.Event, now: float) -> list[p.Effect]:
        match event:
            case p.FromWire(p.Channel.CONTROL, _, message):
                self.heard[type(message).__name__] += 1
                self.heard_s = now
                if isinstance(message, messages.HeartbeatAck):
                    self.pulsed_s = now
                if isinstance(message, messages.UpdateOutcome) and message.reason:
                    self.reasons.add(message.reason)
            case p.SendFailed():
                self.sends -= 1
        effects = self._inner.on(event, now)
        for effect in effects:
            match effect:
                case p.Broadcast():
                    self.sends += 1
                case p.Deliver(header):
                    self.base = header.version
                    self.delivered.append((now, header.version))
        if self.other_run:
            effects = [self._misled(effect) for effect in effects]
        return effects

    def _misled(self, effect: Any) -> Any:
        if not isinstance(effect, p.Broadcast):
            return effect
        return effect._replace(message=effect.message._replace(run=self.other_run))


class StubWorker:
    """A worker without training, on a thread of its own."""

    def __init__(
        self,
        folder: Path,
        number: int,
        transport: Transport,
        size: int,
        *,
        total: float = math.inf,
        every_s: float = 0.0,
        runtime: RuntimeSettings = RUNTIME,
        changes: Changes | None = None,
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
        other_run: str = "",
        **hello: Any,
    ) -> None:
        """`wrap` wraps the transport; `other_run` replaces the name of the run; `hello`
        are changes of its hello."""
        self.session = f"w{number}-{secrets.token_hex(4)}"
        self.number = number
        self.finish: p.Finish | None = None
        self.changes = changes or Changes()
        said = hello_of(number, self.session, **hello)
        inner = PeerProtocol(said, runtime, time.monotonic())
        self.machine = Producer(
            inner, number, self.session, size, total, every_s, self.changes
        )
        self._journal = open_journal(folder, self.session, f"worker-{number}")
        self.machine.other_run = other_run
        self._io = IoThread(
            self.machine, wrap(transport), self._journal, self._carry_out
        )
        self._io.start()

    def _carry_out(self, effect: p.Effect) -> None:
        if isinstance(effect, p.StopWork):
            self._io.post(p.StopRequested(effect.reason))
        if isinstance(effect, p.Finish):
            self.finish = effect
            self.changes.note()

    def stop(self) -> None:
        """Ends it with a goodbye."""
        self._io.post(p.StopRequested("enough"))

    def join(self, timeout_s: float | None = PATIENCE_S) -> None:
        """Waits for its end."""
        self._io.join(timeout_s)
        assert self.finish is not None, f"worker {self.number} has not ended"
        self._journal.close()
