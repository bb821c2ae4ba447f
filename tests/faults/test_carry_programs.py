"""A carry, or a kept part of the model, through real processes: a killed worker, and a
resumed run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from asyn2f import trace
from tests.contracts.test_own_tasks import FLAGS, factory, program
from tests.support.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.processes
# Fast enough to push many times, slow enough not to be over at once.
FAST = [
    "--config.worker_speeds=(100.0,60.0,40.0)",
    "--config.runtime.heartbeat_interval_s=0.5",
    "--config.runtime.heartbeat_timeout_s=5",  # then a killed worker is replaced
    "--config.runtime.join_timeout_s=600",
    "--config.runtime.idle_priority=False",
]


@pytest.fixture
def started(tmp_path):
    """Starts programs in one folder; none is left over."""
    processes = []

    def begin(program: str, *flags: str) -> subprocess.Popen:
        words = ["--config=default", *FLAGS, *FAST, *flags]
        words.append(f"--workdir={tmp_path}")
        process = subprocess.Popen(
            [sys.executable, "-m", f"launch.{program}", *words],
            cwd=ROOT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_line(process: subprocess.Popen, words: str) -> None:
    seen = []
    for line in process.stdout:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"{process.args} ended: {''.join(seen)}")


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out


def events_of(folder: Path, kind: type, worker: int) -> list:
    if not (folder / "trace").is_dir():
        return []
    found = trace.read(folder / "trace")
    return [e for e in found if isinstance(e, kind) and e.worker == worker]


def restored(folder: Path, worker: int) -> list[str]:
    adopted = events_of(folder, trace.Adopted, worker)
    return [event.restored for event in adopted if event.restored]


@pytest.mark.parametrize(
    "of",
    [
        [factory("counting")],
        [factory("personal"), "--config.share=('params/body/**',)"],
    ],
    ids=["carry", "kept"],
)
def test_a_killed_worker_and_a_resumed_run_continue_and_replay(of, tmp_path, started):
    endless = [*of, "--config.stop.max_versions=100000"]
    server = started("server", *endless)
    wait_for_line(server, "listening at")
    workers = [started("worker", *endless, f"--worker={k}") for k in range(3)]
    wait_until(lambda: len(events_of(tmp_path, trace.StateKept, 0)) >= 2, server)
    workers[0].kill()
    finish(workers[0])
    kept = events_of(tmp_path, trace.StateKept, 0)[-1]
    workers[0] = started("worker", *endless, "--worker=0")
    wait_until(lambda: restored(tmp_path, 0), server)
    # Killed between trace and file, it has the state before the last one.
    digests = [event.digest for event in events_of(tmp_path, trace.StateKept, 0)]
    assert restored(tmp_path, 0)[0] in digests
    pushed = len(events_of(tmp_path, trace.Pushed, 0))
    wait_until(lambda: len(events_of(tmp_path, trace.Pushed, 0)) > pushed + 1, server)
    after = events_of(tmp_path, trace.Pushed, 0)[pushed + 1]
    if len(of) == 1:  # it counts steps in its carry, which goes on
        assert after.info.metric > after.info.step
        assert after.info.metric >= kept.step - 4 + after.info.step - 2.5
    server.send_signal(signal.SIGINT)
    assert finish(server)[0] == 130
    assert [finish(worker)[0] for worker in workers] == [0, 0, 0]
    last = [events_of(tmp_path, trace.StateKept, k)[-1].digest for k in range(3)]

    made = max(
        e.version
        for e in trace.read(tmp_path / "trace")
        if isinstance(e, trace.Aggregated)
    )
    more = [*of, f"--config.stop.max_versions={made + 8}"]
    server = started("server", *more, "--resume")
    wait_for_line(server, "listening at")
    workers = [started("worker", *more, f"--worker={k}") for k in range(3)]
    assert finish(server)[0] == 0
    outs = [finish(worker) for worker in workers]
    assert [code for code, _ in outs] == [0, 0, 0], outs
    assert [restored(tmp_path, k)[-1] for k in range(3)] == last
    program("verify", f"--run={tmp_path}")
    assert "bit for bit" in program("replay", f"--run={tmp_path}")
