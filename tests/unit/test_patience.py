"""The measure of other programs' work, by which tests allow more seconds."""

import subprocess
import sys
import time

import numpy as np

from tests.support import patience
from tests.support.patience import PATIENCE_S, Crowd, cores


def factor_of(monkeypatch, others: list[int]) -> float:
    """With so many runnable threads of others in the samples."""
    crowd, left = Crowd(), iter(others)
    monkeypatch.setattr(patience, "own_runnable", lambda: 0)
    monkeypatch.setattr(patience, "runnable", lambda: next(left))
    for _ in others:
        crowd._count()
    return crowd.factor


def test_alone_the_factor_is_one(monkeypatch):
    assert factor_of(monkeypatch, [0] * 30) == 1.0


def test_what_is_counted_too_low_makes_no_promise_stricter(monkeypatch):
    assert factor_of(monkeypatch, [-2, -1, -3]) == 1.0


def test_as_many_others_as_cores_double_the_seconds(monkeypatch):
    assert np.isclose(factor_of(monkeypatch, [cores()] * 3), 2.0)


def test_the_busiest_second_counts_and_not_a_moment(monkeypatch):
    quiet, busy = [0] * 20, [4 * cores()] * 10
    assert np.isclose(factor_of(monkeypatch, quiet + busy + quiet), 5.0)
    assert np.isclose(factor_of(monkeypatch, quiet + busy[:1] + quiet), 1.4)


def test_own_processes_are_counted_as_own():
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        until_s = time.monotonic() + PATIENCE_S
        while patience.own_runnable() < 2:  # the loop, and what counts
            assert time.monotonic() < until_s
        assert patience.runnable() >= 2
    finally:
        loop.kill()
        loop.wait()
