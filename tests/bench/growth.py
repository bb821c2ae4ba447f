"""How do the programs that read a run grow with its length?

Simulated runs of 20 workers on digits with one local step per push and ten pushes per
version, of a thousand, ten thousand and a hundred thousand pushes; then each program on
each folder: seconds of processor time and MiB, imports included. Wanted: linear.

    python -m tests.bench growth
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UPDATES = (1_000, 10_000, 100_000)
MODEL = [
    "--config=configs/digits.py",
    "--config.workers=20",
    "--config.task.hidden=32,",
]
SETTINGS = {
    "timing.epochs_per_push": 0,
    "timing.steps_per_push": 1,
    "timing.min_updates": 10,
    "sim.step_s": "0.01,",
    "sim.executor": "vectorised",
}


def measure() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        for updates in UPDATES:
            folder = Path(name, str(updates))
            run = f"--run={folder}"
            versions = updates // 10
            flags = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
            flags += [f"--config.stop.max_versions={versions}"]
            flags += [f"--config.sim.evaluate_every={versions}", f"--workdir={folder}"]
            commands = {
                "simulate": ("simulate", *MODEL, *flags),
                "verify": ("verify", run),
                "replay": ("replay", run),
                "replay --explain": ("replay", run, f"--explain={versions}"),
                "report": ("report", run),
            }
            for what, words in commands.items():
                yield {"what": what, "updates": updates, **measured(*words)}
            trace = sum(p.stat().st_size for p in (folder / "trace").iterdir())
            page = (folder / "report.html").stat().st_size
            sizes = {"trace_mb": trace / 1e6, "report_mb": page / 1e6}
            yield {"what": "files", "updates": updates, **sizes}


def measured(*words: str) -> dict[str, float]:
    """Seconds of processor time and MiB of one program."""
    command = [sys.executable, "-m", f"launch.{words[0]}", *words[1:]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    seconds = round(used.ru_utime + used.ru_stime, 2)
    return {"cpu_s": seconds, "mib": round(used.ru_maxrss / 1024)}
