"""A peer's side of the protocol, without I/O: a worker's or an evaluator's.

A peer says hello until it is welcomed, beats, takes whatever version is newer than the
newest it has, asks when it hears of one that did not come, and keeps each update (or
score) until the server has said what became of it. A server that does not know it any
more, or is another incarnation, is greeted anew; nothing kept is lost by that. Until
that one's welcome updates are held back: a peer cannot ask about them before, and would
not believe the verdict of a server that it does not follow yet.
"""

import bisect
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from asyn2f import trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, ports
from asyn2f.protocol.channels import (
    UPDATES,
    Channel,
    Subscribed,
)
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.types import Buffer

_HELLO_S = (0.1, 1.0)  # first and longest pause between two hellos
_WINDOW = 4  # updates without a verdict; one more replaces the oldest nobody has seen
_ASKED = 16  # updates that one beat asks about
_PATIENCE = 4  # beats, at most, until one is asked about of which nothing was heard
_BEAT_S = 0.001, 3600.0  # pauses between two beats that a server may ask for
_MOST = 2**31  # versions, as everywhere
_NO_ANSWER = (
    "no answer; is a server running there, is this the first of its ports, and does "
    "a firewall let it through?"
)
_IDLE = p.WorkerProgress("registered", 0, 0.0, 0.0, 0.0, -1, 0, -1.0)


@dataclass
class _Kept:
    """An update that waits for its verdict."""

    update: p.UpdateReady
    sent_s: float = math.nan  # nan = not yet
    sends: int = 0
    has_receipt: bool = False

    @property
    def patience(self) -> int:
        """Beats after which to ask. What is on its way on a bad link would be asked for
        again and again, so each time it is sent it is given twice as long."""
        return 1 if self.has_receipt else min(2 ** max(self.sends - 1, 0), _PATIENCE)


