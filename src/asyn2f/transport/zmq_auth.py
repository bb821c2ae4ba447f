"""Authentication over ZeroMQ: CURVE keys, the server's ZAP handler (RFC 27), and why a
peer's handshake fails.

The ZAP handler is a socket polled by the thread that owns all others: there is no
second thread that could die unnoticed, and while nobody answers nobody is let in.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from asyn2f.protocol.messages import Refused
from asyn2f.protocol.wire_format import encode
from asyn2f.transport.keys import AllowList, PeerKeys, ServerKeys

_DOMAIN = b"asyn2f"
_ENDPOINT = "inproc://zeromq.zap.01"
_REFRESH_S = 1.0
_REFRESH_ON_UNKNOWN_S = 0.05  # unauthenticated peers may connect as often as they like


def curve_options(keys: ServerKeys | PeerKeys) -> dict[int, int | bytes]:
    """The options of a socket that only speaks to the holders of these keys."""
    own: dict[int, int | bytes] = {
        zmq.CURVE_SECRETKEY: keys.secret,
        zmq.CURVE_PUBLICKEY: zmq.curve_public(keys.secret),
    }
    if isinstance(keys, PeerKeys):
        return own | {zmq.CURVE_SERVERKEY: keys.server}
    # Without an enforced domain, a socket lets everybody in while there is no handler.
    own |= {zmq.ZAP_DOMAIN: _DOMAIN, zmq.ZAP_ENFORCE_DOMAIN: 1}
    return own | {zmq.CURVE_SERVER: 1}


class ZapHandler:
    """Authenticates the connections of all sockets of a context by the allow-list.

    Attributes:
      socket: to be polled; call `answer` when it is readable.
      has_revoked: a key that may have open connections was removed from the allow-list;
        the owner of the sockets closes them and resets this.
    """

    def __init__(self, context: zmq.Context, keys: ServerKeys) -> None:
        self._allowed = AllowList(keys.allowed)
        self._refreshed_s = time.monotonic()
        self._refused = 0  # since the last warning
        self.has_revoked = False
        self.socket = context.socket(zmq.ROUTER)
        self.socket.set(zmq.RCVHWM, 0)  # libzmq's own requests: none may be lost
        self.socket.bind(_ENDPOINT)

    def name_of(self, frame: zmq.Frame) -> str | None:
        """The peer whose key this frame was sent under, by the current allow-list."""
        try:
            return self._allowed.name_of(str(frame.get("User-Id")))
        except zmq.ZMQError:  # sent under no key
            return None

    def refresh(self, now: float) -> None:
        """To be called often: rereads the allow-list, at most once per second."""
        if now < self._refreshed_s + _REFRESH_S:
            return
        self._reread(now)
        if self._refused:
            logging.warning("refused %d connections with unknown keys", self._refused)
            self._refused = 0

    def answer(self) -> None:
        """Answers all pending requests."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            sender, empty, version, request, domain, _, _, mechanism, *rest = frames
            key = z85.encode(rest[0]).decode() if len(rest) == 1 else ""
            is_valid = mechanism == b"CURVE" and domain == _DOMAIN
            is_allowed = is_valid and self._is_known(key)
            status = [b"200", b"OK", key.encode()] if is_allowed else [b"400", b"", b""]
            self._refused += not is_allowed
            self.socket.send_multipart([sender, empty, version, request, *status, b""])

    def close(self) -> None:
        self.socket.close(linger=0)

    def _is_known(self, key: str) -> bool:
        """Whether the key is allowed. A refused peer does not try again, so for an
        unknown key the allow-list is reread first."""
        now = time.monotonic()
        is_old = now >= self._refreshed_s + _REFRESH_ON_UNKNOWN_S
        if self._allowed.name_of(key) is None and is_old:
            self._reread(now)
        return self._allowed.name_of(key) is not None

    def _reread(self, now: float) -> None:
        self._refreshed_s = now
        self.has_revoked |= self._allowed.refresh()


# ------------------------------------------------------------- a peer's handshake

