"""Rogue peers: bare sockets, with the keys that a test gives them."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from asyn2f.transport import keys
from asyn2f.transport.keys import PeerKeys
from asyn2f.transport.zmq_auth import curve_options

_IN = zmq.EVENT_HANDSHAKE_SUCCEEDED
KINDS = (zmq.DEALER, zmq.SUB, zmq.XPUB)  # for CONTROL, MODEL and UPDATE
_OUT = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


class Keyring:
    """The keys of a server and its peers."""

    def __init__(self, folder: Path, workers: int) -> None:
        keys.create(folder, keys.peers(workers))
        self.folder = folder

    @property
    def server(self) -> keys.ServerKeys:
        return keys.read_server_keys(self.folder)

    def peer(self, name: str) -> PeerKeys:
        return keys.read_peer_keys(self.folder, name)

    def unknown_key(self) -> PeerKeys:
        """A key for this server that is not in its allow-list."""
        _, secret = zmq.curve_keypair()
        return PeerKeys(secret, self.peer("evaluator").server)

    def revoke(self, name: str) -> None:
        (self.folder / "server" / "allowed" / f"{name}.public").unlink()


class RogueSockets:
    """Sockets of a separate context, closed at the end without lingering."""

    def __init__(self, keys: PeerKeys | None) -> None:
        self.context = zmq.Context()
        self._keys = keys
        self._opened: list[zmq.Socket] = []
        self._monitors: dict[zmq.Socket, zmq.Socket] = {}

    def open(self, kind: int, port: int, host: str = "127.0.0.1") -> zmq.Socket:
        """A socket that connects to this address."""
        opened = self.context.socket(kind)
        opened.linger = 0
        if self._keys is not None:
            for option, value in curve_options(self._keys).items():
                opened.set(option, value)
        self._monitors[opened] = opened.get_monitor_socket(_IN | _OUT)
        self._opened.append(opened)
        if kind == zmq.SUB:
            opened.subscribe(b"")
        opened.connect(f"tcp://{host}:{port}")
        return opened

    def was_refused(self, opened: zmq.Socket) -> bool:
        """Whether a connection of it has failed or ended since the last call."""
        return "refused" in self.outcomes(opened)

    def outcomes(self, opened: zmq.Socket) -> set[str]:
        """What its handshakes have led to since the last call: admitted, refused."""
        found = set()
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self._monitors[opened].recv_multipart(zmq.DONTWAIT)
                event = parse_monitor_message(frames)["event"]
                found.add("refused" if event & _OUT else "admitted")
        return found

    def close(self) -> None:
        for opened in self._opened:
            opened.disable_monitor()
            self._monitors[opened].close(linger=0)
            opened.close(linger=0)
        self.context.term()


@contextlib.contextmanager
def rogue_sockets(keys: PeerKeys | None) -> Iterator[RogueSockets]:
    made = RogueSockets(keys)
    try:
        yield made
    finally:
        made.close()


def speak_raw(port: int, data: bytes) -> bytes:
    """Sends bytes over TCP, and what comes back at once; then leaves."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port)) as s,
    ):
        s.settimeout(0.001)
        s.sendall(data)
        return s.recv(4096)
    return b""


class Recorder:
    """A TCP proxy in front of these ports of a server that keeps all that passes."""

    def __init__(self, ports: tuple[int, ...]) -> None:
        self.seen = bytearray()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.ports = tuple(map(self._listen, ports))

    def _listen(self, port: int) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listener)
        self._run(self._accept, listener, port)
        return listener.getsockname()[1]

    def _run(self, body: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=body, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", port))
                self._sockets += [near, far]
                self._run(self._pass_on, near, far)
                self._run(self._pass_on, far, near)

    def _pass_on(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := here.recv(65_536):
                with self._lock:
                    self.seen += data
                there.sendall(data)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()
