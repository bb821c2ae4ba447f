"""Shared memory: large payloads between processes of one machine.

A server owns an `Arena` of slots. A message's header travels through the sockets, and
in place of its payload a *descriptor*: slot, length and digest. A receiver copies the
slot first and compares digests then; a slot overwritten in the meantime is a message
lost on its way, and is sent again as any other.

Peers discover the arena themselves: a peer sends a *probe*, a subscription to a topic
of its own, and the answer is published there. If the peer can open the arena that it
names, it subscribes to `shared(topic)` in place of each of its topics.
"""

import secrets

from asyn2f.protocol.channels import (
    UPDATES,
    Arrival,
    Channel,
    Frames,
    Malformed,
    Subscribed,
    Unsubscribed,
)
from asyn2f.transport.arena import Arena
from asyn2f.transport.base import Transport
from asyn2f.types import Buffer

MIN_BYTES = 1 << 20
"""Smaller payloads gain nothing: measured, see BUILD_NOTES."""

_MARK = b"@"
_PROBE = b"@memory/"
_SERVER_SLOTS = 3  # a reader must not be three versions behind
_PEER_SLOTS = 2  # one is read while the next is written


class SharedMemoryTransport:
    """A transport that passes large payloads in shared memory, where both ends can.

    It wraps the transport that carries everything else. Made by `at_server` and
    `at_peer`; peers that have one need a server that has one.
    """

    def __init__(
        self, inner: Transport, publisher: "ShmPublisher | None", *, is_server: bool
    ) -> None:
        self.inner = inner
        self._is_server = is_server
        self._publisher = publisher
        self._subscriber: ShmSubscriber | None = None
        self._topics: list[bytes] = []  # that a peer subscribes to

    @classmethod
    def at_server(
        cls, inner: Transport, payload_bytes: int, peers: int, offers: bool = True
    ) -> "SharedMemoryTransport":
        """A server's end. It answers probes in any case; it offers memory to `peers`
        peers if `offers`, and if payloads are large enough and the system supports
        it."""
        publisher = ShmPublisher.create(payload_bytes, peers) if offers else None
        if publisher is not None:
            inner.subscribe([shared(UPDATES)])
        return cls(inner, publisher, is_server=True)

    @classmethod
    def at_peer(
        cls, inner: Transport, payload_bytes: int, accepts: bool = True
    ) -> Transport:
        """A peer's end, which uses the memory that a server on its machine offers; the
        inner transport itself unless it `accepts` and payloads are large enough."""
        if accepts and pays(payload_bytes):
            return cls(inner, None, is_server=False)
        return inner

    @property
    def is_shared(self) -> bool:
        """Whether this peer has opened the server's memory."""
        return self._subscriber is not None

    def poll(self, timeout_s: float | None) -> list[Arrival]:
        found = (self._translated(item) for item in self.inner.poll(timeout_s))
        return [item for item in found if item is not None]

    def _translated(self, item: Arrival) -> Arrival | None:
        """The item as it would be without shared memory; None if it is about the
        memory only."""
        match item:
            case Frames(channel, topic) if (
                channel is not Channel.CONTROL and topic.startswith(_MARK)
            ):
                if topic.startswith(_PROBE) and not self._is_server:
                    self._open_memory(item.payload)
                    return None
                return self._resolved(item)
            case Subscribed(topic):
                return self._on_subscribed(topic)
            case Unsubscribed(topic):
                if self._publisher is not None:
                    self._publisher.on_unsubscribed(topic)
                return None
        return item

    def _resolved(self, frames: Frames) -> Frames | Malformed:
        """A message with the payload that its descriptor refers to."""
        memory = self._publisher or self._subscriber
        payload = None if memory is None else memory.arena.read(frames.payload)
        if payload is None:
            return Malformed(
                frames.channel, "its payload is no longer in shared memory"
            )
        return frames._replace(sender=unshared(frames.sender), payload=payload)

    def _on_subscribed(self, topic: bytes) -> Subscribed | None:
        publisher = self._publisher
        if topic.startswith(_PROBE):
            answer = b"" if publisher is None else publisher.answer(topic)
            self.inner.publish(topic, b"", answer)
            return None
        if topic.startswith(_MARK) and publisher is not None:
            publisher.on_subscribed(unshared(topic))
        return Subscribed(unshared(topic))

    def _open_memory(self, answer: Buffer) -> None:
        """Subscribes to the peer's topics: in shared memory if it can be opened."""
        self._close_memory()
        self._subscriber = ShmSubscriber.open(answer)
        marked = self._subscriber is not None
        self.inner.subscribe([shared(x) if marked else x for x in self._topics])

    def connect(self, topics: list[bytes], model_port: int, update_port: int) -> None:
        self._topics = list(topics)
        self._close_memory()
        # The topics follow once the probe is answered: nothing arrives twice meanwhile.
        self.inner.connect([new_probe()], model_port, update_port)

    def subscribe(self, topics: list[bytes]) -> None:
        self._topics += topics
        self.inner.subscribe([shared(x) if self.is_shared else x for x in topics])

    def publish(self, topic: bytes, header: bytes, payload: Buffer) -> bool:
        descriptor = None
        if self._publisher is not None:
            descriptor = self._publisher.descriptor(topic, payload)
        elif self._subscriber is not None:
            descriptor = self._subscriber.descriptor(payload)
        if descriptor is None:
            return self.inner.publish(topic, header, payload)
        is_sent = self.inner.publish(shared(topic), header, descriptor)
        if self._is_server:  # for peers that do not see its memory
            is_sent = self.inner.publish(topic, header, payload)
        return is_sent

    def send(self, peer: bytes, header: bytes) -> bool:
        return self.inner.send(peer, header)

    def ports(self) -> tuple[int, int, int]:
        return self.inner.ports()

    def wake(self) -> None:
        self.inner.wake()

    def close(self, linger_s: float = 0.0) -> None:
        self.inner.close(linger_s)
        self._close_memory()
        if self._publisher is not None:
            self._publisher.arena.close()

    def _close_memory(self) -> None:
        if self._subscriber is not None:
            self._subscriber.arena.close()
            self._subscriber = None


