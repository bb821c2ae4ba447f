"""Sixteen workers for hours, and nothing fails: nothing may grow either (R-25)."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from asyn2f import rundir
from asyn2f.api.verification import artifacts_of
from tests.soak.figures import Figure
from tests.soak.programs import broken

WORKERS = 16
MIB_PER_HOUR = 1.0  # promised
LOOKS = 200  # in all
SETTLED = 1 / 3  # of the time belongs to caches that fill
FLAGS = (
    "--config=configs/digits.py",
    f"--config.workers={WORKERS}",
    "--config.stop.max_versions=0",
    "--config.worker_speeds=(30.0,20.0,15.0,10.0)",
)


class Look(NamedTuple):
    """How much a process has at a time."""

    time_s: float
    rss: int  # bytes
    handles: int  # open file descriptors
    threads: int


def soak(folder: Path, seed: int, minutes: float) -> list[Figure]:
    """Looks at the processes of a run of so many minutes."""
    run = folder / "run"
    command = [sys.executable, "-m", "launch.local", *FLAGS, f"--workdir={run}"]
    command += [f"--config.seed={seed}", f"--config.stop.max_time_s={60 * minutes}"]
    pause_s = 60 * minutes / LOOKS
    looks: dict[int, list[Look]] = {}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            if (run / rundir.SERVER).exists():
                _look(process.pid, looks)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(pause_s)
    finally:
        process.terminate()
        process.wait()
    (folder / "looks.json").write_text(json.dumps(list(looks.values())))
    settled = [_settled(each) for each in looks.values() if len(each) > LOOKS / 2]
    slopes = [mib_per_hour(each) for each in settled]
    found = artifacts_of(run)
    print(f"{len(settled)} processes, {max(found.commits)} versions; MiB per hour:")
    print(*(f"{slope:.1f}" for slope in slopes))
    return [
        Figure("most_mib_per_hour", max(slopes), MIB_PER_HOUR),
        Figure("more_handles", _more("handles", settled), 0),
        Figure("more_threads", _more("threads", settled), 0),
        Figure("exit_code", process.returncode, 0),
        broken(found),
    ]


def _look(pid: int, looks: dict[int, list[Look]]) -> None:
    """At a process and those below it; the process itself is the first."""
    parent = psutil.Process(pid)
    for each in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess), each.oneshot():
            look = Look(
                time.monotonic(),
                each.memory_info().rss,
                each.num_fds(),
                each.num_threads(),
            )
            looks.setdefault(each.pid, []).append(look)


def _settled(looks: list[Look]) -> list[Look]:
    """What comes after its caches are full, and before it ends."""
    return looks[round(SETTLED * len(looks)) : -max(2, len(looks) // 50)]


def mib_per_hour(looks: list[Look]) -> float:
    """The slope of a straight line through the memory, by least squares.

    >>> looks = [Look(3600.0 * t, 2**20 * (7 + 3 * t), 1, 1) for t in range(4)]
    >>> round(mib_per_hour(looks))
    3
    """
    hours = [look.time_s / 3600 for look in looks]
    mib = [look.rss / 2**20 for look in looks]
    return float(np.polyfit(hours, mib, 1)[0])


def _more(what: str, processes: list[list[Look]]) -> int:
    """How many more, at least, the process that has gained most has in the last quarter
    of the time than in the first: who takes and gives back varies above that."""

    def gained(looks: list[Look]) -> int:
        values = [getattr(look, what) for look in looks]
        quarter = max(1, len(values) // 4)
        return min(values[-quarter:]) - min(values[:quarter])

    return max(map(gained, processes))
