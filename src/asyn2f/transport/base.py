"""The interface of a transport, and one in memory; see `protocol.channels`."""

import threading
from collections import deque
from typing import Protocol

from asyn2f.protocol.channels import UPDATES, Channel, Frames, Malformed, Subscribed
from asyn2f.types import Buffer


class Transport(Protocol):
    """One end. All methods but `wake` belong to the one thread that owns it."""

    def poll(self, timeout_s: float | None) -> list[Frames | Subscribed | Malformed]:
        """What has arrived; waits for the first, or `wake`, or the timeout."""

    def send(self, peer: bytes, header: bytes) -> bool:
        """Sends on CONTROL, to that peer (a peer's only peer is b""); False: no such
        peer or no room."""

    def publish(self, topic: bytes, header: bytes, payload: Buffer) -> bool:
        """Publishes on MODEL (server) or UPDATE (peer); False: no room. True does not
        mean that anybody heard it. The payload must not change afterwards."""

    def connect(self, topics: list[bytes], model_port: int, update_port: int) -> None:
        """A peer's: begin to hear these topics on MODEL, and to publish on UPDATE."""

    def ports(self) -> tuple[int, int, int]:
        """A server's ports of CONTROL, MODEL and UPDATE."""

    def wake(self) -> None:
        """Ends a `poll` that is waiting; from any thread."""

    def close(self, linger_s: float = 0.0) -> None:
        """Ends it; what is still to be sent has that long."""


class MemoryNetwork:
    """A server and its peers in one process, with the habits of publish/subscribe.

    A verified fake: the contract tests hold it and the sockets to the same behaviour.
    `depth` is how many published messages may wait at a receiver.
    """

    def __init__(self, depth: int = 8) -> None:
        self.depth = depth
        self.server = _MemoryEnd(self, b"server")
        self._peers: dict[bytes, _MemoryEnd] = {}

    def peer(self) -> "_MemoryEnd":
        """A new peer's end."""
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
        self._arrived: deque[Frames | Subscribed | Malformed] = deque()
        self._ready = threading.Condition()
        self._woken = False
        self.topics: list[bytes] = []
        self.closed = False

    def poll(self, timeout_s: float | None) -> list[Frames | Subscribed | Malformed]:
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
        self.topics = list(topics)
        for topic in topics:
            self._network.server.put(Subscribed(topic))
        self.put(Subscribed(UPDATES))

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
