"""How many versions per second does a run of digits sustain, and what limits it?

Eight unpaced workers, real processes, this machine's cores shared by all. What limits
it is Orbax, which writes one version after the other: how many it saves a second by
itself, with nothing else on the cores, is measured in the same run.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import build, trace
from asyn2f.experiment import initial_server_state
from asyn2f.runtime.orbax_store import OrbaxStore
from configs.digits import get_config
from tests.bench.figures import Figure

SECONDS = 15
WARM_UP_S = 3.0


def measure() -> Iterator[Figure | dict]:
    for announce in ("durable", "early"):
        for updates in (1, 3):
            yield from _measured(announce, updates)


def _measured(announce: str, updates: int) -> Iterator[Figure | dict]:
    limit, cpu_s = 1 / _save_s(), _cpu_s()
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
    cpu_s = _cpu_s() - cpu_s
    made_s = np.array([e.time_s for e in events if isinstance(e, trace.Aggregated)])
    end_s = next(e.time_s for e in events if isinstance(e, trace.Stopped))
    # If nothing was made towards the end, that counts as well.
    begin_s = made_s[0] + WARM_UP_S
    rate = float(np.sum(made_s > begin_s) / (end_s - begin_s))
    versions = summary["versions"]
    what = f"versions per second, 8 workers, {updates} updates each, {announce}"
    against = "Orbax by itself"
    yield Figure(what, rate, "1/s", limit, against, rate / limit, 0.7, is_floor=True)
    yield {
        "what": what,
        "cpu_ms_per_version": round(1000 * cpu_s / versions, 1),
        "kilobytes_up_per_version": round(summary["bytes_up"] / versions / 1e3, 1),
        "kilobytes_down_per_version": round(summary["bytes_down"] / versions / 1e3, 1),
        "updates": summary["updates"],
    }


def _cpu_s() -> float:
    """Of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _save_s() -> float:
    """What Orbax takes for a version of this size."""
    experiment = build.build_experiment(get_config().to_dict())
    state, seconds = initial_server_state(experiment), []
    with tempfile.TemporaryDirectory() as folder:
        store = OrbaxStore(Path(folder))
        for version in range(20):
            begin_s = time.perf_counter()
            store.save(version, state, {"version": version})
            seconds.append(time.perf_counter() - begin_s)
        store.close()
    return float(np.median(seconds))
