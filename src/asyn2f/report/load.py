"""Loads whatever is readable of a run, with notes on what is missing."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyn2f import rundir as folders
from asyn2f import trace
from asyn2f.privacy import NUMBERS, withheld
from asyn2f.protocol.caveats import incomplete
from asyn2f.report import units
from asyn2f.report.metrics import number, read_curve
from asyn2f.trace import history
from asyn2f.types import Metric, metric_of

MAX_TRACE_BYTES = 200_000_000
"""Of a longer trace the newest part is read: a report needs about 3 bytes of memory per
byte of trace, and 5 s of CPU time per 100 MB."""

MAX_ROWS = 20_000
"""Rows of metrics: of more, those that preserve the extremes of the curve."""

_PARTS = (folders.CONFIG, folders.SUMMARY, folders.METRICS, folders.TRACE)


class Run(NamedTuple):
    """What a run has left behind."""

    events: list[trace.Event]  # by time
    metrics: list[dict[str, Any]]  # in the order written, with continuous clocks
    summary: dict[str, Any] | None
    config: dict[str, Any] | None
    notes: tuple[str, ...]  # sentences on what is missing
    # i64 [workers, classes], how many examples; of one class where there are no labels
    split: np.ndarray | None = None
    start_s: float = 0.0  # zero of all time axes, on the clock of the events
    since_s: float = -math.inf  # on the same clock: from then on all events are present
    metric: Metric = Metric("score")  # the headline


def load_run(workdir: Path) -> Run:
    """The run in a folder, as far as it is readable.

    Args:
      workdir: a folder with any of config.json, summary.json, metrics.jsonl, trace/.

    Raises:
      ValueError: there is no such folder, or no run in it.
      TraceFormatError: the trace was written in another format.
    """
    if not workdir.is_dir():
        raise ValueError(
            f"workdir: {str(workdir)!r} is not a directory; pass the folder of a run"
        )
    if not any((workdir / part).exists() for part in _PARTS):
        raise ValueError(
            f"workdir: {str(workdir)!r} has none of {', '.join(_PARTS)}; pass the "
            "folder of a run"
        )
    notes: list[str] = []
    summary = _read_record(
        workdir / folders.SUMMARY,
        "the run has not ended, or was killed; key figures come from metrics and trace",
        notes,
    )
    if number(summary, "incomplete_versions") > 0:
        counts = ("incomplete_versions", "versions")
        lacking = incomplete({n: int(number(summary, n)) for n in counts})
        notes.append(f"{lacking}.")
    config = _read_record(workdir / folders.CONFIG, "the settings are unknown", notes)
    notes.extend(_withheld(config))
    metric = _metric(workdir, summary)
    metrics, invalid = read_curve(workdir / folders.METRICS, MAX_ROWS, metric.name)
    if not metrics:
        notes.append(f"{folders.METRICS} has no rows: there is no curve over bytes.")
    if invalid:
        notes.append(f"{folders.METRICS}: {_lines(invalid)} invalid and left out.")
    events, torn, since_s = trace.read_valid(workdir / folders.TRACE, MAX_TRACE_BYTES)
    for name, count in torn.items():
        notes.append(f"trace/{name}: {_lines(count)} invalid and left out.")
    notes.extend(_absent(events))
    notes.extend(_unscored(events, metrics, metric.name))
    start_s = history.zero_s(events)
    start_s = start_s if math.isfinite(start_s) else 0.0
    if since_s > start_s:
        notes.append(
            f"The trace exceeds {MAX_TRACE_BYTES / 1e6:.0f} MB: the report and its "
            f"sums over workers begin after {units.as_duration(since_s - start_s)}."
        )
    split = _read_split(workdir / folders.SPLIT, events)
    return Run(
        events,
        metrics,
        summary,
        config,
        tuple(notes),
        split,
        start_s,
        since_s,
        metric,
    )


def _metric(workdir: Path, summary: dict[str, Any] | None) -> Metric:
    """The headline, as the run's folder names it."""
    stored = _read_record(workdir / folders.RUN, "", [])
    return metric_of(summary) or metric_of(stored) or Run._field_defaults["metric"]


def _withheld(config: dict[str, Any] | None) -> Iterator[str]:
    """A note on numbers that did not leave the workers, and are shown as constants."""
    with contextlib.suppress(KeyError, TypeError):
        hidden = withheld(NUMBERS, (config or {})["privacy"]["reveal"])
        if hidden:
            yield (
                f"The workers withhold {', '.join(hidden)} (config.privacy.reveal): in "
                "their place there are constants."
            )


