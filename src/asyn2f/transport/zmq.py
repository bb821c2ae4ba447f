"""The transport over ZeroMQ."""

import contextlib
import socket
import time
from urllib.parse import urlsplit

import zmq

from asyn2f.errors import AddressError
from asyn2f.protocol.channels import (
    UPDATES,
    Arrival,
    Channel,
    Frames,
    Malformed,
    Subscribed,
    Unsubscribed,
)
from asyn2f.protocol.wire_format import MAX_HEADER_BYTES
from asyn2f.transport.base import check_safe, parse_address
from asyn2f.transport.keys import PeerKeys, ServerKeys
from asyn2f.transport.zmq_auth import RefusalMonitor, ZapHandler, curve_options
from asyn2f.transport.zmq_limits import (
    ConnectionLimiter,
    max_connections,
    socket_options,
)
from asyn2f.types import Buffer

_REBIND_S = 0.02  # between two attempts to bind a port that was just released
_MAX_DRAINED = 64  # messages of one socket before the others have their turn


def check_free(
    address: str, keys: ServerKeys | None = None, insecure: bool = False
) -> None:
    """Raises AddressError unless a server can listen at this address at this moment."""
    ZmqTransport.bind(address, 0, workers=1, keys=keys, insecure=insecure).close()


class ZmqTransport:
    """Sockets of one process; made by `bind` (a server) or `connect_to` (a peer)."""

    def __init__(
        self,
        role: str,
        host: str,
        payload_bytes: int,
        depth: int,
        keys: ServerKeys | PeerKeys | None,
    ) -> None:
        self._role = role
        self._host = f"[{host}]" if ":" in host else host
        self._payload_bytes = payload_bytes
        self._depth = depth
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._channels: dict[zmq.Socket, Channel] = {}
        self._control: zmq.Socket | None = None
        self._published: zmq.Socket | None = None
        self._subscribed: zmq.Socket | None = None
        self._curve = {} if keys is None else curve_options(keys)
        self._zap: ZapHandler | None = None  # a server's
        self._limiter: ConnectionLimiter | None = None  # a server's
        self._ports = (0, 0, 0)  # a server's
        self._refusals: RefusalMonitor | None = None  # a peer's
        # A plain socket pair: ZeroMQ's sockets may not be shared between threads.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._poller.register(self._wake_reader, zmq.POLLIN)
        if isinstance(keys, ServerKeys):  # before any socket is bound
            self._zap = ZapHandler(self._context, keys)
            self._poller.register(self._zap.socket, zmq.POLLIN)

    @classmethod
    def bind(
        cls,
        address: str,
        payload_bytes: int,
        workers: int,
        ports: tuple[int, int, int] | None = None,
        keys: ServerKeys | None = None,
        insecure: bool = False,
    ) -> "ZmqTransport":
        """A server's end, at `ports` if given (those of a resumed run), else at the
        address's port and the two above it; 0 = any free ones.

        Raises:
          AddressError: not an address, one in use, or one that other machines can
            reach, without keys and not `insecure`.
        """
        check_safe(address, keys is not None, insecure)
        host, port = parse_address(address)
        ports = ports or ((port, port + 1, port + 2) if port else (0, 0, 0))
        self = cls("server", host, payload_bytes, min(4 * workers, 256), keys)
        self._limiter = ConnectionLimiter(max_connections(workers + 1))
        try:
            self._control = self._open(Channel.CONTROL, zmq.ROUTER, ports[0])
            self._published = self._open(Channel.MODEL, zmq.XPUB, ports[1])
            self._subscribed = self._open(Channel.UPDATE, zmq.SUB, ports[2])
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"address: cannot listen at {address}, ports {ports}: "
                f"{error.strerror}; choose another port, or 0 for any free one"
            ) from None
        self._ports = self._bound_ports()
        self.subscribe([UPDATES])
        return self

    @classmethod
    def connect_to(
        cls,
        address: str,
        payload_bytes: int,
        depth: int,
        keys: PeerKeys | None = None,
        insecure: bool = False,
    ) -> "ZmqTransport":
        """A peer's end; `depth` is the number of models queued for reading.

        Raises:
          AddressError: not an address, or one on another machine, without keys and
            not `insecure`.
        """
        check_safe(address, keys is not None, insecure)
        host, port = parse_address(address)
        if port == 0:
            raise AddressError(f"address: found {address!r}, a peer needs the port")
        self = cls("peer", host, payload_bytes, depth, keys)
        self._control = self._open(Channel.CONTROL, zmq.DEALER, port)
        return self

    def _open(self, channel: Channel, kind: int, port: int) -> zmq.Socket:
        opened = self._context.socket(kind)
        self._channels[opened] = channel
        self._poller.register(opened, zmq.POLLIN)
        options = socket_options(channel, kind, self._payload_bytes, self._depth)
        for option, value in (options | self._curve).items():
            opened.set(option, value)
        if self._role == "server":
            if self._limiter is not None:
                monitor = self._limiter.watch(opened, self._context)
                self._poller.register(monitor, zmq.POLLIN)
            opened.bind(f"tcp://{self._host}:{port or '*'}")
        else:
            if channel is Channel.CONTROL:  # before it can be refused
                host = self._host.strip("[]")
                self._refusals = RefusalMonitor(opened, host, port, self.wake)
                self._poller.register(self._refusals.socket, zmq.POLLIN)
            opened.connect(f"tcp://{self._host}:{port}")
        return opened

    def ports(self) -> tuple[int, int, int]:
        return self._ports

    def _bound_ports(self) -> tuple[int, int, int]:
        found = {
            channel: urlsplit(opened.get_string(zmq.LAST_ENDPOINT)).port or 0
            for opened, channel in self._channels.items()
        }
        return (found[Channel.CONTROL], found[Channel.MODEL], found[Channel.UPDATE])

    def connect(self, topics: list[bytes], model_port: int, update_port: int) -> None:
        for opened, channel in list(self._channels.items()):
            if channel is not Channel.CONTROL:  # after a restart of the server
                self._drop(opened)
        self._subscribed = self._open(Channel.MODEL, zmq.SUB, model_port)
        self.subscribe(topics)
        self._published = self._open(Channel.UPDATE, zmq.XPUB, update_port)

    def subscribe(self, topics: list[bytes]) -> None:
        assert self._subscribed is not None
        for topic in topics:
            self._subscribed.subscribe(topic)

    def poll(self, timeout_s: float | None) -> list[Arrival]:
        if self._role == "server" and self._published is None:
            self._reopen_models()
            timeout_s = _REBIND_S if timeout_s is None else min(_REBIND_S, timeout_s)
        wait_ms = None if timeout_s is None else max(0, round(timeout_s * 1000 + 0.5))
        arrived: list[Arrival] = []
        for ready, _ in self._poller.poll(wait_ms):
            if self._zap is not None and ready is self._zap.socket:
                self._zap.answer()
            elif self._refusals is not None and ready is self._refusals.socket:
                self._refusals.read()
            elif self._limiter is not None and self._limiter.has(ready):
                self._limiter.read(ready)
            elif isinstance(ready, zmq.Socket):
                arrived.extend(self._drain(ready))
            else:
                with contextlib.suppress(BlockingIOError):
                    self._wake_reader.recv(4096)
        if self._refusals is not None:
            for header in self._refusals.take():
                arrived.append(Frames(Channel.CONTROL, b"", header, b""))
        if self._zap is not None:
            self._zap.refresh(time.monotonic())
            if self._zap.has_revoked and self._published is not None:
                # Ends all connections for models, as one of them is under a revoked
                # key: the other peers reconnect, and get the newest version.
                self._zap.has_revoked = False
                self._drop(self._published)
                self._published = None
                arrived.append(Unsubscribed(None))
        return arrived

    def _reopen_models(self) -> None:
        """Opens the socket for models again, as soon as its port is free."""
        try:
            self._published = self._open(Channel.MODEL, zmq.XPUB, self._ports[1])
        except zmq.ZMQError:
            opened = next(x for x, c in self._channels.items() if c is Channel.MODEL)
            self._drop(opened)

    def _drain(self, opened: zmq.Socket) -> list[Arrival]:
        """What one socket has received, up to a limit that is fair to the others."""
        arrived: list[Arrival] = []
        for _ in range(_MAX_DRAINED):
            try:
                frames = opened.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            identity = self._zap.name_of(frames[-1]) if self._zap is not None else ""
            if identity is None:
                arrived.append(Malformed(self._channels[opened], "a revoked key"))
            else:
                buffers = [frame.buffer for frame in frames]
                arrived.append(self._read(opened, buffers, identity))
        return arrived

    def _read(
        self, opened: zmq.Socket, parts: list[memoryview], identity: str
    ) -> Arrival:
        channel = self._channels[opened]
        if opened is self._published:
            first = bytes(parts[0][:256])
            if len(parts) == 1 and first[:1] in (b"\x00", b"\x01"):
                begins = first[:1] == b"\x01"
                return Subscribed(first[1:]) if begins else Unsubscribed(first[1:])
            return Malformed(channel, "a message on a one-way channel")
        if channel is Channel.CONTROL:
            sender = bytes(parts.pop(0)) if self._role == "server" else b""
            if len(parts) == 1:
                return Frames(channel, sender, bytes(parts[0]), b"", identity)
        elif len(parts) == 3 and len(parts[1]) <= MAX_HEADER_BYTES:
            topic, header = bytes(parts[0][:128]), bytes(parts[1])
            return Frames(channel, topic, header, parts[2], identity)
        return Malformed(channel, f"{len(parts)} frames, or too long a header")

    def send(self, peer: bytes, header: bytes) -> bool:
        assert self._control is not None
        frames = [peer, header] if self._role == "server" else [header]
        try:
            self._control.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError:  # the queue is full, or (ROUTER) there is no such peer
            return False
        return True

    def publish(self, topic: bytes, header: bytes, payload: Buffer) -> bool:
        if self._published is None:
            return False
        try:
            frames = [topic, header, payload]
            self._published.send_multipart(frames, zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        return True

    def wake(self) -> None:
        # Full: a wake-up is pending already; closed: there is no reader any more.
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"\0")

    def _drop(self, opened: zmq.Socket, linger_s: float = 0.0) -> None:
        self._poller.unregister(opened)
        del self._channels[opened]
        monitor = self._limiter.forget(opened) if self._limiter else None
        if monitor is not None:
            self._poller.unregister(monitor)
            monitor.close(linger=0)
        opened.close(linger=round(linger_s * 1000))

    def close(self, linger_s: float = 0.0) -> None:
        if self._refusals is not None:
            self._refusals.close()
        for opened in list(self._channels):
            self._drop(opened, linger_s)
        if self._zap is not None:
            self._zap.close()
        self._context.term()
        self._wake_reader.close()
        self._wake_writer.close()
