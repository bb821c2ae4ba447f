"""The transport over ZeroMQ."""

import contextlib
import socket
import time
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import parse_monitor_message

from asyn2f.errors import AddressError
from asyn2f.protocol.channels import (
    UPDATES,
    Channel,
    Frames,
    Malformed,
    Subscribed,
)
from asyn2f.protocol.messages import (
    Refused,
)
from asyn2f.protocol.wire_format import (
    MAX_HEADER_BYTES,
    encode,
)
from asyn2f.transport.addresses import (
    check_safe,
    parse_address,
)
from asyn2f.transport.keys import PeerKeys, ServerKeys
from asyn2f.transport.shared_memory import (
    ShmPublisher,
    ShmSubscriber,
    is_question,
    is_shared,
    pays,
    question,
    shared,
    unshared,
)
from asyn2f.transport.zmq_auth import ZapHandler, check_closed
from asyn2f.transport.zmq_doorkeeper import Doorkeeper, most_of
from asyn2f.transport.zmq_greeting import Inquiry
from asyn2f.transport.zmq_options import curve_options, socket_options
from asyn2f.types import Buffer

_PORT_FREE_S = 0.02  # between two attempts to bind a port that was just given up
# What a server's door says by staying shut. After NO_DETAIL, which is any connection
# that broke, the sockets connect again; after the others they do not.
_SHUT = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_UNKNOWN_KEY = encode(
    Refused("it does not know this key: is it in keys/server/allowed?", retry=False)
)
_WANTS_KEYS = encode(
    Refused(
        "it lets in only who has a key, and none is given here: "
        "say where it is with --config.runtime.keys_dir",
        retry=False,
    )
)
_HAS_NO_KEYS = encode(
    Refused(
        "it has no keys, and one is given here: give keys to both or to neither "
        "(config.runtime.keys_dir)",
        retry=False,
    )
)