def _unscored(
    events: list[trace.Event], metrics: list[dict[str, Any]], name: str
) -> Iterator[str]:
    """Notes on scores that are missing, or that no curve can show."""
    is_scored = any(row.get("kind") == "score" for row in metrics)
    if not is_scored and not any(isinstance(e, trace.Evaluated) for e in events):
        yield (
            "No version was evaluated: there was no evaluator, or its scores are "
            "missing."
        )
    scores = [row.get("scores") for row in metrics if row.get("kind") == "score"]
    lacking = [s for s in scores if isinstance(s, dict) and s.get(name, 0) is None]
    if lacking:
        count = "1 evaluation" if len(lacking) == 1 else f"{len(lacking)} evaluations"
        yield f"{count} gave a value of {name} that is not finite: never the best."


def worker_of(event: trace.Event) -> int | None:
    """The worker of an event, or None.

    >>> worker_of(trace.Adopted(time_s=1.5, worker=2, version=7, step=40))
    2
    """
    return getattr(event, "worker", None)


def is_simulated(events: Iterable[trace.Event]) -> bool:
    """Whether the run was simulated, under a virtual clock."""
    heads = (event for event in events if isinstance(event, trace.ProcessStarted))
    return any(head.actor == "simulation" for head in heads)


_WRITTEN_BY_WORKERS = (
    *(trace.Received, trace.Adopted, trace.Trained, trace.Blocked, trace.Merged),
    *(trace.StateKept, trace.Pushed, trace.OutcomeReceived),
)


def with_traces(events: Sequence[trace.Event]) -> set[int]:
    """The workers whose own trace is present; all of a simulation."""
    if is_simulated(events):
        return {w for w in map(worker_of, events) if w is not None}
    return {e.worker for e in events if isinstance(e, _WRITTEN_BY_WORKERS)}


def _read_record(path: Path, without: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing: {without}.")
        return None
    except (json.JSONDecodeError, RecursionError):
        record = None
    if not isinstance(record, dict):
        notes.append(f"{path.name} is not valid JSON: {without}.")
        return None
    return record


def _read_split(path: Path, events: list[trace.Event]) -> np.ndarray | None:
    """The examples per worker and class; None without a valid file. Of data that each
    worker has of its own, the examples per worker, as it has registered with them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        stored = json.loads(path.read_text(encoding="utf-8"))
        counts, sizes = stored["counts"], stored["sizes"]
        if sizes is None:
            found = {
                event.worker: event.num_examples
                for event in events
                if isinstance(event, trace.WorkerJoined)
            }
            sizes = [found.get(k, 0) for k in range(max(found, default=-1) + 1)]
        if counts is None:  # there are no labels
            counts = [[size] for size in sizes]
        counts = np.array(counts)
        if counts.ndim == 2 and counts.size and counts.dtype.kind == "i":
            return counts
    return None


def _absent(events: list[trace.Event]) -> Iterator[str]:
    """Notes on missing traces and server restarts."""
    if not events:
        yield "trace/ has no events: there is no timeline and no table of workers."
        return
    if not any(isinstance(event, trace.Aggregated) for event in events):
        yield "The server's trace has no aggregations: staleness is unknown."
    silent = sorted(_named_workers(events) - with_traces(events))
    if silent:
        names = ", ".join(map(str, silent[:12])) + (", …" if len(silent) > 12 else "")
        yield (
            f"The trace of worker{'s'[: len(silent) > 1]} {names} is missing: it stays "
            "on the worker's machine until collected with `asyn2f collect`. "
            "What only it contains is shown as a dash."
        )
    lives = {
        event.incarnation
        for event in events
        if isinstance(event, trace.ProcessStarted) and event.actor == "server"
    }
    if len(lives) > 1:
        yield f"The server was started {len(lives)} times; the report covers them all."


def _named_workers(events: list[trace.Event]) -> set[int]:
    named = {event.worker for event in events if isinstance(event, trace.WorkerJoined)}
    for event in events:
        if isinstance(event, trace.Aggregated):
            named.update(worker for worker, *_ in event.updates)
    return named


def _lines(count: int) -> str:
    return "1 line is" if count == 1 else f"{count} lines are"
