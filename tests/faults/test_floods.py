"""Many peers at once, and peers that send whatever they like."""

import contextlib
import random
import threading
import time

import psutil
import pytest
import zmq

from asyn2f.protocol import messages as wire
from asyn2f.protocol import wire_format
from asyn2f.protocol.channels import UPDATES
from asyn2f.transport.zmq_auth import curve_options
from tests.support.messages import header_of, hello_of
from tests.support.patience import PATIENCE_S, Crowd
from tests.support.rogue_peers import KINDS, Keyring, rogue_sockets, speak_raw
from tests.support.socket_run import SocketRun

MIB = 2**20
SIZE = 4096


# ------------------------------------------------------------- all at once


def register(ring, port, numbers, answers):
    """Peers of these numbers, each with its own key and socket, say hello once."""
    context = zmq.Context()
    poller = zmq.Poller()
    opened = []
    try:
        for number in numbers:
            peer = context.socket(zmq.DEALER)
            peer.linger = 0
            for option, value in curve_options(ring[number]).items():
                peer.set(option, value)
            peer.connect(f"tcp://127.0.0.1:{port}")
            peer.send(wire_format.encode(hello_of(number, f"s{number}")))
            poller.register(peer, zmq.POLLIN)
            opened.append(peer)
        waiting = set(opened)
        deadline_s = time.monotonic() + PATIENCE_S
        while waiting and time.monotonic() < deadline_s:
            for peer, _ in poller.poll(1000):
                answers.append(wire_format.decode(peer.recv()))
                waiting.discard(peer)
                poller.unregister(peer)
    finally:
        for peer in opened:
            peer.close()
        context.term()


def seconds_until_all_are_in(tmp_path, count):
    """As a machine without other work would take."""
    keys = Keyring(tmp_path / "keys", workers=count)
    ring = [keys.peer(f"worker-{number}") for number in range(count)]
    answers = []
    with SocketRun(tmp_path, workers=count, size=SIZE, keys=keys.server) as run:
        port = run.server.ports[0]
        parts = [
            threading.Thread(
                target=register, args=(ring, port, range(part, count, 4), answers)
            )
            for part in range(4)
        ]
        start_s = time.monotonic()
        with Crowd() as crowd:
            for part in parts:
                part.start()
            for part in parts:
                part.join()
        took_s = time.monotonic() - start_s
        run.finish()
    assert len(answers) == count
    assert {type(answer) for answer in answers} <= {wire.Registered, wire.Welcome}
    print(f"{count} peers with keys registered in {took_s:.2f} s, {crowd}")
    return took_s / crowd.factor


@pytest.mark.processes
@pytest.mark.timed
def test_two_hundred_peers_with_keys_register_at_once(tmp_path):
    """Two seconds on a quiet machine, see BUILD_NOTES; here with room for others."""
    assert seconds_until_all_are_in(tmp_path, 200) < 6.0


@pytest.mark.slow
def test_a_thousand_peers_with_keys_register_at_once(tmp_path):
    assert seconds_until_all_are_in(tmp_path, 1000) < 30.0


# ------------------------------------------------------------- anything at all


def captures():
    """Messages as peers really send them."""
    header = header_of(0, "s0", payload=b"x" * SIZE)
    messages = [
        hello_of(0, "s0"),
        hello_of(-1, "e"),
        wire.FetchModel("s0", 0),
        wire.Goodbye("s0", "so"),
        wire.EvalResult("e", 0, {"accuracy": 0.5}),
        header,
    ]
    return [wire_format.encode(message) for message in messages]


def frame_sets(chance, count):
    """Random frames; every fifth is a real message with a few bytes changed."""
    real = captures()
    for number in range(count):
        if number % 5:
            frames = [
                chance.randbytes(chance.choice((0, 1, 7, 60, 900)))
                for _ in range(chance.randint(1, 5))
            ]
        else:
            mutated = bytearray(chance.choice(real))
            for _ in range(chance.randint(1, 4)):
                mutated[chance.randrange(len(mutated))] = chance.randrange(256)
            frames = [bytes(mutated)]
        yield frames


