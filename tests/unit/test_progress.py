"""Executions that are interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from asyn2f.sim.executors.execute import read_progress, write_progress
from asyn2f.sim.executors.machine import Progress
from asyn2f.sim.executors.vectorised import execute_in_lanes
from tests.support.executions import (
    Seen,
    assert_same_bits,
    given,
    machine_of,
    order_and_result,
)
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
KEY = "this very execution"


@pytest.fixture(scope="module", params=["asyn2f", "fedbuff"])
def whole(request):
    """An execution undisturbed, and how far it was after each call."""
    _, order, _ = order_and_result(request.param, timing__min_updates=2)
    machine = machine_of(2, request.param, timing__min_updates=2)
    kept = []

    def keep(progress):
        found = progress()
        kept.append(found._replace(numbers=jax.tree.map(np.copy, found.numbers)))

    seen = Seen()
    result = execute_in_lanes(machine, order, seen, keep=keep)
    return machine, order, result, kept


def test_it_can_be_resumed_after_every_call_to_the_same_bits(whole, tmp_path):
    machine, order, result, kept = whole
    assert len(kept) >= 2
    scores = {3: {"loss": 0.5, "f1": 1.5}, 7: {"loss": float("nan")}}
    for number, progress in enumerate(kept):
        path = tmp_path / f"{number}.npz"
        write_progress(path, KEY, progress, scores)
        read = read_progress(path, KEY, machine.carry)
        assert read is not None
        again, found = read
        assert list(found) == [3, 7]
        assert found[3] == scores[3]
        assert found[7] == pytest.approx(scores[7], nan_ok=True)
        assert_same_bits(execute_in_lanes(machine, order, begin=again), result)


def test_keeping_changes_no_bit(whole):
    machine, order, result, _ = whole
    assert_same_bits(execute_in_lanes(machine, order), result)


def test_no_version_is_watched_twice(whole):
    machine, order, *_ = whole
    machine = given(machine, order, watched=range(1, len(order.version)))
    every = Seen()
    progresses: list[Progress] = []
    execute_in_lanes(machine, order, every, keep=lambda p: progresses.append(p()))
    later = Seen()
    execute_in_lanes(machine, order, later, begin=progresses[0])
    assert 0 < len(later.nodes) < len(every.nodes)
    assert every.nodes[-len(later.nodes) :] == later.nodes
    assert every.sha256s[-len(later.nodes) :] == later.sha256s


def test_of_another_execution_nothing_is_taken(whole, tmp_path):
    machine, _, _, kept = whole
    path = tmp_path / "progress.npz"
    assert read_progress(path, KEY, machine.carry) is None
    write_progress(path, "another", kept[0], {})
    assert read_progress(path, KEY, machine.carry) is None


@pytest.mark.parametrize("left", [0, 1, 1000, -1])
def test_of_a_damaged_file_nothing_is_taken(whole, tmp_path, left):
    machine, _, _, kept = whole
    path = tmp_path / "progress.npz"
    write_progress(path, KEY, kept[0], {})
    path.write_bytes(path.read_bytes()[:left])
    assert read_progress(path, KEY, machine.carry) is None


def test_a_flipped_bit_is_found(whole, tmp_path):
    machine, _, _, kept = whole
    path = tmp_path / "progress.npz"
    write_progress(path, KEY, kept[0], {})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert read_progress(path, KEY, machine.carry) is None


# ------------------------------------------------------------- as a program


def command(folder: Path, *more: str) -> list[str]:
    flags = (
        "--config=configs/digits.py",
        "--config.sim.executor=vectorised",
        "--config.sim.lanes=2",
        "--config.stop.max_versions=600",
        "--config.sim.evaluate_every=20",
        f"--workdir={folder}",
    )
    return [sys.executable, "-m", "launch.simulate", *flags, *more]


def run(folder: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(folder, *more), cwd=ROOT, capture_output=True, text=True
    )


def summary_of(folder: Path) -> dict:
    found = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in found.items() if k not in ("run", "execution_s")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(folder).returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_simulation_resumes(undisturbed, tmp_path, by):
    whole, cut = undisturbed, tmp_path / "cut"
    with subprocess.Popen(
        command(cut, "--keep_every_s=0"), cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not (cut / "progress.npz").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            os.sched_yield()
        process.send_signal(by)
    assert process.returncode != 0
    done = run(cut, "--resume")
    assert done.returncode == 0, done.stderr
    assert "continuing after " in done.stdout
    assert summary_of(cut) == summary_of(whole)
    rows = [(f / "metrics.jsonl").read_text() for f in (whole, cut)]
    assert rows[0] == rows[1]
    assert not (cut / "progress.npz").exists()
    again = run(cut, "--resume")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing to do" in again.stdout
    other = run(cut, "--resume", "--config.training.learning_rate=0.3")
    assert other.returncode == 2
    assert "config.training.learning_rate" in other.stderr
    assert len(other.stderr.splitlines()) == 1
