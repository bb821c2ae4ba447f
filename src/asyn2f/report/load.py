"""A run as it lies in its folder: read whole where it is whole, and never refused."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyn2f import rundir as folders
from asyn2f import trace
from asyn2f.protocol.status import incomplete
from asyn2f.report import units
from asyn2f.report.rows import number, read_curve
from asyn2f.trace import history

MAX_TRACE_BYTES = 200_000_000
"""Of a longer trace the newest part is read: a report needs some 3 bytes of memory for
a byte of trace, and 5 s of processor time for 100 MB."""

MAX_ROWS = 20_000
"""Rows of metrics: of more, those that keep the extremes of the curve."""

_PARTS = (folders.CONFIG, folders.SUMMARY, folders.METRICS, folders.TRACE)


class Run(NamedTuple):
    """What a run left behind, and what it did not."""

    events: list[trace.Event]  # by time
    metrics: list[dict[str, Any]]  # in the order written, clocks carried on
    summary: dict[str, Any] | None
    config: dict[str, Any] | None
    notes: tuple[str, ...]  # what is missing, in sentences
    split: np.ndarray | None = None  # i64 [workers, classes], how many examples
    start_s: float = 0.0  # what the clock of the events says at zero of all time axes
    since_s: float = -math.inf  # from when on the events are there, by that clock


def load_run(workdir: Path) -> Run:
    """The run in a folder, as far as it can be read.

    Args:
      workdir: a folder with any of config.json, summary.json, metrics.jsonl, trace/.

    Raises:
      ValueError: no such folder, or nothing of a run in it.
    """
    if not workdir.is_dir():
        raise ValueError(
            f"workdir: found {str(workdir)!r}, which is no folder; "
            "give the folder that a run has written"
        )
    if not any((workdir / part).exists() for part in _PARTS):
        raise ValueError(
            f"workdir: {str(workdir)!r} holds none of {', '.join(_PARTS)}; "
            "give the folder that a run has written"
        )
    notes: list[str] = []
    summary = _read_record(
        workdir / folders.SUMMARY,
        "the run goes on, or was killed; its key figures come from metrics and trace",
        notes,
    )
    if number(summary, "incomplete_versions") > 0:
        counts = ("incomplete_versions", "versions")
        lacking = incomplete({n: int(number(summary, n)) for n in counts})
        notes.append(f"{lacking}.")
    config = _read_record(workdir / folders.CONFIG, "the settings are unknown", notes)
    metrics, cut = read_curve(workdir / folders.METRICS, MAX_ROWS)
    if not metrics:
        notes.append(f"{folders.METRICS} has no rows: there is no curve over bytes.")
    if cut:
        notes.append(f"{folders.METRICS}: {_lines(cut)} invalid and left out.")
    events, cuts, since_s = trace.read_valid(workdir / folders.TRACE, MAX_TRACE_BYTES)
    for name, count in cuts.items():
        notes.append(f"trace/{name}: {_lines(count)} invalid and left out.")
    notes.extend(_absent(events))
    is_scored = any(row.get("kind") == "score" for row in metrics)
    if not is_scored and not any(isinstance(e, trace.Evaluated) for e in events):
        notes.append(
            "No version has been scored: no evaluator took part, or its scores are not "
            "here. Accuracies are unknown."
        )
    start_s = history.zero_s(events)
    start_s = start_s if math.isfinite(start_s) else 0.0
    if since_s > start_s:
        notes.append(
            f"The trace is longer than {MAX_TRACE_BYTES / 1e6:.0f} MB: the report "
            f"shows what happened after {units.as_duration(since_s - start_s)}, and "
            "sums over workers begin there."
        )
    split = _read_split(workdir / folders.SPLIT)
    told = tuple(notes)
    return Run(events, metrics, summary, config, told, split, start_s, since_s)


def worker_of(event: trace.Event) -> int | None:
    """The worker that an event is about, or None.

    >>> worker_of(trace.Adopted(time_s=1.5, worker=2, version=7, step=40))
    2
    """
    return getattr(event, "worker", None)


def is_simulated(events: Iterable[trace.Event]) -> bool:
    """Whether their clock was a virtual one."""
    heads = (event for event in events if isinstance(event, trace.ProcessStarted))
    return any(head.actor == "simulation" for head in heads)


_TOLD_BY_WORKERS = (
    *(trace.Received, trace.Adopted, trace.Trained, trace.Blocked, trace.Merged),
    *(trace.Pushed, trace.OutcomeReceived),
)


def with_traces(events: Sequence[trace.Event]) -> set[int]:
    """The workers whose own trace is there, not only the server's about them; of a
    simulation, all."""
    if is_simulated(events):
        return {w for w in map(worker_of, events) if w is not None}
    return {e.worker for e in events if isinstance(e, _TOLD_BY_WORKERS)}


def _read_record(path: Path, without: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: {without}.")
        return None
    except (json.JSONDecodeError, RecursionError):
        record = None
    if not isinstance(record, dict):
        notes.append(f"{path.name} is cut short: {without}.")
        return None
    return record


def _read_split(path: Path) -> np.ndarray | None:
    """None of an older run, that has none, as of a file that is cut short."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        counts = np.array(json.loads(path.read_text(encoding="utf-8"))["counts"])
        if counts.ndim == 2 and counts.size and counts.dtype.kind == "i":
            return counts
    return None


def _absent(events: list[trace.Event]) -> Iterator[str]:
    """What the trace lacks, and how often the server came back."""
    if not events:
        yield "trace/ has no events: there is no timeline and no table of workers."
        return
    if not any(isinstance(event, trace.Aggregated) for event in events):
        yield "The server's trace has no aggregations: staleness is unknown."
    silent = sorted(_named_workers(events) - with_traces(events))
    if silent:
        names = ", ".join(map(str, silent[:12])) + (", …" if len(silent) > 12 else "")
        yield (
            f"The trace of worker{'s'[: len(silent) > 1]} {names} is not here: it lies "
            "on the worker's own machine until `asyn2f collect` brings it. "
            "What it alone tells is shown as a dash."
        )
    lives = {
        event.incarnation
        for event in events
        if isinstance(event, trace.ProcessStarted) and event.actor == "server"
    }
    if len(lives) > 1:
        yield f"The server was started {len(lives)} times; all its lives are shown."


def _named_workers(events: list[trace.Event]) -> set[int]:
    joined = {event.worker for event in events if isinstance(event, trace.WorkerJoined)}
    used = {
        key[0]
        for event in events
        if isinstance(event, trace.Aggregated)
        for key in event.updates
    }
    return joined | used


def _lines(count: int) -> str:
    return "1 line is" if count == 1 else f"{count} lines are"
