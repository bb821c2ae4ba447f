"""A synthetic run, with all the files that a report reads."""

import bisect
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asyn2f import rundir as folders
from asyn2f import trace
from asyn2f.report.summary import outcomes
from asyn2f.types import Metric, UpdateInfo

_NAME = "digits"
_ZERO_S, _SIZE = 1_760_000_000.0, 1_600_000  # when it began; bytes of a model

_Push = tuple[float, int, int]  # time, worker, sequence number


def made_up(
    folder: Path,
    *,
    workers: int = 5,
    versions: int = 60,
    synchronous: bool = False,
    steps: int = 30,
) -> Path:
    """The folder of a plausible run, deterministic in its arguments.

    Every worker trains epochs of `steps` steps at its own speed. Asynchronously,
    two updates make a version, which workers merge at their next step; synchronously,
    all workers' updates make one, and workers wait for it.
    """
    chance = random.Random(workers)
    epoch_s = [steps * 0.02 * 1.25 ** (worker % 7) for worker in range(workers)]
    round_s = max(epoch_s) + 0.1
    pushes = [
        (_ZERO_S + n * round_s + epoch_s[w] - max(epoch_s), w, n)
        if synchronous
        else (_ZERO_S + 0.5 + 0.03 * w + n * epoch_s[w], w, n)
        for n in range(1, versions + 1 if synchronous else 3 * versions)
        for w in range(workers)
    ]
    quorum = workers if synchronous else 2
    server = list(_serve(sorted(pushes), quorum, versions, chance))
    published = [e for e in server if isinstance(e, trace.Published)]
    for name in ["server", *(f"worker-{worker}" for worker in range(workers))]:
        head = trace.ProcessStarted(_ZERO_S, name, _NAME, 0, {"jax": "0"})
        events: list[trace.Event] = server
        if name != "server":
            worker = int(name.removeprefix("worker-"))
            own = [p for p in pushes if p[1] == worker and p[0] < server[-1].time_s]
            events = list(_work(own, published, steps, epoch_s[worker], chance))
        writer = trace.TraceWriter(folder / folders.TRACE, name)
        for event in [head, *events]:
            writer.write(event)
        writer.close()
    _write_sums(folder, server, workers, "fedavg" if synchronous else "asyn2f", chance)
    return folder


def _serve(
    pushes: list[_Push], quorum: int, versions: int, chance: random.Random
) -> Iterator[trace.Event]:
    """The server's events: a version of every `quorum` workers' newest updates."""
    arrivals_s = [_ZERO_S]
    pending: dict[int, tuple[int, int]] = {}  # worker: (seq, base version)
    yield trace.Published(_ZERO_S, 0, _SIZE, 5)
    for time_s, worker, seq in pushes:
        if worker in pending:
            older, _ = pending.pop(worker)
            yield trace.UpdateSettled(time_s, worker, "a", older, "superseded", -1, "")
        pending[worker] = (seq, _newest(arrivals_s, time_s))
        version = len(arrivals_s)
        if version > versions:
            return
        if len(pending) == quorum:
            made_s, parts = time_s + 0.02, [chance.uniform(1, 3) for _ in pending]
            keys = [[worker, "a", seq] for worker, (seq, _) in pending.items()]
            bases = [base for _, base in pending.values()]
            behind = [version - 1 - base for base in bases]
            shares = [part / sum(parts) for part in parts]
            yield trace.Aggregated(made_s, version, 0, keys, bases, behind, shares, 0.1)
            yield trace.Published(made_s + 0.01, version, _SIZE, 5)
            arrivals_s.append(made_s + 0.04)
            pending.clear()


def _newest(arrivals_s: list[float], time_s: float) -> int:
    """The newest version that has arrived by that time."""
    return bisect.bisect_right(arrivals_s, time_s) - 1


def _work(
    pushes: list[_Push],
    published: list[trace.Published],
    steps: int,
    epoch_s: float,
    chance: random.Random,
) -> Iterator[trace.Event]:
    """A worker's events: epochs that end with its pushes, versions merged as they come.

    Where the time between two pushes is longer than an epoch, it waits.
    """
    arrivals_s = [event.time_s + 0.03 for event in published]
    left_s = None
    for end_s, worker, seq in pushes:
        start_s, step_s = end_s - epoch_s, epoch_s / steps
        base, done = _newest(arrivals_s, start_s), (seq - 1) * steps
        if left_s is None:
            yield trace.WorkerJoined(start_s - 0.4, worker, "a", 400 + 100 * worker)
        elif start_s - left_s > step_s:
            yield trace.Blocked(start_s, worker, left_s, base)
        left_s = end_s
        newest = _newest(arrivals_s, end_s - step_s)
        for version in [*range(base + 1, newest + 1), None]:
            step = seq * steps
            if version is not None:
                step = done + math.ceil((arrivals_s[version] - start_s) / step_s)
            stop_s = start_s + (step - done) * step_s
            if step > done:
                loss, num_steps = _loss(base, chance), step - done
                yield trace.Trained(
                    stop_s, worker, start_s, num_steps, step, base, loss, 0.8
                )
            if version is not None:
                part, share = step / steps % 1, chance.uniform(0.2, 0.5)
                yield trace.Merged(stop_s, worker, version, base, step, part, share)
                start_s, base, done = stop_s, version, step
        loss, step = _loss(base, chance), seq * steps
        info = UpdateInfo(base, base, step, 400.0, loss, 1.0, 0.8, 0.8)
        yield trace.Pushed(end_s, worker, "a", seq, info)


def _loss(version: int, chance: random.Random) -> float:
    return 0.1 + 2 * math.exp(-version / 20) + 0.05 * chance.random()


def _write_sums(
    folder: Path,
    server: list[trace.Event],
    workers: int,
    strategy: str,
    chance: random.Random,
) -> None:
    """The files beside the trace."""
    rows: list[dict[str, Any]] = []
    scores: list[tuple[float, int]] = []
    for event in server:
        if isinstance(event, trace.Published):
            version = event.version
            row = {"time_s": event.time_s - _ZERO_S, "version": version}
            row["bytes_up"] = version * 2 * _SIZE
            row["bytes_down"] = (version + 1) * workers * _SIZE
            rows.append({"kind": "version", **row, "updates": 2, "workers": workers})
            accuracy = 0.97 - 0.86 * math.exp(-version / 25)
            scores.append((accuracy + chance.uniform(-0.01, 0.01), version))
            score = {"accuracy": scores[-1][0], "loss": 0.2}
            rows.append({"kind": "score", **row, "scores": score})
    best_value, best_version = max(scores)
    found = list(outcomes(server).values())
    counts = {v: found.count(v) for v in ("committed", "superseded", "rejected")}
    summary = {
        "status": "finished",
        "strategy": strategy,
        "seed": 3,
        "versions": rows[-1]["version"],
        "metric": Metric("accuracy", is_fraction=True)._asdict(),
        "best_version": best_version,
        "best_value": best_value,
        "final_scores": {"accuracy": scores[-1][0], "loss": 0.2},
        "wall_s": rows[-1]["time_s"],
        "updates": counts,
        "bytes_up": rows[-1]["bytes_up"],
        "bytes_down": rows[-1]["bytes_down"],
        "params_sha256": "5e0d" * 16,
        "run": _NAME,
    }
    config = {
        "task": {"dataset": _NAME},
        "training": {"batch_size": 32},
        "stop": {"target": 0.95},
    }
    (folder / folders.SUMMARY).write_text(json.dumps(summary))
    (folder / folders.CONFIG).write_text(json.dumps(config))
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / folders.METRICS).write_text("".join(lines))
