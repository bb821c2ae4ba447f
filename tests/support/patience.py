"""How long tests wait, and how much longer things take beside other programs.

A test waits for an event, and gives up after `PATIENCE_S` only so as not to hang for
good: no test may need that long, on a machine however busy. Only tests marked `timed`
assert seconds. What is promised holds on a machine that has nothing else to do, so what
they allow is the promise times `Crowd.factor`, which is 1 there.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

PATIENCE_S = 600.0
_SAMPLE_S = 0.1
_WINDOW = 10  # samples: about a second
_POLL_S = 0.02


def wait_until(
    holds: Callable[[], bool], process: subprocess.Popen | None = None
) -> None:
    """Waits for a condition that nothing announces, such as a file of another process.

    Args:
      holds: the condition.
      process: has to run until then.

    Raises:
      AssertionError: the process ended, or `PATIENCE_S` passed.
    """
    give_up_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up_s, "the condition has not come to hold"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{process.args} ended with {process.returncode}")
        threading.Event().wait(_POLL_S)


class Crowd:
    """How much longer everything takes beside what other programs compute.

    While the context is open, a thread counts the runnable threads of the machine that
    belong neither to this process nor to its descendants. Where n cores are shared
    fairly, n runnable threads of ours have n / (n + others) of them. What ran before
    the measured seconds is of no account, unlike in a load average.

        with Crowd() as crowd:
            took_s = what_is_measured()
        assert took_s < PROMISED_S * crowd.factor
    """

    def __init__(self) -> None:
        self._others: list[int] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._count_on, daemon=True)

    def __enter__(self) -> Self:
        self._count()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def __str__(self) -> str:
        return f"seconds count {self.factor:.2f} times"

    @property
    def factor(self) -> float:
        """1 on a machine without other work, else more: of the busiest second."""
        counted = np.asarray(self._others)
        width = min(_WINDOW, len(counted))
        means = np.convolve(counted, np.full(width, 1 / width), "valid")
        return max(1.0, 1.0 + float(means.max()) / cores())

    def _count(self) -> None:
        self._others.append(runnable() - own_runnable())

    def _count_on(self) -> None:
        while not self._is_over.wait(_SAMPLE_S):
            self._count()


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0))


def runnable() -> int:
    """Threads of the whole machine that run or could (Linux)."""
    lines = Path("/proc/stat").read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith("procs_running")]
    return int(found[0])


def own_runnable() -> int:
    """Those of them that belong to this process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        fields = _fields(stat)
        if fields:
            parents[int(stat.parent.name)] = int(fields[1])
    family, found = {os.getpid()}, 0
    while grown := {pid for pid, of in parents.items() if of in family} - family:
        family |= grown
    for pid in family:
        for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
            found += _fields(stat)[:1] == ["R"]
    return found


def _fields(stat: Path) -> list[str]:
    """What follows a thread's name; empty if it has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []
