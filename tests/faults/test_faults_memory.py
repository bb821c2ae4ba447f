"""What peers that are slow or die cost the server in memory, and the others in time."""

import os
import random
import signal
import time

import numpy as np
import psutil
import pytest
import zmq

from asyn2f import trace
from asyn2f.transport.zmq import ZmqTransport
from tests.support.chaos import ChaosProxy
from tests.support.patience import PATIENCE_S, Crowd
from tests.support.socket_run import (
    EVERY_UPDATE,
    Changes,
    StubWorker,
    spawn_server,
    spawn_worker,
)
from tests.support.trace_checks import check_trace

pytestmark = pytest.mark.processes
MIB = 2**20
SIZE = 8 * MIB
EACH = EVERY_UPDATE.__class__(
    while_training="ignore", after_push="continue", quorum="each"
)


class Scene:
    """A server in a process of its own, one worker that pushes, two that listen."""

    def __init__(self, folder, workers: int = 4) -> None:
        self.folder, self.changes = folder, Changes()
        self.server, self.ports = spawn_server(
            folder, workers=workers, size=SIZE, timing=EACH
        )
        self.address = f"tcp://127.0.0.1:{self.ports[0]}"
        self.rss = psutil.Process(self.server.pid).memory_info
        self.workers = [self._start(0, every_s=0.15), self._start(1), self._start(2)]

    def _start(self, number: int, **how) -> StubWorker:
        how = {"total": 0} | ({"total": float("inf")} | how if how else {})
        transport = ZmqTransport.connect_to(self.address, SIZE, depth=1)
        return StubWorker(
            self.folder, number, transport, 1000, changes=self.changes, **how
        )

    def watch(self, versions: int) -> tuple[int, float]:
        """The median of the server's memory while so many versions are given out, in
        bytes, and the 95th percentile of the times that they took to their receivers,
        in seconds. The peak would be that of a busy machine, where all are late."""
        receiver = self.workers[1].machine
        found, first = [], receiver.base
        for version in range(first + 1, first + versions + 1):
            self.changes.until(f"{version} comes", lambda v=version: receiver.base >= v)
            found.append(self.rss().rss)
        events = trace.read(self.folder / "trace")
        given = {e.version: e.time_s for e in events if isinstance(e, trace.Published)}
        took_s = [
            e.time_s - given[e.version]
            for e in events
            if isinstance(e, trace.Received) and e.worker < 3
            if first < e.version <= first + versions
        ]
        return int(np.median(found)), float(np.percentile(took_s, 95))

    def finish(self) -> None:
        self.server.terminate()
        for worker in self.workers:
            worker.join()
        self.server.join(PATIENCE_S)


@pytest.mark.timed
def test_a_subscriber_that_does_not_read_costs_two_payloads(tmp_path):
    scene = Scene(tmp_path)
    context = zmq.Context()
    try:
        scene.watch(5)
        before, before_s = scene.watch(20)
        slow = context.socket(zmq.SUB)
        slow.set(zmq.RCVHWM, 1)
        slow.set(zmq.LINGER, 0)
        slow.connect(f"tcp://127.0.0.1:{scene.ports[1]}")
        slow.subscribe(b"all")
        with Crowd() as crowd:
            after, after_s = scene.watch(30)
    finally:
        context.destroy(linger=0)
        scene.finish()
    said(before, after, before_s, after_s, crowd)
    assert check_trace(tmp_path / "trace").keys() <= {"committed", "rejected"}


@pytest.mark.slow
def test_a_subscriber_that_is_stopped_costs_two_payloads(tmp_path):
    scene = Scene(tmp_path)
    process = spawn_worker(tmp_path, 3, scene.address, 1000, total=0, limit=SIZE)
    try:
        scene.watch(5)
        before, before_s = scene.watch(20)
        os.kill(process.pid, signal.SIGSTOP)
        with Crowd() as crowd:
            after, after_s = scene.watch(30)
    finally:
        process.kill()
        scene.finish()
    said(before, after, before_s, after_s, crowd)
    assert check_trace(tmp_path / "trace").keys() <= {"committed", "rejected"}


def said(
    before: int, after: int, before_s: float, after_s: float, crowd: Crowd
) -> None:
    grown = (after - before) / MIB
    print(
        f"{grown:.1f} MiB more; 95 % in {before_s:.4f} s before, {after_s:.4f} after",
        crowd,
    )
    assert after - before <= 2 * SIZE + 16 * MIB
    assert after_s <= 1.2 * before_s + 0.05 * crowd.factor


@pytest.mark.slow
def test_workers_killed_in_mid_upload_leave_nothing_in_memory(tmp_path):
    """Half updates would be 80 MiB a round (R-01)."""
    chance, kills, after = random.Random(1), 20, []
    scene = Scene(tmp_path, workers=3 + 3 * kills)
    try:
        for first in range(3, 3 + 3 * kills, kills):
            proxies = [
                ChaosProxy(f"127.0.1.{first + n}", scene.ports) for n in range(kills)
            ]
            for proxy in proxies:
                limit = chance.randrange(200, SIZE)
                proxy.update.set(limit_bytes=limit, at_limit="stall")
            processes = [
                spawn_worker(tmp_path, first + n, proxy.address, SIZE, total=1)
                for n, proxy in enumerate(proxies)
            ]
            for proxy in proxies:
                assert proxy.update.limit_reached.wait(PATIENCE_S)
            for process in processes:
                process.kill()
                process.join()
            for proxy in proxies:
                proxy.close()
            until_s = time.monotonic() + 5.0
            scene.changes.until(
                "they are silent", lambda s=until_s: time.monotonic() > s
            )
            scene.watch(5)
            after.append(scene.rss().rss)
        left = [
            e for e in trace.read(tmp_path / "trace") if isinstance(e, trace.WorkerLeft)
        ]
        assert len({e.session for e in left}) == 3 * kills
    finally:
        scene.finish()
    print([x // MIB for x in after])
    assert after[2] - after[1] < 20 * MIB
    assert check_trace(tmp_path / "trace")["died"] == 3 * kills
