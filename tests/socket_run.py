"""A run over real sockets without JAX: a model is bytes, and training takes no time.

What carries it out is the runtime's own: both protocols, the I/O thread, the transport
and the journals. Only the computing is pretended, so a second holds hundreds of
updates. Workers can be threads here or processes of their own (`spawn`), each behind a
`ChaosProxy`. All is judged by the traces, and by what the server has in its store.
"""

import itertools
import json
import math
import multiprocessing
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from asyn2f import programs, trace
from asyn2f.programs import UpdateKey
from asyn2f.runtime import payloads, wire
from asyn2f.runtime import protocol as p
from asyn2f.runtime.io_thread import IoThread, Journal
from asyn2f.runtime.keys import PeerKeys, ServerKeys
from asyn2f.runtime.peer_protocol import PeerProtocol
from asyn2f.runtime.server_protocol import ServerProtocol
from asyn2f.runtime.settings import RuntimeSettings
from asyn2f.runtime.transport import Transport
from asyn2f.runtime.zmq_transport import ZmqTransport
from asyn2f.timing import Stop, Timing
from tests.chaos import ChaosProxy
from tests.judge import judge
from tests.protocol_net import hello_of, made, produced, server_settings

WINDOW = 4  # updates under way: as many as a worker keeps
RUNTIME = RuntimeSettings(lease_s=60.0, join_timeout_s=60.0)
# Every update is committed: what is lost cannot hide behind what is superseded.
EVERY_UPDATE = Timing(
    while_training="ignore",
    after_push="continue",
    quorum="some",
    pending="all",
    min_updates=4,
    deadline_s=0.25,
)
PATIENCE_S = 60.0


class Changes:
    """Wakes whoever waits for something to become true."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def until(
        self, what: str, holds: Callable[[], Any], timeout_s: float = PATIENCE_S
    ) -> float:
        """Waits until it holds; the seconds that took. Raises AssertionError: never."""
        start_s = time.monotonic()
        with self._changed:
            held = self._changed.wait_for(holds, timeout_s)
        assert held, f"after {timeout_s:g} s it is still not so that {what}"
        return time.monotonic() - start_s


def open_journal(folder: Path, name: str, actor: str) -> Journal:
    """A life's own file of the trace."""
    journal = Journal(trace.TraceWriter(folder / "trace", name))
    incarnation = int(actor == "server")
    journal.write(trace.Recorded(time.monotonic(), actor, "run-1", incarnation, {}))
    return journal


def body_of(session: str, seq: int, size: int) -> bytes:
    """The payload of an update; it says whose it is."""
    return f"{session}:{seq}:".encode().ljust(size, b".")


# ------------------------------------------------------------- a worker


class Producer:
    """A worker's protocol that has an update ready whenever one more may be sent.

    Never more than `WINDOW` wait for their verdicts, so none is withdrawn.
    """

    def __init__(
        self,
        inner: PeerProtocol,
        worker: int,
        session: str,
        size: int,
        total: float,
        every_s: float,
        changes: Changes,
    ) -> None:
        """`total` updates of `size` bytes, at most one per `every_s`."""
        self._inner, self._worker, self._session = inner, worker, session
        self._size, self._every_s, self._changes = size, every_s, changes
        self.total = total
        self.made = self.sends = 0
        self.base = -1
        self.delivered: list[tuple[float, int]] = []  # when which version came
        self.heard: Counter[str] = Counter()  # messages on CONTROL, by kind
        self.heard_s = self.pulsed_s = -math.inf  # when it last heard anything; a pulse
        self.reasons: set[str] = set()  # of verdicts
        self.other_run = ""
        self._next_s = 0.0

    @property
    def unsettled(self) -> int:
        """Updates that wait for their verdicts."""
        return len(self._inner._outbox)

    @property
    def is_done(self) -> bool:
        return self.made >= self.total and not self.unsettled

    @property
    def due_s(self) -> float:
        if self._may_make:
            return min(self._inner.due_s, self._next_s)
        return self._inner.due_s

    @property
    def _may_make(self) -> bool:
        return self.base >= 0 and self.made < self.total and self.unsettled < WINDOW

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        effects = self._tell(event, now)
        while self._may_make and now >= self._next_s:
            body = body_of(self._session, self.made, self._size)
            self.made += 1
            self._next_s = now + self._every_s
            effects += self._tell(
                produced(self._worker, body, self.base)._replace(time_s=now), now
            )
            if any(isinstance(effect, p.Finish) for effect in effects):
                break
        self._changes.note()
        return effects

    def _tell(self, event: p.Event, now: float) -> list[p.Effect]:
        match event:
            case p.FromWire(p.Channel.CONTROL, _, message):
                self.heard[type(message).__name__] += 1
                self.heard_s = now
                if isinstance(message, wire.Pulse):
                    self.pulsed_s = now
                if isinstance(message, wire.Verdict) and message.reason:
                    self.reasons.add(message.reason)
            case p.NotSent():
                self.sends -= 1
        effects = self._inner.on(event, now)
        for effect in effects:
            match effect:
                case p.Broadcast():
                    self.sends += 1
                case p.Deliver(header):
                    self.base = header.version
                    self.delivered.append((now, header.version))
        if self.other_run:
            effects = [self._misled(effect) for effect in effects]
        return effects

    def _misled(self, effect: Any) -> Any:
        if not isinstance(effect, p.Broadcast):
            return effect
        return effect._replace(message=effect.message._replace(run=self.other_run))


