"""Session registry and failure detector, and the conditions of registration."""

import hmac
import math
from collections.abc import Iterator
from dataclasses import dataclass

from asyn2f.protocol import messages
from asyn2f.protocol.channels import CONNECT_S, closed_ports
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.limits import Bucket
from asyn2f.protocol.settings import ServerSettings

_LIVES_PER_S, _LIVES_BURST = 0.5, 8.0  # new processes of one peer
_MOST_NAMED = 5  # settings that differ


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


class Registration:
    """Validates a `Hello` against the settings of the run."""

    def __init__(
        self, settings: ServerSettings, sessions: SessionRegistry, ledger: Ledger
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._ledger = ledger
        self._lives = Bucket(_LIVES_PER_S, _LIVES_BURST)

    def refusal(
        self, hello: messages.Hello, peer: bytes, identity: str, now: float
    ) -> messages.Refused | None:
        """The refusal of a peer, or None.

        Args:
          hello: as it came.
          peer: the connection that it came over.
          identity: the authenticated name of the peer; "" without keys.
          now: monotonic seconds.
        """
        reason = (
            self._protocol_problem(hello)
            or self._identity_problem(hello, identity)
            or self._settings_problem(hello)
        )
        if reason:
            return messages.Refused(reason, retry=False)
        reason = self._conflict(hello, peer, identity, now)
        return messages.Refused(reason, retry=True) if reason else None

    def _protocol_problem(self, hello: messages.Hello) -> str:
        if hello.protocol != messages.PROTOCOL:
            return f"protocol {hello.protocol}, the server speaks {messages.PROTOCOL}"
        if hello.role not in ("worker", "evaluator"):
            return f"role {hello.role[:20]!r}, allowed: worker, evaluator"
        return ""

    def _identity_problem(self, hello: messages.Hello, identity: str) -> str:
        if identity not in ("", hello.actor):
            return f"it registers as {hello.actor[:20]}, its key is {identity}'s"
        workers = self._settings.workers
        if hello.role == "worker" and not 0 <= hello.worker < workers:
            return f"worker {hello.worker}, the data is cut for 0..{workers - 1}"
        if hello.role == "evaluator" and hello.worker != -1:
            return f"an evaluator of number {hello.worker}, allowed: -1"
        known = self._sessions.get(hello.session)
        owner = self._ledger.owner(hello.session)
        is_anothers = owner is not None and owner != hello.worker
        if is_anothers or (known is not None and known.actor != hello.actor):
            return "its session belongs to another peer"
        is_past = hello.role == "worker" and self._ledger.is_past(
            hello.worker, hello.session, hello.first
        )
        if is_past or (known is not None and known.replaced):
            return f"another process is worker {hello.worker} now"
        return ""

    def _settings_problem(self, hello: messages.Hello) -> str:
        """What would make its numbers differ."""
        settings = self._settings
        differs = differences(hello.terms, settings.terms)
        if differs:
            return f"its settings differ from the server's: {differs}"
        if hello.fingerprint != settings.fingerprint:
            return "its model has other arrays than the server's"
        if hello.coding != settings.coding:
            return f"config.wire is {hello.coding[:50]}; the server's {settings.coding}"
        if hello.role == "worker":
            given = hello.num_examples, hello.quality
            if not (hello.num_examples > 0 and 0 < hello.quality <= 1):
                return f"{given[0]} examples of quality {given[1]}"
            if settings.shards and given != settings.shards[hello.worker]:
                examples, quality = settings.shards[hello.worker]
                return (
                    f"{given[0]} examples of quality {given[1]}, by the config "
                    f"worker {hello.worker} has {examples} of {quality}"
                )
        # The evaluator's number is -1, and its digest the last.
        if settings.data and hello.data != settings.data[hello.worker]:
            whose = f"{hello.actor}'s data" if hello.worker >= 0 else "the test data"
            return (
                f"{whose} are others than the server's: digest {hello.data[:32]}, "
                f"there {settings.data[hello.worker]}; are data set, partition file "
                "and task the same on both machines?"
            )
        return ""

    def _conflict(
        self, hello: messages.Hello, peer: bytes, identity: str, now: float
    ) -> str:
        """Why it cannot register at present."""
        token = self._settings.token
        is_known = hmac.compare_digest(hello.token.encode(), token.encode())
        if token and not is_known:
            # It may have read the token of an earlier server; then it tries again.
            return (
                "it does not present this run's token: without keys, give it the "
                "server's --workdir, where server.json holds the token"
            )
        known = self._sessions.get(hello.session)
        if known is not None:
            if self._sessions.is_held(known, peer, identity, now):
                return "its session is spoken in over another connection"
            return ""
        for other in self._sessions:
            if other.live and other.actor == hello.actor:
                who = "an evaluator" if hello.worker < 0 else f"a worker {hello.worker}"
                return f"{who} is here already"
        if self._lives.wait_s(hello.actor, now):
            return f"too many processes have registered as {hello.actor} just now"
        return ""


def differences(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """The settings that differ, with both values, in words.

    >>> differences(("a=1", "b=2"), ("a=1", "b=3", "c=4"))
    'b is 2, there 3; c is not set, there 4'
    """
    mine = dict(term.partition("=")[::2] for term in theirs)
    its = dict(term.partition("=")[::2] for term in ours)
    keys = [k for k in sorted(mine.keys() | its.keys()) if mine.get(k) != its.get(k)]
    unset = "not set"
    found = [
        f"{key} is {mine.get(key, unset)}, there {its.get(key, unset)}"
        for key in keys[:_MOST_NAMED]
    ]
    rest = len(keys) - len(found)
    return "; ".join(found) + (f"; and {rest} more" if rest else "")
