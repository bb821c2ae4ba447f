"""Membership: registers peers, answers their heartbeats, sends them versions, and
detects their failure."""

from collections.abc import Iterator
from typing import Any

from asyn2f import programs, trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.admission import Registration, WarningLimit
from asyn2f.protocol.channels import ALL, topic_of
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.sessions import Session, SessionRegistry, WorkerScores
from asyn2f.protocol.settings import ServerSettings
from asyn2f.protocol.shutdown import Shutdown
from asyn2f.protocol.status import RunCounters
from asyn2f.protocol.updates import UpdateIntake
from asyn2f.protocol.wire_format import published_bytes
from asyn2f.types import over_workers

Change = programs.Joined | programs.Left | messages.EvalResult
"""What a server has to act on."""


class Membership:
    """The server's side of the channels CONTROL and MODEL.

    `on_message` and `on_tick` yield the changes in between: the caller acts on one
    before it takes the next, as answers depend on what it does.
    """

    def __init__(
        self,
        settings: ServerSettings,
        sessions: SessionRegistry,
        ledger: Ledger,
        updates: UpdateIntake,
        shutdown: Shutdown,
        counters: RunCounters,
        effects: p.EffectQueue,
        newest: p.VersionAggregated,
    ) -> None:
        self.newest = newest  # the newest version published
        self._settings = settings
        self._sessions = sessions
        self._registration = Registration(settings, sessions, ledger)
        self._ledger = ledger
        self._updates = updates
        self._shutdown = shutdown
        self._counters = counters
        self._effects = effects
        self._warnings = WarningLimit()
        self._scores = WorkerScores()
        self._rows: dict[int, int] = {}  # on which a worker has scored

    @property
    def _version(self) -> int:
        return self.newest.header.version

    @property
    def _now(self) -> float:
        return self._effects.now

    def _send(self, peer: bytes, message: messages.Message) -> None:
        self._effects.do(p.Send(peer, message))

    def is_from(self, identity: str, name: str) -> bool:
        """Whether a message of that session comes from its own peer, as far as the
        transport can tell. Others are ignored."""
        session = self._sessions.get(name)
        if session is None or identity in ("", session.actor):
            return True
        self._warn(f"{identity} sent a message as {session.actor}; it is ignored")
        return False

    def pins(self) -> dict[str, Any]:
        """See `Registration.pins`."""
        return self._registration.pins()

    def start(self) -> None:
        """Welcomes all peers: the run begins, or is resumed."""
        self._counters.start(self._now)
        for session in self._sessions:
            self._welcome(session)

    def publish(self) -> int:
        """Sends the newest version to all; returns the number of live workers that hear
        it."""
        live = self._sessions.live_workers()
        receivers = sum(session.hears_models for session in live)
        self._broadcast(ALL, receivers)
        return receivers

    def on_subscribed(self, topic: bytes) -> None:
        """Sends a new subscriber the newest version."""
        for session in self._sessions:
            if topic_of(session.name) == topic:
                session.hears_models = True
                if session.welcomed:
                    self._broadcast(topic, receivers=int(session.is_worker))

    def _broadcast(self, topic: bytes, receivers: int) -> None:
        header, payload = self.newest
        self._effects.do(p.Broadcast(topic, header, payload))
        size = published_bytes(topic, header, payload)
        self._counters.bytes_down += receivers * size

    def send_stop(self, session: Session) -> None:
        self._send(session.peer, self._stop)

    def on_message(
        self, peer: bytes, message: messages.Message, identity: str
    ) -> Iterator[Change]:
        """Answers a message on CONTROL."""
        if isinstance(message, messages.Hello):
            yield from self._on_hello(peer, message, identity)
            return
        name = getattr(message, "session", "")
        if not self.is_from(identity, name):
            return
        session = self._sessions.get(name)
        if session is None:
            self._send(peer, messages.UnknownSession(self._settings.incarnation))
            return
        if session.replaced:
            why = f"another process is worker {session.hello.worker} now"
            self._send(peer, messages.Refused(why, retry=False))
            return
        if self._sessions.is_held(session, peer, identity, self._now):
            if self.is_to_stop(session):  # the run may end before its turn
                self._send(peer, self._stop)
            return
        if self._sessions.hear(session, peer, self._now):
            yield from self._joined(session)
        match message:
            case messages.Heartbeat():
                self._on_heartbeat(session, peer, message)
            case messages.FetchModel(_, version):
                if session.welcomed and version < self._version:
                    topic = topic_of(session.name)
                    self._broadcast(topic, receivers=int(session.is_worker))
            case messages.EvalResult(_, version):
                self._send(peer, messages.EvalAck(version))
                if 0 <= version <= self._version and self.scores(session.hello):
                    yield from self._on_scores(session, message)
            case messages.Goodbye(_, reason):
                if self._sessions.part(session):
                    yield from self._left(session, reason)

    def on_tick(self) -> Iterator[Change]:
        """Detects silent peers, and drops sessions that are obsolete."""
        for session in self._sessions.fall_silent(self._now):
            yield from self._left(session, "silent")
        for session in self._sessions.obsolete():
            if not session.is_worker or self._updates.end(session.name):
                self._sessions.drop(session)
        ports = self._settings.model_port, self._settings.update_port
        self._effects.do(*map(p.Warn, self._sessions.unreachable(*ports, self._now)))

    def _on_hello(
        self, peer: bytes, hello: messages.Hello, identity: str
    ) -> Iterator[Change]:
        refused = self._registration.refusal(hello, peer, identity, self._now)
        known = self._sessions.get(hello.session)
        is_itself = refused is None or refused.retry
        if known is not None and is_itself and self._shutdown.has_begun:
            self._send(peer, self._stop)
            return
        may_score = self.scores(hello) and not self._shutdown.is_farewell
        if self._shutdown.has_begun and not may_score:
            why = f"the run is over: {self._shutdown.reason}"
            refused = messages.Refused(why, retry=False)
        if refused is not None:
            self._warn(f"refused {identity or hello.actor[:20]}: {refused.reason}")
            self._send(peer, refused)
            return
        first = -1
        self._registration.pin(hello)
        if hello.role == "worker":
            first = self._ledger.begin(hello.worker, hello.session, hello.first)
        session = self._sessions.admit(hello, peer, first, self._now)
        if self._sessions.hear(session, peer, self._now) or known is None:
            yield from self._joined(session)
        if self._counters.has_started:
            self._welcome(session)
            return
        own, present = self._settings, len(self._sessions.live_workers())
        answer = messages.Registered(
            incarnation=own.incarnation,
            missing=max(own.min_workers - present, 0),
            model_port=own.model_port,
            update_port=own.update_port,
            hears=session.hears_models,
        )
        self._send(peer, answer)

    def _on_heartbeat(
        self, session: Session, peer: bytes, heartbeat: messages.Heartbeat
    ) -> None:
        session.note(heartbeat, self._now)
        incarnation, hears = self._settings.incarnation, session.hears_models
        self._send(peer, messages.HeartbeatAck(incarnation, self._version, hears))
        if self.is_to_stop(session):  # an earlier one may be lost
            self._send(peer, self._stop)
        self._ledger.forget(session.name, heartbeat.settled_below)
        for seq in heartbeat.unsettled:
            self._updates.answer(session, seq)

    def is_to_stop(self, session: Session) -> bool:
        """Workers stop when the shutdown begins, those that score at the farewell."""
        is_due = not self.scores(session.hello) or self._shutdown.is_farewell
        return self._shutdown.has_begun and is_due

    def _welcome(self, session: Session) -> None:
        session.welcomed_s = min(session.welcomed_s, self._now)
        own = self._settings
        message = messages.Welcome(
            run=own.run,
            incarnation=own.incarnation,
            version=self._version,
            first=max(session.first, 0),
            model_port=own.model_port,
            update_port=own.update_port,
            heartbeat_interval_s=own.runtime.heartbeat_interval_s,
            server_timeout_s=own.runtime.server_timeout_s,
        )
        self._send(session.peer, message)

    def _joined(self, session: Session) -> Iterator[Change]:
        if not session.is_worker:
            self._effects.do(p.Warn("the evaluator has joined"))
            return
        hello = session.hello
        worker, own = hello.worker, (hello.num_examples, hello.quality, hello.data)
        joined = trace.WorkerJoined(self._now, worker, session.name, *own)
        self._effects.do(p.RecordEvent(joined))
        yield programs.Joined(self._now, worker)

    def _left(self, session: Session, reason: str) -> Iterator[Change]:
        if not session.is_worker:
            self._effects.do(p.Warn(f"the evaluator has left: {reason}"))
            return
        worker = session.hello.worker
        left = trace.WorkerLeft(self._now, worker, session.name, reason)
        self._effects.do(p.RecordEvent(left))
        yield programs.Left(self._now, worker)
        yield from self._completely_scored()

    def scores(self, hello: messages.Hello) -> bool:
        """Whether this peer evaluates versions."""
        if hello.role == "worker":
            return self._settings.federated and hello.held_out > 0
        return not self._settings.federated

    def _on_scores(self, session: Session, found: messages.EvalResult) -> Iterator:
        if self._counters.has_scores(found.version):
            return  # a repeated message, or a worker that came too late for this one
        if not session.is_worker:
            yield found
        elif self._settings.metric.name in found.scores:
            worker = session.hello.worker
            self._rows[worker] = session.hello.held_out
            self._scores.add(found.version, worker, found.scores)
            yield from self._completely_scored()

    def _completely_scored(self) -> Iterator[messages.EvalResult]:
        """The scores of versions that all live workers have scored; not while they say
        goodbye, as those of the last ones are not those of all."""
        if self._shutdown.is_farewell:
            return
        hellos = [session.hello for session in self._sessions.live_workers()]
        live = [hello.worker for hello in hellos if self.scores(hello)]
        for version, found in self._scores.complete(live):
            rows = [self._rows[worker] for worker in found]
            scores = over_workers(self._settings.metric, [*found.values()], rows)
            evaluated = trace.Evaluated(self._now, version, scores, [*found])
            self._effects.do(p.RecordEvent(evaluated))
            yield messages.EvalResult("", version, scores)

    @property
    def _stop(self) -> messages.StopRun:
        return messages.StopRun(self._settings.incarnation, self._shutdown.reason)

    def _warn(self, text: str) -> None:
        if self._warnings.passes(text, self._now):
            self._effects.do(p.Warn(text))
