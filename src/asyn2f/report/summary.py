"""The summary of a run: scores, outcomes of updates, and the key figures."""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from asyn2f import trace
from asyn2f.report import units
from asyn2f.report.load import Run, is_simulated
from asyn2f.report.metrics import number
from asyn2f.trace.history import surviving
from asyn2f.types import Metric


class Score(NamedTuple):
    """An evaluation; NaN where unknown."""

    time_s: float
    version: float
    value: float  # of the headline
    num_bytes: float  # up and down, since the start


def scores(run: Run, name: str = "") -> list[Score]:
    """The evaluations by time, from the metrics or else from the trace; with another
    number than the headline, if a name is given."""
    name = name or run.metric.name
    found = [
        Score(
            time_s=number(row, "time_s"),
            version=number(row, "version"),
            value=number(row, "scores", name),
            num_bytes=number(row, "bytes_up") + number(row, "bytes_down"),
        )
        for row in run.metrics
        if row.get("kind") == "score"
    ] or [
        Score(
            time_s=event.time_s - run.start_s,
            version=event.version,
            value=event.scores.get(name, math.nan),
            num_bytes=math.nan,
        )
        for event in run.events
        if isinstance(event, trace.Evaluated)
    ]
    known = [score for score in found if math.isfinite(score.value)]
    return sorted(known, key=lambda score: score.time_s)


def best_score(run: Run) -> Score | None:
    """The evaluation with the best headline, the earliest of several."""
    worth = run.metric.worth
    return max(scores(run), key=lambda score: worth(score.value), default=None)


def outcomes(events: Iterable[trace.Event]) -> dict[tuple, str]:
    """The outcome of every settled update, by (worker, session, seq).

    The trace of the server or of the worker may be missing. An update in a surviving
    version is committed in any case.
    """
    written = [event for event in events if isinstance(event, _BY_SERVERS)]
    found = {
        (event.worker, event.session, event.seq): event.outcome
        for event in written
        if isinstance(event, trace.UpdateSettled)
    }
    for made in surviving(written):
        found.update((tuple(key), "committed") for key in made.updates)
    return found


_BY_SERVERS = (
    *(trace.ProcessStarted, trace.Resumed, trace.Aggregated),
    *(trace.Published, trace.UpdateSettled),
)


class KeyFigure(NamedTuple):
    """A card at the top of the report."""

    label: str
    value: str
    note: str


def key_figures(run: Run) -> list[KeyFigure]:
    """The cards, from the summary or else computed from metrics and trace."""
    summary, best = run.summary, best_score(run)
    value = number(summary, "best_value")
    version = number(summary, "best_version")
    if math.isnan(value) and best:
        value, version = best.value, best.version
    final = number(summary, "final_scores", run.metric.name)
    versions, wall_s = num_versions(run), duration_s(run)
    up, down = (_last(run, f"bytes_{way}") for way in ("up", "down"))
    every_bytes = number(summary, "broadcast_bytes_down")
    every = f" ({units.as_bytes(every_bytes)} as a broadcast)"
    every = "" if math.isnan(every_bytes) else every
    found = Counter(outcomes(run.events).values())
    committed, superseded, rejected = (
        units.as_number(_or(number(summary, "updates", name), found[name]))
        for name in ("committed", "superseded", "rejected")
    )
    merges = [event for event in run.events if isinstance(event, trace.Merged)]
    midway = sum(0.0 < event.epoch_fraction < 1.0 for event in merges)
    digest = str((summary or {}).get("params_sha256") or "")
    per_s = units.as_rate(versions / wall_s if wall_s > 0 else math.nan)
    return [
        KeyFigure("Strategy", strategy(run), _seed(run)),
        KeyFigure(
            f"Best {run.metric.name}",
            units.NONE if math.isnan(value) else units.as_score(value, run.metric),
            _join(_known("at version", version), _last_score(final, run.metric)),
        ),
        KeyFigure("Versions", units.as_number(versions), f"{per_s} per second"),
        KeyFigure(
            "Virtual time" if is_simulated(run.events) else "Wall time",
            units.as_duration(wall_s),
            _began(run),
        ),
        KeyFigure(
            "Updates committed",
            committed,
            f"{superseded} superseded, {rejected} rejected",
        ),
        KeyFigure(
            "Merges mid-epoch",
            units.as_number(midway),
            f"and {len(merges) - midway:,} between epochs" if merges else "",
        ),
        KeyFigure(
            "Bytes moved",
            units.as_bytes(up + down),
            f"{units.as_bytes(up)} up, {units.as_bytes(down)} down{every}",
        ),
        KeyFigure("Parameters", digest[:12] or units.NONE, "SHA-256, shortened"),
    ]


def strategy(run: Run) -> str:
    """The name of the strategy, or a dash."""
    named = (run.summary or {}).get("strategy")
    if named is None:
        named = (run.config or {}).get("strategy")
    if isinstance(named, dict):
        named = named.get("name")
    return str(named) if named else units.NONE


def _seed(run: Run) -> str:
    """All digits: seeds have up to 64 bits."""
    seed = (run.summary or {}).get("seed")
    return f"seed {seed}" if type(seed) is int else ""


def _began(run: Run) -> str:
    """Date and time of the start of the run, "" of a virtual clock."""
    if not 1e9 < run.start_s < 1e11:  # Unix time: 2001 or later
        return ""
    return f"{datetime.fromtimestamp(run.start_s, UTC):from %Y-%m-%d %H:%M} UTC"


def num_versions(run: Run) -> float:
    """Versions made after the initial one; NaN if unknown."""
    rows = [number(row, "version") for row in run.metrics]
    made = [
        event.version for event in run.events if isinstance(event, trace.Aggregated)
    ]
    counted = max((v for v in [*rows, *made] if math.isfinite(v)), default=math.nan)
    return _or(number(run.summary, "versions"), counted)


def duration_s(run: Run) -> float:
    """How long the run took, or has taken so far; NaN if unknown."""
    ends = [number(row, "time_s") for row in run.metrics]
    if run.events:
        ends.append(run.events[-1].time_s - run.start_s)
    counted = max((end for end in ends if math.isfinite(end)), default=math.nan)
    return _or(number(run.summary, "wall_s"), counted)


def _last(run: Run, name: str) -> float:
    values = (number(row, name) for row in run.metrics)
    counted = max((value for value in values if math.isfinite(value)), default=math.nan)
    return _or(number(run.summary, name), counted)


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


def _known(label: str, value: float) -> str:
    return f"{label} {value:,.0f}" if math.isfinite(value) else ""


def _last_score(value: float, metric: Metric) -> str:
    return f"last {units.as_score(value, metric)}" if math.isfinite(value) else ""


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