def pays(payload_bytes: int) -> bool:
    """Whether payloads of this size gain by shared memory."""
    return payload_bytes >= MIN_BYTES


def shared(topic: bytes) -> bytes:
    """The topic under which descriptors are published in place of payloads."""
    return _MARK + topic


def unshared(topic: bytes) -> bytes:
    """The topic without the mark of shared memory."""
    return topic.removeprefix(_MARK)


def new_probe() -> bytes:
    """A topic to subscribe to, on which the name of the arena will be published."""
    return _PROBE + secrets.token_hex(8).encode()


class ShmPublisher:
    """A server's arena: subscriptions to descriptors, and the slots of each peer."""

    def __init__(self, arena: Arena, peers: int) -> None:
        self.arena = arena
        self._topics: set[bytes] = set()  # with subscribers to descriptors
        slots = [_SERVER_SLOTS + _PEER_SLOTS * number for number in range(peers)]
        self._free = slots[::-1]
        self._assigned: dict[bytes, int] = {}  # by probe
        self._newest: tuple[Buffer, bytes] | None = None  # a payload, its descriptor
        self._next = 0

    @classmethod
    def create(cls, payload_bytes: int, peers: int) -> "ShmPublisher | None":
        """One for `peers` peers, if it pays and the system supports it."""
        if not pays(payload_bytes):
            return None
        arena = Arena.create(payload_bytes, _SERVER_SLOTS + _PEER_SLOTS * peers)
        return None if arena is None else cls(arena, peers)

    def answer(self, probe: bytes) -> bytes:
        """The answer to a probe: the arena's name, and the peer's own slots while there
        are any."""
        if probe not in self._assigned and self._free:
            self._assigned[probe] = self._free.pop()
        return f"{self._assigned.get(probe, -1)}:{self.arena.name}".encode()

    def on_subscribed(self, topic: bytes) -> None:
        """A peer has subscribed to descriptors under this topic."""
        self._topics.add(topic)

    def on_unsubscribed(self, topic: bytes | None) -> None:
        """No subscriber is left under this topic, as a transport reports it: frees the
        slots of a probe. None: of any topic, and all slots are free."""
        gone = [topic] if topic is not None else [*self._assigned]
        self._free += [self._assigned.pop(x) for x in gone if x in self._assigned]
        if topic is None:
            self._topics.clear()
        else:
            self._topics.discard(unshared(topic))

    def descriptor(self, topic: bytes, payload: Buffer) -> bytes | None:
        """Writes a payload into a slot, unless it is the newest one already; None if
        nobody subscribes to descriptors under this topic."""
        if topic not in self._topics:
            return None
        if self._newest is None or self._newest[0] is not payload:
            slot, self._next = self._next, (self._next + 1) % _SERVER_SLOTS
            self._newest = payload, self.arena.write(slot, payload)
        return self._newest[1]


class ShmSubscriber:
    """A peer's view of the server's arena, and the slots that it may write."""

    def __init__(self, arena: Arena, first: int) -> None:
        self.arena = arena
        self._first = first
        self._next = 0

    @classmethod
    def open(cls, answer: Buffer) -> "ShmSubscriber | None":
        """Opens the arena that an answer names, if this process can."""
        try:
            first, name = bytes(answer).decode("ascii").split(":", 1)
            arena = Arena.open(name)
            return None if arena is None else cls(arena, int(first))
        except ValueError:
            return None

    def descriptor(self, payload: Buffer) -> bytes | None:
        """Writes an update into a slot; None if this peer has no slots."""
        if self._first < 0:
            return None
        slot, self._next = self._first + self._next, (self._next + 1) % _PEER_SLOTS
        return self.arena.write(slot, payload)