class BareWorker:
    """A worker without training, on a thread of its own."""

    def __init__(
        self,
        folder: Path,
        number: int,
        transport: Transport,
        size: int,
        *,
        total: float = math.inf,
        every_s: float = 0.0,
        runtime: RuntimeSettings = RUNTIME,
        changes: Changes | None = None,
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
        other_run: str = "",
        **hello: Any,
    ) -> None:
        """`wrap` puts something between the sockets and the protocol; `other_run` is
        the run it takes itself to be in; `hello`: what of it is not as it should be."""
        self.session = f"w{number}-{secrets.token_hex(4)}"
        self.number = number
        self.finish: p.Finish | None = None
        self.changes = changes or Changes()
        said = hello_of(number, self.session, **hello)
        inner = PeerProtocol(said, runtime, time.monotonic())
        self.machine = Producer(
            inner, number, self.session, size, total, every_s, self.changes
        )
        self._journal = open_journal(folder, self.session, f"worker-{number}")
        self.machine.other_run = other_run
        self._io = IoThread(
            self.machine, wrap(transport), self._journal, self._carry_out
        )
        self._io.start()

    def _carry_out(self, effect: p.Effect) -> None:
        if isinstance(effect, p.StopWork):
            self._io.post(p.StopRequested(effect.reason))
        if isinstance(effect, p.Finish):
            self.finish = effect
            self.changes.note()

    def stop(self) -> None:
        """Says goodbye."""
        self._io.post(p.StopRequested("enough"))

    def join(self, timeout_s: float | None = PATIENCE_S) -> None:
        """Waits for the end."""
        self._io.join(timeout_s)
        assert self.finish is not None, f"worker {self.number} has not ended"
        self._journal.close()


# ------------------------------------------------------------- the server


