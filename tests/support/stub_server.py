"""A server that aggregates nothing: its protocol over real sockets."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from asyn2f import programs, serialization, trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol.server import ServerProtocol
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import IoThread
from asyn2f.timing import Stop, Timing
from asyn2f.transport.base import Transport
from asyn2f.transport.keys import ServerKeys
from asyn2f.transport.zmq import ZmqTransport
from tests.support.messages import made, server_settings
from tests.support.patience import PATIENCE_S
from tests.support.stub_worker import RUNTIME, Changes, body_of, open_journal

# Every update is committed: what is lost cannot hide behind what is superseded.
EVERY_UPDATE = Timing(
    while_training="ignore",
    after_push="continue",
    quorum="some",
    pending="all",
    min_updates=4,
    deadline_s=0.25,
)


class StubServer:
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
        incarnation: int = 1,
        **settings: Any,
    ) -> None:
        """`wrap` wraps the transport; `settings` are changes of the protocol's."""
        self.changes = changes or Changes()
        self.size, self._incarnation = size, incarnation
        transport = ZmqTransport.bind(address, size, workers, keys=keys)
        self.ports = transport.ports()
        self.finish: p.Finish | None = None
        self.versions: dict[int, tuple[UpdateKey, ...]] = {}  # the store
        self.arrived_s: dict[UpdateKey, float] = {}
        self.bases: dict[UpdateKey, int] = {}
        self._making: dict[int, tuple[UpdateKey, ...]] = {}
        self._todo: SimpleQueue[p.Effect | Callable[[], object]] = SimpleQueue()
        self._held: set[UpdateKey] = set()  # updates in memory
        self.journal = open_journal(folder, "server", "server", incarnation)
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
                incarnation=incarnation,
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
        """Blocks the main thread with this action."""
        self._todo.put(action)

    def stop(self) -> None:
        self.io.post(p.StopRequested("enough"))

    def join(self) -> None:
        """Waits for the end of the run."""
        self._thread.join(PATIENCE_S)
        self.io.join(PATIENCE_S)
        assert self.finish is not None, "the server has not ended"
        self.journal.close()

    def _made(self, version: int) -> p.VersionAggregated:
        payload = f"version {version};".encode().ljust(self.size, b".")
        header = made(version, incarnation=self._incarnation).header._replace(
            num_bytes=self.size, digest=serialization.digest(payload)
        )
        return p.VersionAggregated(header, payload)

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
            case p.ValidateUpdate(key, header, payload):
                whole = body_of(key.session, key.seq, header.num_bytes)
                problem = "" if bytes(payload) == whole else "not what was sent"
                self.arrived_s[key] = time.monotonic()
                self.bases[key] = header.info.base_version
                if not problem:
                    self._held.add(key)
                self.io.post(p.UpdateValidated(key, problem))
            case p.DropUpdate(key):
                self._held.discard(key)
            case p.AggregateVersion(version, keys):
                assert self._held >= {*keys}, "an update was forgotten too early"
                bases = [self.bases[key] for key in keys]
                self._making[version] = keys
                self.journal.write(
                    trace.Aggregated(
                        time.monotonic(),
                        version,
                        self._incarnation,
                        [list(key) for key in keys],
                        bases,
                        [version - 1 - base for base in bases],
                        [1 / len(keys)] * len(keys),
                        0.1,
                    )
                )
                self.io.post(self._made(version))
            case p.SaveVersion(version, accounting):
                json.dumps(accounting)
                assert version not in self.versions, f"{version} was saved twice"
                self.versions[version] = self._making.pop(version)
                self.io.post(p.VersionSaved(version))

    def live(self) -> list[int]:
        """The live workers."""
        return [s.hello.worker for s in self.machine._sessions.live_workers()]

    def newest(self) -> tuple[UpdateKey, ...]:
        """The updates in the newest version."""
        return self.versions[max(self.versions)] if self.versions else ()

    @property
    def committed(self) -> int:
        """The number of committed updates."""
        return sum(len(keys) for keys in list(self.versions.values()))
