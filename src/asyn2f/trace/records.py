"""Checks a run's summary, metrics and best version against its trace."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from asyn2f import trace
from asyn2f.trace.artifacts import Records
from asyn2f.trace.history import History, Node
from asyn2f.types import Best

_ROUNDING = 2e-6  # of the difference of two times since 1970
_OF_A_VERSION = ("updates", "staleness_mean", "staleness_max", "learning_rate")


def is_evaluator_absent(records: Records, events: Iterable[trace.Event]) -> bool:
    """Whether there are scores, but no trace of an evaluator."""
    has_scores = any(row.get("kind") == "score" for row in records.metrics)
    return has_scores and not any(isinstance(x, trace.Evaluated) for x in events)


def missing_versions(
    records: Records, saved: Iterable[int], damaged: Container[int]
) -> Iterator[str]:
    """The newest saved versions, which retention keeps, that are not in the store. A
    server that crashes may save one more than its trace tells."""
    if records.versions is None:
        return
    stored = set(records.versions)
    for version in sorted({*saved, *stored})[-records.keep_last :]:
        if version not in stored and version not in damaged:
            yield f"version {version} was saved, but is not in the store"


def differences(
    records: Records,
    best: Best | None,
    events: Sequence[trace.Event],
    history: History,
    line: Sequence[Node],
) -> Iterator[str]:
    """Every contradiction between the records and the trace.

    Args:
      records: to be checked.
      best: the best version, according to the store.
      events: of all processes.
      history: of the events.
      line: the surviving versions, newest first.
    """
    traced = _Traced(events)
    if records.summary:
        for name, right in _summary_of(records, best, traced, history, line).items():
            stated = records.summary.get(name)
            if name in records.summary and not _agree(stated, right):
                yield f"summary: {name} is {stated!r}, elsewhere {right!r}"
    for row in records.metrics:
        yield from _row_differs(row, traced)
    if best is not None and records.summary and traced.is_one_life:
        yield from _better_than(best, records)


def _better_than(best: Best, records: Records) -> Iterator[str]:
    """The versions in the store that are better than the best one."""
    metric = records.metric
    if metric is None or metric.name != best.metric:
        return
    for row in records.metrics:
        version, value = row.get("version"), _score(row, metric.name)
        is_there = records.versions is None or version in records.versions
        if is_there and value is not None and metric.is_better(value, best.value):
            yield (
                f"version {version} has {metric.name} {value}, the best version, "
                f"{best.version}, only {best.value}"
            )


def _score(row: Mapping[str, Any], name: str) -> float | None:
    scores = row.get("scores")
    value = scores.get(name) if isinstance(scores, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


class _Traced:
    """What the trace holds, by version."""

    def __init__(self, events: Iterable[trace.Event]) -> None:
        self.made: dict[int, list[dict[str, Any]]] = {}
        self.scored: dict[int, list[trace.Evaluated]] = {}
        self.published_s: dict[int, float] = {}
        self.outcomes: dict[str, set[tuple[Any, ...]]] = {}
        self.stopped_s: float | None = None
        self.runs: set[str] = set()
        servers = 0
        for event in events:
            match event:
                case trace.ProcessStarted(actor="server" | "simulation"):
                    servers += 1
                    self.runs.add(event.run)
                case trace.Aggregated() if event.updates:
                    self.made.setdefault(event.version, []).append(_row_of(event))
                case trace.Evaluated():
                    self.scored.setdefault(event.version, []).append(event)
                case trace.Published(time_s, version):
                    self.published_s.setdefault(version, time_s)
                case trace.UpdateSettled(_, worker, session, seq, outcome):
                    self.outcomes.setdefault(outcome, set()).add((worker, session, seq))
                case trace.Stopped(time_s, "server" | "simulation"):
                    self.stopped_s = time_s
        self.is_one_life = servers == 1


def _row_of(made: trace.Aggregated) -> dict[str, Any]:
    mean = sum(made.staleness) / len(made.updates)
    values = len(made.updates), mean, max(made.staleness, default=0), made.learning_rate
    return dict(zip(_OF_A_VERSION, values, strict=True))


def _summary_of(
    records: Records,
    best: Best | None,
    traced: _Traced,
    history: History,
    line: Sequence[Node],
) -> dict[str, Any]:
    """The summary that follows from the rest of the run, as far as it is known."""
    version = line[0][1] if line else 0
    right: dict[str, Any] = {"versions": version}
    if len(traced.runs) == 1:
        (right["run"],) = traced.runs
    summary = records.summary
    right |= records.configured
    if records.metric is not None:
        right["metric"] = records.metric._asdict()
    if records.versions is not None:
        right["best_version"] = best.version if best else None
        right["best_value"] = best.value if best else None
    scores = [event.scores for event in traced.scored.get(version, ())]
    is_newest = not line or line[0] == history.newest
    if scores and is_newest and summary.get("final_scores") is not None:
        right["final_scores"] = scores[-1]
    made = [history.made[node] for node in line if node in history.made]
    counts = {"committed": sum(len(event.updates) for event in made)}
    if traced.is_one_life and traced.stopped_s is not None:
        for outcome in ("superseded", "rejected"):
            counts[outcome] = len(traced.outcomes.get(outcome, ()))
        if 0 in traced.published_s:
            right["wall_s"] = traced.stopped_s - traced.published_s[0]
    stated = summary.get("updates")
    if isinstance(stated, Mapping) and None not in stated.values():
        right["updates"] = {**stated, **counts}
    return right


def _row_differs(row: Mapping[str, Any], traced: _Traced) -> Iterator[str]:
    """How a row of metrics differs from every event of its version in the trace."""
    version = row.get("version")
    if not isinstance(version, int):
        return
    name = f"metrics, {row.get('kind')} of version {version}"
    rights: list[dict[str, Any]] = []
    if row.get("kind") == "version":
        rights = traced.made.get(version, [])
        if traced.is_one_life and {0, version} <= traced.published_s.keys():
            time_s = traced.published_s[version] - traced.published_s[0]
            rights = [{**right, "time_s": time_s} for right in rights]
    elif row.get("kind") == "score":
        if not traced.scored:
            return  # the evaluator's trace is elsewhere
        rights = [{"scores": event.scores} for event in traced.scored.get(version, ())]
    else:
        return
    wrong = [
        {key: x for key, x in right.items() if key in row and not _agree(row[key], x)}
        for right in rights
    ]
    if not wrong:
        yield f"{name}: not in the trace"
    elif all(wrong):
        for key, value in sorted(wrong[-1].items()):
            yield f"{name}: {key} is {row[key]!r}, in the trace {value!r}"


def _agree(stated: Any, right: Any) -> bool:
    """Whether two values are equal, floats up to rounding; null stands for NaN."""
    if isinstance(right, dict) and isinstance(stated, Mapping):
        return right.keys() == stated.keys() and all(
            _agree(stated[name], value) for name, value in right.items()
        )
    if isinstance(right, float) and not math.isfinite(right):
        return stated is None
    if isinstance(right, float) and isinstance(stated, int | float):
        return math.isclose(stated, right, rel_tol=1e-9, abs_tol=_ROUNDING)
    return bool(stated == right)