# After NO_DETAIL, which is any connection that broke, libzmq reconnects; after the
# others it does not.
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_UNKNOWN_KEY = encode(
    Refused("it does not know this key: is it in keys/server/allowed?", retry=False)
)
_NEEDS_KEYS = encode(
    Refused(
        "it requires keys, and this peer has none: "
        "give their folder with --config.runtime.keys_dir",
        retry=False,
    )
)
_HAS_NO_KEYS = encode(
    Refused(
        "it has no keys, and this peer has: give keys to both or to neither "
        "(config.runtime.keys_dir)",
        retry=False,
    )
)
_SIGNATURE_AND_MAJOR = b"\xff" + bytes(8) + b"\x7f\x03"
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_TIMEOUT_S = 5.0  # of each step; as long as libzmq waits for a handshake


class RefusalMonitor:
    """Turns a peer's failed handshakes into the refusals that the server cannot send.

    Both ends of a connection send a greeting that names their mechanism: NULL, or CURVE
    with keys (ZMTP 3.1, RFC 37). libzmq closes a connection as soon as it has read
    another mechanism than its own, even if its own greeting has not been sent by then.
    The other end then sees a connection that broke, and asks for the mechanism: a
    server sends its whole greeting to an end that has named no mechanism yet.

    Attributes:
      socket: to be polled; call `read` when it is readable.
    """

    def __init__(
        self, control: zmq.Socket, host: str, port: int, wake: Callable[[], None]
    ) -> None:
        """
        Args:
          control: has its options, and is not connected yet.
          host, port: of the server.
          wake: called on another thread when `take` has something to return.
        """
        self.socket = control.get_monitor_socket(_FAILURES)
        self._control = control
        self._has_keys = control.get(zmq.MECHANISM) == zmq.CURVE
        self._address = host, port
        self._wake = wake
        self._thread: threading.Thread | None = None
        self._mechanism = ""  # of the server, once it has answered
        self._refusals: list[bytes] = []

    def read(self) -> None:
        """Reads an event. Bytes that are not ZMTP mean nothing; after a connection that
        broke, the server is asked for its mechanism, on another thread."""
        event = parse_monitor_message(self.socket.recv_multipart())
        if event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._refusals.append(_UNKNOWN_KEY)
        elif event["value"] == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self._refusals.append(self._mismatch())
        elif event["event"] == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._ask()

    def take(self) -> list[bytes]:
        """The headers of the refusals since the last call."""
        mechanism, self._mechanism = self._mechanism, ""
        if mechanism and mechanism != ("CURVE" if self._has_keys else "NULL"):
            self._refusals.append(self._mismatch())
        refusals, self._refusals = self._refusals, []
        return refusals

    def close(self) -> None:
        """To be called before the control socket is closed."""
        if not self.socket.closed:
            self._control.disable_monitor()
            self.socket.close(linger=0)

    def _mismatch(self) -> bytes:
        return _HAS_NO_KEYS if self._has_keys else _NEEDS_KEYS

    def _ask(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._find_mechanism, daemon=True)
            self._thread.start()

    def _find_mechanism(self) -> None:
        self._mechanism = mechanism_of(*self._address)
        if self._mechanism:
            self._wake()


def mechanism_of(host: str, port: int, timeout_s: float = _TIMEOUT_S) -> str:
    """The mechanism of the server at this address: "NULL" | "CURVE", or "" if no valid
    greeting arrives. Blocks for at most `timeout_s` seconds at each step."""
    greeting = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout_s) as connection,
    ):
        connection.sendall(_SIGNATURE_AND_MAJOR)
        while len(greeting) < _GREETING_BYTES:
            part = connection.recv(_GREETING_BYTES - len(greeting))
            if not part:
                break
            greeting += part
    name = greeting[_MECHANISM].rstrip(b"\0")
    is_valid = len(greeting) == _GREETING_BYTES and greeting[:1] == b"\xff"
    return name.decode() if is_valid and name in (b"NULL", b"CURVE") else ""
