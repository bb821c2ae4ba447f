"""How long from a worker's push until the other workers hold the new version?

Real processes on loopback, 4 workers paced so that the cores are idle most of the time,
one update per version: the digits MLP, and one of 11.2 million parameters (45 MB). Of
all runs the median of each figure, and the stretches of the middle one. What
an update's way consists of is shown apart, the store's part among it. The reference
system polls: mean 6 s, median measured 4.5 s.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import trace
from tests.bench.figures import Figure

SMALL = [
    "--config.worker_speeds=(12.0,11.0,10.0,9.0)",
    "--config.stop.max_versions=120",
]
LARGE = [  # 64 x 3309 + 3309 x 3309 + 3309 x 10, and biases
    "--config.task.hidden=(3309,3309)",
    "--config.training.momentum=0.0",
    "--config.worker_speeds=(2.0,1.9,1.8,1.7)",
    "--config.stop.max_versions=24",
    "--config.timing.epochs_per_push=1",
    "--config.training.batch_size=64",
]
REFERENCE_MS = 4500.0
AGAINST = "the reference system's design, by polling"
WARM_UP = 5  # versions
REPEATS = 3


def measure() -> Iterator[Figure | dict]:
    for name, flags, announce, bounds in (
        ("digits MLP", SMALL, "before_save", (5.0, 30.0)),
        ("digits MLP", SMALL, "after_save", (100.0, None)),
        ("45 MB", LARGE, "before_save", (None, None)),
        ("45 MB", LARGE, "after_save", (600.0, None)),
    ):
        flags = [*flags, f"--config.runtime.publish={announce}"]
        runs = [traced(flags) for _ in range(REPEATS)]
        all_ms = [1000 * np.array(latencies_s(events)) for events in runs]
        what = f"push to reception, {name}, {announce}"
        for word, q, bound in (("median", 50, bounds[0]), ("p99", 99, bounds[1])):
            value = float(np.median([np.percentile(ms, q) for ms in all_ms]))
            yield Figure(
                f"{what}, {word} of {len(all_ms[0])}",
                value,
                "ms",
                REFERENCE_MS,
                AGAINST,
                value,
                bound,
            )
        middle = np.argsort([np.median(ms) for ms in all_ms])[REPEATS // 2]
        yield {"what": what, **stretches_ms(runs[middle])}


def traced(flags: list[str]) -> list[trace.Event]:
    """The events of such a run."""
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), flags)
        return trace.read(Path(folder) / "trace")


def run(folder: Path, flags: list[str]) -> None:
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
            *flags,
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
        if isinstance(made, trace.Aggregated) and made.version > WARM_UP
        for key in made.updates
        for other in received.get(made.version, [])
        if other.worker != key[0]
    ]


def stretches_ms(events: list[trace.Event]) -> dict[str, float]:
    """Medians over versions: until it is computed, until the store has it, and until it
    is received."""
    pushed = {
        (e.worker, e.session, e.seq): e.time_s
        for e in events
        if isinstance(e, trace.Pushed)
    }
    saved = {e.version: e.time_s for e in events if isinstance(e, trace.Saved)}
    received: dict[int, float] = {}
    for event in events:
        if isinstance(event, trace.Received):
            first = received.get(event.version, event.time_s)
            received[event.version] = min(first, event.time_s)
    made = [e for e in events if isinstance(e, trace.Aggregated)]
    made = [e for e in made if e.version > WARM_UP and e.version in saved]
    newest = [max(pushed[tuple(key)] for key in e.updates) for e in made]
    pairs = list(zip(made, newest, strict=True))
    parts = {
        "pushed to computed": [e.time_s - s for e, s in pairs],
        "computed to saved": [saved[e.version] - e.time_s for e in made],
        "computed to first received": [
            received[e.version] - e.time_s for e in made if e.version in received
        ],
    }
    return {k: round(1000 * float(np.median(v)), 2) for k, v in parts.items()}
