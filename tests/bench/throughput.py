"""How many versions per second does a run of digits sustain, and what limits it?

Eight unpaced workers, real processes, this machine's cores shared by all. Compared with
the rate at which Orbax alone saves versions, which is measured before and after each
run, because the speed of shared cores varies: versions are durable as write-ahead
files, so that a run may exceed it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import trace
from asyn2f.config import build
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import initial_server_state
from configs.digits import get_config
from tests.bench.figures import Figure

SECONDS = 12
WARM_UP_S = 3.0
REPEATS = 3
SAVES = 40


def measure() -> Iterator[Figure | dict]:
    for announce in ("after_save", "before_save"):
        for updates in (1, 3):
            what = f"versions per second, 8 workers, {updates} updates each, {announce}"
            runs = [_measured(announce, updates) for _ in range(REPEATS)]
            runs.sort(key=lambda run: run[0] / run[1])
            rate, limit, extras = runs[REPEATS // 2]
            against, ratio = "Orbax by itself", rate / limit
            yield Figure(what, rate, "1/s", limit, against, ratio, 0.7, is_floor=True)
            yield {"what": what, **extras}


def _measured(announce: str, updates: int) -> tuple[float, float, dict]:
    """Versions per second; how many Orbax saves; what else is to be said."""
    before_s = _save_s()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.local", "--config=configs/digits.py"]
        command += [f"--workdir={folder}/run", "--config.workers=8"]
        command += [f"--config.runtime.publish={announce}"]
        command += [f"--config.timing.min_updates={updates}"]
        command += ["--config.worker_speeds=(0.0,)", "--config.stop.max_versions=0"]
        command += [f"--config.stop.max_time_s={SECONDS}.0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        events = trace.read(Path(folder) / "run" / "trace")
    limit = 2 / (before_s + _save_s())
    made_s = np.array([e.time_s for e in events if isinstance(e, trace.Aggregated)])
    end_s = next(e.time_s for e in events if isinstance(e, trace.Stopped))
    # If nothing was made towards the end, that counts as well.
    begin_s = made_s[0] + WARM_UP_S
    rate = float(np.sum(made_s > begin_s) / (end_s - begin_s))
    gaps_s = np.diff([begin_s, *made_s[made_s > begin_s], end_s])
    total = {
        "server_cpu_ms": 1000 * summary["server_cpu_s"],
        "kilobytes_up": summary["bytes_up"] / 1000,
        "kilobytes_down": summary["bytes_down"] / 1000,
    }
    extras = {
        f"{what}_per_version": round(value / summary["versions"], 1)
        for what, value in total.items()
    }
    extras["longest_without_s"] = round(float(gaps_s.max()), 2)
    return rate, limit, {**extras, "updates": summary["updates"]}


def _save_s() -> float:
    """What Orbax takes for a version of this size, in a process like this one."""
    experiment = build.build_experiment(get_config().to_dict())
    state, seconds = initial_server_state(experiment), []
    with tempfile.TemporaryDirectory() as folder:
        store = OrbaxStore(Path(folder))
        for version in range(SAVES):
            begin_s = time.perf_counter()
            store.save(version, state, {"version": version})
            seconds.append(time.perf_counter() - begin_s)
        store.close()
    return float(np.median(seconds))
