"""Limits of a server on connections: from one address, and in all."""

import contextlib
import resource
import socket
import time

import pytest

from asyn2f.protocol.channels import Frames
from asyn2f.transport import zmq_limits
from asyn2f.transport.zmq import ZmqTransport
from asyn2f.transport.zmq_limits import max_connections
from tests.support.patience import PATIENCE_S

SIZE = 1000


@pytest.fixture
def server():
    transport = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=1)
    yield transport
    transport.close()


class Silent:
    """Connections that send nothing."""

    def __init__(self, server, number, source="127.0.0.1"):
        self.server = server
        self.sockets = []
        for _ in range(number):
            port = server.ports()[len(self.sockets) % 3]
            address = "127.0.0.1", port
            self.sockets.append(
                socket.create_connection(address, source_address=(source, 0))
            )
            self.sockets[-1].setblocking(False)
            server.poll(0.0)

    @property
    def ended(self):
        """The number that the server has closed; it is polled."""
        self.server.poll(0.01)
        number = 0
        for each in self.sockets:
            with contextlib.suppress(BlockingIOError):
                try:
                    data = each.recv(64)  # a greeting, or nothing more
                    while data:
                        data = each.recv(64)
                    number += 1
                except ConnectionResetError:
                    number += 1
        return number

    def wait_ended(self, number):
        deadline_s = time.monotonic() + PATIENCE_S
        while self.ended < number:
            assert time.monotonic() < deadline_s, f"{self.ended} of {number} ended"

    def close(self):
        for each in self.sockets:
            each.close()


def receives(server, peer):
    """Polls until the server receives a message, which the peer repeats."""
    deadline_s = time.monotonic() + PATIENCE_S
    said = peer.send(b"", b"hello")
    while not any(isinstance(item, Frames) for item in server.poll(0.05)):
        assert time.monotonic() < deadline_s
        peer.poll(0.0)
        said = peer.send(b"", b"hello")
    return said


def test_connections_are_limited_per_address(server):
    most = max_connections(2)
    silent = Silent(server, most + 30)
    silent.wait_ended(30)
    there = Silent(server, 10, source="127.0.0.7")
    hears_s = time.monotonic() + 0.5
    while time.monotonic() < hears_s:
        assert there.ended == 0
    silent.close()
    there.close()


def test_a_flood_drops_no_peer_and_later_peers_connect(server):
    address = f"tcp://127.0.0.1:{server.ports()[0]}"
    early = ZmqTransport.connect_to(address, SIZE, 1)
    assert receives(server, early)
    silent = Silent(server, max_connections(2) + 30)
    silent.wait_ended(30)
    assert receives(server, early)
    late = ZmqTransport.connect_to(address, SIZE, 1)
    assert receives(server, late), "once the silent connections have timed out"
    for each in (early, late, silent):
        each.close()


def test_descriptors_are_left_for_files(server, monkeypatch):
    """A process that can open no file could not save a version."""
    with open("/dev/null") as file:
        lowest = file.fileno()
    monkeypatch.setattr(zmq_limits, "_first_reserved", lambda: lowest)
    silent = Silent(server, 5)
    began_s = time.monotonic()
    silent.wait_ended(5)
    assert server._limiter.closed == 5
    print(f"after {time.monotonic() - began_s:.2f} s")
    silent.close()


def test_connections_get_all_descriptors_but_a_reserve(monkeypatch):
    for limit, most in ((1024, 960), (64, 32), (resource.RLIM_INFINITY, 2**31)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, n=limit: (n, n))
        assert zmq_limits._first_reserved() == most
