"""The mechanism a ZeroMQ server names in its greeting.

Both ends of a connection send a greeting that names their mechanism: NULL, or CURVE
with keys (ZMTP 3.1, RFC 37). libzmq closes a connection as soon as it has read another
mechanism than its own, even if its own greeting has not been sent by then. The other
end then sees a connection that broke, and cannot tell why. A server sends its whole
greeting, however, to an end that has named no mechanism yet.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

_SIGNATURE_AND_MAJOR = b"\xff" + bytes(8) + b"\x7f\x03"
_GREETING_BYTES = 64
_MECHANISM = slice(12, 32)
_TIMEOUT_S = 5.0  # of each step; as long as libzmq waits for a handshake


def mechanism_of(host: str, port: int, timeout_s: float = _TIMEOUT_S) -> str:
    """The mechanism of the server at this address: "NULL" | "CURVE", or "" if no
    greeting comes. Blocks for `timeout_s` seconds at each step at most."""
    greeting = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout_s) as door,
    ):
        door.sendall(_SIGNATURE_AND_MAJOR)
        while len(greeting) < _GREETING_BYTES:
            part = door.recv(_GREETING_BYTES - len(greeting))
            if not part:
                break
            greeting += part
    name = greeting[_MECHANISM].rstrip(b"\0")
    is_whole = len(greeting) == _GREETING_BYTES and greeting[:1] == b"\xff"
    return name.decode() if is_whole and name in (b"NULL", b"CURVE") else ""


class Inquiry:
    """Asks for a server's mechanism without blocking, one connection at a time.

    Attributes:
      found: the mechanism, once it is known; "" before.
    """

    def __init__(self, host: str, port: int, wake: Callable[[], None]) -> None:
        """`wake` is called, on another thread, when the mechanism has been found."""
        self._host, self._port, self._wake = host, port, wake
        self._thread: threading.Thread | None = None
        self.found = ""

    def ask(self) -> None:
        """Begins to ask, unless that is under way."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()

    def _ask(self) -> None:
        self.found = mechanism_of(self._host, self._port)
        if self.found:
            self._wake()
