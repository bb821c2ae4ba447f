"""Peers that are late, wrong or slow, and messages that come twice or out of order."""

import math
import random
import threading
import time

import pytest

from asyn2f.protocol import messages
from asyn2f.protocol.channels import Frames
from tests.support.patience import PATIENCE_S, Crowd
from tests.support.socket_run import SocketRun

MIB = 2**20


# -------------------------------------------------------------


class Shuffler:
    """Between a transport and its protocol: what arrives comes three times, each time
    later than it should, and not in its order."""

    def __init__(self, inner, seed: int, delay_s: float) -> None:
        self._inner, self._random, self._delay_s = inner, random.Random(seed), delay_s
        self._late: list[tuple[float, object]] = []
        self.repeated = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def poll(self, timeout_s):
        now = time.monotonic()
        due_s = min((due_s for due_s, _ in self._late), default=math.inf)
        arrived = self._inner.poll(max(0.0, min(timeout_s, due_s - now)))
        now = time.monotonic()
        for item in arrived:
            if isinstance(item, Frames):
                self._late += [(now + self._delay(), item) for _ in range(2)]
                self.repeated += 2
        ready = [item for due_s, item in self._late if due_s <= now]
        self._late = [pair for pair in self._late if pair[0] > now]
        self._random.shuffle(ready)
        return arrived + ready

    def _delay(self) -> float:
        """Most are a little late, some are very late."""
        return self._random.random() ** 4 * self._delay_s


def shuffled_run(folder, seed: int, updates: int, delay_s: float) -> None:
    shufflers: list[Shuffler] = []

    def wrap(transport):
        shufflers.append(Shuffler(transport, seed + len(shufflers), delay_s))
        return shufflers[-1]

    with SocketRun(folder, seed=seed, workers=4, size=1000, wrap=wrap) as run:
        for number in range(4):
            run.start_worker(number, total=updates / 4, every_s=0.02, wrap=wrap)
        run.until("all is settled", lambda: all(w.machine.is_done for w in run.workers))
        outcomes = run.finish()
    assert len(shufflers) == 5
    assert min(shuffler.repeated for shuffler in shufflers) > updates / 4
    assert outcomes == {"committed": updates}


def test_what_comes_three_times_and_late_counts_once(tmp_path):
    shuffled_run(tmp_path, seed=1, updates=400, delay_s=2.0)


@pytest.mark.slow
def test_what_comes_twenty_seconds_late_counts_once(tmp_path):
    shuffled_run(tmp_path, seed=2, updates=4000, delay_s=20.0)


# -------------------------------------------------------------


def test_workers_join_and_push_while_the_server_is_busy(tmp_path):
    free = threading.Event()
    with SocketRun(tmp_path, workers=10, size=10_000) as run:
        run.start_worker(0, total=1)
        run.until("the run has begun", lambda: run.workers[0].machine.is_done)
        run.server.meanwhile(lambda: free.wait(PATIENCE_S))
        for number in range(1, 10):
            run.start_worker(number, total=1)
        with Crowd() as crowd:
            took_s = run.until(
                "all have joined and pushed, and have their receipts",
                lambda: all(w.machine.heard["UpdateReceived"] for w in run.workers),
            )
        until_s = time.monotonic() + 5.0 - took_s
        run.until("five seconds pass", lambda: time.monotonic() > until_s)
        assert len(run.server.live()) == 10
        assert run.server.committed == 1
        free.set()
        run.until("all is settled", lambda: all(w.machine.is_done for w in run.workers))
        assert run.finish() == {"committed": 10}
    print(f"all had receipts after {took_s:.2f} s, {crowd}")
    assert took_s < 5.0 * crowd.factor


# -------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"protocol": messages.PROTOCOL + 1}, "protocol"),
        ({"terms": ("seed=1",)}, "seed is 1, there 0"),
        ({"fingerprint": "another"}, "other arrays"),
        ({"worker": 7}, "0..1"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_at_once_and_for_good(
    tmp_path, wrong, words
):
    with SocketRun(tmp_path, workers=2, size=1000) as run:
        run.start_worker(0, total=10)
        start_s = time.monotonic()
        refused = run.start_worker(1, **wrong)
        run.until("it has ended", lambda: refused.finish)
        took_s = time.monotonic() - start_s
        assert refused.finish.status == "refused"
        assert words in refused.finish.reason
        assert refused.machine.heard["Refused"] == 1  # asked once, answered once
        assert refused.machine.made == 0
        run.until("the other works on", lambda: run.workers[0].machine.is_done)
        assert run.finish() == {"committed": 10}
    print(f"refused after {took_s:.2f} s")
    assert took_s < 1.0


def test_updates_of_another_run_are_rejected_with_a_reason(tmp_path):
    with SocketRun(tmp_path, workers=1, size=1000) as run:
        worker = run.start_worker(0, total=5, other_run="run-2")
        run.until("all are settled", lambda: worker.machine.is_done)
        assert worker.machine.reasons == {"of run run-2, this is run-1"}
        assert worker.machine.sends == 5
        assert run.finish() == {"rejected": 5}


# -------------------------------------------------------------


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1", "localhost"])
def test_any_loopback_and_any_free_port_will_do(tmp_path, host):
    with SocketRun(tmp_path, workers=1, size=1000, address=f"tcp://{host}:0") as run:
        worker = run.start_worker(0, f"tcp://{host}:{run.server.ports[0]}", total=10)
        run.until("all are settled", lambda: worker.machine.is_done)
        assert len(set(run.server.ports)) == 3
        assert run.finish() == {"committed": 10}
