"""The mechanism in a server's greeting, and peers that ask for it."""

import contextlib
import socket
import threading
import time

import pytest

from asyn2f.protocol.messages import Refused
from asyn2f.protocol.wire_format import decode
from asyn2f.transport.zmq import ZmqTransport
from asyn2f.transport.zmq_auth import mechanism_of
from tests.support.patience import PATIENCE_S
from tests.support.rogue_peers import Keyring

SIZE = 4096


def greeting(mechanism: bytes) -> bytes:
    """The 64 bytes of a ZMTP 3.1 greeting."""
    head = b"\xff" + bytes(8) + b"\x7f\x03\x01"
    return head + mechanism.ljust(20, b"\0") + bytes(32)


@contextlib.contextmanager
def answering(*answers: bytes):
    """The port of a server that answers one connection after the other with these
    bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)

        def serve() -> None:
            for answer in answers:
                with listening.accept()[0] as caller:
                    caller.settimeout(PATIENCE_S)
                    caller.sendall(answer)
                    caller.shutdown(socket.SHUT_WR)
                    while caller.recv(64):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("with_keys", [False, True])
def test_all_sockets_of_a_server_announce_their_mechanism(tmp_path, with_keys):
    own = Keyring(tmp_path, workers=1).server if with_keys else None
    server = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=1, keys=own)
    found = {mechanism_of("127.0.0.1", port) for port in server.ports()}
    server.close()
    assert found == {"CURVE" if with_keys else "NULL"}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        greeting(b"NULL")[:63],
        greeting(b"PLAIN"),
        greeting(b"\xff\xfe"),
        b"H" + greeting(b"NULL")[1:],
    ],
    ids=["nothing", "too short", "another", "no name", "no signature"],
)
def test_an_invalid_greeting_has_no_mechanism(answer):
    with answering(answer) as port:
        assert mechanism_of("127.0.0.1", port) == ""


def test_a_closed_port_has_no_mechanism():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert mechanism_of("127.0.0.1", port) == ""


def test_a_silent_server_times_out():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert mechanism_of("127.0.0.1", listening.getsockname()[1], 0.05) == ""


@pytest.mark.parametrize("has_key", [False, True])
def test_a_peer_asks_a_server_that_closed_before_its_greeting(tmp_path, has_key):
    """As libzmq does once it has read the peer's greeting."""
    own = Keyring(tmp_path, workers=1).peer("worker-0") if has_key else None
    theirs = greeting(b"NULL" if has_key else b"CURVE")
    with answering(theirs[:11], theirs) as port:
        peer = ZmqTransport.connect_to(
            f"tcp://127.0.0.1:{port}", SIZE, depth=1, keys=own
        )
        arrived, deadline_s = [], time.monotonic() + PATIENCE_S
        while not arrived:
            assert time.monotonic() < deadline_s
            arrived = peer.poll(1.0)
        peer.close()
    refusal = decode(arrived[0].header)
    assert isinstance(refusal, Refused)
    assert ("it has no keys" if has_key else "it requires keys") in refusal.reason


@pytest.mark.parametrize(("mechanism", "refusals"), [("NULL", 0), ("CURVE", 1)])
def test_only_a_different_mechanism_is_a_refusal(mechanism, refusals):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        peer = ZmqTransport.connect_to(address, SIZE, depth=1)
        peer._refusals._mechanism = mechanism
        peer.wake()
        assert len(peer.poll(PATIENCE_S)) == refusals
        assert peer.poll(0.0) == []
        peer.close()
