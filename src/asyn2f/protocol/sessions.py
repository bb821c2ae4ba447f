"""Session registry and failure detector."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from asyn2f.protocol import messages
from asyn2f.protocol.channels import CONNECT_S, closed_ports
from asyn2f.types import Scores

_MOST_SCORED = 64  # versions that some workers have scored, and others have not


@dataclass
class Session:
    """A process of a peer."""

    hello: messages.Hello
    peer: bytes  # its address now
    heard_s: float
    first: int  # number of its first update; -1 = it pushes none
    joined_s: float
    moved_s: float = -math.inf  # of the last heartbeat with a higher step
    live: bool = True
    gone: bool = False  # after its goodbye
    replaced: bool = False  # by a newer process of its worker
    welcomed_s: float = math.inf  # of its first welcome
    hears_models: bool = False
    is_reported: bool = False  # as one that cannot reach a port
    heartbeat: messages.Heartbeat | None = None  # the last one

    @property
    def name(self) -> str:
        return self.hello.session

    @property
    def is_worker(self) -> bool:
        return self.hello.role == "worker"

    @property
    def actor(self) -> str:
        """Its name in the trace: "worker-3", "evaluator"."""
        return self.hello.actor

    @property
    def welcomed(self) -> bool:
        return self.welcomed_s < math.inf

    def note(self, heartbeat: messages.Heartbeat, now: float) -> None:
        """Records a heartbeat."""
        before = self.heartbeat
        if before is None or heartbeat.progress.step > before.progress.step:
            self.moved_s = now
        self.heartbeat = heartbeat

    @property
    def may_come_back(self) -> bool:
        """Whether it is a worker that fell silent without a goodbye."""
        return self.is_worker and not (self.live or self.gone or self.replaced)


class SessionRegistry:
    """Sessions by name. A session is live while it is heard of often enough."""

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
        """Whether the session belongs to another connection at present. Without keys a
        session cannot be taken over, unless its connection has been silent for two
        heartbeats: its peer may have connected anew."""
        is_other = session.live and session.peer != peer
        return not identity and is_other and now - session.heard_s < self._hold_s

    def admit(
        self, hello: messages.Hello, peer: bytes, first: int, now: float
    ) -> Session:
        """The session of a peer that was not refused, created if it is new. `first`:
        the number of its first update."""
        new = Session(hello, peer, now, first, joined_s=now)
        session = self._sessions.setdefault(hello.session, new)
        for other in self:
            is_older = other is not session and other.hello.worker == hello.worker
            if is_older and other.is_worker and session.is_worker:
                other.replaced, other.live = True, False
        session.peer, session.heard_s = peer, now
        return session

    def hear(self, session: Session, peer: bytes, now: float) -> bool:
        """Records a sign of life; returns whether the session was not live."""
        was_live, session.live = session.live, True
        session.peer, session.heard_s = peer, now
        return not was_live

    def fall_silent(self, now: float) -> list[Session]:
        """Ends the liveness of sessions whose heartbeat timeout has passed."""
        silent = [
            s for s in self if s.live and now - s.heard_s > self._heartbeat_timeout_s
        ]
        for session in silent:
            session.live = False
        return silent

    def unreachable(self, model_port: int, update_port: int, now: float) -> list[str]:
        """Sentences on registered peers that cannot reach a port; one per session."""
        found = []
        for session in self:
            heartbeat, hears, is_heard = session.heartbeat, session.hears_models, True
            since_s = session.joined_s
            if heartbeat is not None:
                hears, is_heard, since_s = (
                    heartbeat.hears,
                    heartbeat.is_heard,
                    session.welcomed_s,
                )
            elif session.welcomed or session.hello.first >= 0:
                continue  # its heartbeats will report it
            is_due = session.live and now > since_s + CONNECT_S
            if session.is_reported or not is_due:
                continue
            hello, both = session.hello, (model_port, update_port)
            closed = closed_ports(hello.role, hears, is_heard, *both)
            if closed:
                session.is_reported = True
                found.append(
                    f"{session.actor} has registered, but does not get through to "
                    f"{closed} here: open or forward it for that machine too"
                )
        return found

    def obsolete(self) -> list[Session]:
        """Sessions that can be dropped: replaced ones, and evaluators not live."""
        return [s for s in self if s.replaced or not (s.is_worker or s.live)]

    def drop(self, session: Session) -> None:
        del self._sessions[session.name]

    def part(self, session: Session) -> bool:
        """Records a goodbye; returns whether the session was live."""
        was_live, session.live = session.live, False
        session.gone, session.hears_models = True, False
        return was_live


class WorkerScores:
    """Scores of versions by workers, until all live ones have scored a version."""

    def __init__(self) -> None:
        self._found: dict[int, dict[int, Scores]] = {}  # by version and worker

    def add(self, version: int, worker: int, scores: Scores) -> None:
        """Adds what a worker has found; what has other names than the others' scores of
        that version is left out."""
        known = self._found.setdefault(version, {})
        others = next(iter(known.values()), scores)
        if others.keys() == scores.keys():
            known[worker] = scores
        for old in sorted(self._found)[:-_MOST_SCORED]:
            del self._found[old]

    def complete(self, live: Collection[int]) -> Iterator[tuple[int, Mapping]]:
        """Removes and returns each version that all of these workers have scored, with
        the scores by worker."""
        for version, found in sorted(self._found.items()):
            if found.keys() >= set(live):
                del self._found[version]
                yield version, dict(sorted(found.items()))
