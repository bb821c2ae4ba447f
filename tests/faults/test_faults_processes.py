"""Workers' processes killed and stopped: updates are whole, or not there at all."""

import os
import random
import signal
import time
from dataclasses import replace

import pytest

from asyn2f import trace
from tests.support.patience import PATIENCE_S, Crowd
from tests.support.socket_run import RUNTIME, SocketRun

pytestmark = pytest.mark.processes
MIB = 2**20
QUICK = replace(RUNTIME, heartbeat_interval_s=0.2, heartbeat_timeout_s=1.0)
NOTICED_S = 5.0  # promised
# None is "lost". Rejected: came after the end; withdrawn: its worker left before there
# was an outcome. Here no update replaces another, so none is superseded.
ENDS = {"committed", "died", "rejected", "withdrawn"}


# -------------------------------------------------------------


def kill_in_mid_upload(folder, seed: int, kills: int) -> None:
    """Each at a byte of its own of the first three updates."""
    chance, size = random.Random(seed), 4 * MIB
    with SocketRun(folder, seed=seed, workers=kills + 1, size=size) as run:
        run.start_worker(0, every_s=0.2)
        run.until("versions come", lambda: run.server.committed > 3)
        proxies = [run.proxy() for _ in range(kills)]
        for proxy in proxies:
            limit = chance.randrange(200, 3 * size)
            proxy.update.set(limit_bytes=limit, at_limit="stall")
        processes = [
            run.spawn(number, proxy.address)
            for number, proxy in enumerate(proxies, start=1)
        ]
        for proxy in proxies:
            assert proxy.update.limit_reached.wait(PATIENCE_S)
        for process in processes:
            run.kill(process)
        start_s, goal = time.monotonic(), run.server.committed + 20
        with Crowd() as crowd:
            run.until("the server notices", lambda: run.server.live() == [0])
        noticed_s = time.monotonic() - start_s
        for proxy in proxies:
            proxy.calm()
        run.until("work goes on", lambda: run.server.committed > goal)
        outcomes = run.finish()
    print(f"noticed {noticed_s:.1f} s, {crowd}, {dict(outcomes)}")
    assert noticed_s < NOTICED_S * crowd.factor
    assert outcomes["committed"] > 20
    assert outcomes["died"] >= kills
    assert outcomes.keys() <= ENDS


@pytest.mark.timed
def test_a_worker_killed_in_mid_upload_leaves_no_half_update(tmp_path):
    kill_in_mid_upload(tmp_path, seed=1, kills=5)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_workers_killed_in_mid_upload_leave_no_half_updates(tmp_path, seed):
    kill_in_mid_upload(tmp_path, seed, kills=20)


# -------------------------------------------------------------


def kill_and_restart(folder, lives: int) -> None:
    """The same worker again and again; the last words of each life come late."""
    with SocketRun(folder, workers=2, size=10_000, runtime=QUICK) as run:
        run.start_worker(0, every_s=0.05, runtime=QUICK)
        sessions: list[str] = []  # of worker 1, in order

        def joined() -> list[str]:
            for session in list(run.server.machine._sessions):
                if session.hello.worker == 1 and session.name not in sessions:
                    sessions.append(session.name)
            return sessions

        def commits() -> bool:
            return any(key.session == sessions[-1] for key in run.server.newest())

        for life in range(1, lives + 1):
            proxy = run.proxy()
            process = run.spawn(1, proxy.address, every_s=0.02, runtime=QUICK)
            run.until(f"life {life} joins", lambda life=life: len(joined()) == life)
            run.until("it works", commits)
            goal = len(run.server.arrived_s) + 9
            proxy.update.set(limit_bytes=15_000, at_limit="stall")
            assert proxy.update.limit_reached.wait(PATIENCE_S)
            run.kill(process)
            if life % 2:  # its last words come when it is taken to be gone
                run.until("the silence is noticed", lambda: run.server.live() == [0])
            proxy.calm()
            run.until(
                "work goes on", lambda goal=goal: len(run.server.arrived_s) > goal
            )
        run.server.stop()
        outcomes = run.finish()
    print(dict(outcomes))
    assert outcomes["committed"] > 0
    assert outcomes.keys() <= ENDS
    joined_by = [e.session for e in run.events(trace.WorkerJoined) if e.worker == 1]
    assert len(set(joined_by)) == lives


def test_a_worker_killed_and_started_again_is_another_session(tmp_path):
    kill_and_restart(tmp_path, lives=3)


@pytest.mark.slow
def test_a_worker_is_killed_and_started_again_twenty_times(tmp_path):
    kill_and_restart(tmp_path, lives=20)


# -------------------------------------------------------------


def stop_and_continue(folder, stopped_s: float) -> None:
    with SocketRun(folder, workers=2, size=MIB) as run:
        run.start_worker(0, every_s=0.05)
        process = run.spawn(1, every_s=0.05)
        run.until("both work", lambda: sorted(run.server.live()) == [0, 1])
        run.until("versions come", lambda: run.server.committed > 10)
        os.kill(process.pid, signal.SIGSTOP)
        start_s = time.monotonic()
        if stopped_s > 4.0:
            with Crowd() as crowd:
                run.until("the server notices", lambda: run.server.live() == [0])
            noticed_s = time.monotonic() - start_s
            assert noticed_s < NOTICED_S * crowd.factor
        run.until("time passes", lambda: time.monotonic() > start_s + stopped_s)
        newest = max(run.server.versions)
        os.kill(process.pid, signal.SIGCONT)
        continued_s = time.monotonic()
        offset_s = time.time() - continued_s

        def is_back() -> bool:
            """What it made of a version since then has been committed."""
            keys = [key for key in run.server.newest() if key.worker == 1]
            return any(run.server.bases[key] >= newest for key in keys)

        with Crowd() as crowd:
            run.until("it is back in work", is_back)
        back_s = time.monotonic() - continued_s
        outcomes = run.finish()
        late = [
            event.version
            for event in run.events(trace.Received)
            if event.worker == 1
            and event.time_s > continued_s + offset_s
            and event.version < newest
        ]
        print(f"back {back_s:.2f} s, {crowd}, {dict(outcomes)}")
        print(f"stale versions {late} of {newest}")
    assert back_s < 3.0 * crowd.factor
    # A line that has not been given up brings what both systems' buffers hold, of up to
    # tens of MiB: whatever was made within a second.
    assert len(late) <= 1 or stopped_s < 4.0
    assert outcomes.keys() <= ENDS - {"died"}


@pytest.mark.timed
def test_a_stopped_worker_continues_with_the_newest_version(tmp_path):
    stop_and_continue(tmp_path, stopped_s=5.0)


@pytest.mark.slow
@pytest.mark.parametrize("stopped_s", [1.0, 15.0, 60.0])
def test_a_worker_stopped_for_longer_continues_too(tmp_path, stopped_s):
    stop_and_continue(tmp_path, stopped_s)
