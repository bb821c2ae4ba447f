"""A real server without its threads, which handles one message at a time.

What a test puts in goes the way of whatever arrives: decoded by the I/O thread's code,
to the protocol, to the server's JAX and its store, and back into the protocol.
"""

import math
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import jax
import numpy as np

from asyn2f import serialization, trace
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import UPDATES, Channel, Frames, Subscribed
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.server import Observer
from asyn2f.runtime.startup import create_server
from asyn2f.serialization import params_sha256
from asyn2f.store.base import MemoryStore
from asyn2f.training.agreement import data_digest
from asyn2f.training.experiment import Experiment, registered
from asyn2f.transport.base import MemoryNetwork
from asyn2f.types import WorkerUpdate
from tests.contracts.test_runtime import small
from tests.support.updates import replaced

SETTINGS = RuntimeSettings(heartbeat_interval_s=0.2, heartbeat_timeout_s=1e6)


class _AtOnce:
    """Replaces the queue of the checkpoint thread."""

    def put(self, job: Callable[[], None] | None) -> None:
        if job is not None:
            job()


class ServerHarness:
    """A server; the test acts as its workers 0, 1, ..."""

    def __init__(self, folder: Path, experiment: Experiment | None = None) -> None:
        experiment = experiment or small(min_workers=1, timing__min_updates=1)
        self.experiment = experiment
        self.store = MemoryStore()
        self.folder = folder
        self._network = MemoryNetwork(depth=10_000)
        self._journal = Journal(trace.TraceWriter(folder / "trace", "server"))
        self.server = create_server(
            self.experiment,
            ("seed=0",),
            "run-1",
            SETTINGS,
            self._network.server,
            self.store,
            self._journal,
            Observer(row=lambda row: None, status=lambda status: None),
            self.store.begin_incarnation(),
        )
        self.server._saver._jobs = _AtOnce()
        self.io = self.server._io
        # A test may send as many bad ones as it likes.
        self.io._machine._updates._invalid.burst = math.inf
        self._reports = [self._report(worker) for worker in range(experiment.workers)]
        self.peers: dict[str, Any] = {}

    def _report(self, worker: int) -> WorkerUpdate:
        """The update of a worker that has just adopted the first version."""
        examples, quality = registered(self.experiment)[worker]
        model = self.server.aggregator.state.model
        held = self.experiment.trainer.start(model, worker, examples, quality)
        return self.experiment.trainer.report(held)

    def put(self, frames: Frames | Subscribed) -> None:
        """Frames arrive; all of their effects are carried out."""
        self.io._take(frames)
        while True:
            try:
                self.io._tell(self.io._posted.get_nowait())
                continue
            except Empty:
                pass
            try:
                self.server._carry_out(self.server._todo.get_nowait())
            except Empty:
                return

    def control(self, session: str, header: bytes) -> list[messages.Message]:
        """A message arrives on CONTROL; returns the answers."""
        end = self.peers.setdefault(session, self._network.peer())
        self.put(Frames(Channel.CONTROL, end._name, header, b""))
        return self.heard(session)

    def heard(self, session: str) -> list[messages.Message]:
        """The messages sent to that session on CONTROL since the last call."""
        arrived = self.peers[session].poll(0.0)
        return [
            wire_format.decode(item.header)
            for item in arrived
            if isinstance(item, Frames) and item.channel is Channel.CONTROL
        ]

    def hello(self, worker: int, session: str, **changes: Any) -> messages.Hello:
        examples, quality = registered(self.experiment)[worker]
        template = self.experiment.template
        hello = messages.Hello(
            messages.PROTOCOL,
            "worker",
            worker,
            session,
            -1,
            "",
            template.fingerprint,
            str(self.experiment.coding),
            examples,
            quality,
            data_digest(self.experiment.task, worker),
            ("seed=0",),
        )
        return hello._replace(**changes)

    def join(self, worker: int, session: str) -> list[messages.Message]:
        return self.control(session, wire_format.encode(self.hello(worker, session)))

    def update(
        self, worker: int, session: str, seq: int = 0, /, params=None, **changes: Any
    ) -> tuple[messages.UpdateHeader, bytes]:
        """A valid update with these changes."""
        report = self._reports[worker]
        payload = bytes(
            serialization.encode_params(report.params if params is None else params)
        )
        info = serialization.to_numbers(report.info)
        header = messages.UpdateHeader(
            run="run-1",
            incarnation=1,
            worker=worker,
            session=session,
            seq=seq,
            info=info._replace(loss=0.5, metric=0.5, signal=0.5),
            fingerprint=self.experiment.update_template.fingerprint,
            num_bytes=len(payload),
            digest=serialization.digest(payload),
        )
        return replaced(header, **changes), payload

    def push(
        self, header: messages.UpdateHeader, payload: bytes
    ) -> list[messages.UpdateOutcome]:
        """An update arrives; returns the outcomes sent to its session."""
        self.put(Frames(Channel.UPDATE, UPDATES, wire_format.encode(header), payload))
        heard = self.heard(header.session) if header.session in self.peers else []
        return [
            message for message in heard if isinstance(message, messages.UpdateOutcome)
        ]

    @property
    def version(self) -> int:
        return int(self.server.aggregator.state.model.version)

    @property
    def sha256(self) -> str:
        return params_sha256(self.server.aggregator.state.model.params)

    @property
    def is_empty(self) -> bool:
        """Whether no update is pending."""
        return not self.server.aggregator.pending

    def events(self, kind):
        found = trace.read(self.folder / "trace")
        return [event for event in found if isinstance(event, kind)]

    def close(self) -> None:
        self._journal.close()


def with_leaf(params, value: float):
    """The parameters with one number of their first array replaced."""
    leaves, treedef = jax.tree.flatten(jax.tree.map(np.array, params))
    leaves[0].flat[0] = value
    return jax.tree.unflatten(treedef, leaves)