class PeerProtocol:
    """Joins, beats, receives versions, pushes updates or scores, and leaves."""

    def __init__(
        self,
        hello: messages.Hello,
        settings: RuntimeSettings,
        now: float,
        token: Callable[[], str] = lambda: "",
    ) -> None:
        """
        Args:
          hello: what it says of itself.
          settings: of this process.
          now: monotonic seconds.
          token: the run's, as far as it is known by now; asked before each hello.
        """
        self._hello = hello
        self._token = token
        self._actor = hello.actor
        self._settings = settings
        self._random = random.Random(hello.session)  # spreads out the hellos of many
        self._waiting_s = self._heard_s = self._now = now
        # joining
        self._hello_at_s = now
        self._hello_pause_s = _HELLO_S[0]
        self._last_refusal = self._last_warning = ""
        self._welcome: messages.Welcome | None = None
        self._is_welcome = False
        # models
        self._newest = self._newest_from = -1  # and the incarnation that gave it out
        self._missed = -1  # a version heard of that has not come
        # updates and scores
        self._seq = 0
        self._outbox: dict[int, _Kept] = {}
        self._asked = -1  # the last one that was asked about
        # connections but that of CONTROL
        self._linked: tuple[int, int, int] | None = None  # incarnation and ports
        self._connected_s = math.inf
        self._is_heard = False  # the server hears what is published here
        self._hears = False  # what the server publishes is heard here
        self._hold_until_s = -math.inf  # the server is busy until then
        self._scores: dict[int, messages.EvalResult] = {}
        # beats
        self._beat_at_s = now
        self._progress = _IDLE
        self._finished = False
        self._effects: list[p.Effect] = []

    @property
    def due_s(self) -> float:
        """When the next `Tick` is due, monotonic."""
        if not self._is_welcome:
            return self._hello_at_s
        is_held = self._is_heard and self._now < self._hold_until_s
        return min(self._beat_at_s, self._hold_until_s if is_held else math.inf)

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        """What to do about an event, in this order."""
        self._now, self._effects = now, []
        if self._finished:
            return []
        match event:
            case p.FromWire(
                Channel.MODEL, _, messages.ModelHeader() as header, payload
            ):
                self._on_model(header, payload)
            case p.FromWire(Channel.CONTROL, _, message):
                self._heard_s = now
                self._on_control(message)
            case Subscribed(topic):
                self._is_heard = self._is_heard or topic == UPDATES
            case p.UpdateReady():
                self._keep(event)
            case p.VersionEvaluated():
                score = messages.EvalResult(self._hello.session, *event)
                self._scores[event.version] = score
                self._send(score)
            case p.SendFailed(header):
                if header.seq in self._outbox:  # tried again at the next event
                    self._outbox[header.seq].sent_s = math.nan
                    self._outbox[header.seq].sends -= 1
                return []
            case p.WorkerProgress():
                self._progress = event
            case p.StopRequested(reason):
                self._leave(reason)
            case p.Tick():
                self._on_tick()
        if self._is_heard and not self._finished:
            self._publish_outbox()
        return self._effects

    def _do(self, *effects: p.Effect) -> None:
        self._effects.extend(effects)

    def _send(self, message: messages.Message) -> None:
        self._do(p.Send(b"", message))

    # ------------------------------------------------------------- joining

    def _on_tick(self) -> None:
        now = self._now
        due_s = self._beat_at_s if self._is_welcome else self._hello_at_s
        if (
            now - due_s > self._settings.heartbeat_timeout_s
        ):  # this process itself stood still
            self._heard_s = self._waiting_s = now
        if self._is_welcome:
            timeout_s = self._settings.server_timeout_s
            if now - self._heard_s > timeout_s:
                self._leave(f"the server has been silent for {timeout_s:g} s", "failed")
            elif now >= self._beat_at_s and not self._is_cut_off():
                self._beat()
            return
        if now - self._waiting_s > self._settings.join_timeout_s:
            why = self._last_refusal or _NO_ANSWER
            seconds = f"{self._settings.join_timeout_s:g} s"
            self._leave(f"could not register within {seconds}: {why}", "refused")
        elif now >= self._hello_at_s and not self._is_cut_off():
            self._send(self._hello._replace(token=self._token()))
            self._hello_at_s = now + self._hello_pause_s * self._random.uniform(
                0.7, 1.3
            )
            self._hello_pause_s = min(self._hello_pause_s * 1.6, _HELLO_S[1])

    def _is_cut_off(self) -> bool:
        """Whether not all of the server's ports can be reached, and this peer ends."""
        if self._linked is None:
            return False
        _, *both = self._linked
        closed = ports.closed(self._hello.role, self._hears, self._is_heard, *both)
        since_s = self._now - self._connected_s
        if not closed or since_s <= ports.OPEN_WITHIN_S:
            return False
        why = (
            f"the server answers, but cannot be reached at {closed}: open or forward "
            "all three of its ports, the first and the two that it names"
        )
        if self._last_warning != why:
            self._last_warning = why
            self._do(p.Warn(why))
        if since_s > self._settings.join_timeout_s:
            self._leave(why, "refused")
            return True
        return False

    def _greet_again(self) -> None:
        if not self._is_welcome:
            return  # all who lost their server would otherwise greet it several times
        self._is_welcome = False
        self._waiting_s = self._hello_at_s = self._now
        self._hello_pause_s = _HELLO_S[0]

    def _on_welcome(self, welcome: messages.Welcome) -> None:
        if self._is_of_the_past(welcome.run, welcome.incarnation):
            return
        both = welcome.model_port, welcome.update_port
        if not (
            all(0 < port < 2**16 for port in both)
            and _BEAT_S[0] <= welcome.heartbeat_interval_s <= _BEAT_S[1]
            and 0 <= welcome.version < _MOST
            and welcome.first >= 0
        ):
            said = f"ports {both}, a beat of {welcome.heartbeat_interval_s} s, "
            said += f"version {welcome.version}, updates from {welcome.first} on"
            self._last_refusal = f"its welcome cannot be followed: {said}"
            return
        if self._hello.first < 0:
            self._seq = max(self._seq, welcome.first)
            self._hello = self._hello._replace(first=welcome.first)
        known, self._welcome = self._welcome, welcome
        if not self._is_welcome:
            self._is_welcome = True
            self._beat_at_s = self._now
        if known is None or known != welcome._replace(
            version=known.version, first=known.first
        ):
            # A version can be lost, early or damaged; and who waits for the next one
            # begins again, as this server knows nothing of what it has pushed.
            again = welcome.version == self._newest and self._waits_for_nothing()
            if welcome.version < self._newest or again:
                self._newest = self._missed = welcome.version - 1
            self._hold_until_s = -math.inf
            for kept in self._outbox.values():
                kept.sent_s, kept.sends, kept.has_receipt = math.nan, 0, False
            noted = trace.Registered(
                self._now, self._actor, welcome.run, welcome.incarnation
            )
            self._do(p.RecordEvent(noted))
            if known is None and self._linked == (welcome.incarnation, *both):
                self._send(messages.FetchModel(self._hello.session, self._newest))
            else:
                self._connect(welcome.incarnation, *both)
            self._do(p.NotifyAdmitted(welcome.run, welcome.incarnation))

    def _try_ports(self, registered: messages.Registered) -> None:
        """Connects before the run begins: whether it can is known then."""
        incarnation, _, *both, hears = registered
        if self._welcome is not None or not all(0 < port < 2**16 for port in both):
            return
        if self._linked != (incarnation, *both):
            self._connect(incarnation, *both)
        self._hears = self._hears or hears

    def _connect(self, incarnation: int, model_port: int, update_port: int) -> None:
        self._linked = incarnation, model_port, update_port
        # Until subscriptions have come again, the server's and its own.
        self._is_heard = self._hears = False
        self._connected_s = self._now
        topics = [p.ALL, p.topic_of(self._hello.session)]
        self._do(p.Connect(topics, model_port, update_port))

    def _waits_for_nothing(self) -> bool:
        """Whether the worker waits for a newer version, and all it has pushed has its
        verdict: without the versions that those spoke of, nothing would wake it."""
        progress = self._progress
        waits = progress.state == "waiting" and progress.base_version == self._newest
        return waits and not self._outbox

    # ------------------------------------------------------------- the server speaks

    def _on_control(self, message: messages.Message) -> None:
        match message:
            case messages.Registered(_, missing):
                self._try_ports(message)
                self._waiting_s = self._now
                self._last_refusal = f"waiting for {missing} more"
                self._hello_pause_s = min(
                    _HELLO_S[1], self._settings.heartbeat_interval_s
                )
            case messages.Welcome():
                self._on_welcome(message)
            case messages.Refused(reason, retry):
                self._last_refusal = reason
                if not retry:
                    self._leave(reason, "refused")
            case messages.UnknownSession():
                self._greet_again()
            case messages.HeartbeatAck(incarnation, version, hears):
                self._on_pulse(incarnation, version, hears)
            case messages.StopRun(incarnation, reason):
                if not self._is_old(incarnation):
                    self._do(p.StopWork(reason))
            case messages.UpdateReceived(session, seq):
                # One that comes during a greeting may be the next server's, for what
                # waited on the connection; that server has to give it again.
                is_own = session == self._hello.session and seq in self._outbox
                if is_own and self._is_welcome:
                    self._outbox[seq].has_receipt = True
            case messages.Resend(session, seq):
                if session == self._hello.session and seq in self._outbox:
                    self._outbox[seq].sent_s = math.nan
            case messages.Backoff(session, seq, retry_s):
                if session == self._hello.session and seq in self._outbox:
                    self._outbox[seq].sent_s = math.nan
                    # What a server may ask for ends before it is given up.
                    pause_s = min(max(retry_s, 0.0), self._settings.server_timeout_s)
                    self._hold_until_s = self._now + pause_s
            case messages.UpdateOutcome():
                self._on_verdict(message)
            case messages.EvalAck(version):
                self._scores.pop(version, None)

    def _on_verdict(self, verdict: messages.UpdateOutcome) -> None:
        """An older server's verdict may have died with it, unless it committed."""
        incarnation, session, seq, word, version, _ = verdict
        is_current = self._welcome and incarnation == self._welcome.incarnation
        is_true = is_current or word == "committed"
        if session == self._hello.session and is_true and seq in self._outbox:
            del self._outbox[seq]
            key = self._hello.worker, session, seq
            heard = trace.OutcomeReceived(self._now, *key, word, version, incarnation)
            self._do(p.RecordEvent(heard))
            # What the older server gave out last may be lost: the worker would wait for
            # a version that nothing brings about.
            current = -1 if self._welcome is None else self._welcome.incarnation
            is_older = self._newest_from != current
            if is_older and version != self._newest and self._waits_for_nothing():
                self._newest = self._missed = self._newest - 1
                self._send(messages.FetchModel(session, self._newest))

    def _is_of_the_past(self, run: str, incarnation: int) -> bool:
        """Whether an older server than the present one says so: late, or because it
        does not know that it has a successor."""
        now = self._welcome
        return now is not None and run == now.run and incarnation < now.incarnation

    def _is_old(self, incarnation: int) -> bool:
        """The same of a message that names no run."""
        now = self._welcome
        return now is not None and self._is_of_the_past(now.run, incarnation)

    def _on_pulse(self, incarnation: int, version: int, hears: bool) -> None:
        if self._is_old(incarnation) or version >= _MOST:
            return
        if self._welcome is None or incarnation != self._welcome.incarnation:
            self._greet_again()
            return
        self._hears = self._hears or hears
        if version > self._newest:
            # Once may be the model still on its way; the second time, ask.
            if self._missed > self._newest:
                self._send(messages.FetchModel(self._hello.session, self._newest))
            self._missed = version

    def _on_model(self, header: messages.ModelHeader, payload: Buffer) -> None:
        welcome = self._welcome
        if (
            welcome is not None
            and header.run == welcome.run
            and header.incarnation == welcome.incarnation
            and self._newest < header.version < _MOST
        ):
            self._hears = True
            self._newest, self._newest_from = header.version, header.incarnation
            if self._hello.role == "worker":
                received = trace.Received(self._now, self._hello.worker, header.version)
                self._do(p.RecordEvent(received))
            self._do(p.Deliver(header, payload))

    # ------------------------------------------------------------- updates and beats

    def _keep(self, update: p.UpdateReady) -> None:
        seq, self._seq = self._seq, self._seq + 1
        self._outbox[seq] = _Kept(update)
        key = self._hello.worker, self._hello.session, seq
        self._do(p.RecordEvent(trace.Pushed(update.time_s, *key, update.info)))
        unseen = [seq for seq, kept in self._outbox.items() if not kept.has_receipt]
        if len(self._outbox) > _WINDOW and unseen[0] != seq:
            self._withdraw(unseen[0], "too many without an answer")

    def _withdraw(self, seq: int, reason: str) -> None:
        del self._outbox[seq]
        hello = self._hello
        self._do(
            p.RecordEvent(
                trace.UpdateSettled(
                    self._now, hello.worker, hello.session, seq, "withdrawn", -1, reason
                )
            )
        )

    def _publish_outbox(self) -> None:
        """To a server that this peer is welcome at. What is sent again goes one by one:
        a link that is cut loses all that is on its way."""
        welcome = self._welcome
        if welcome is None or not self._is_welcome or self._now < self._hold_until_s:
            return
        for seq, kept in self._outbox.items():
            busy = kept.sends and any(map(self._is_on_its_way, self._outbox.values()))
            if math.isnan(kept.sent_s) and not busy:
                kept.sent_s = self._now
                kept.sends += 1
                header = self._header_of(welcome, seq, kept.update)
                self._do(p.Broadcast(UPDATES, header, kept.update.payload))

    def _header_of(
        self, welcome: messages.Welcome, seq: int, update: p.UpdateReady
    ) -> messages.UpdateHeader:
        return messages.UpdateHeader(
            run=welcome.run,
            incarnation=welcome.incarnation,
            worker=self._hello.worker,
            session=self._hello.session,
            seq=seq,
            info=update.info,
            fingerprint=update.fingerprint,
            num_bytes=update.num_bytes,
            digest=update.digest,
            base=update.base,
        )

    def _is_on_its_way(self, kept: _Kept) -> bool:
        """Whether an answer may still come to what was sent."""
        assert self._welcome is not None
        waits_s = self._now - kept.sent_s  # nan = not sent: no
        return (
            not kept.has_receipt
            and waits_s <= kept.patience * self._welcome.heartbeat_interval_s
        )

    def _beat(self) -> None:
        assert self._welcome is not None
        heartbeat_interval_s, progress = (
            self._welcome.heartbeat_interval_s,
            self._progress,
        )
        self._beat_at_s = self._now + heartbeat_interval_s
        merged_s_ago = -1.0 if progress.merged_s < 0 else self._now - progress.merged_s
        self._send(
            messages.Heartbeat(
                session=self._hello.session,
                incarnation=self._welcome.incarnation,
                state=progress.state,
                step=progress.step,
                epoch=progress.epoch,
                loss=progress.loss,
                metric=progress.metric,
                base_version=progress.base_version,
                newest=self._newest,
                merges=progress.merges,
                merged_s_ago=merged_s_ago,
                hears=self._hears,
                is_heard=self._is_heard,
                settled_below=min(self._outbox, default=self._seq),
                unsettled=self._overdue(heartbeat_interval_s),
            )
        )
        for score in self._scores.values():
            self._send(score)

    def _overdue(self, heartbeat_interval_s: float) -> tuple[int, ...]:
        """The updates to ask about now. Where one beat has no room for all of them they
        take turns: the oldest may well be those that the server is still to settle."""
        overdue = [
            seq
            for seq, kept in self._outbox.items()
            if self._now - kept.sent_s > kept.patience * heartbeat_interval_s
        ]
        if len(overdue) > _ASKED:
            place = bisect.bisect(overdue, self._asked)
            overdue = (overdue[place:] + overdue[:place])[:_ASKED]
            self._asked = overdue[-1]
        return tuple(overdue)

    def _leave(self, reason: str, status: str = "finished") -> None:
        for seq in list(self._outbox):  # who gave a receipt may be dead by now
            self._withdraw(seq, "its worker has ended")
        self._finished = True
        self._do(
            p.RecordEvent(trace.Stopped(self._now, self._actor, reason)),
            p.StopWork(reason),
            p.Send(b"", messages.Goodbye(self._hello.session, reason)),
            p.Finish(status, reason),
        )
