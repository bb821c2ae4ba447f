"""The server's side of the protocol, without I/O.

An update's life: received (a receipt goes back), checked, handed to the program, then
aggregated into a version, saved, and only then "committed"; or superseded, or rejected
with a reason. The worker keeps it until it hears the verdict. Every step can be
repeated: an update counts once however often it comes, and its verdict is told again.
"""

import math

from asyn2f import programs, trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.admission import Admission
from asyn2f.protocol.channels import (
    Channel,
    Subscribed,
)
from asyn2f.protocol.counters import RunCounters
from asyn2f.protocol.ledger import Ledger, Verdict
from asyn2f.protocol.notices import Notices
from asyn2f.protocol.pipeline import Program, VersionPipeline
from asyn2f.protocol.registration import Registration
from asyn2f.protocol.sessions import Session, SessionRegistry
from asyn2f.protocol.settings import ServerSettings
from asyn2f.protocol.shutdown import Shutdown
from asyn2f.protocol.stall import StallDetector
from asyn2f.protocol.standing import status_of
from asyn2f.protocol.status import RunStatus
from asyn2f.protocol.updates import UpdateIntake

_TICK_S = 0.25
_BACK_S = 10.0  # peers that live are back by then
_SAVE_AGAIN_S = 1.0
_SAVE_TAKES_S = 10.0  # a store that takes longer may never answer
_NO_ANSWER = (
    f"version {{}} was given to the store {_SAVE_TAKES_S:g} s ago and is not saved; no "
    "other is made before. If disk and memory are well and it does not go on, end this "
    "server, with SIGKILL if need be, and start it again with --resume"
)


