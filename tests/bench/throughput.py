"""How many versions per second does a run of digits sustain, and what limits it?

Eight unpaced workers, real processes, this machine's cores shared by all. The limit is
the store's, as one version at a time is on its way (what a save takes, measured in the
run), or that of the cores (all processes' CPU seconds per version), whichever is less.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import trace
from tests.bench.figures import Figure

SECONDS = 15
WARM_UP = 20  # versions


def measure() -> Iterator[Figure | dict]:
    for announce in ("durable", "early"):
        for updates in (1, 3):
            yield from _measured(announce, updates)


def _measured(announce: str, updates: int) -> Iterator[Figure | dict]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.local", "--config=configs/digits.py"]
        command += [f"--workdir={folder}/run", "--config.workers=8"]
        command += [f"--config.runtime.announce={announce}"]
        command += [f"--config.timing.min_updates={updates}"]
        command += ["--config.worker_speeds=(0.0,)", "--config.stop.max_versions=0"]
        command += [f"--config.stop.max_time_s={SECONDS}.0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        events = trace.read(Path(folder) / "run" / "trace")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = sum(
        getattr(after, name) - getattr(before, name)
        for name in ("ru_utime", "ru_stime")
    )
    made = {e.version: e.time_s for e in events if isinstance(e, trace.Aggregated)}
    saved = {e.version: e.time_s for e in events if isinstance(e, trace.Saved)}
    steady = sorted(v for v in made if v > WARM_UP and v in saved)
    rate = (len(steady) - 1) / (made[steady[-1]] - made[steady[0]])
    save_s = float(np.median([saved[v] - made[v] for v in steady]))
    versions = summary["versions"]
    of_cores = (os.cpu_count() or 1) * versions / cpu_s
    limit, against = min(
        (1 / save_s, "what the store saves, one after the other"),
        (of_cores, f"{os.cpu_count()} cores over the CPU seconds of a version"),
    )
    what = f"versions per second, 8 workers, {updates} updates each, {announce}"
    yield Figure(what, rate, "1/s", limit, against, rate / limit, 0.7, is_floor=True)
    yield {
        "what": what,
        "cpu_ms_per_version": round(1000 * cpu_s / versions, 1),
        "kilobytes_up_per_version": round(summary["bytes_up"] / versions / 1e3, 1),
        "kilobytes_down_per_version": round(summary["bytes_down"] / versions / 1e3, 1),
        "updates": summary["updates"],
    }
