"""A model on its way between processes: one to one, and from the server to many.

One to one, from bytes to bytes whose digest has been checked: over sockets, and through
memory that both see, against the same bytes over a plain TCP connection on loopback. To
many, against PUB and SUB sockets of ZeroMQ as they come. Receivers are processes of
their own, and say when they have it.
"""

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator

import numpy as np
import zmq

from asyn2f import serialization
from asyn2f.protocol.channels import UPDATES, Channel, Frames, Subscribed
from asyn2f.transport.shared_memory import SharedMemoryTransport
from asyn2f.transport.zmq import ZmqTransport
from tests.bench.figures import Figure, compared, in_turns

SIZE = 44_734_248  # ResNet-18 with its statistics
MANY = 10
ROUNDS = 15
PATIENCE_S = 60.0
PLAIN = "plain TCP on loopback"
RAW = f"PUB and SUB of ZeroMQ, {MANY} subscribers"


UPDATE, VERSION = "an update, 45 MB", "a version, 45 MB"
SHARED = ", through shared memory"


def measure() -> Iterator[Figure]:
    drawn = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    payload = drawn.data.toreadonly()
    with (
        Connection(payload) as plain,
        Group(payload, 1, shared=False) as apart,
        Group(payload, 1, shared=True) as together,
    ):
        candidates = {
            PLAIN: plain.send,
            UPDATE: apart.push,
            VERSION: apart.publish,
            UPDATE + SHARED: together.push,
            VERSION + SHARED: together.publish,
        }
        turns = in_turns(candidates, ROUNDS)
    for what in (UPDATE, VERSION):
        yield compared(what, turns, what, PLAIN, 4)
        yield compared(what + SHARED, turns, what + SHARED, PLAIN, 1)
    what = f"a version to {MANY} workers, 45 MB"
    with (
        Raw(payload, MANY) as raw,
        Group(payload, MANY, shared=False) as apart,
        Group(payload, MANY, shared=True) as together,
    ):
        candidates = {
            RAW: raw.send,
            what: apart.publish,
            what + SHARED: together.publish,
        }
        turns = in_turns(candidates, ROUNDS)
    yield compared(what, turns, what, RAW, 1.3)
    yield compared(what + SHARED, turns, what + SHARED, RAW)


class Connection:
    """Plain sockets: a process that reads so many bytes, and says a byte."""

    def __init__(self, payload: memoryview) -> None:
        self._payload = payload

    def __enter__(self) -> "Connection":
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            start(_read_plainly, port, len(self._payload))
            self._socket, _ = listening.accept()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self) -> None:
        self._socket.sendall(self._payload)
        assert self._socket.recv(1)


def _read_plainly(port: int, size: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as own:
        buffer = memoryview(bytearray(size))
        while True:
            have = 0
            while have < size:
                more = own.recv_into(buffer[have:])
                if not more:
                    return
                have += more
            own.sendall(b"!")


class Raw:
    """ZeroMQ as it comes: PUB here, SUB there, and a socket for their answers."""

    def __init__(self, payload: memoryview, peers: int) -> None:
        self._payload = payload
        self._peers = peers

    def __enter__(self) -> "Raw":
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.XPUB)
        self._answers = self._context.socket(zmq.PULL)
        self._publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
        ports = [
            x.bind_to_random_port("tcp://127.0.0.1")
            for x in (self._publisher, self._answers)
        ]
        for _ in range(self._peers):
            start(_subscribe_plainly, *ports)
        for _ in range(self._peers):
            self._publisher.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.send(b"")
        self._context.destroy(linger=1000)

    def send(self) -> None:
        self._publisher.send(self._payload, copy=False)
        for _ in range(self._peers):
            self._answers.recv()


def _subscribe_plainly(port: int, answers: int) -> None:
    context = zmq.Context()
    subscriber, answer = context.socket(zmq.SUB), context.socket(zmq.PUSH)
    answer.connect(f"tcp://127.0.0.1:{answers}")
    subscriber.connect(f"tcp://127.0.0.1:{port}")
    subscriber.subscribe(b"")
    while len(subscriber.recv(copy=False)):
        answer.send(b"!")
    context.destroy(linger=0)


class Group:
    """Our server's transport here, and peers that say when they have a version; they
    push one when they are asked to. Digests are checked as in a run."""

    def __init__(self, payload: memoryview, peers: int, shared: bool) -> None:
        self._payload = payload
        self._peers = peers
        self._shared = shared

    def __enter__(self) -> "Group":
        self._server = SharedMemoryTransport.at_server(
            ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, self._peers),
            SIZE,
            self._peers,
            self._shared,
        )
        for _ in range(self._peers):
            start(_hear, self._server.ports(), self._shared)
        self._await(Subscribed, self._peers)
        for _ in range(3):  # buffers and pages are there after these
            self.publish()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.publish(b"all", b"end", b"")
        self._await(Frames, self._peers)
        self._server.close()

    def publish(self) -> None:
        # Another object each time, as another version would be.
        self._server.publish(b"all", b"version", self._payload[:])
        self._await(Frames, self._peers)

    def push(self) -> None:
        self._server.publish(b"all", b"push", b"")
        (frames,) = self._await(Frames, self._peers)
        assert frames.channel is Channel.UPDATE
        serialization.digest(frames.payload)

    def _await(self, kind: type, count: int) -> list[Frames]:
        found: list[Frames] = []
        deadline_s = time.monotonic() + PATIENCE_S
        while len(found) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{len(found)} of {count} have answered")
            found += [x for x in self._server.poll(1.0) if isinstance(x, kind)]
        return found


def _hear(ports: tuple[int, int, int], shared: bool) -> None:
    address = f"tcp://127.0.0.1:{ports[0]}"
    sockets = ZmqTransport.connect_to(address, SIZE, depth=2)
    peer = SharedMemoryTransport.at_peer(sockets, SIZE, shared)
    peer.connect([b"all"], *ports[1:])
    payload, header = np.zeros(SIZE, np.uint8).data.toreadonly(), b""
    while header != b"end":
        for item in peer.poll(None):
            if isinstance(item, Frames) and item.channel is Channel.MODEL:
                header = item.header
                if header == b"push":
                    serialization.digest(payload)
                    peer.publish(UPDATES, b"update", payload)
                    continue
                serialization.digest(item.payload)
                peer.send(b"", b"got it")
    peer.close(linger_s=1.0)


def start(target: Callable[..., None], *arguments: object) -> None:
    context = multiprocessing.get_context("spawn")
    context.Process(target=target, args=arguments, daemon=True).start()