class ServerProtocol:
    """Registration, updates, verdicts, announcements, and the end of a run."""

    def __init__(
        self,
        settings: ServerSettings,
        program: Program,
        first: p.VersionAggregated,
        now: float,
    ) -> None:
        """
        Args:
          settings: of this run.
          program: not yet started; its first version is the one that `first` holds.
          first: the version to begin with, already in the store.
          now: monotonic seconds.
        """
        self._settings = settings
        self._outlet = p.EffectQueue(now)
        self._do = self._outlet.do
        runtime = settings.runtime
        self._roster = SessionRegistry(
            runtime.heartbeat_timeout_s, runtime.heartbeat_interval_s
        )
        self._ledger = Ledger.restore(settings.accounting.get("ledger", {}))
        self._registration = Registration(settings, self._roster, self._ledger)
        self._notices = Notices()
        self._intake = UpdateIntake(
            settings.run,
            settings.incarnation,
            settings.replaces,
            Admission(
                settings.most_open,
                runtime.max_updates_per_s,
                runtime.heartbeat_interval_s,
            ),
            self._ledger,
            self._roster,
            self._outlet,
        )
        self._figures = RunCounters(
            settings.accounting.get("totals", {}), settings.best
        )
        self._standstill = StallDetector(
            settings.waits, settings.deadline_s, runtime.server_timeout_s
        )
        # the end
        self._ending = Shutdown()
        # time
        self._tick_s = self._began_s = now
        self._save_again_s = self._save_late_s = math.inf
        self._versions = VersionPipeline(
            program,
            first,
            runtime.publish,
            settings.replaces,
            self._outlet,
            self._save,
            self._intake.settle,
            self._publish,
        )

    @property
    def due_s(self) -> float:
        """When the next `Tick` is due, monotonic."""
        until_s = self._versions.until_s
        return self._tick_s if until_s is None else min(self._tick_s, until_s)

    @property
    def unsaved(self) -> frozenset[int]:
        """Versions given to the store, which has not answered."""
        return frozenset(self._versions.saving)

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        """What to do about an event, in this order."""
        self._outlet.now = now
        match event:
            case p.FromWire(
                Channel.UPDATE, topic, messages.UpdateHeader() as header, payload
            ):
                self._figures.bytes_up += len(topic) + len(wire_format.encode(header))
                self._figures.bytes_up += memoryview(payload).nbytes
                if self._is_from(event.identity, header.session):
                    closed = trace.TOO_LATE if self._ending.has_begun else ""
                    version = self._newest.header.version
                    refused = self._intake.receive(header, payload, version, closed)
                    if refused is not None:
                        self._on_failed(refused, header.info.base_version)
            case p.FromWire(Channel.CONTROL, peer, message):
                session = getattr(message, "session", "")
                hello = isinstance(message, messages.Hello)
                if hello or self._is_from(event.identity, session):
                    self._on_control(peer, message, event.identity)
            case Subscribed(topic):
                self._on_subscribed(topic)
            case p.UpdateValidated(key, problem):
                base = self._intake.base_of(key)
                if base is not None and self._intake.checked(key, problem):
                    self._versions.feed(programs.Arrived(now, key, base))
                elif base is not None:
                    self._on_failed((key, problem), base)
            case p.VersionAggregated():
                self._figures.incomplete += self._versions.lacking > 0
                self._versions.on_made(event)
            case p.AggregationFailed(version, reason):
                keys = self._versions.saving[version]
                bases = [self._intake.base_of(key) for key in keys]
                self._versions.on_not_made(version, reason)
                for key, base in zip(keys, bases, strict=True):
                    if base is not None:
                        self._on_failed((key, reason), base)
            case p.VersionSaved(version):
                self._save_again_s = self._save_late_s = math.inf
                saved = trace.Saved(now, version, self._settings.incarnation)
                self._do(p.RecordEvent(saved))
                self._versions.on_saved(version)
            case p.SaveFailed(_, reason):
                self._save_again_s, self._save_late_s = now + _SAVE_AGAIN_S, math.inf
                if self._ending.gives_up(now):
                    self._save_again_s = math.inf
                    self._versions.give_up(f"could not be saved: {reason}")
            case p.Replaced(reason):
                self._lower_priority(reason)
            case p.StopRequested(reason):
                self._end("interrupted", reason)
            case p.Tick():
                self._on_tick()
        self._part()
        return self._outlet.take()

    @property
    def _now(self) -> float:
        return self._outlet.now

    @property
    def _newest(self) -> p.VersionAggregated:
        return self._versions.newest

    @property
    def _stop(self) -> messages.StopRun:
        return messages.StopRun(self._settings.incarnation, self._ending.reason)

    def saved_late(self, version: int) -> list[trace.Event]:
        """What is to be written of a version that the store has answered about after
        the end, when peers have gone."""
        effects = self.on(p.VersionSaved(version), self._now)
        noted = [
            effect.event for effect in effects if isinstance(effect, p.RecordEvent)
        ]
        return [x for x in noted if isinstance(x, trace.Saved | trace.UpdateSettled)]

    # ------------------------------------------------------------- versions

    def _publish(self, first: bool) -> None:
        """Gives out the newest version; the first one goes to whoever subscribes."""
        receivers = 0
        if first:  # who was refused before that waits all the same
            self._figures.start(self._now)
            for session in self._roster:
                self._welcome(session)
        else:
            self._standstill.begin()
            hearers = [s for s in self._roster.live_workers() if s.hears_models]
            receivers = len(hearers)
            self._figures.announce(self._now)
            self._broadcast(p.ALL, receivers)
        version, size = self._newest.header.version, self._settings.num_bytes
        self._do(
            p.RecordEvent(trace.Published(self._now, version, size, receivers)),
            p.ReportVersion(
                version, *self._counted(), workers=len(self._roster.live_workers())
            ),
        )
        limit = self._settings.stop.max_versions
        if limit and version >= limit:
            self._end("finished", f"version {version} reached")

    def _save(self, version: int, keys: tuple[UpdateKey, ...]) -> None:
        ledger = self._ledger.snapshot(version, keys)
        totals = self._figures.totals(self._now)
        self._save_late_s = self._now + _SAVE_TAKES_S
        self._do(p.SaveVersion(version, {"ledger": ledger, "totals": totals}))

    def _counted(self) -> tuple[float, int, int]:
        """Seconds of the run, bytes up and down."""
        figures = self._figures
        return figures.elapsed_s(self._now), figures.bytes_up, figures.bytes_down

    def _broadcast(self, topic: bytes, receivers: int) -> None:
        header, payload = self._newest
        self._do(p.Broadcast(topic, header, payload))
        num_bytes = (
            len(topic) + len(wire_format.encode(header)) + memoryview(payload).nbytes
        )
        self._figures.bytes_down += receivers * num_bytes

    def _on_subscribed(self, topic: bytes) -> None:
        """A peer hears us from now on: it gets what there is, so that no one who joins
        late, or again, begins in silence."""
        for session in self._roster:
            if p.topic_of(session.name) != topic:
                continue
            session.hears_models = True
            if session.welcomed:
                self._broadcast(topic, receivers=int(session.is_worker))

    # ------------------------------------------------------------- peers

    def _is_from(self, identity: str, name: str) -> bool:
        """Whether a message in the name of that session comes from its own process, as
        far as the transport can tell; it is let lie otherwise."""
        session = self._roster.get(name)
        if session is None or identity in ("", session.actor):
            return True
        self._warn(f"{identity} spoke as {session.actor}; not listened to")
        return False

    def _warn(self, text: str) -> None:
        """What a peer can bring about as often as it likes is said now and then."""
        if self._notices.are_new(text, self._now):
            self._do(p.Warn(text))

    def _on_control(
        self, peer: bytes, message: messages.Message, identity: str
    ) -> None:
        if isinstance(message, messages.Hello):
            self._on_hello(peer, message, identity)
            return
        session = self._roster.get(getattr(message, "session", ""))
        if session is None:
            self._do(p.Send(peer, messages.UnknownSession(self._settings.incarnation)))
            return
        if session.replaced:
            why = f"another process is worker {session.hello.worker} now"
            self._do(p.Send(peer, messages.Refused(why, retry=False)))
            return
        if self._roster.is_held(session, peer, identity, self._now):
            if self._is_told(session):  # there may be no time to wait for its turn
                self._do(p.Send(peer, self._stop))
            return
        if self._roster.hear(session, peer, self._now):
            self._on_presence(session, programs.Joined)
        match message:
            case messages.Heartbeat():
                session.note(message, self._now)
                newest, hears = self._newest.header.version, session.hears_models
                pulse = messages.HeartbeatAck(self._settings.incarnation, newest, hears)
                self._do(p.Send(peer, pulse))
                if self._is_told(session):  # it may have missed it
                    self._do(p.Send(peer, self._stop))
                self._ledger.forget(session.name, message.settled_below)
                for seq in message.unsettled:
                    self._intake.answer(session, seq)
            case messages.FetchModel(_, version):
                if session.welcomed and version < self._newest.header.version:
                    self._broadcast(p.topic_of(session.name), int(session.is_worker))
            case messages.EvalResult(_, version):
                self._do(p.Send(peer, messages.EvalAck(version)))
                exists = 0 <= version <= self._newest.header.version
                if exists and not session.is_worker:
                    self._on_score(message)
            case messages.Goodbye(_, reason):
                self._leave(session, reason)

    def _on_hello(self, peer: bytes, hello: messages.Hello, identity: str) -> None:
        refused = self._registration.refusal(hello, peer, identity, self._now)
        known = self._roster.get(hello.session)
        is_itself = refused is None or refused.retry
        if known is not None and is_itself and self._ending.has_begun:
            self._do(p.Send(peer, self._stop))
            return
        may_score = hello.role == "evaluator" and not self._ending.is_farewell
        if self._ending.has_begun and not may_score:
            why = f"the run is over: {self._ending.reason}"
            refused = messages.Refused(why, retry=False)
        if refused is not None:
            self._warn(f"refused {identity or hello.actor[:20]}: {refused.reason}")
            self._do(p.Send(peer, refused))
            return
        first = -1
        if hello.role == "worker":
            first = self._ledger.begin(hello.worker, hello.session, hello.first)
        is_new = self._roster.get(hello.session) is None
        session = self._roster.admit(hello, peer, first, self._now)
        if self._roster.hear(session, peer, self._now) or is_new:
            self._on_presence(session, programs.Joined)
        if not self._figures.has_started:
            present = len(self._roster.live_workers())
            missing = max(self._settings.min_workers - present, 0)
            own = self._settings
            both, hears = (own.model_port, own.update_port), session.hears_models
            answer = messages.Registered(own.incarnation, missing, *both, hears)
            self._do(p.Send(peer, answer))
        else:
            self._welcome(session)

    def _is_told(self, session: Session) -> bool:
        """Whether a peer is to stop: workers at once, the evaluator at the farewell."""
        is_due = session.is_worker or self._ending.is_farewell
        return self._ending.has_begun and is_due

    def _welcome(self, session: Session) -> None:
        session.welcomed_s = min(session.welcomed_s, self._now)
        message = messages.Welcome(
            run=self._settings.run,
            incarnation=self._settings.incarnation,
            version=self._newest.header.version,
            first=max(session.first, 0),
            model_port=self._settings.model_port,
            update_port=self._settings.update_port,
            heartbeat_interval_s=self._settings.runtime.heartbeat_interval_s,
            server_timeout_s=self._settings.runtime.server_timeout_s,
        )
        self._do(p.Send(session.peer, message))

    def _on_presence(
        self,
        session: Session,
        change: type[programs.Joined] | type[programs.Left],
        reason: str = "",
    ) -> None:
        """A worker has come, come back, or gone."""
        if not session.is_worker:
            how = "joined" if change is programs.Joined else f"left: {reason}"
            self._do(p.Warn(f"the evaluator has {how}"))
            return
        worker, now = session.hello.worker, self._now
        noted: trace.Event = trace.WorkerLeft(now, worker, session.name, reason)
        if change is programs.Joined:
            examples = session.hello.num_examples
            noted = trace.WorkerJoined(now, worker, session.name, examples)
        self._do(p.RecordEvent(noted))
        self._standstill.stir(now)
        self._versions.feed(change(now, worker))

    def _on_failed(self, failed: tuple[UpdateKey, str], base: int) -> None:
        """An update cannot be used. A worker that made it of an older version has a
        newer one to go on with; of another nothing more comes in this round."""
        if base < self._newest.header.version:
            return
        key, problem = failed
        self._versions.feed(programs.Failed(self._now, key.worker))
        self._standstill.refuse(key.session, problem, self._now)
        self._look_for_standstill()

    def _look_for_standstill(self) -> None:
        is_idle = self._figures.has_started and not self._ledger.unsettled()
        reason = self._standstill.reason(self._roster, self._now) if is_idle else ""
        if reason:
            self._end("failed", reason)

    def _leave(self, session: Session, reason: str) -> None:
        if self._roster.part(session):
            self._on_presence(session, programs.Left, reason)

    def _on_score(self, scored: messages.EvalResult) -> None:
        _, version, accuracy, loss, f1 = scored
        is_best = self._figures.judge(version, accuracy, loss)
        if is_best is None:
            return
        self._do(p.ReportScore(version, accuracy, loss, f1, *self._counted(), is_best))
        target = self._settings.stop.target_accuracy
        if target and accuracy >= target:
            self._end("finished", f"accuracy {accuracy:.4f} reached at {version}")

    # ------------------------------------------------------------- time and the end

    def _on_tick(self) -> None:
        until_s = self._versions.until_s
        if until_s is not None and self._now >= until_s:
            self._versions.feed(programs.Due(self._now))
        if self._now < self._tick_s:
            return
        self._tick_s = self._now + _TICK_S
        for session in self._roster.fall_silent(self._now):
            self._on_presence(session, programs.Left, "silent")
        for session in self._roster.obsolete():
            if not session.is_worker or self._intake.end(session.name):
                self._roster.drop(session)
        ports = self._settings.model_port, self._settings.update_port
        self._do(*map(p.Warn, self._roster.unreachable(*ports, self._now)))
        self._look_for_standstill()
        if self._now >= self._save_again_s:
            self._save_again_s = math.inf
            self._versions.save_again()
        if self._now >= self._save_late_s:
            self._save_late_s = math.inf
            version = min(self._versions.saving)
            self._do(p.Warn(_NO_ANSWER.format(version)))
        is_old = self._now >= self._began_s + _BACK_S
        if is_old and not self._figures.has_started and self.status().progress >= 1.0:
            self._end("finished", "it had come to its end before it was resumed")
        limit = self._settings.stop.max_time_s
        if limit and self._figures.elapsed_s(self._now) >= limit:
            self._end("finished", f"{limit:g} s have passed")
        self._do(p.ShowStatus(self.status()))

    def _end(self, status: str, reason: str) -> None:
        """Begins the end: no new version is begun, one on its way is completed, every
        update gets its verdict, the workers stop; the evaluator may finish."""
        if self._ending.has_begun:
            return
        self._ending.begin(status, reason, self._now)
        on_its_way = self._versions.end()
        self._intake.settle_all(on_its_way, Verdict("rejected", -1, trace.TOO_LATE))
        for session in self._roster:
            if session.is_worker:
                self._do(p.Send(session.peer, self._stop))

    def _lower_priority(self, reason: str) -> None:
        """Ends at once, without a word to anybody: the run is another server's now,
        which listens where this one did if it can. Peers that do not hear it there end
        when their lease is over."""
        self._do(p.ShowStatus(self.status()), p.Finish("failed", reason))

    def _part(self) -> None:
        """The rest of the end, as far as it can go by now."""
        ending = self._ending
        if not ending.has_begun or (self._versions.saving and ending.waits(self._now)):
            return
        has_evaluator = any(s.live and not s.is_worker for s in self._roster)
        # After a resume the one that gave the scores so far may be on its way back.
        had_one = self._settings.best[1] is not None
        has_evaluator |= had_one and self._now < self._began_s + _BACK_S
        is_scored = self._figures.scored >= self._newest.header.version
        waits = self._figures.has_started and has_evaluator and not is_scored
        if ending.bid_farewell(waits, self._now):
            for session in self._roster:
                self._do(p.Send(session.peer, self._stop))
        is_alone = not any(s.live for s in self._roster)
        if ending.completes(is_alone, self._now):
            self._do(
                p.RecordEvent(trace.Stopped(self._now, "server", ending.reason)),
                p.ShowStatus(self.status()),
                p.Finish(ending.status, ending.reason),
            )

    def status(self) -> RunStatus:
        """How the run stands."""
        return status_of(
            self._settings,
            self._figures,
            self._ledger,
            self._roster,
            self._newest.header.version,
            self._ending.has_begun,
            self._now,
        )
