"""Many peers at once: they join (R-18), and they lose their server (R-19).

Protocols and sockets are the runtime's own, models are bytes: two cores cannot bear
hundreds of processes that train.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import Channel, Frames
from asyn2f.transport.base import Transport
from asyn2f.transport.zmq import ZmqTransport
from tests.faults.test_floods import seconds_until_all_are_in
from tests.soak.figures import Figure
from tests.support.crashed_run import free_address
from tests.support.socket_run import RUNTIME, spawn_server
from tests.support.stub_server import StubServer
from tests.support.stub_worker import StubWorker

JOINED_S = 10.0  # promised, of a thousand
BACK_S = 10.0  # promised
HELLOS_PER_S = 400  # promised, of two hundred: their pauses spread them out
SIZE = 1000
PROCESSES = 4


def joins(folder: Path, count: int) -> list[Figure]:
    """So many peers with keys register at once."""
    took_s = seconds_until_all_are_in(folder, count)
    return [Figure("joined_s", took_s, JOINED_S)]


def restart(folder: Path, count: int, away_s: float) -> list[Figure]:
    """A server with so many workers is killed; another takes its place after a while,
    at the same address."""
    address = free_address()
    about = {"address": address, "workers": count, "size": SIZE, "runtime": RUNTIME}
    first, _ = spawn_server(folder / "first", **about)
    crowds = [
        _crowd(folder / "peers", range(part, count, PROCESSES), address)
        for part in range(PROCESSES)
    ]
    server = None
    try:
        for _, joined in crowds:
            assert joined.wait(120.0), "they have not all joined the first server"
        first.kill()
        first.join()
        threading.Event().wait(away_s)
        heard: list[float] = []  # when each hello came
        server = StubServer(
            folder / "second",
            **about,
            incarnation=2,
            wrap=lambda transport: _Counted(transport, heard.append),
        )
        start_s = time.monotonic()
        server.changes.until("all are back", lambda: _are_in(server, count))
        back_s = time.monotonic() - start_s
        server.changes.until("they stay", lambda: time.monotonic() > start_s + 10.0)
        assert _are_in(server, count), "some have left again"
    finally:
        first.kill()
        if server is not None:
            server.stop()
            server.join()
        for process, _ in crowds:
            process.join(30.0)
            process.kill()
    print(f"{len(heard)} hellos of {count} workers")
    return [
        Figure("back_s", back_s, BACK_S),
        Figure("hellos_per_s", most_in_a_second(heard), HELLOS_PER_S * count / 200),
    ]


def most_in_a_second(times: list[float]) -> int:
    """The most of these times that lie within a second of each other.

    >>> most_in_a_second([0.0, 0.5, 0.9, 1.4, 3.0])
    3
    """
    times, first, most = sorted(times), 0, 0
    for last, time_s in enumerate(times):
        while time_s - times[first] >= 1.0:
            first += 1
        most = max(most, last + 1 - first)
    return most


def _are_in(server: StubServer, count: int) -> bool:
    """Whether so many have been welcomed, and have said since how they are."""
    sessions = list(server.machine._sessions)
    return sum(s.welcomed and s.heartbeat is not None for s in sessions) == count


class _Counted:
    """A transport that tells of every hello."""

    def __init__(self, inner: Transport, hello: Callable[[float], None]) -> None:
        self._inner, self._hello = inner, hello

    def poll(self, timeout_s: float | None) -> list:
        arrived = self._inner.poll(timeout_s)
        for item in arrived:
            if not isinstance(item, Frames) or item.channel is not Channel.CONTROL:
                continue
            if isinstance(wire_format.decode(item.header), messages.Hello):
                self._hello(time.monotonic())
        return arrived

    def __getattr__(self, name: str):
        return getattr(self._inner, name)


def _crowd(
    folder: Path, numbers: range, address: str
) -> tuple[BaseProcess, threading.Event]:
    """Workers that push nothing, in a process of their own; and what tells that all of
    them have joined."""
    context = multiprocessing.get_context("forkserver")
    joined = context.Event()
    process = context.Process(target=_join, args=(folder, numbers, address, joined))
    process.start()
    return process, joined


def _join(folder: Path, numbers: range, address: str, joined: threading.Event) -> None:
    workers = []
    for number in numbers:
        transport = ZmqTransport.connect_to(address, SIZE, depth=1)
        workers.append(StubWorker(folder, number, transport, SIZE, total=0))
    for worker in workers:
        worker.changes.until("a model comes", lambda w=worker: w.machine.base >= 0)
    joined.set()
    for worker in workers:
        worker.join(timeout_s=None)
