"""One contract for all transports: in memory and over ZeroMQ, with and without shared
memory."""

import threading
import time

import pytest

from asyn2f.errors import AddressError
from asyn2f.protocol.channels import UPDATES, Channel, Frames, Malformed, Subscribed
from asyn2f.transport import shared_memory
from asyn2f.transport.base import MemoryNetwork, parse_address
from asyn2f.transport.shared_memory import SharedMemoryTransport
from asyn2f.transport.zmq import ZmqTransport
from tests.support.patience import PATIENCE_S

PAYLOAD = 1 << 16


class _Pair:
    """A server's end and its peers, as many as a test opens."""

    def __init__(self, kind: str) -> None:
        self.ends: list = []
        self._network = MemoryNetwork() if kind.startswith("memory") else None
        self._is_shared = kind.endswith("shared")
        if self._network:
            server = self._network.server
        else:
            server = ZmqTransport.bind("tcp://127.0.0.1:0", PAYLOAD, 4)
        if self._is_shared:
            server = SharedMemoryTransport.at_server(server, PAYLOAD, 4)
        self.server = self._keep(server)

    def _keep(self, end):
        self.ends.append(end)
        return end

    def peer(self, *topics: bytes, depth: int = 2):
        """A peer whose subscriptions to these topics have reached the server."""
        if self._network:
            end = self._network.peer()
        else:
            address = f"tcp://127.0.0.1:{self.server.ports()[0]}"
            end = ZmqTransport.connect_to(address, PAYLOAD, depth)
        if self._is_shared:
            end = SharedMemoryTransport.at_peer(end, PAYLOAD)
        self._keep(end)
        if topics:
            end.connect(list(topics), *self.server.ports()[1:])
            for topic in topics:
                until(self.server, lambda x, t=topic: x == Subscribed(t), attending=end)
            # A bound subscriber only subscribes while it is polled.
            until(end, lambda x: x == Subscribed(UPDATES), attending=self.server)
        return end


@pytest.fixture(params=["memory", "memory, shared", "zmq", "zmq, shared"])
def pair(request, monkeypatch):
    monkeypatch.setattr(shared_memory, "MIN_BYTES", 0)
    made = _Pair(request.param)
    _waiting.clear()
    yield made
    for end in made.ends:
        end.close()


_waiting: dict[int, list] = {}  # arrivals that no test has asked for yet


def until(end, wanted, attending=None):
    """The next arrival at this end that satisfies `wanted`; fails at a deadline.
    Meanwhile the other end is polled, as its own thread would."""
    waiting = _waiting.setdefault(id(end), [])
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for place, item in enumerate(waiting):
            if wanted(item):
                return waiting.pop(place)
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"did not arrive in time; others did: {waiting}"
        if attending is None:
            waiting += end.poll(left_s)
        else:
            waiting += end.poll(0.01)
            _waiting.setdefault(id(attending), []).extend(attending.poll(0.01))


def is_frames(item) -> bool:
    return isinstance(item, Frames)


def test_control_goes_both_ways_and_the_server_answers_the_sender(pair):
    first, second = pair.peer(), pair.peer()
    assert first.send(b"", b"one")
    got = until(pair.server, is_frames)
    assert (got.channel, bytes(got.header)) == (Channel.CONTROL, b"one")
    assert second.send(b"", b"two")
    other = until(pair.server, is_frames)
    assert other.sender != got.sender
    assert pair.server.send(got.sender, b"answer")
    answer = until(first, is_frames)
    assert (answer.channel, bytes(answer.header)) == (Channel.CONTROL, b"answer")


def test_sending_to_an_unknown_peer_fails(pair):
    assert not pair.server.send(b"nobody", b"hello")


def test_control_is_ordered(pair):
    peer = pair.peer()
    for number in range(50):
        assert peer.send(b"", str(number).encode())
    got = [int(bytes(until(pair.server, is_frames).header)) for _ in range(50)]
    assert got == list(range(50))


