"""The transport over ZeroMQ; the one file that knows it."""

import contextlib
import socket
from urllib.parse import urlsplit

import zmq

from asyn2f.runtime.transport import (
    UPDATES,
    Channel,
    Frames,
    Malformed,
    Subscribed,
)
from asyn2f.runtime.wire import MAX_HEADER_BYTES, Buffer

# One place for all socket options. Heartbeats notice a host that vanished, high-water
# marks count messages, so they are small where messages are models; see BUILD_NOTES.
_COMMON = {
    zmq.LINGER: 0,
    zmq.IPV6: 1,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.RECONNECT_IVL: 200,
    zmq.RECONNECT_IVL_MAX: 1000,
    zmq.HANDSHAKE_IVL: 10_000,
}
_CONTROL = {zmq.SNDHWM: 256, zmq.RCVHWM: 256, zmq.MAXMSGSIZE: 65_536}
_SLACK_BYTES = 65_536  # a frame may be that much larger than the model's payload


class AddressError(Exception):
    """An address that cannot be used, and why."""


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; port 0 = any free one.

    Raises:
      AddressError: not such an address.

    >>> parse_address("tcp://127.0.0.1:5570")
    ('127.0.0.1', 5570)
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"address: found {address!r}: {error}") from None
    if parts.scheme != "tcp" or not host or port is None:
        raise AddressError(
            f"address: found {address!r}, expected tcp://host:port, "
            "for example tcp://127.0.0.1:5570 (port 0 = any free one)"
        )
    return host, port


def check_free(address: str) -> None:
    """Nothing, if a server can listen there at this moment.

    Raises:
      AddressError: it cannot; says why.
    """
    ZmqTransport.bind(address, payload_bytes=0, workers=1).close()


