"""The mechanism in a server's greeting, and the peers that ask for it."""

import contextlib
import socket
import threading
import time

import pytest

from asyn2f.protocol.messages import Refused
from asyn2f.protocol.wire_format import decode
from asyn2f.transport.zmq import ZmqTransport
from asyn2f.transport.zmq_greeting import mechanism_of
from tests.support.patience import PATIENCE_S
from tests.support.rogue_peers import Keyring

SIZE = 4096


def greeting(mechanism: bytes) -> bytes:
    """All 64 bytes that a server of ZMTP 3.1 sends."""
    head = b"\xff" + bytes(8) + b"\x7f\x03\x01"
    return head + mechanism.ljust(20, b"\0") + bytes(32)


@contextlib.contextmanager
def door(*answers: bytes):
    """The port of a server that sends these bytes to one connection after the other,
    and nothing more."""
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
def test_all_sockets_of_a_server_name_their_mechanism(tmp_path, with_keys):
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
def test_what_is_no_such_greeting_names_no_mechanism(answer):
    with door(answer) as port:
        assert mechanism_of("127.0.0.1", port) == ""


def test_where_nobody_listens_there_is_no_mechanism():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert mechanism_of("127.0.0.1", port) == ""


def test_a_server_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert mechanism_of("127.0.0.1", listening.getsockname()[1], 0.05) == ""


@pytest.mark.parametrize("has_key", [False, True])
def test_a_peer_asks_a_server_that_broke_off_before_it_had_greeted(tmp_path, has_key):
    """As libzmq does that has read the peer's greeting before it has sent its own."""
    own = Keyring(tmp_path, workers=1).peer("worker-0") if has_key else None
    theirs = greeting(b"NULL" if has_key else b"CURVE")
    with door(theirs[:11], theirs) as port:
        peer = ZmqTransport.connect_to(
            f"tcp://127.0.0.1:{port}", SIZE, depth=1, keys=own
        )
        arrived, deadline_s = [], time.monotonic() + PATIENCE_S
        while not arrived:
            assert time.monotonic() < deadline_s
            arrived = peer.poll(1.0)
        peer.close()
    said = decode(arrived[0].header)
    assert isinstance(said, Refused)
    assert ("it has no keys" if has_key else "it lets in only") in said.reason


@pytest.mark.parametrize(("mechanism", "refusals"), [("NULL", 0), ("CURVE", 1)])
def test_a_server_of_the_same_mechanism_that_broke_off_refuses_nothing(
    mechanism, refusals
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        peer = ZmqTransport.connect_to(address, SIZE, depth=1)
        peer._inquiry.found = mechanism
        peer.wake()
        assert len(peer.poll(PATIENCE_S)) == refusals
        assert peer.poll(0.0) == []
        peer.close()
