"""How many connections a server takes: those of an address, and in all."""

import contextlib
import resource
import socket
import time

import pytest

from asyn2f.protocol.channels import (
    Frames,
)
from asyn2f.transport import zmq_doorkeeper
from asyn2f.transport.zmq import ZmqTransport
from asyn2f.transport.zmq_doorkeeper import most_of
from tests.support.patience import PATIENCE_S

SIZE = 1000


@pytest.fixture
def server():
    transport = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=1)
    yield transport
    transport.close()


class Silent:
    """Connections that say nothing."""

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
        """How many the server has ended; it is attended to."""
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


def hears(server, peer):
    """The server hears the peer, which says it again and again."""
    deadline_s = time.monotonic() + PATIENCE_S
    said = peer.send(b"", b"hello")
    while not any(isinstance(item, Frames) for item in server.poll(0.05)):
        assert time.monotonic() < deadline_s
        peer.poll(0.0)
        said = peer.send(b"", b"hello")
    return said


def test_an_address_has_so_many_connections_and_another_its_own(server):
    most = most_of(2)
    silent = Silent(server, most + 30)
    silent.wait_ended(30)
    there = Silent(server, 10, source="127.0.0.7")
    hears_s = time.monotonic() + 0.5
    while time.monotonic() < hears_s:
        assert there.ended == 0
    silent.close()
    there.close()


def test_who_is_here_stays_and_who_comes_after_the_flood_comes_in(server):
    address = f"tcp://127.0.0.1:{server.ports()[0]}"
    early = ZmqTransport.connect_to(address, SIZE, 1)
    assert hears(server, early)
    silent = Silent(server, most_of(2) + 30)
    silent.wait_ended(30)
    assert hears(server, early)
    late = ZmqTransport.connect_to(address, SIZE, 1)
    assert hears(server, late), "when the silent ones have been given up"
    for each in (early, late, silent):
        each.close()


def test_descriptors_are_left_for_files(server, monkeypatch):
    """Whatever connects: a process that can open no file loses what it should save."""
    with open("/dev/null") as file:
        lowest = file.fileno()
    monkeypatch.setattr(zmq_doorkeeper, "_most_descriptors", lambda: lowest)
    silent = Silent(server, 5)
    began_s = time.monotonic()
    silent.wait_ended(5)
    assert server._doorkeeper.turned_away == 5
    print(f"after {time.monotonic() - began_s:.2f} s")
    silent.close()


def test_all_but_a_reserve_is_for_connections(monkeypatch):
    for limit, most in ((1024, 960), (64, 32), (resource.RLIM_INFINITY, 2**31)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, n=limit: (n, n))
        assert zmq_doorkeeper._most_descriptors() == most
