"""Who is here: the server's register of its peers' processes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from asyn2f.protocol import messages, ports
from asyn2f.protocol.status import WorkerStatus

_SHOWN = 20  # characters of what a peer says it does


@dataclass
class Session:
    """One life of one peer's process."""

    hello: messages.Hello
    peer: bytes  # where to reach it now
    heard_s: float
    first: int  # number of its first update; -1 = it pushes none
    joined_s: float
    moved_s: float = -math.inf  # when a beat last showed that it trains
    live: bool = True
    gone: bool = False  # it has said goodbye
    replaced: bool = False  # another process has its worker's number now
    welcomed_s: float = math.inf  # when it was welcomed first
    hears_models: bool = False
    is_warned_of: bool = False  # that a port cannot be reached
    beat: messages.Heartbeat | None = None

    @property
    def name(self) -> str:
        return self.hello.session

    @property
    def is_worker(self) -> bool:
        return self.hello.role == "worker"

    @property
    def actor(self) -> str:
        """Who its process is: "worker-3", "evaluator"."""
        return self.hello.actor

    @property
    def welcomed(self) -> bool:
        return self.welcomed_s < math.inf

    def note(self, beat: messages.Heartbeat, now: float) -> None:
        """What it says of itself."""
        if self.beat is None or beat.step > self.beat.step:
            self.moved_s = now
        self.beat = beat

    @property
    def may_come_back(self) -> bool:
        """Whether it is a worker that has fallen silent without a goodbye."""
        return self.is_worker and not (self.live or self.gone or self.replaced)


class SessionRegistry:
    """Sessions by name; admits, remembers when each was heard, notices silence."""

    def __init__(self, heartbeat_timeout_s: float, heartbeat_interval_s: float) -> None:
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._hold_s = 2 * heartbeat_interval_s
        self._sessions: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, name: str) -> Session | None:
        return self._sessions.get(name)

    def live_workers(self) -> list[Session]:
        return [s for s in self if s.live and s.is_worker]

    def is_held(self, session: Session, peer: bytes, identity: str, now: float) -> bool:
        """Whether another connection than this one speaks for the session at present:
        where there are no keys, nobody else takes it over. Who has connected again is
        let in as soon as the old connection has been silent for two beats."""
        is_other = session.live and session.peer != peer
        return not identity and is_other and now - session.heard_s < self._hold_s

    def admit(
        self, hello: messages.Hello, peer: bytes, first: int, now: float
    ) -> Session:
        """The session of a peer that was not refused: a new one, or the one it had.
        `first`: the number of its first update."""
        new = Session(hello, peer, now, first, joined_s=now)
        session = self._sessions.setdefault(hello.session, new)
        for other in self:
            is_older = other is not session and other.hello.worker == hello.worker
            if is_older and other.is_worker and session.is_worker:
                other.replaced, other.live = True, False
        session.peer, session.heard_s = peer, now
        return session

    def hear(self, session: Session, peer: bytes, now: float) -> bool:
        """Notes a sign of life; whether it comes after a silence."""
        was_live, session.live = session.live, True
        session.peer, session.heard_s = peer, now
        return not was_live

    def fall_silent(self, now: float) -> list[Session]:
        """Those who have not been heard of for too long, and were until now."""
        silent = [
            s for s in self if s.live and now - s.heard_s > self._heartbeat_timeout_s
        ]
        for session in silent:
            session.live = False
        return silent

    def unreachable(self, model_port: int, update_port: int, now: float) -> list[str]:
        """Registered peers that cannot use both ports, each reported once, in words."""
        found = []
        for session in self:
            beat, hears, is_heard = session.beat, session.hears_models, True
            since_s = session.joined_s
            if beat is not None:
                hears, is_heard, since_s = beat.hears, beat.is_heard, session.welcomed_s
            elif session.welcomed or session.hello.first >= 0:
                continue  # its beats will say so
            is_due = session.live and now > since_s + ports.OPEN_WITHIN_S
            if session.is_warned_of or not is_due:
                continue
            hello, both = session.hello, (model_port, update_port)
            closed = ports.closed(hello.role, hears, is_heard, *both)
            if closed:
                session.is_warned_of = True
                found.append(
                    f"{session.actor} has registered, but does not get through to "
                    f"{closed} here: open or forward it for that machine too"
                )
        return found

    def obsolete(self) -> list[Session]:
        """Those that will not come back and that nobody needs to see: replaced ones,
        and evaluators that have gone or fallen silent."""
        return [s for s in self if s.replaced or not (s.is_worker or s.live)]

    def drop(self, session: Session) -> None:
        """Knows it no longer."""
        del self._sessions[session.name]

    def part(self, session: Session) -> bool:
        """Notes that it has said goodbye; whether it was live until now."""
        was_live, session.live = session.live, False
        session.gone, session.hears_models = True, False
        return was_live

    def worker_statuses(
        self, version: int, updates: dict[str, int], now: float
    ) -> tuple[WorkerStatus, ...]:
        """Each worker as of its last beat; of one that came again, its last life."""
        latest: dict[int, Session] = {}
        for session in self:
            if session.is_worker:
                latest[session.hello.worker] = session
        return tuple(
            _status_of(session, version, updates.get(session.name, 0), now)
            for _, session in sorted(latest.items())
        )


def _status_of(
    session: Session, version: int, updates: int, now: float
) -> WorkerStatus:
    hello, beat = session.hello, session.beat
    if beat is None:
        state = "registered" if session.live else "silent"
        numbers = (0, 0.0, 0.0, 0.0, -1, -1, 0, -1.0)
        beat = messages.Heartbeat("", 0, state, *numbers, False, False, 0, ())
    state = beat.state[:_SHOWN]
    merged_s_ago = beat.merged_s_ago
    if merged_s_ago >= 0:
        merged_s_ago += now - session.heard_s
    return WorkerStatus(
        worker=hello.worker,
        state="gone" if session.gone else state if session.live else "silent",
        step=beat.step,
        epoch=beat.epoch,
        loss=beat.loss,
        metric=beat.metric,
        base_version=beat.base_version,
        staleness=max(version - beat.base_version, 0) if beat.base_version >= 0 else 0,
        merges=beat.merges,
        merged_s_ago=merged_s_ago,
        updates=updates,
        num_examples=hello.num_examples,
    )
