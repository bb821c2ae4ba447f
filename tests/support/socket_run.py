"""A run over real sockets without JAX: a model is bytes, and training takes no time.

What carries it out is the runtime's own: both protocols, the I/O thread, the transport
and the journals. Only the computing is pretended, so a second holds hundreds of
updates. Workers can be threads here or processes of their own (`spawn`), each behind a
`ChaosProxy`. All is judged by the traces, and by what the server has in its store.
"""

import itertools
import multiprocessing
import os
import signal
import time
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from asyn2f import trace
from asyn2f.transport.keys import PeerKeys
from asyn2f.transport.zmq import ZmqTransport
from tests.support.chaos import ChaosProxy
from tests.support.patience import PATIENCE_S
from tests.support.stub_server import EVERY_UPDATE as EVERY_UPDATE
from tests.support.stub_server import StubServer
from tests.support.stub_worker import RUNTIME as RUNTIME
from tests.support.stub_worker import Changes, StubWorker
from tests.support.trace_checks import check_trace


class SocketRun:
    """A stub server in this process; stub workers as threads or processes, each behind
    a proxy."""

    def __init__(self, folder: Path, *, seed: int = 0, **server: Any) -> None:
        """`server`: see `StubServer`."""
        print(f"seed {seed}")  # pytest shows it with a failure
        self.folder, self.seed = folder, seed
        self.changes = Changes()
        self.until = self.changes.until
        self.server = StubServer(folder, changes=self.changes, **server)
        self.proxies: list[ChaosProxy] = []
        self.workers: list[StubWorker] = []
        self._processes: list[BaseProcess] = []
        self._names = itertools.count()

    def proxy(self) -> ChaosProxy:
        """Another proxy, with its own address."""
        number = len(self.proxies)
        host = f"127.0.1.{number + 1}"
        proxy = ChaosProxy(host, self.server.ports, seed=1000 * self.seed + number)
        self.proxies.append(proxy)
        return proxy

    def start_worker(
        self,
        number: int,
        address: str = "",
        keys: PeerKeys | None = None,
        **how: Any,
    ) -> StubWorker:
        """Starts a worker thread, connected to a proxy or else to the server."""
        size = self.server.size
        address = address or self.address
        transport = ZmqTransport.connect_to(address, size, depth=1, keys=keys)
        worker = StubWorker(
            self.folder, number, transport, size, changes=self.changes, **how
        )
        self.workers.append(worker)
        return worker

    def spawn(self, number: int, address: str = "", **how: Any) -> BaseProcess:
        """Starts a worker process, which can be stopped and killed."""
        process = spawn_worker(
            self.folder, number, address or self.address, self.server.size, **how
        )
        self._processes.append(process)
        return process

    def kill(self, process: BaseProcess) -> None:
        """SIGKILL."""
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(PATIENCE_S)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.server.ports[0]}"

    def events(self, *kinds: type) -> list[Any]:
        """The events in the trace by now."""
        found = trace.read(self.folder / "trace")
        return [event for event in found if isinstance(event, kinds)]

    def finish(self) -> Counter[str]:
        """Heals all links, ends the run and checks its trace; returns the number of
        updates by outcome."""
        for proxy in self.proxies:
            proxy.calm()
        self.server.stop()
        self.server.join()
        for worker in self.workers:
            worker.join()
        for process in self._processes:
            process.join(PATIENCE_S)
            assert not process.is_alive(), f"worker process {process.pid} hangs"
        return check_trace(self.folder / "trace", self.server.versions)

    def __enter__(self) -> "SocketRun":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for proxy in self.proxies:
            proxy.close()


def _processes() -> Any:
    """Forked from a process with all imports done, a process starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.socket_run"])
    return context


def spawn_server(folder: Path, **how: Any) -> tuple[BaseProcess, tuple[int, int, int]]:
    """Starts a server process; returns it and its ports. SIGTERM ends the run."""
    here, there = multiprocessing.Pipe()
    process = _processes().Process(target=_serve, args=(folder, there, how))
    process.start()
    there.close()
    return process, here.recv()


def _serve(folder: Path, pipe: Connection, how: dict[str, Any]) -> None:
    server = StubServer(folder, **how)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    pipe.send(server.ports)
    server.changes.until("it is over", lambda: server.finish, timeout_s=1e6)
    server.join()


def spawn_worker(
    folder: Path, number: int, address: str, size: int, limit: int = 0, **how: Any
) -> BaseProcess:
    """Starts a worker process with updates of `size` bytes; `limit`: of models, if
    different."""
    process = _processes().Process(
        target=_work, args=(folder, number, address, size, limit or size, how)
    )
    process.start()
    return process


def _work(
    folder: Path, number: int, address: str, size: int, limit: int, how: dict[str, Any]
) -> None:
    _set_wall_clock(*how.pop("wall", (0.0, 0.0)))
    transport = ZmqTransport.connect_to(address, limit, depth=1)
    StubWorker(folder, number, transport, size, **how).join(timeout_s=None)


def _set_wall_clock(wrong_s: float, jumps_s: float) -> None:
    """Shifts this process's wall clock; every `jumps_s` > 0 seconds it is set back or
    shifted again."""
    right, start_s = time.time, time.monotonic()

    def wall() -> float:
        jumps = (time.monotonic() - start_s) // jumps_s if jumps_s else 0
        return right() + (0.0 if jumps % 2 else wrong_s)

    time.time = wall
