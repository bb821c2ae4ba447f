"""Comparisons of methods, started as a user starts them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from asyn2f.report.comparison import Trial
from tests.support.patience import PATIENCE_S
from tests.support.programs import ROOT, Outcome, run

METHODS = ["asyn2f", "fedavg", "fedbuff"]
SEEDS = [0, 1]
TARGET = 0.7
SMALL = [
    "--config=configs/digits.py",
    "--config.workers=3",
    "--config.task.hidden=8,",
    "--config.worker_speeds=(400.0,200.0,100.0)",
    "--config.timing.epochs_per_push=1",
    "--config.timing.min_updates=2",
    "--config.sim.executor=serial",
    "--config.stop.max_time_s=1",
    "--config.stop.max_versions=2",
    "--config.stop.target=0.2",
]
COMPARED = [
    *SMALL,
    f"--strategies={','.join(METHODS)}",
    f"--seeds={len(SEEDS)}",
    f"--target={TARGET}",
]


@contextlib.contextmanager
def running(folder: Path, *flags: str, **env: str) -> Iterator[subprocess.Popen]:
    """The program in a process group of its own, of which nothing is left."""
    with subprocess.Popen(
        [sys.executable, "-m", "launch.compare", *flags, f"--workdir={folder}"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | env,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> Outcome:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def compare(folder: Path, *flags: str, **env: str) -> Outcome:
    if not env:
        return run("compare", *flags, f"--workdir={folder}")
    with running(folder, *flags, **env) as process:
        return finish(process)


def results_of(folder: Path) -> str:
    """Its lines, as far as they are whole."""
    with contextlib.suppress(FileNotFoundError):
        found = (folder / "results.jsonl").read_text()
        return found[: found.rfind("\n") + 1]
    return ""


def trials_of(folder: Path) -> list[Trial]:
    """In order of methods and seeds."""
    found = [Trial(**json.loads(x)) for x in results_of(folder).splitlines()]
    return sorted(found, key=lambda trial: (trial.strategy, trial.seed))
