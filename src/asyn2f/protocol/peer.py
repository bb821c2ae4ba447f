"""A peer's side of the protocol, without I/O: a worker's or an evaluator's.

A peer sends a hello until it is welcomed, sends heartbeats, takes each version that is
newer than its newest, fetches one that it has only heard of, and keeps every update (or
score) until the server has settled (or acknowledged) it, also when it registers with
another server. Updates are sent only while the peer is welcome: before, it could not
ask about them, and would not believe a server that it does not follow yet.
"""

import math
from collections.abc import Callable

from asyn2f import trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.channels import UPDATES, Channel, Subscribed
from asyn2f.protocol.outbox import Outbox, header_of
from asyn2f.protocol.server_link import MOST_VERSIONS, ServerLink
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.types import Buffer


class PeerProtocol:
    """Registers, sends heartbeats, receives versions, pushes updates or scores."""

    def __init__(
        self,
        hello: messages.Hello,
        settings: RuntimeSettings,
        now: float,
        token: Callable[[], str] = lambda: "",
    ) -> None:
        """
        Args:
          hello: of this process.
          settings: of this process.
          now: monotonic seconds.
          token: of the run, or "" if it is not known yet; called before each hello.
        """
        self._settings = settings
        self._session = hello.session
        self._effects = p.EffectQueue(now)
        self._do = self._effects.do
        self._link = ServerLink(hello, settings, token, self._effects)
        self._newest = self._newest_from = -1  # version, and its server's incarnation
        self._missed = -1  # a version heard of that has not arrived
        self._outbox = Outbox()
        self._scores: dict[int, messages.EvalResult] = {}
        self._hold_until_s = -math.inf  # backoff
        self._beat_at_s = now
        self._progress, self._progress_s = messages.NO_PROGRESS, now
        self._finished = False

    @property
    def due_s(self) -> float:
        """When the next `Tick` is due, monotonic."""
        if not self._link.is_welcome:
            return self._link.hello_at_s
        is_held = self._link.is_heard and self._now < self._hold_until_s
        return min(self._beat_at_s, self._hold_until_s if is_held else math.inf)

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        """The effects of an event, in this order."""
        self._effects.now = now
        if self._finished:
            return []
        match event:
            case p.FromWire(Channel.MODEL, _, messages.ModelHeader() as header):
                self._on_model(header, event.payload)
            case p.FromWire(Channel.CONTROL, _, message):
                self._link.heard_s = now
                self._on_control(message)
            case Subscribed(topic):
                self._link.is_heard = self._link.is_heard or topic == UPDATES
            case p.UpdateReady():
                self._keep(event)
            case p.VersionEvaluated():
                score = messages.EvalResult(self._session, *event)
                self._scores[event.version] = score
                self._send(score)
            case p.SendFailed(header):
                self._outbox.unsend(header.seq)  # tried again at the next event
                return []
            case messages.WorkerProgress():
                self._progress, self._progress_s = event, now
            case p.StopRequested(reason):
                self._leave(reason)
            case p.Tick():
                self._on_tick()
        if self._link.is_heard and not self._finished:
            self._publish_outbox()
        return self._effects.take()

    @property
    def _now(self) -> float:
        return self._effects.now

    def _send(self, message: messages.Message) -> None:
        self._do(p.Send(b"", message))

    def _on_tick(self) -> None:
        link, now, settings = self._link, self._now, self._settings
        due_s = self._beat_at_s if link.is_welcome else link.hello_at_s
        if now - due_s > settings.heartbeat_timeout_s:
            link.forgive()
        if not link.is_welcome:
            if why := link.on_tick():
                self._leave(why, "refused")
        elif link.silence_s > settings.server_timeout_s:
            silent = f"silent for {settings.server_timeout_s:g} s"
            self._leave(f"the server has been {silent}", "failed")
        elif now >= self._beat_at_s:
            if why := link.cut_off():
                self._leave(why, "refused")
            else:
                self._beat()

    def _on_welcome(self, welcome: messages.Welcome) -> None:
        was_welcome, is_first = self._link.is_welcome, self._link.welcome is None
        follows = self._link.on_welcome(welcome)
        if self._link.is_welcome and not was_welcome:
            self._beat_at_s = self._now
        if follows:
            self._follow(welcome, is_first)

    def _follow(self, welcome: messages.Welcome, is_first: bool) -> None:
        """Follows another server than before, or the first one."""
        if is_first:
            self._outbox.begin(welcome.first)
        # A version can be lost, if it was published early or is damaged; and a worker
        # that waits for the next one begins again, as this server does not know what it
        # has pushed.
        again = welcome.version == self._newest and self._is_blocked()
        if welcome.version < self._newest or again:
            self._newest = self._missed = welcome.version - 1
        self._hold_until_s = -math.inf
        self._outbox.resend_all()
        server = welcome.run, welcome.incarnation
        actor = self._link.hello.actor
        self._do(p.RecordEvent(trace.Registered(self._now, actor, *server)))
        if is_first and self._link.is_connected:
            self._send(messages.FetchModel(self._session, self._newest))
        else:
            self._link.connect()
        self._do(p.NotifyAdmitted(*server))

    def _is_blocked(self) -> bool:
        """Whether the worker waits for a newer version, and all its updates are
        settled: if the versions that contain them are lost, nothing would wake it."""
        progress = self._progress
        waits = progress.state == "waiting" and progress.base_version == self._newest
        return waits and not self._outbox.entries

    def _on_control(self, message: messages.Message) -> None:
        session, link = self._session, self._link
        match message:
            case messages.Registered():
                link.on_registered(message)
            case messages.Welcome():
                self._on_welcome(message)
            case messages.Refused(reason, retry):
                link.on_refused(message)
                if not retry:
                    self._leave(reason, "refused")
            case messages.UnknownSession():
                self._link.register_again()
            case messages.HeartbeatAck():
                self._on_heartbeat_ack(message)
            case messages.StopRun(incarnation, reason):
                if not link.is_old(incarnation):
                    self._do(p.StopWork(reason))
            case messages.UpdateReceived(name, seq):
                # One that comes while this peer registers may be of the next server,
                # for what was in flight; that server will repeat it.
                if name == session and link.is_welcome:
                    self._outbox.acknowledge(seq)
            case messages.Resend(name, seq) if name == session:
                self._outbox.resend(seq)
            case messages.Backoff(name, seq, retry_s) if name == session:
                if seq in self._outbox.entries:
                    self._outbox.resend(seq)
                    # Shorter than the time after which a server is given up.
                    pause_s = min(max(retry_s, 0.0), self._settings.server_timeout_s)
                    self._hold_until_s = self._now + pause_s
            case messages.UpdateOutcome():
                self._on_outcome(message)
            case messages.EvalAck(version):
                self._scores.pop(version, None)

    def _on_outcome(self, outcome: messages.UpdateOutcome) -> None:
        """An older server's outcome may have been lost with it, unless it committed."""
        incarnation, session, seq, kind, version, _ = outcome
        current = self._link.incarnation
        is_final = incarnation == current or kind == "committed"
        is_own = session == self._session and seq in self._outbox.entries
        if not (is_own and is_final):
            return
        del self._outbox.entries[seq]
        key = self._link.hello.worker, session, seq
        received = trace.OutcomeReceived(self._now, *key, kind, version, incarnation)
        self._do(p.RecordEvent(received))
        # The last version of the older server may be lost: the worker would wait for a
        # version that never comes.
        is_older = self._newest_from != current
        if is_older and version != self._newest and self._is_blocked():
            self._newest = self._missed = self._newest - 1
            self._send(messages.FetchModel(session, self._newest))

    def _on_heartbeat_ack(self, ack: messages.HeartbeatAck) -> None:
        if self._link.is_old(ack.incarnation) or ack.version >= MOST_VERSIONS:
            return
        if ack.incarnation != self._link.incarnation:
            self._link.register_again()
            return
        self._link.hears = self._link.hears or ack.hears
        if ack.version > self._newest:
            # The first time the model may still be in flight.
            if self._missed > self._newest:
                self._send(messages.FetchModel(self._session, self._newest))
            self._missed = ack.version

    def _on_model(self, header: messages.ModelHeader, payload: Buffer) -> None:
        welcome = self._link.welcome
        if (
            welcome is not None
            and header.run == welcome.run
            and header.incarnation == welcome.incarnation
            and self._newest < header.version < MOST_VERSIONS
        ):
            self._link.hears = True
            self._newest, self._newest_from = header.version, header.incarnation
            hello = self._link.hello
            if hello.role == "worker":
                received = trace.Received(self._now, hello.worker, header.version)
                self._do(p.RecordEvent(received))
            self._do(p.Deliver(header, payload))

    def _keep(self, update: p.UpdateReady) -> None:
        seq = self._outbox.add(update)
        key = self._link.hello.worker, self._session, seq
        self._do(p.RecordEvent(trace.Pushed(update.time_s, *key, update.info)))
        surplus = self._outbox.surplus()
        if surplus is not None:
            self._withdraw(surplus, "too many without an answer")

    def _withdraw(self, seq: int, reason: str) -> None:
        del self._outbox.entries[seq]
        key = self._link.hello.worker, self._session, seq
        settled = trace.UpdateSettled(self._now, *key, "withdrawn", -1, reason)
        self._do(p.RecordEvent(settled))

    def _publish_outbox(self) -> None:
        link, welcome = self._link, self._link.welcome
        if welcome is None or not link.is_welcome or self._now < self._hold_until_s:
            return
        for seq in self._outbox.take_unsent(self._now, welcome.heartbeat_interval_s):
            update = self._outbox.entries[seq].update
            header = header_of(update, seq, link.hello, welcome)
            self._do(p.Broadcast(UPDATES, header, update.payload))

    def _beat(self) -> None:
        link, progress, welcome = self._link, self._progress, self._link.welcome
        assert welcome is not None
        if progress.merged_s_ago >= 0:
            merged_s_ago = progress.merged_s_ago + self._now - self._progress_s
            progress = progress._replace(merged_s_ago=merged_s_ago)
        interval_s = welcome.heartbeat_interval_s
        self._beat_at_s = self._now + interval_s
        self._send(
            messages.Heartbeat(
                session=self._session,
                incarnation=welcome.incarnation,
                progress=progress,
                newest=self._newest,
                hears=link.hears,
                is_heard=link.is_heard,
                settled_below=self._outbox.settled_below,
                unsettled=self._outbox.overdue(self._now, interval_s),
            )
        )
        for score in self._scores.values():
            self._send(score)

    def _leave(self, reason: str, status: str = "finished") -> None:
        for seq in list(self._outbox.entries):  # even with a receipt: it can be lost
            self._withdraw(seq, "its worker has ended")
        self._finished = True
        self._do(
            p.RecordEvent(trace.Stopped(self._now, self._link.hello.actor, reason)),
            p.StopWork(reason),
            p.Send(b"", messages.Goodbye(self._session, reason)),
            p.Finish(status, reason),
        )