def check_free(
    address: str, keys: ServerKeys | None = None, insecure: bool = False
) -> None:
    """Nothing, if a server can listen there at this moment.

    Raises:
      AddressError: it cannot; says why.
      KeysError: its keys do not keep strangers out.
    """
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
        self._curve = {} if keys is None else curve_options(keys)
        self._gate: ZapHandler | None = None
        self._doorkeeper: Doorkeeper | None = None  # a server's
        self._ports = (0, 0, 0)  # a server's
        self._denied: zmq.Socket | None = None  # says when a server's door stays shut
        self._inquiry: Inquiry | None = None  # a peer's
        # Where peers share a machine; see shared_memory.
        self._lender: ShmPublisher | None = None  # a server's
        self._borrower: ShmSubscriber | None = None  # a peer's
        self._topics: list[bytes] = []  # that a peer hears
        self._shares_memory = False
        # A plain pair: any thread may write to it, while ZeroMQ's may not be shared.
        self._alarm, self._ring = socket.socketpair()
        self._alarm.setblocking(False)
        self._ring.setblocking(False)
        self._poller.register(self._alarm, zmq.POLLIN)
        if isinstance(keys, ServerKeys):  # before any socket is bound
            self._gate = ZapHandler(self._context, keys)
            self._poller.register(self._gate.socket, zmq.POLLIN)

    @classmethod
    def bind(
        cls,
        address: str,
        payload_bytes: int,
        workers: int,
        ports: tuple[int, int, int] | None = None,
        keys: ServerKeys | None = None,
        insecure: bool = False,
        shared_memory: bool = False,
    ) -> "ZmqTransport":
        """A server's end, at `ports` if they are given (those of a run that goes on),
        else at the address's port and the two above it; 0 = any free ones. With
        `shared_memory` it offers peers on its machine to pass large payloads there.

        Raises:
          AddressError: not an address, one that is in use, or one that others can
            reach, without keys and not `insecure`.
          KeysError: strangers are let in in spite of the keys.
        """
        check_safe(address, keys is not None, insecure)
        host, port = parse_address(address)
        ports = ports or ((port, port + 1, port + 2) if port else (0, 0, 0))
        self = cls("server", host, payload_bytes, min(4 * workers, 256), keys)
        self._doorkeeper = Doorkeeper(most_of(workers + 1))
        try:
            self._control = self._open(Channel.CONTROL, zmq.ROUTER, ports[0])
            self._published = self._open(Channel.MODEL, zmq.XPUB, ports[1])
            updates = self._open(Channel.UPDATE, zmq.SUB, ports[2])
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"address: cannot listen at {address}, ports {ports}: "
                f"{error.strerror}; choose another port, or 0 for any free one"
            ) from None
        self._ports = self._bound_ports()
        updates.subscribe(UPDATES)
        if shared_memory:
            self._lender = ShmPublisher.create(
                payload_bytes, workers + 1
            )  # an evaluator
        if self._lender is not None:
            updates.subscribe(shared(UPDATES))
        if keys is not None and self._gate is not None:
            try:
                check_closed(list(self._channels), keys, self._gate.answer)
            except BaseException:
                self.close()
                raise
            self._gate.refused = 0
        return self

    @classmethod
    def connect_to(
        cls,
        address: str,
        payload_bytes: int,
        depth: int,
        keys: PeerKeys | None = None,
        insecure: bool = False,
        shared_memory: bool = False,
    ) -> "ZmqTransport":
        """A peer's end; `depth` is how many models may wait to be read. With
        `shared_memory` it takes what a server on its machine offers.

        Raises:
          AddressError: not an address, or one on another machine, without keys and
            not `insecure`.
        """
        check_safe(address, keys is not None, insecure)
        host, port = parse_address(address)
        if port == 0:
            raise AddressError(f"address: found {address!r}, a peer needs the port")
        self = cls("peer", host, payload_bytes, depth, keys)
        self._shares_memory = shared_memory and pays(payload_bytes)
        self._inquiry = Inquiry(host, port, self.wake)
        self._control = self._open(Channel.CONTROL, zmq.DEALER, port)
        return self

    def _open(self, channel: Channel, kind: int, port: int) -> zmq.Socket:
        opened = self._context.socket(kind)
        self._channels[opened] = channel
        self._poller.register(opened, zmq.POLLIN)
        said = socket_options(channel, kind, self._payload_bytes, self._depth)
        for option, value in (said | self._curve).items():
            opened.set(option, value)
        if self._role == "server":
            if self._doorkeeper is not None:
                monitor = self._doorkeeper.watch(opened, self._context)
                self._poller.register(monitor, zmq.POLLIN)
            opened.bind(f"tcp://{self._host}:{port or '*'}")
        else:
            if channel is Channel.CONTROL:  # before it can be refused
                self._denied = opened.get_monitor_socket(_SHUT)
                self._poller.register(self._denied, zmq.POLLIN)
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
        models = self._open(Channel.MODEL, zmq.SUB, model_port)
        self._topics = list(topics)
        self._return_memory()
        # Who asks hears its topics when it knows how: nothing comes twice meanwhile.
        for topic in [question()] if self._shares_memory else topics:
            models.subscribe(topic)
        self._published = self._open(Channel.UPDATE, zmq.XPUB, update_port)

    def poll(self, timeout_s: float | None) -> list[Frames | Subscribed | Malformed]:
        if self._role == "server" and self._published is None:
            self._publish_anew()
            timeout_s = min(
                _PORT_FREE_S, _PORT_FREE_S if timeout_s is None else timeout_s
            )
        wait_ms = None if timeout_s is None else max(0, round(timeout_s * 1000 + 0.5))
        arrived: list[Frames | Subscribed | Malformed] = []
        for ready, _ in self._poller.poll(wait_ms):
            if self._gate is not None and ready is self._gate.socket:
                self._gate.answer()
            elif ready is self._denied:
                header = self._why_shut(self._denied.recv_multipart())
                if header:
                    arrived.append(Frames(Channel.CONTROL, b"", header, b""))
            elif self._doorkeeper is not None and self._doorkeeper.has(ready):
                self._doorkeeper.attend(ready)
            elif isinstance(ready, zmq.Socket):
                arrived.extend(self._drain(ready))
            else:
                with contextlib.suppress(BlockingIOError):
                    self._alarm.recv(4096)
        if self._inquiry is not None and self._inquiry.found:
            mechanism, self._inquiry.found = self._inquiry.found, ""
            if mechanism != ("CURVE" if self._curve else "NULL"):
                header = self._why_not_alike()
                arrived.append(Frames(Channel.CONTROL, b"", header, b""))
        if self._gate is not None:
            self._gate.refresh(time.monotonic())
            if self._gate.has_revoked and self._published is not None:
                self._gate.has_revoked = False
                self._part_from_all()
        return arrived

    def _part_from_all(self) -> None:
        """Ends all connections for models, as one of them is under a key that has been
        revoked: the others come again, and are let in, and get the newest version."""
        assert self._published is not None
        self._drop(self._published)
        self._published = None
        if self._lender is not None:
            self._lender.begin_again()

    def _publish_anew(self) -> None:
        """Opens the socket for models again, as soon as its port is free."""
        try:
            self._published = self._open(Channel.MODEL, zmq.XPUB, self._ports[1])
        except zmq.ZMQError:
            opened = next(x for x, c in self._channels.items() if c is Channel.MODEL)
            self._drop(opened)

    def _why_shut(self, frames: list[bytes]) -> bytes:
        """The refusal in a monitor's message; b"" = garbage came, of which nothing
        follows, or the connection broke, and the server is asked whether it would have
        refused (see `zmq_greeting`)."""
        said = parse_monitor_message(frames)
        if said["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return _UNKNOWN_KEY
        if said["value"] == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            return self._why_not_alike()
        is_broken = said["event"] == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        if is_broken and self._inquiry is not None:
            self._inquiry.ask()
        return b""

    def _why_not_alike(self) -> bytes:
        """The refusal where only one side has keys."""
        return _HAS_NO_KEYS if self._curve else _WANTS_KEYS

    def _drain(self, opened: zmq.Socket) -> list[Frames | Subscribed | Malformed]:
        """What one socket has, at most so much that the others are not kept waiting."""
        arrived: list[Frames | Subscribed | Malformed] = []
        for _ in range(64):
            try:
                frames = opened.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                break
            identity = self._gate.name_of(frames[-1]) if self._gate is not None else ""
            if identity is None:
                arrived.append(Malformed(self._channels[opened], "a revoked key"))
                continue
            read = self._read(opened, [frame.buffer for frame in frames], identity)
            if read is not None:
                arrived.append(read)
        return arrived

    def _read(
        self, opened: zmq.Socket, parts: list[memoryview], identity: str
    ) -> Frames | Subscribed | Malformed | None:
        channel = self._channels[opened]
        if opened is self._published:
            first = bytes(parts[0][:256])
            if len(parts) != 1 or first[:1] not in (b"\x00", b"\x01"):
                return Malformed(channel, "somebody spoke on a one-way channel")
            return self._heard(first[1:], begins=first[:1] == b"\x01")
        if channel is Channel.CONTROL:
            sender = bytes(parts.pop(0)) if self._role == "server" else b""
            if len(parts) == 1:
                return Frames(channel, sender, bytes(parts[0]), b"", identity)
        elif len(parts) == 3 and len(parts[1]) <= MAX_HEADER_BYTES:
            topic, header = bytes(parts[0][:128]), bytes(parts[1])
            if is_question(topic) and self._role == "peer":
                self._borrow(opened, parts[2])
                return None
            if is_shared(topic):
                return self._unwrap(channel, topic, header, parts[2], identity)
            return Frames(channel, topic, header, parts[2], identity)
        return Malformed(channel, f"{len(parts)} frames, or too long a header")

    def _heard(self, topic: bytes, begins: bool) -> Subscribed | None:
        """Somebody begins to hear what is published here under this topic; or all who
        did have gone."""
        lender = self._lender
        if is_question(topic):
            if begins:
                answer = b"" if lender is None else lender.lend(topic)
                self._send_published([topic, b"", answer])
            elif lender is not None:
                lender.take_back(topic)
            return None
        if is_shared(topic) and lender is not None:
            lender.hears_slips(unshared(topic), begins)
        return Subscribed(unshared(topic)) if begins else None

    def _borrow(self, models: zmq.Socket, answer: memoryview) -> None:
        """Hears the peer's topics, in shared memory if the server's can be seen."""
        self._return_memory()
        self._borrower = ShmSubscriber.of(answer)
        for topic in self._topics:
            models.subscribe(topic if self._borrower is None else shared(topic))

    def _unwrap(
        self, channel: Channel, topic: bytes, header: bytes, slip: Buffer, name: str
    ) -> Frames | Malformed:
        """A message whose payload is in shared memory."""
        place = self._lender or self._borrower
        payload = None if place is None else place.arena.read(slip)
        if payload is None:
            return Malformed(channel, "its payload is no longer in shared memory")
        return Frames(channel, unshared(topic), header, payload, name)

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
        slip = None
        if self._lender is not None:
            slip = self._lender.slip(topic, payload)
        elif self._borrower is not None:
            slip = self._borrower.slip(payload)
        if slip is None:
            return self._send_published([topic, header, payload])
        sent = self._send_published([shared(topic), header, slip])
        if self._lender is not None:  # for who does not see its memory
            sent = self._send_published([topic, header, payload])
        return sent

    def _send_published(self, frames: list[Buffer]) -> bool:
        assert self._published is not None
        try:
            self._published.send_multipart(frames, zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        return True

    def wake(self) -> None:
        # Full means that it is ringing already; closed, that nobody listens any more.
        with contextlib.suppress(OSError):
            self._ring.send(b"\0")

    def _return_memory(self) -> None:
        if self._borrower is not None:
            self._borrower.arena.close()
            self._borrower = None

    def _drop(self, opened: zmq.Socket, linger_s: float = 0.0) -> None:
        self._poller.unregister(opened)
        del self._channels[opened]
        monitor = self._doorkeeper.forget(opened) if self._doorkeeper else None
        if monitor is not None:
            self._poller.unregister(monitor)
            monitor.close(linger=0)
        opened.close(linger=round(linger_s * 1000))

    def close(self, linger_s: float = 0.0) -> None:
        if self._denied is not None and not self._denied.closed:
            assert self._control is not None
            self._control.disable_monitor()
            self._denied.close(linger=0)
        for opened in list(self._channels):
            self._drop(opened, linger_s)
        self._return_memory()
        if self._lender is not None:
            self._lender.arena.close()
        if self._gate is not None:
            self._gate.close()
        self._context.term()
        self._alarm.close()
        self._ring.close()
