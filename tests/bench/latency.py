"""How long from a worker's push until the other workers hold the new version?

Real processes on loopback, the digits MLP, 4 workers paced so that the cores are idle
most of the time, one update per version. Wanted: median under 150 ms with durable
announcement, under 20 ms with early announcement. Results: BUILD_NOTES.md.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import trace

VERSIONS = 120


def measure() -> Iterator[dict]:
    for announce in ("durable", "early"):
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), announce)
            events = trace.read(Path(folder) / "trace")
        yield {"announce": announce, **figures(latencies_s(events))}


def run(folder: Path, announce: str) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.local",
            "--config=configs/digits.py",
            "--overwrite",
            f"--workdir={folder}",
            "--config.workers=4",
            "--config.task.partition=iid",
            "--config.timing.min_updates=1",
            "--config.timing.epochs_per_push=1",
            "--config.worker_speeds=(12.0,11.0,10.0,9.0)",
            f"--config.runtime.announce={announce}",
            f"--config.stop.max_versions={VERSIONS}",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def latencies_s(events: list[trace.Event]) -> list[float]:
    """Push to reception, for each update and each other worker; all clocks are one."""
    pushed = {
        (e.worker, e.session, e.seq): e.time_s
        for e in events
        if isinstance(e, trace.Pushed)
    }
    received: dict[int, list[trace.Received]] = {}
    for event in events:
        if isinstance(event, trace.Received):
            received.setdefault(event.version, []).append(event)
    return [
        other.time_s - pushed[tuple(key)]
        for made in events
        if isinstance(made, trace.Aggregated)
        for key in made.updates
        for other in received.get(made.version, [])
        if other.worker != key[0]
    ]


def figures(seconds: list[float]) -> dict:
    ms = 1000 * np.array(seconds)
    return {
        "samples": len(ms),
        "median_ms": round(float(np.median(ms)), 2),
        "p95_ms": round(float(np.percentile(ms, 95)), 2),
        "p99_ms": round(float(np.percentile(ms, 99)), 2),
    }
