"""Transports: addresses, the interface, and a network in memory.

The channels and what arrives on them are described in `protocol.channels`.
"""

import ipaddress
import socket
import threading
from collections import deque
from typing import Protocol
from urllib.parse import urlsplit

from asyn2f.errors import AddressError
from asyn2f.protocol.channels import UPDATES, Arrival, Channel, Frames, Subscribed
from asyn2f.types import Buffer


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; port 0 stands for any free port, host * for
    all addresses of this machine.

    Raises:
      AddressError: not an address of this form.

    >>> parse_address("tcp://127.0.0.1:5570"), parse_address("tcp://*:0")
    (('127.0.0.1', 5570), ('0.0.0.0', 0))
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
    return "0.0.0.0" if host == "*" else host, port


def check_host(host: str) -> None:
    """Raises AddressError if the host is the name of a network interface: a server can
    listen there, but peers cannot connect to it."""
    if host in {name.lower() for _, name in socket.if_nameindex()}:
        raise AddressError(
            f"address: found {host!r}, which is a network interface; give its IP "
            "address, or * for all of this machine"
        )


def reachable(host: str) -> str:
    """The host to connect to, on this machine, for a server listening at `host`.

    >>> reachable("0.0.0.0"), reachable("::"), reachable("10.0.0.7")
    ('127.0.0.1', '::1', '10.0.0.7')
    """
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host; of names, only `localhost` counts.

    >>> [is_loopback(x) for x in ("127.0.1.7", "::1", "localhost", "0.0.0.0", "*")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_exposed(address: str) -> bool:
    """Whether other machines may reach the address. Raises AddressError."""
    return not is_loopback(parse_address(address)[0])


def check_safe(address: str, keyed: bool, insecure: bool) -> None:
    """Validates that unauthenticated peers on other machines cannot connect.

    Args:
      address: a server's.
      keyed: whether there are keys.
      insecure: whether the user has accepted the risk.

    Raises:
      AddressError: they can, or it is not an address.
    """
    if is_exposed(address) and not keyed and not insecure:
        raise AddressError(
            f"address: other machines can reach {address}, and there are no keys; make "
            "some with asyn2f keys and give --config.runtime.keys_dir=FOLDER, or use "
            "127.0.0.1, or give --insecure to let anybody read and join"
        )


class Transport(Protocol):
    """One end. All methods but `wake` belong to the one thread that owns it."""

    def poll(self, timeout_s: float | None) -> list[Arrival]:
        """Everything that has arrived; blocks until the first arrival, a `wake`, or the
        timeout (None: for ever)."""

    def send(self, peer: bytes, header: bytes) -> bool:
        """Sends on CONTROL, to this peer (at a peer: b"", its server); False: no such
        peer, or its queue is full."""

    def publish(self, topic: bytes, header: bytes, payload: Buffer) -> bool:
        """Publishes on MODEL (server) or UPDATE (peer); False: the queue is full. True
        does not mean that a subscriber received it. The payload must not change
        afterwards."""

    def connect(self, topics: list[bytes], model_port: int, update_port: int) -> None:
        """A peer's: subscribes to these topics on MODEL, and opens UPDATE."""

    def subscribe(self, topics: list[bytes]) -> None:
        """Subscribes to further topics, on MODEL (peer) or UPDATE (server)."""

    def ports(self) -> tuple[int, int, int]:
        """A server's ports of CONTROL, MODEL and UPDATE."""

    def wake(self) -> None:
        """Makes a blocked `poll` return; from any thread."""

    def close(self, linger_s: float = 0.0) -> None:
        """Closes this end; unsent messages have `linger_s` seconds to leave."""


class MemoryNetwork:
    """A server and its peers in one process, as lossy as publish/subscribe.

    A verified fake: the contract tests hold it and the sockets to the same behaviour.
    `depth` is the number of published messages that a receiver queues.
    """

    def __init__(self, depth: int = 8) -> None:
        self.depth = depth
        self.server = _MemoryEnd(self, b"server")
        self._peers: dict[bytes, _MemoryEnd] = {}

    def peer(self) -> "_MemoryEnd":
        """The end of a new peer."""
        name = f"peer-{len(self._peers)}".encode()
        self._peers[name] = end = _MemoryEnd(self, name)
        return end

    def end(self, name: bytes) -> "_MemoryEnd | None":
        end = self._peers.get(name)
        return end if end is not None and not end.closed else None

    def peers(self) -> list["_MemoryEnd"]:
        return [end for end in self._peers.values() if not end.closed]


class _MemoryEnd:
    """One end of a `MemoryNetwork`; implements `Transport`."""

    def __init__(self, network: MemoryNetwork, name: bytes) -> None:
        self._network = network
        self._name = name
        self._is_server = name == b"server"
        self._arrived: deque[Arrival] = deque()
        self._ready = threading.Condition()
        self._woken = False
        self.topics: list[bytes] = []
        self.closed = False

    def poll(self, timeout_s: float | None) -> list[Arrival]:
        with self._ready:
            self._ready.wait_for(lambda: self._arrived or self._woken, timeout_s)
            self._woken = False
            arrived = list(self._arrived)
            self._arrived.clear()
            return arrived

    def send(self, peer: bytes, header: bytes) -> bool:
        if self._is_server:
            end = self._network.end(peer)
            return end is not None and end.put(
                Frames(Channel.CONTROL, b"", header, b"")
            )
        server = self._network.server
        return server.put(Frames(Channel.CONTROL, self._name, header, b""))

    def publish(self, topic: bytes, header: bytes, payload: Buffer) -> bool:
        if self._is_server:
            for end in self._network.peers():
                if any(topic.startswith(wanted) for wanted in end.topics):
                    end.put(Frames(Channel.MODEL, topic, header, payload))
            return True
        frames = Frames(Channel.UPDATE, topic, header, payload)
        return self._network.server.put(frames)

    def connect(self, topics: list[bytes], model_port: int, update_port: int) -> None:
        self.topics = []
        self.subscribe(topics)
        self.put(Subscribed(UPDATES))

    def subscribe(self, topics: list[bytes]) -> None:
        self.topics += topics
        if not self._is_server:  # which receives all updates
            for topic in topics:
                self._network.server.put(Subscribed(topic))

    def ports(self) -> tuple[int, int, int]:
        return (1, 2, 3)

    def put(self, item: Frames | Subscribed) -> bool:
        with self._ready:
            published = isinstance(item, Frames) and item.channel is not Channel.CONTROL
            if self.closed or (
                published
                and sum(isinstance(x, Frames) for x in self._arrived)
                >= self._network.depth
            ):
                return False
            self._arrived.append(item)
            self._ready.notify_all()
            return True

    def wake(self) -> None:
        with self._ready:
            self._woken = True
            self._ready.notify_all()

    def close(self, linger_s: float = 0.0) -> None:
        self.closed = True
        self.wake()
