"""What does a round cost in which nobody computes anything?

The server sends a version to all, each sends it back, the server aggregates (FedAvg).
Real sockets, each worker a process of its own, digests and checks as in any run; a
small model and one of 45 MB. With and without the store, so that its part is seen.
Where FLOWER_PYTHON names the Python of an environment with Flower (peers/README.md),
its deployment engine does the same in the same run; it keeps nothing on a disk.
"""

import json
import multiprocessing
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import serialization, trace
from asyn2f.config import build
from asyn2f.protocol import events as p
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.peer import ModelInbox, PeerClient, decode_model, hello_of
from asyn2f.runtime.server import Observer
from asyn2f.runtime.startup import create_server
from asyn2f.store.base import MemoryStore
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import Experiment
from asyn2f.transport.shared_memory import SharedMemoryTransport
from asyn2f.transport.zmq import ZmqTransport
from asyn2f.types import UpdateInfo
from configs.digits import get_config
from tests.bench.figures import Figure

ROUNDS = 24
WARM_UP = 4
SIZES = {"19 kB": (64,), "45 MB": (3309, 3309)}
TIMES = {"19 kB": 500, "45 MB": 30}  # as fast as Flower, at least
PATIENCE_S = 120.0
PEER = Path(__file__).parent / "peers" / "flower_rounds.py"


def measure() -> Iterator[Figure]:
    for size in SIZES:
        for workers in (2, 10):
            peer_s = _flower_s(size, workers)
            for store in ("memory", "disk"):
                seconds = _round_s(size, workers, store)
                what = f"no-op round, {workers} workers, {size}, versions in {store}"
                if peer_s is None:
                    yield Figure(what, seconds, "s", None, "nothing", seconds)
                    continue
                against, ratio = "Flower's deployment engine", peer_s / seconds
                # What is kept on a disk is more than the other does: no bound.
                wanted = TIMES[size] if store == "memory" else None
                yield Figure(what, seconds, "s", peer_s, against, ratio, wanted, True)


def _flower_s(size: str, workers: int) -> float | None:
    """The median of Flower's rounds, if it is here."""
    python = os.environ.get("FLOWER_PYTHON")
    if python is None:
        return None
    kilobytes = _experiment(size, workers).template.num_bytes // 1000
    flags = [f"--nodes={workers}", f"--kilobytes={kilobytes}", "--patience=580"]
    found = subprocess.run(
        [python, PEER, *flags], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(json.loads(found.stdout.splitlines()[-1])["median_s"])


def _experiment(size: str, workers: int) -> Experiment:
    config = get_config()
    config.workers = workers
    config.strategy.name = "fedavg"
    config.strategy.asyn2f.max_share = 1.0
    config.task.partition = "iid"
    config.task.hidden = SIZES[size]
    config.min_workers = workers
    config.stop.max_versions = ROUNDS
    return build.build_experiment(config.to_dict())


def _round_s(size: str, workers: int, kind: str) -> float:
    """The median of what lies between two versions."""
    experiment, settings = _experiment(size, workers), RuntimeSettings()
    num_bytes = experiment.template.num_bytes
    with tempfile.TemporaryDirectory() as folder:
        sockets = ZmqTransport.bind("tcp://127.0.0.1:0", num_bytes, workers)
        transport = SharedMemoryTransport.at_server(sockets, num_bytes, workers + 1)
        address = f"tcp://127.0.0.1:{transport.ports()[0]}"
        writer = trace.TraceWriter(Path(folder) / "trace", "server")
        store = MemoryStore()
        if kind == "disk":
            store = OrbaxStore(Path(folder) / "models", write_ahead=True)
        observer = Observer(lambda row: None, lambda status: None)
        journal = Journal(writer)
        server = create_server(
            *(experiment, ("seed=0",), "run", settings, transport, store, journal),
            *(observer, store.begin_incarnation()),
        )
        context = multiprocessing.get_context("spawn")
        peers = [
            context.Process(target=_echo, args=(size, workers, number, address))
            for number in range(workers)
        ]
        for peer in peers:
            peer.start()
        watchdog = threading.Timer(PATIENCE_S, server.stop, ["it takes too long"])
        watchdog.start()
        summary = server.run()
        watchdog.cancel()
        journal.close()
        for peer in peers:
            peer.join(PATIENCE_S)
        events = trace.read(Path(folder) / "trace")
    assert summary["versions"] == ROUNDS, summary
    made_s = [e.time_s for e in events if isinstance(e, trace.Aggregated)]
    return float(np.median(np.diff(made_s[WARM_UP:])))


def _echo(size: str, workers: int, number: int, address: str) -> None:
    """A worker that pushes what it got."""
    experiment = _experiment(size, workers)
    num_examples = len(experiment.task.shards[number])
    quality = float(np.float32(experiment.task.qualities[number]))
    hello = hello_of(experiment, ("seed=0",), "worker", number, num_examples, quality)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(trace.TraceWriter(Path(folder), f"worker-{number}"))
        inbox = ModelInbox()
        num_bytes = experiment.template.num_bytes
        sockets = ZmqTransport.connect_to(address, num_bytes, 1)
        transport = SharedMemoryTransport.at_peer(sockets, num_bytes)
        link = PeerClient(hello, RuntimeSettings(), transport, journal, inbox)
        link.start()
        while inbox.stopped is None:
            inbox.wait()
            received = inbox.take()
            if received is None:
                continue
            model = decode_model(experiment, received)
            payload = serialization.encode_params(model.params)
            info = UpdateInfo(
                base_version=received.header.version,
                start_version=received.header.version,
                step=1,
                num_examples=float(num_examples),
                loss=0.5,
                quality=quality,
                metric=0.5,
                signal=0.5,
            )
            link.post(
                p.UpdateReady(
                    info=info,
                    fingerprint=experiment.template.fingerprint,
                    num_bytes=len(payload),
                    digest=serialization.digest(payload),
                    payload=payload,
                    time_s=time.monotonic(),
                )
            )
        link.leave()
        journal.close()
