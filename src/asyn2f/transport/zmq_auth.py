"""Who may connect to a server: its handler of ZeroMQ's authentication (ZAP, RFC 27).

The handler is a socket that the owner of all others attends to: there is no thread of
its own that could die unnoticed, and where nobody attends to it nobody comes in.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from asyn2f.errors import KeysError
from asyn2f.transport.keys import (
    AllowList,
    PeerKeys,
    ServerKeys,
)
from asyn2f.transport.zmq_options import DOMAIN, curve_options

_ENDPOINT = "inproc://zeromq.zap.01"
_REFRESH_S = 1.0
_REFRESH_FOR_STRANGERS_S = 0.05  # they may knock as often as they like
_PROBE_S = 5.0
_PARTNERS: dict[int, int] = {
    zmq.ROUTER: zmq.DEALER,
    zmq.XPUB: zmq.SUB,
    zmq.SUB: zmq.XPUB,
}
_IN = zmq.EVENT_HANDSHAKE_SUCCEEDED
_DENIED = zmq.EVENT_HANDSHAKE_FAILED_AUTH
_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class ZapHandler:
    """Lets in who has a key in the allow-list, to all sockets of one context.

    Attributes:
      refused: connections turned away since that was last said in the log.
      has_revoked: a key that could have a connection is not let in any more; whoever
        ends its connections sets this back.
    """

    def __init__(self, context: zmq.Context, keys: ServerKeys) -> None:
        self._allowed = AllowList(keys.allowed)
        self._refreshed_s = time.monotonic()
        self.refused = 0
        self.has_revoked = False
        self.socket = context.socket(zmq.ROUTER)
        self.socket.set(zmq.RCVHWM, 0)  # the library's own requests: none may be lost
        self.socket.bind(_ENDPOINT)

    def name_of(self, frame: zmq.Frame) -> str | None:
        """Whose key this frame came under, by the allow-list as it is now."""
        try:
            return self._allowed.name_of(str(frame.get("User-Id")))
        except zmq.ZMQError:  # it came under none
            return None

    def refresh(self, now: float) -> None:
        """To be called often: looks at most once a second whether keys have changed."""
        if now < self._refreshed_s + _REFRESH_S:
            return
        self._reread(now)
        if self.refused:
            logging.warning("refused %d connections with unknown keys", self.refused)
            self.refused = 0

    def answer(self) -> None:
        """Decides on all who have knocked."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            sender, empty, version, request, domain, _, _, mechanism, *rest = frames
            key = z85.encode(rest[0]).decode() if len(rest) == 1 else ""
            is_good = mechanism == b"CURVE" and domain == DOMAIN
            is_in = is_good and self._is_known(key)
            outcome = [b"200", b"OK", key.encode()] if is_in else [b"400", b"", b""]
            self.refused += not is_in
            self.socket.send_multipart([sender, empty, version, request, *outcome, b""])

    def close(self) -> None:
        self.socket.close(linger=0)

    def _is_known(self, key: str) -> bool:
        """Whether it may come in; who is refused does not try again, so that a key that
        is new is looked for first."""
        now = time.monotonic()
        is_old = now >= self._refreshed_s + _REFRESH_FOR_STRANGERS_S
        if self._allowed.name_of(key) is None and is_old:
            self._reread(now)
        return self._allowed.name_of(key) is not None

    def _reread(self, now: float) -> None:
        self._refreshed_s = now
        self.has_revoked |= self._allowed.refresh()


class _Probe(NamedTuple):
    socket: zmq.Socket
    monitor: zmq.Socket
    has_key: bool


def check_closed(
    sockets: list[zmq.Socket], keys: ServerKeys, attend: Callable[[], None]
) -> None:
    """Nothing, if strangers are turned away, with a key and without.

    Args:
      sockets: of a server, bound.
      keys: the server's.
      attend: lets the server's gate do its work; called again and again.

    Raises:
      KeysError: one was let in, or was not told no in time.
    """
    context = zmq.Context()
    context.linger = 0
    probes: dict[zmq.Socket, _Probe] = {}
    poller = zmq.Poller()
    try:
        for bound in sockets:
            for has_key in (True, False):
                probe = _knock(context, bound, keys, has_key)
                probes[probe.monitor] = probe
                poller.register(probe.monitor, zmq.POLLIN)
        deadline_s = time.monotonic() + _PROBE_S
        while probes and time.monotonic() < deadline_s:
            attend()
            for monitor, _ in poller.poll(5):
                event = parse_monitor_message(monitor.recv_multipart())["event"]
                if event == _IN:
                    raise KeysError("a stranger was let in by a probe: not serving")
                if event == _DENIED or (
                    event & _FAILED and not probes[monitor].has_key
                ):
                    poller.unregister(monitor)
                    _close(probes.pop(monitor))
        if probes:
            raise KeysError(
                f"a stranger was not turned away within {_PROBE_S:g} s by a probe: "
                "not serving, as nobody seems to look at keys"
            )
    finally:
        for probe in probes.values():
            _close(probe)
        context.term()


def _knock(
    context: zmq.Context, bound: zmq.Socket, keys: ServerKeys, has_key: bool
) -> _Probe:
    """A stranger that connects to a server's socket: under a key that nobody knows, or
    under none."""
    opened = context.socket(_PARTNERS[int(bound.get(zmq.TYPE))])
    opened.set(zmq.IPV6, 1)
    if has_key:
        _, secret = zmq.curve_keypair()
        server = zmq.curve_public(keys.secret)
        for option, value in curve_options(PeerKeys(secret, server)).items():
            opened.set(option, value)
    monitor = opened.get_monitor_socket(_IN | _DENIED | _FAILED)
    endpoint = bound.get_string(zmq.LAST_ENDPOINT)
    opened.connect(endpoint.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]"))
    return _Probe(opened, monitor, has_key)


def _close(probe: _Probe) -> None:
    probe.socket.disable_monitor()
    probe.monitor.close(linger=0)
    probe.socket.close(linger=0)
