"""What does encryption cost where it costs most, in sending a large model to all?

A model of 44 MiB from one server to 1 and to 4 subscribers, with keys and without in
turn, so that whatever else the machine does hurts both. A subscriber is a process of
its own. Wanted: with keys at most 5 times as long.

On two cores of an AMD EPYC, busy with other things (load 13), pyzmq 27 with libzmq
4.3.5, November 2026: 3.4 times as long with 1 subscriber (99 and 356 ms), 4.0 times
with 4 (415 and 1,484 ms); medians of 7.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from asyn2f.protocol.channels import Channel, Frames, Subscribed
from asyn2f.transport import keys
from asyn2f.transport.keys import PeerKeys
from asyn2f.transport.zmq import ZmqTransport

SIZE = 44 << 20
ROUNDS = 7
PATIENCE_S = 60.0


def measure() -> Iterator[dict]:
    with tempfile.TemporaryDirectory() as folder:
        ring = Path(folder) / "keys"
        keys.create(ring, keys.peers(4))
        for peers in (1, 4):
            plain, keyed = Group(peers, None), Group(peers, ring)
            seconds = [(plain.send_s(), keyed.send_s()) for _ in range(ROUNDS)]
            plain.close()
            keyed.close()
            yield figures(peers, seconds)


def figures(peers: int, seconds: list[tuple[float, float]]) -> dict:
    plain, keyed = zip(*seconds, strict=True)
    return {
        "subscribers": peers,
        "plain_ms": round(1000 * statistics.median(plain)),
        "keys_ms": round(1000 * statistics.median(keyed)),
        "ratio": round(statistics.median(k / p for p, k in seconds), 2),
    }


class Group:
    """A server, and subscribers that say when they have a model."""

    def __init__(self, peers: int, ring: Path | None) -> None:
        own = None if ring is None else keys.read_server_keys(ring)
        self._server = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, peers, keys=own)
        self._model = bytes(SIZE)
        self._count = 0
        self._waiting = peers
        context = multiprocessing.get_context("spawn")
        for number in range(peers):
            peer = None
            if ring is not None:
                peer = keys.read_peer_keys(ring, f"worker-{number}")
            ports = self._server.ports()
            context.Process(target=_hear, args=(ports, peer), daemon=True).start()
        self._heard(Subscribed, peers)
        self.send_s()  # buffers and pages are there after the first

    def send_s(self) -> float:
        """Seconds until all have one more model."""
        began_s = time.perf_counter()
        self._server.publish(b"all", b"model", self._model)
        self._heard(Frames, self._waiting)
        return time.perf_counter() - began_s

    def close(self) -> None:
        self._server.publish(b"all", b"end", b"")
        self._heard(Frames, self._waiting)
        self._server.close()

    def _heard(self, kind: type, count: int) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while count > 0:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"still waiting for {count} of {kind.__name__}")
            count -= sum(isinstance(x, kind) for x in self._server.poll(0.1))


def _hear(ports: tuple[int, int, int], key: PeerKeys | None) -> None:
    address = f"tcp://127.0.0.1:{ports[0]}"
    peer = ZmqTransport.connect_to(address, SIZE, depth=2, keys=key)
    peer.connect([b"all"], *ports[1:])
    header = b""
    while header != b"end":
        for item in peer.poll(None):
            if isinstance(item, Frames) and item.channel is Channel.MODEL:
                header = item.header
                peer.send(b"", b"got it")
    peer.close(linger_s=1.0)
