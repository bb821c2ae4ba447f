"""The programs themselves, told to end at any moment (R-26), and an evaluator that is
not there (R-08)."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from asyn2f import trace
from tests.support.crashed_run import newest_saved
from tests.support.patience import Crowd
from tests.support.programs import (
    ENDLESS,
    children_of,
    finish,
    start,
    wait_for_line,
)

pytestmark = pytest.mark.processes
ENDS_S = 3.0  # promised
FLAGS = [*ENDLESS, "--config.workers=4", "--config.min_workers=2"]


def catches(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM by now (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def wait_ready(process) -> None:
    """Until it is compiled, and has said where it will go."""
    wait_for_line(process, "ready to join")
    while not catches(process.pid):
        os.sched_yield()


def end(process, *numbers: int) -> int:
    """Its exit code after these signals; it has ended in time."""
    start_s = time.monotonic()
    for number in numbers:
        process.send_signal(number)
    with Crowd() as crowd:
        code, out, _ = finish(process)
    took_s = time.monotonic() - start_s
    print(f"{process.args[2]}: code {code} after {took_s:.2f} s, {crowd}")
    assert took_s < ENDS_S * crowd.factor, out
    assert "Traceback" not in out
    assert children_of(process.pid) == set()
    return code


@pytest.fixture
def started():
    """Starts programs; none is left over."""
    processes = []

    def begin(program: str, *flags: str):
        processes.append(start(program, *flags, stderr=subprocess.STDOUT))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()  # closes what has not been read, too


def scores(folder: Path) -> set[int]:
    events = trace.read(folder / "trace")
    return {event.version for event in events if isinstance(event, trace.Evaluated)}


@pytest.mark.slow
def test_every_program_ends_in_time_while_it_works(tmp_path, started):
    folder = tmp_path / "run"
    flags = [*FLAGS, f"--workdir={folder}"]
    server = started("server", *flags)
    wait_for_line(server, "listening at")
    searching = started("worker", *flags, "--worker=3", "--server=tcp://127.0.0.1:9")
    workers = [started("worker", *flags, f"--worker={n}") for n in range(3)]
    evaluator = started("evaluator", *flags)
    wait_for_line(evaluator, "joined")
    for worker in workers:
        wait_for_line(worker, "joined")
    wait_for_line(server, r"version \d\d")
    # nobody misses a stopped evaluator, and it goes on with the newest version.
    evaluator.send_signal(signal.SIGSTOP)
    before = newest_saved(folder / "models")
    wait_for_line(server, rf"version ({before + 10}|{before + 11}|\d\d\d)|3 training")
    while newest_saved(folder / "models") < before + 10:
        wait_for_line(server, "version")
    newest, scored = newest_saved(folder / "models"), scores(folder)
    evaluator.send_signal(signal.SIGCONT)
    while max(scores(folder), default=0) < newest:
        wait_for_line(server, "version")
    assert len(scores(folder) - scored) <= newest  # not all that it has missed
    # in all states, by all signals.
    wait_ready(searching)
    assert end(searching, signal.SIGINT) == 0
    assert end(workers[0], signal.SIGINT) == 0
    assert end(workers[1], signal.SIGTERM, signal.SIGTERM) in (0, 128 + signal.SIGTERM)
    assert end(evaluator, signal.SIGTERM) == 0
    assert end(server, signal.SIGINT) == 130
    assert finish(workers[2])[0] == 0


@pytest.mark.slow
def test_every_program_ends_in_time_while_it_waits(tmp_path, started):
    folder = tmp_path / "run"
    flags = [*FLAGS, f"--workdir={folder}"]
    server = started("server", *flags)
    wait_for_line(server, "listening at")
    early = started("worker", *flags, "--worker=0")  # one of two: the run cannot begin
    wait_ready(early)
    wait_for_line(server, "waiting for workers.* 1 registered|waiting for workers")
    assert end(early, signal.SIGTERM) == 0
    workers = [started("worker", *flags, f"--worker={n}") for n in range(2)]
    for worker in workers:
        wait_for_line(worker, "joined")
    server.kill()  # they wait for it to come back
    assert end(workers[0], signal.SIGTERM) == 0
    assert end(workers[1], signal.SIGINT, signal.SIGINT) in (0, 128 + signal.SIGINT)
    again = started("server", *flags, "--resume")
    wait_for_line(again, "listening at")
    assert end(again, signal.SIGTERM) == 130
    twice = started("server", *flags, "--resume")
    wait_for_line(twice, "listening at")
    codes = (130, 128 + signal.SIGTERM)
    assert end(twice, signal.SIGTERM, signal.SIGTERM) in codes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["server", "worker", "evaluator"])
def test_a_program_that_is_still_starting_ends_in_time(
    tmp_path, started, program, number
):
    """As it comes: by default, or in good order if it is ready already."""
    flags = [*FLAGS, f"--workdir={tmp_path / 'run'}"]
    if program != "server":
        flags.append("--server=tcp://127.0.0.1:9")
    if program == "worker":
        flags.append("--worker=0")
    process = started(program, *flags)
    mapped = Path(f"/proc/{process.pid}/maps")
    while "jaxlib" not in mapped.read_text():
        os.sched_yield()
    assert end(process, number) in (0, 1, 130, -number)