class BareServer:
    """A server that aggregates nothing: versions are bytes, the store is a dict."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        size: int,
        address: str = "tcp://127.0.0.1:0",
        timing: Timing = EVERY_UPDATE,
        runtime: RuntimeSettings = RUNTIME,
        stop: Stop | None = None,
        changes: Changes | None = None,
        wrap: Callable[[Transport], Transport] = lambda transport: transport,
        keys: ServerKeys | None = None,
        **settings: Any,
    ) -> None:
        """`wrap` puts something between the sockets and the protocol; `settings`: of
        the protocol, where they are others than usual."""
        self.changes = changes or Changes()
        self.size = size
        transport = ZmqTransport.bind(address, size, workers, keys=keys)
        self.ports = transport.ports()
        self.finish: p.Finish | None = None
        self.versions: dict[int, tuple[UpdateKey, ...]] = {}  # the store
        self.arrived_s: dict[UpdateKey, float] = {}
        self.bases: dict[UpdateKey, int] = {}
        self._making: dict[int, tuple[UpdateKey, ...]] = {}
        self._todo: SimpleQueue[p.Effect | Callable[[], object]] = SimpleQueue()
        self._held: set[UpdateKey] = set()  # updates in memory
        self.journal = open_journal(folder, "server", "server")
        machine = ServerProtocol(
            server_settings(
                workers=workers,
                num_bytes=size,
                min_workers=timing.min_workers,
                replaces=timing.replaces,
                stop=stop or Stop(),
                runtime=runtime,
                model_port=self.ports[1],
                update_port=self.ports[2],
                **settings,
            ),
            programs.server_program(timing),
            self._made(0),
            time.monotonic(),
        )
        self.machine = machine
        self.io = IoThread(machine, wrap(transport), self.journal, self._todo.put)
        self._thread = threading.Thread(target=self._run, name="main", daemon=True)
        self._thread.start()
        self.io.start()

    def meanwhile(self, action: Callable[[], object]) -> None:
        """Has the main thread do this, and nothing else as long as it takes."""
        self._todo.put(action)

    def stop(self) -> None:
        self.io.post(p.StopRequested("enough"))

    def join(self) -> None:
        """Waits for the end."""
        self._thread.join(PATIENCE_S)
        self.io.join(PATIENCE_S)
        assert self.finish is not None, "the server has not ended"
        self.journal.close()

    def _made(self, version: int) -> p.Made:
        payload = f"version {version};".encode().ljust(self.size, b".")
        header = made(version).header._replace(
            num_bytes=self.size, digest=payloads.digest(payload)
        )
        return p.Made(header, payload)

    def _run(self) -> None:
        while not isinstance(effect := self._todo.get(), p.Finish):
            if callable(effect) and not isinstance(effect, tuple):
                effect()
            else:
                self._carry_out(effect)
            self.changes.note()
        self.finish = effect
        self.changes.note()

    def _carry_out(self, effect: Any) -> None:
        match effect:
            case p.Check(key, header, payload):
                whole = body_of(key.session, key.seq, header.num_bytes)
                problem = "" if bytes(payload) == whole else "not what was sent"
                self.arrived_s[key] = time.monotonic()
                self.bases[key] = header.base_version
                if not problem:
                    self._held.add(key)
                self.io.post(p.Checked(key, problem))
            case p.Forget(key):
                self._held.discard(key)
            case p.Make(version, keys):
                assert self._held >= {*keys}, "an update was forgotten too early"
                bases = [self.bases[key] for key in keys]
                self._making[version] = keys
                self.journal.write(
                    trace.Aggregated(
                        time.monotonic(),
                        version,
                        1,
                        [list(key) for key in keys],
                        bases,
                        [version - 1 - base for base in bases],
                        [1 / len(keys)] * len(keys),
                        0.1,
                    )
                )
                self.io.post(self._made(version))
            case p.Save(version, books):
                json.dumps(books)
                assert version not in self.versions, f"{version} was saved twice"
                self.versions[version] = self._making.pop(version)
                self.io.post(p.Saved(version))

    def live(self) -> list[int]:
        """Workers that it takes to be there."""
        return [s.hello.worker for s in self.machine._roster.live_workers()]

    def newest(self) -> tuple[UpdateKey, ...]:
        """What the newest version is made of."""
        return self.versions[max(self.versions)] if self.versions else ()

    @property
    def committed(self) -> int:
        """Updates in versions."""
        return sum(len(keys) for keys in list(self.versions.values()))


# ------------------------------------------------------------- a run


class SocketRun:
    """A server here; workers as threads or processes, behind proxies of their own."""

    def __init__(self, folder: Path, *, seed: int = 0, **server: Any) -> None:
        """`server`: see `BareServer`."""
        print(f"seed {seed}")  # pytest shows it with a failure
        self.folder, self.seed = folder, seed
        self.changes = Changes()
        self.until = self.changes.until
        self.server = BareServer(folder, changes=self.changes, **server)
        self.proxies: list[ChaosProxy] = []
        self.workers: list[BareWorker] = []
        self._processes: list[BaseProcess] = []
        self._names = itertools.count()

    def proxy(self) -> ChaosProxy:
        """One more, at an address of its own."""
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
    ) -> BareWorker:
        """A worker as a thread; without a proxy's address, straight to the server."""
        size = self.server.size
        address = address or self.address
        transport = ZmqTransport.connect_to(address, size, depth=1, keys=keys)
        worker = BareWorker(
            self.folder, number, transport, size, changes=self.changes, **how
        )
        self.workers.append(worker)
        return worker

    def spawn(self, number: int, address: str = "", **how: Any) -> BaseProcess:
        """A worker as a process, which can be stopped and killed."""
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
        """What stands in the trace by now."""
        found = trace.read(self.folder / "trace")
        return [event for event in found if isinstance(event, kinds)]

    def finish(self) -> Counter[str]:
        """Heals all links, ends the run and judges it; how many updates had which
        fate."""
        for proxy in self.proxies:
            proxy.calm()
        self.server.stop()
        self.server.join()
        for worker in self.workers:
            worker.join()
        for process in self._processes:
            process.join(PATIENCE_S)
            assert not process.is_alive(), f"worker process {process.pid} hangs"
        return judge(self.folder / "trace", self.server.versions)

    def __enter__(self) -> "SocketRun":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for proxy in self.proxies:
            proxy.close()


def _processes() -> Any:
    """A fork of a process that has imported all this is there at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.socket_run"])
    return context


def spawn_server(folder: Path, **how: Any) -> tuple[BaseProcess, tuple[int, int, int]]:
    """A server as a process of its own, and its ports; SIGTERM ends the run."""
    here, there = multiprocessing.Pipe()
    process = _processes().Process(target=_serve, args=(folder, there, how))
    process.start()
    there.close()
    return process, here.recv()


def _serve(folder: Path, pipe: Connection, how: dict[str, Any]) -> None:
    server = BareServer(folder, **how)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    pipe.send(server.ports)
    server.changes.until("it is over", lambda: server.finish, timeout_s=1e6)
    server.join()


def spawn_worker(
    folder: Path, number: int, address: str, size: int, limit: int = 0, **how: Any
) -> BaseProcess:
    """A worker as a process of its own, with updates of that size; models are of
    `limit` bytes if that is another."""
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
    BareWorker(folder, number, transport, size, **how).join(timeout_s=None)


def _set_wall_clock(wrong_s: float, jumps_s: float) -> None:
    """From now on this process's clock on the wall is wrong, and is set right and wrong
    again every `jumps_s` seconds, if that is not 0."""
    right, start_s = time.time, time.monotonic()

    def wall() -> float:
        jumps = (time.monotonic() - start_s) // jumps_s if jumps_s else 0
        return right() + (0.0 if jumps % 2 else wrong_s)

    time.time = wall