def test_a_version_reaches_the_subscribers_of_its_topic_only(pair):
    one = pair.peer(b"all", b"one/1")
    two = pair.peer(b"all", b"one/2")
    payload = bytes(range(256)) * 4
    assert pair.server.publish(b"one/2", b"just you", payload)
    assert pair.server.publish(b"all", b"header", payload)
    first = until(one, is_frames)
    assert (first.channel, first.sender) == (Channel.MODEL, b"all")
    assert bytes(first.header) == b"header"
    assert bytes(first.payload) == payload
    assert until(two, is_frames).sender == b"one/2"


def test_an_update_reaches_the_server_once_it_has_subscribed(pair):
    peer = pair.peer(b"all")
    assert peer.publish(UPDATES, b"header", b"payload")
    got = until(pair.server, is_frames)
    assert (got.channel, got.sender) == (Channel.UPDATE, UPDATES)
    assert (bytes(got.header), bytes(got.payload)) == (b"header", b"payload")


def test_a_publisher_never_blocks_and_a_slow_reader_loses_messages(pair):
    peer = pair.peer(b"all", depth=2)
    payload = bytes(PAYLOAD)
    start_s = time.monotonic()
    for number in range(400):
        pair.server.publish(b"all", str(number).encode(), payload)
    assert time.monotonic() - start_s < PATIENCE_S
    # A mark repeated until it arrives: everything before it has been drained.
    seen = []
    while b"end" not in seen:
        pair.server.publish(b"all", b"end", b"")
        seen += [bytes(x.header) for x in peer.poll(1.0) if is_frames(x)]
    numbers = [int(x) for x in seen if x != b"end"]
    assert numbers == sorted(numbers)
    assert 1 <= len(numbers) < 400


def test_wake_ends_a_poll_from_another_thread(pair):
    threading.Timer(0.05, pair.server.wake).start()
    start_s = time.monotonic()
    assert pair.server.poll(PATIENCE_S) == []
    assert time.monotonic() - start_s < PATIENCE_S / 2


def test_poll_returns_at_its_timeout(pair):
    start_s = time.monotonic()
    assert pair.server.poll(0.05) == []
    assert 0.03 < time.monotonic() - start_s < PATIENCE_S / 2


def test_closing_does_not_hang_with_messages_unsent(pair):
    peer = pair.peer()
    peer.send(b"", b"x" * 1000)
    start_s = time.monotonic()
    peer.close()
    assert time.monotonic() - start_s < PATIENCE_S / 2


def test_a_wrong_number_of_frames_is_malformed():
    zmq = pytest.importorskip("zmq")
    server = ZmqTransport.bind("tcp://127.0.0.1:0", PAYLOAD, workers=1)
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(f"tcp://127.0.0.1:{server.ports()[0]}")
    try:
        dealer.send_multipart([b"a", b"b", b"c"])
        got = until(server, lambda x: isinstance(x, Malformed))
        assert "3 frames" in got.reason
        dealer.send_multipart([b"fine"])
        assert bytes(until(server, is_frames).header) == b"fine"
    finally:
        dealer.close()
        context.term()
        server.close()


def test_a_port_in_use_is_refused_with_the_remedy():
    server = ZmqTransport.bind("tcp://127.0.0.1:0", PAYLOAD, workers=1)
    try:
        address = f"tcp://127.0.0.1:{server.ports()[0]}"
        with pytest.raises(AddressError, match=r"cannot listen.*in use.*another port"):
            ZmqTransport.bind(address, PAYLOAD, workers=1)
    finally:
        server.close()


def test_ipv6_works():
    try:
        server = ZmqTransport.bind("tcp://[::1]:0", PAYLOAD, workers=1)
    except AddressError as error:
        pytest.skip(f"no IPv6 here: {error}")
    peer = ZmqTransport.connect_to(f"tcp://[::1]:{server.ports()[0]}", PAYLOAD, 1)
    try:
        peer.send(b"", b"six")
        assert bytes(until(server, is_frames).header) == b"six"
    finally:
        peer.close()
        server.close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5", "udp://127.0.0.1:5", "tcp://127.0.0.1", "tcp://h:99999"]
)
def test_an_invalid_address_is_refused(address):
    with pytest.raises(AddressError, match="found"):
        parse_address(address)


def test_a_peer_needs_a_port():
    with pytest.raises(AddressError, match="needs the port"):
        ZmqTransport.connect_to("tcp://127.0.0.1:0", PAYLOAD, 1)
