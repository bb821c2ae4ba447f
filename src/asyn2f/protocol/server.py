"""The server's side of the protocol, without I/O.

An update is received and acknowledged, validated, fed to the program, aggregated into a
version and saved with it; only then it is committed. Otherwise it is superseded, or
rejected with a reason. Its worker keeps it until it learns the outcome. Every step is
idempotent: an update counts once however often it arrives, and its outcome is sent as
often as its worker asks.
"""

from asyn2f import programs, trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, pipeline
from asyn2f.protocol.channels import Channel, Subscribed
from asyn2f.protocol.ledger import Ledger, Outcome
from asyn2f.protocol.membership import Change, Membership
from asyn2f.protocol.pipeline import Program, VersionPipeline
from asyn2f.protocol.sessions import SessionRegistry
from asyn2f.protocol.settings import ServerSettings
from asyn2f.protocol.shutdown import Shutdown, StallDetector
from asyn2f.protocol.status import RunCounters, RunStatus, status_of
from asyn2f.protocol.updates import UpdateIntake
from asyn2f.protocol.wire_format import published_bytes

_TICK_S = 0.25
_RETURN_S = 10.0  # after a restart, live peers are back by then


class ServerProtocol:
    """Coordinates membership, updates, versions and the shutdown of a run."""

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
        self._effects = p.EffectQueue(now)
        self._do = self._effects.do
        runtime, accounting = settings.runtime, settings.accounting
        self._sessions = SessionRegistry(
            runtime.heartbeat_timeout_s, runtime.heartbeat_interval_s
        )
        self._ledger = Ledger.restore(accounting.get("ledger", {}))
        self._updates = UpdateIntake(
            settings, self._ledger, self._sessions, self._effects
        )
        self._shutdown = Shutdown()
        self._counters = RunCounters(
            accounting.get("totals", {}), settings.metric, settings.best
        )
        self._membership = Membership(
            settings,
            self._sessions,
            self._ledger,
            self._updates,
            self._shutdown,
            self._counters,
            self._effects,
            first,
        )
        self._stall = StallDetector(
            settings.waits, settings.deadline_s, runtime.server_timeout_s
        )
        self._pipeline = VersionPipeline(
            program, first, runtime.publish, settings.replaces
        )
        self._tick_s = self._began_s = now
        self._advance()

    @property
    def due_s(self) -> float:
        """When the next `Tick` is due, monotonic."""
        until_s = self._pipeline.until_s
        return self._tick_s if until_s is None else min(self._tick_s, until_s)

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        """The effects of an event, in this order."""
        self._effects.now = now
        match event:
            case p.FromWire(Channel.UPDATE, _, messages.UpdateHeader() as header):
                self._on_update(header, event)
            case p.FromWire(Channel.CONTROL, peer, message):
                changes = self._membership.on_message(peer, message, event.identity)
                for change in changes:
                    self._on_change(change)
            case Subscribed(topic):
                self._membership.on_subscribed(topic)
            case p.UpdateValidated(key, problem):
                base = self._ledger.base_of(key)
                if self._updates.validated(key, problem):
                    assert base is not None
                    self._feed(programs.Arrived(now, key, base))
                elif base is not None:
                    self._on_failed(key, base, problem)
            case p.VersionAggregated():
                self._counters.incomplete += self._pipeline.lacking > 0
                self._pipeline.on_made(event)
            case p.AggregationFailed(version, reason):
                keys = self._pipeline.saving[version]
                bases = [self._ledger.base_of(key) for key in keys]
                self._pipeline.on_not_made(version, reason)
                self._advance()
                for key, base in zip(keys, bases, strict=True):
                    if base is not None:
                        self._on_failed(key, base, reason)
            case p.VersionSaved(version):
                saved = trace.Saved(now, version, self._settings.incarnation)
                self._do(p.RecordEvent(saved))
                self._pipeline.on_saved(version)
            case p.SaveFailed(_, reason):
                self._pipeline.on_save_failed(now)
                if self._shutdown.gives_up(now):
                    self._pipeline.give_up(f"could not be saved: {reason}")
            case p.Replaced(reason):
                # Peers follow the new server, or end after `server_timeout_s`.
                self._do(p.ShowStatus(self.status()), p.Finish("failed", reason))
            case p.StopRequested(reason):
                self._end("interrupted", reason)
            case p.Tick():
                self._on_tick()
        self._advance()
        self._continue_shutdown()
        return self._effects.take()

    def saved_late(self, version: int) -> list[trace.Event]:
        """The events of a version, if its save has succeeded only after `Finish`."""
        if version not in self._pipeline.saving:
            return []
        effects = self.on(p.VersionSaved(version), self._now)
        events = [x.event for x in effects if isinstance(x, p.RecordEvent)]
        return [x for x in events if isinstance(x, trace.Saved | trace.UpdateSettled)]

    def status(self) -> RunStatus:
        """The status of the run."""
        parts = self._settings, self._counters, self._ledger, self._sessions
        version, is_ending = self._newest.header.version, self._shutdown.has_begun
        return status_of(*parts, version, is_ending, self._now)

    @property
    def _now(self) -> float:
        return self._effects.now

    @property
    def _newest(self) -> p.VersionAggregated:
        return self._pipeline.newest

    def _feed(self, event: programs.ServerEvent) -> None:
        self._pipeline.feed(event)
        self._advance()

    def _advance(self) -> None:
        """Carries out the commands of the pipeline."""
        while (command := self._pipeline.next_command(self._now)) is not None:
            match command:
                case p.AggregateVersion():
                    self._do(command)
                case pipeline.Save(version, keys):
                    self._save(version, keys)
                case pipeline.Settle(key, outcome):
                    self._updates.settle(key, outcome)
                case pipeline.Publish(first):
                    self._publish(first)

    def _save(self, version: int, keys: tuple[UpdateKey, ...]) -> None:
        ledger = self._ledger.snapshot(version, keys)
        of_run = {"totals": self._counters.totals(self._now), **self._membership.pins()}
        self._do(p.SaveVersion(version, {"ledger": ledger, **of_run}))

    def _publish(self, first: bool) -> None:
        """Publishes the newest version; the first one is sent to new subscribers."""
        receivers, version = 0, self._newest.header.version
        self._membership.newest = self._newest
        if first:
            self._membership.start()
        else:
            self._stall.begin()
            self._counters.publish(self._now)
            receivers = self._membership.publish()
        size, workers = self._settings.num_bytes, len(self._sessions.live_workers())
        self._do(
            p.RecordEvent(trace.Published(self._now, version, size, receivers)),
            p.ReportVersion(version, *self._counters.so_far(self._now), workers),
        )
        limit = self._settings.stop.max_versions
        if limit and version >= limit:
            self._end("finished", f"version {version} reached")

    def _on_update(self, header: messages.UpdateHeader, event: p.FromWire) -> None:
        payload = event.payload
        self._counters.bytes_up += published_bytes(event.sender, header, payload)
        if not self._membership.is_from(event.identity, header.session):
            return
        closed = trace.TOO_LATE if self._shutdown.has_begun else ""
        version = self._newest.header.version
        rejected = self._updates.receive(header, payload, version, closed)
        if rejected is not None:
            key, problem = rejected
            self._on_failed(key, header.info.base_version, problem)

    def _on_change(self, change: Change) -> None:
        match change:
            case programs.Joined() | programs.Left():
                self._stall.touch(self._now)
                self._feed(change)
            case messages.EvalResult():
                self._on_score(change)

    def _on_failed(self, key: UpdateKey, base: int, problem: str) -> None:
        """An update has been rejected. If its base is the newest version, its worker
        contributes nothing else to the next one; otherwise it has a newer one."""
        if base < self._newest.header.version:
            return
        self._feed(programs.Failed(self._now, key.worker))
        self._stall.reject(key.session, problem, self._now)
        self._check_stall()

    def _check_stall(self) -> None:
        is_idle = self._counters.has_started and not self._ledger.unsettled()
        reason = self._stall.reason(self._sessions, self._now) if is_idle else ""
        if reason:
            self._end("failed", reason)

    def _on_score(self, scored: messages.EvalResult) -> None:
        _, version, scores = scored
        is_best = self._counters.score(version, scores)
        if is_best is None:
            return
        so_far = self._counters.so_far(self._now)
        self._do(p.ReportScore(version, scores, *so_far, is_best))
        metric, target = self._settings.metric, self._settings.stop.target
        value = scores[metric.name]
        if metric.reaches(value, target):
            reason = f"{metric.name} {value:.4g} reached at {version}"
            self._end("finished", reason)

    def _on_tick(self) -> None:
        until_s = self._pipeline.until_s
        if until_s is not None and self._now >= until_s:
            self._feed(programs.Due(self._now))
        if self._now < self._tick_s:
            return
        self._tick_s = self._now + _TICK_S
        for change in self._membership.on_tick():
            self._on_change(change)
        self._check_stall()
        if warning := self._pipeline.on_tick(self._now):
            self._do(p.Warn(warning))
        self._advance()
        waits = self._now < self._began_s + _RETURN_S or self._counters.has_started
        if not waits and self.status().progress >= 1.0:
            self._end("finished", "it had come to its end before it was resumed")
        limit = self._settings.stop.max_time_s
        if limit and self._counters.elapsed_s(self._now) >= limit:
            self._end("finished", f"{limit:g} s have passed")
        self._do(p.ShowStatus(self.status()))

    def _end(self, status: str, reason: str) -> None:
        """Begins the shutdown: the version in flight is completed, all other updates
        are settled, the workers stop; the evaluator may finish."""
        if self._shutdown.has_begun:
            return
        self._shutdown.begin(status, reason, self._now)
        in_flight = self._pipeline.end()
        self._updates.settle_all(in_flight, Outcome("rejected", -1, trace.TOO_LATE))
        for session in self._sessions:
            if self._membership.is_to_stop(session):
                self._membership.send_stop(session)

    def _continue_shutdown(self) -> None:
        shutdown = self._shutdown
        is_saving = self._pipeline.saving and shutdown.waits(self._now)
        if not shutdown.has_begun or is_saving:
            return
        scores = self._membership.scores
        has_evaluator = any(s.live and scores(s.hello) for s in self._sessions)
        # After a resume the evaluator that scored before may be on its way back.
        had_one = self._settings.best is not None
        has_evaluator |= had_one and self._now < self._began_s + _RETURN_S
        is_scored = self._counters.scored >= self._newest.header.version
        waits = self._counters.has_started and has_evaluator and not is_scored
        if shutdown.bid_farewell(waits, self._now):
            for session in self._sessions:
                self._membership.send_stop(session)
        is_alone = not any(s.live for s in self._sessions)
        if shutdown.completes(is_alone, self._now):
            self._do(
                p.RecordEvent(trace.Stopped(self._now, "server", shutdown.reason)),
                p.ShowStatus(self.status()),
                p.Finish(shutdown.status, shutdown.reason),
            )