class ZmqTransport:
    """Sockets of one process; made by `bind` (a server) or `connect_to` (a peer)."""

    def __init__(self, role: str, host: str, payload_bytes: int, depth: int) -> None:
        self._role = role
        self._host = f"[{host}]" if ":" in host else host
        self._payload_bytes = payload_bytes
        self._depth = depth
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._channels: dict[zmq.Socket, Channel] = {}
        self._control: zmq.Socket | None = None
        self._published: zmq.Socket | None = None
        # A plain pair: any thread may write to it, while ZeroMQ's may not be shared.
        self._alarm, self._ring = socket.socketpair()
        self._alarm.setblocking(False)
        self._ring.setblocking(False)
        self._poller.register(self._alarm, zmq.POLLIN)

    @classmethod
    def bind(
        cls,
        address: str,
        payload_bytes: int,
        workers: int,
        ports: tuple[int, int, int] | None = None,
    ) -> "ZmqTransport":
        """A server's end, at `ports` if they are given (those of a run that goes on),
        else at the address's port and the two above it; 0 = any free ones.

        Raises:
          AddressError: not an address, or one that is in use.
        """
        host, port = parse_address(address)
        ports = ports or ((port, port + 1, port + 2) if port else (0, 0, 0))
        self = cls("server", host, payload_bytes, min(4 * workers, 256))
        try:
            self._control = self._open(Channel.CONTROL, zmq.ROUTER, ports[0])
            self._published = self._open(Channel.MODEL, zmq.XPUB, ports[1])
            self._open(Channel.UPDATE, zmq.SUB, ports[2]).subscribe(UPDATES)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"address: cannot listen at {address}, ports {ports}: "
                f"{error.strerror}; choose another port, or 0 for any free one"
            ) from None
        return self

    @classmethod
    def connect_to(cls, address: str, payload_bytes: int, depth: int) -> "ZmqTransport":
        """A peer's end; `depth` is how many models may wait to be read.

        Raises:
          AddressError: not an address.
        """
        host, port = parse_address(address)
        if port == 0:
            raise AddressError(f"address: found {address!r}, a peer needs the port")
        self = cls("peer", host, payload_bytes, depth)
        self._control = self._open(Channel.CONTROL, zmq.DEALER, port)
        return self

    def _open(self, channel: Channel, kind: int, port: int) -> zmq.Socket:
        opened = self._context.socket(kind)
        self._channels[opened] = channel
        self._poller.register(opened, zmq.POLLIN)
        for option, value in _COMMON.items():
            opened.set(option, value)
        if channel is Channel.CONTROL:
            options = _CONTROL | {zmq.BACKLOG: 1024}
            if kind == zmq.ROUTER:
                options[zmq.ROUTER_MANDATORY] = 1
        else:
            options = {zmq.MAXMSGSIZE: self._payload_bytes + _SLACK_BYTES}
            depth = 2 if channel is Channel.MODEL else 4
            if kind == zmq.SUB:
                options[zmq.RCVHWM] = max(depth, self._depth)
            else:
                options |= {zmq.SNDHWM: depth, zmq.XPUB_VERBOSE: 1}
                if channel is Channel.UPDATE:
                    options[zmq.XPUB_NODROP] = 1  # a full queue is said, not hidden
        for option, value in options.items():
            opened.set(option, value)
        if self._role == "server":
            opened.bind(f"tcp://{self._host}:{port or '*'}")
        else:
            opened.connect(f"tcp://{self._host}:{port}")
        return opened

    def ports(self) -> tuple[int, int, int]:
        found = {
            channel: urlsplit(opened.get_string(zmq.LAST_ENDPOINT)).port or 0
            for opened, channel in self._channels.items()
        }
        return (found[Channel.CONTROL], found[Channel.MODEL], found[Channel.UPDATE])

    def connect(self, topics: list[bytes], model_port: int, update_port: int) -> None:
        for opened, channel in list(self._channels.items()):
            if channel is not Channel.CONTROL:  # after a restart of the server
                self._drop(opened)
        models = self._open(Channel.MODEL, zmq.SUB, model_port)
        for topic in topics:
            models.subscribe(topic)
        self._published = self._open(Channel.UPDATE, zmq.XPUB, update_port)

    def poll(self, timeout_s: float | None) -> list[Frames | Subscribed | Malformed]:
        wait_ms = None if timeout_s is None else max(0, round(timeout_s * 1000 + 0.5))
        arrived: list[Frames | Subscribed | Malformed] = []
        for ready, _ in self._poller.poll(wait_ms):
            if isinstance(ready, zmq.Socket):
                arrived.extend(self._drain(ready))
            else:
                with contextlib.suppress(BlockingIOError):
                    self._alarm.recv(4096)
        return arrived

    def _drain(self, opened: zmq.Socket) -> list[Frames | Subscribed | Malformed]:
        """What one socket has, at most so much that the others are not kept waiting."""
        arrived: list[Frames | Subscribed | Malformed] = []
        for _ in range(64):
            try:
                frames = opened.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            read = self._read(opened, [frame.buffer for frame in frames])
            if read is not None:
                arrived.append(read)
        return arrived

    def _read(
        self, opened: zmq.Socket, parts: list[memoryview]
    ) -> Frames | Subscribed | Malformed | None:
        channel = self._channels[opened]
        if opened is self._published:
            first = bytes(parts[0][:256])
            if len(parts) == 1 and first[:1] == b"\x01":
                return Subscribed(first[1:])
            if len(parts) == 1 and first[:1] == b"\x00":
                return None  # unsubscribed: whoever it was has gone
            return Malformed(channel, "somebody spoke on a one-way channel")
        if channel is Channel.CONTROL:
            sender = bytes(parts.pop(0)) if self._role == "server" else b""
            if len(parts) == 1:
                return Frames(channel, sender, bytes(parts[0]), b"")
        elif len(parts) == 3 and len(parts[1]) <= MAX_HEADER_BYTES:
            return Frames(channel, bytes(parts[0][:128]), bytes(parts[1]), parts[2])
        return Malformed(channel, f"{len(parts)} frames, or too long a header")

    def send(self, peer: bytes, header: bytes) -> bool:
        assert self._control is not None
        frames = [peer, header] if self._role == "server" else [header]
        try:
            self._control.send_multipart(frames, zmq.DONTWAIT)
        except (zmq.Again, zmq.ZMQError):  # no room, or (ROUTER) no such peer any more
            return False
        return True

    def publish(self, topic: bytes, header: bytes, payload: Buffer) -> bool:
        if self._published is None:
            return False
        try:
            self._published.send_multipart(
                [topic, header, payload], zmq.DONTWAIT, copy=False
            )
        except zmq.Again:
            return False
        return True

    def wake(self) -> None:
        # Full means that it is ringing already; closed, that nobody listens any more.
        with contextlib.suppress(OSError):
            self._ring.send(b"\0")

    def _drop(self, opened: zmq.Socket, linger_s: float = 0.0) -> None:
        self._poller.unregister(opened)
        del self._channels[opened]
        opened.close(linger=round(linger_s * 1000))

    def close(self, linger_s: float = 0.0) -> None:
        for opened in list(self._channels):
            self._drop(opened, linger_s)
        self._context.term()
        self._alarm.close()
        self._ring.close()
