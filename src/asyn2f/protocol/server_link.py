"""A peer's link to its server: registration, connections, and the server it follows."""

import math
import random
from collections.abc import Callable

from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.channels import ALL, CONNECT_S, closed_ports, topic_of
from asyn2f.protocol.settings import RuntimeSettings

_HELLO_S = (0.1, 1.0)  # first and longest pause between two hellos
_INTERVAL_S = 0.001, 3600.0  # heartbeat intervals that a server may ask for
MOST_VERSIONS = 2**31
_NO_ANSWER = (
    "no answer; is a server running there, is this the first of its ports, and does "
    "a firewall let it through?"
)


class ServerLink:
    """Sends hellos until a server welcomes this peer, and again when it is lost."""

    def __init__(
        self,
        hello: messages.Hello,
        settings: RuntimeSettings,
        token: Callable[[], str],
        effects: p.EffectQueue,
    ) -> None:
        """Arguments as of `PeerProtocol`; `effects` takes the effects."""
        self.hello = hello
        self.welcome: messages.Welcome | None = None  # of the server that is followed
        self.is_welcome = False
        self.is_heard = False  # the server's subscription has arrived here
        self.hears = False  # the subscription of this peer has arrived there
        self.heard_s = effects.now
        self.hello_at_s = effects.now
        self._settings = settings
        self._token = token
        self._effects = effects
        self._random = random.Random(hello.session)  # jitter of the hellos
        self._waiting_s = effects.now
        self._hello_pause_s = _HELLO_S[0]
        self._last_refusal = self._last_warning = ""
        self._linked: tuple[int, int, int] | None = None  # incarnation and ports
        self._connected_s = math.inf

    @property
    def incarnation(self) -> int | None:
        """Of the server that is followed."""
        return None if self.welcome is None else self.welcome.incarnation

    @property
    def silence_s(self) -> float:
        """Seconds since the server was heard of last."""
        return self._effects.now - self.heard_s

    def forgive(self) -> None:
        """This process was suspended: no time has passed for its server."""
        self.heard_s = self._waiting_s = self._effects.now

    def on_tick(self) -> str:
        """Sends a hello when it is due; returns why registration has failed, or ""."""
        now, timeout_s = self._effects.now, self._settings.join_timeout_s
        if now - self._waiting_s > timeout_s:
            why = self._last_refusal or _NO_ANSWER
            return f"could not register within {timeout_s:g} s: {why}"
        if now < self.hello_at_s:
            return ""
        if why := self.cut_off():
            return why
        self._effects.do(p.Send(b"", self.hello._replace(token=self._token())))
        jitter = self._random.uniform(0.7, 1.3)
        self.hello_at_s = now + self._hello_pause_s * jitter
        self._hello_pause_s = min(self._hello_pause_s * 1.6, _HELLO_S[1])
        return ""

    def cut_off(self) -> str:
        """Why this peer gives up a server with a port that it cannot reach, or ""."""
        if self._linked is None:
            return ""
        _, *ports = self._linked
        closed = closed_ports(self.hello.role, self.hears, self.is_heard, *ports)
        since_s = self._effects.now - self._connected_s
        if not closed or since_s <= CONNECT_S:
            return ""
        why = (
            f"the server answers, but cannot be reached at {closed}: open or forward "
            "all three of its ports, the first and the two that it names"
        )
        if self._last_warning != why:
            self._last_warning = why
            self._effects.do(p.Warn(why))
        return why if since_s > self._settings.join_timeout_s else ""

    def register_again(self) -> None:
        if self.is_welcome:  # not while hellos are already being sent
            self.is_welcome = False
            self._waiting_s = self.hello_at_s = self._effects.now
            self._hello_pause_s = _HELLO_S[0]

    def on_registered(self, registered: messages.Registered) -> None:
        """Connects before the run begins, to learn whether all ports can be reached."""
        self._waiting_s = self._effects.now
        self._last_refusal = f"waiting for {registered.missing} more"
        interval_s = self._settings.heartbeat_interval_s
        self._hello_pause_s = min(_HELLO_S[1], interval_s)
        ports = registered.model_port, registered.update_port
        if self.welcome is not None or not all(0 < port < 2**16 for port in ports):
            return
        if self._linked != (registered.incarnation, *ports):
            self._connect(registered.incarnation, *ports)
        self.hears = self.hears or registered.hears

    def on_refused(self, refused: messages.Refused) -> None:
        self._last_refusal = refused.reason

    def on_welcome(self, welcome: messages.Welcome) -> bool:
        """Whether it is valid, and of another server than the one followed so far."""
        if self.is_of_the_past(welcome.run, welcome.incarnation):
            return False
        ports = welcome.model_port, welcome.update_port
        if not (
            all(0 < port < 2**16 for port in ports)
            and _INTERVAL_S[0] <= welcome.heartbeat_interval_s <= _INTERVAL_S[1]
            and 0 <= welcome.version < MOST_VERSIONS
            and welcome.first >= 0
        ):
            found = f"ports {ports}, a heartbeat interval of "
            found += f"{welcome.heartbeat_interval_s} s, version {welcome.version}, "
            self._last_refusal = (
                f"its welcome is invalid: {found}updates from {welcome.first} on"
            )
            return False
        if self.hello.first < 0:
            self.hello = self.hello._replace(first=welcome.first)
        known, self.welcome, self.is_welcome = self.welcome, welcome, True
        if known is None:
            return True
        return known != welcome._replace(version=known.version, first=known.first)

    @property
    def is_connected(self) -> bool:
        """Whether it is connected to the ports of the server that is followed."""
        return self._linked == self._wanted

    def connect(self) -> None:
        """Connects to the server that is followed."""
        self._connect(*self._wanted)

    @property
    def _wanted(self) -> tuple[int, int, int]:
        welcome = self.welcome
        assert welcome is not None
        return welcome.incarnation, welcome.model_port, welcome.update_port

    def _connect(self, incarnation: int, model_port: int, update_port: int) -> None:
        self._linked = incarnation, model_port, update_port
        self.is_heard = self.hears = False  # until both subscriptions have arrived
        self._connected_s = self._effects.now
        topics = [ALL, topic_of(self.hello.session)]
        self._effects.do(p.Connect(topics, model_port, update_port))

    def is_of_the_past(self, run: str, incarnation: int) -> bool:
        """Whether a message is of an older server than the one that is followed: late,
        or sent in ignorance of the new server."""
        now = self.welcome
        return now is not None and run == now.run and incarnation < now.incarnation

    def is_old(self, incarnation: int) -> bool:
        """`is_of_the_past` for a message without a run."""
        now = self.welcome
        return now is not None and self.is_of_the_past(now.run, incarnation)