def pour(run, keys, chance, count):
    """Garbage into each socket of a server, and bytes that are no ZeroMQ at all."""
    ports = run.server.ports
    with rogue_sockets(keys) as them:
        kinds = zmq.DEALER, zmq.XSUB, zmq.XPUB
        peers = [them.open(*each) for each in zip(kinds, ports, strict=True)]
        peers[2].poll(500)  # what is published before a subscription comes goes nowhere
        for frames in frame_sets(chance, count):
            for peer in peers:
                if peer is peers[2]:  # it hears nothing under another topic
                    frames = [UPDATES + frames[0], *frames[1:]]
                with contextlib.suppress(zmq.ZMQError):  # full, or thrown out
                    peer.send_multipart(frames, zmq.DONTWAIT)
        for _ in range(count // 50):
            for port in ports:
                speak_raw(port, chance.randbytes(chance.randint(1, 400)))


def flooded(tmp_path, seed, count, with_keys):
    """A run during which unauthenticated peers send arbitrary bytes; what the server
    dropped."""
    chance = random.Random(seed)
    ring = Keyring(tmp_path / "keys", workers=2) if with_keys else None
    server = ring.server if ring else None
    with SocketRun(tmp_path, seed=seed, workers=2, size=SIZE, keys=server) as run:
        honest = run.start_worker(
            0, total=200, every_s=0.02, keys=ring.peer("worker-0") if ring else None
        )
        before = psutil.Process().memory_info().rss
        pour(run, ring.unknown_key() if ring else None, chance, count)
        run.until("its updates are settled", lambda: honest.machine.is_done)
        grown = psutil.Process().memory_info().rss - before
        dropped = dict(run.server.io.dropped)
        outcomes = run.finish()
    assert run.server.finish.status in ("finished", "interrupted")
    assert grown < 64 * MIB, f"{grown / MIB:.0f} MiB more"
    return dropped, outcomes


@pytest.mark.processes
def test_a_server_without_keys_bears_any_frames(tmp_path):
    dropped, outcomes = flooded(tmp_path, seed=1, count=2000, with_keys=False)
    assert sum(dropped.values()) > 100, "the garbage has arrived"
    assert outcomes["committed"] >= 150


@pytest.mark.processes
def test_nothing_of_a_stranger_reaches_a_server_with_keys(tmp_path):
    dropped, outcomes = flooded(tmp_path, seed=2, count=2000, with_keys=True)
    assert dropped == {}
    assert outcomes["committed"] >= 150


@pytest.mark.slow
@pytest.mark.parametrize("with_keys", [False, True])
def test_ten_thousand_frame_sets(tmp_path, with_keys):
    flooded(tmp_path, seed=3, count=10_000, with_keys=with_keys)


# ------------------------------------------------------------- S-10: too much at once


def test_what_is_too_large_or_does_not_end_harms_nobody_else(tmp_path):
    """From one with a valid key. libzmq bounds a frame and not a message: how much an
    unfinished one may take is said in the README, and given back when it leaves."""
    ring = Keyring(tmp_path / "keys", workers=2)
    with SocketRun(tmp_path, workers=2, size=SIZE, keys=ring.server) as run:
        honest = run.start_worker(0, total=100, keys=ring.peer("worker-0"))
        with rogue_sockets(ring.peer("worker-1")) as them:
            kind, port = KINDS[0], run.server.ports[0]
            large = them.open(kind, port)
            large.send(b"x" * (64 * 1024))
            endless = them.open(kind, port)
            for _ in range(2000):
                endless.send(b"x" * 1024, zmq.SNDMORE)
            empty = them.open(kind, port)
            empty.send_multipart([b""] * 20_000)
            run.until("its updates are settled", lambda: honest.machine.is_done)
            run.until(
                "the many frames have been dropped",
                lambda: sum(run.server.io.dropped.values()) >= 1,
            )
        outcomes = run.finish()
    assert outcomes["committed"] >= 80
