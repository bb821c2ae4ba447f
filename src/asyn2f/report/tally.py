"""The sums of a run: what each worker did, and the key figures of the whole."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.report import units
from asyn2f.report.run import Run, is_simulated, number, with_traces, worker_of


class WorkerTally(NamedTuple):
    """One worker over the whole run; NaN where the trace does not tell."""

    worker: int
    num_examples: float
    steps: float
    epochs: float
    pushed: float
    committed: int
    superseded: int
    rejected: int
    merges: float
    share: float  # mean share of the local model that its merges kept
    trained_s: float
    waited_s: float
    present_s: float  # from the start of the run, or its first event if later, to its
    # last, without the time from its leaving to its return
    staleness: float  # mean over its updates that went into a version

    @property
    def rest_s(self) -> float:
        """What is neither training nor waiting: starting, merging, coding, sending."""
        return max(self.present_s - self.trained_s - self.waited_s, 0.0)


class TimeUse(NamedTuple):
    """Shares of the time of all workers together; they add up to 1."""

    trained: float
    waited: float
    rest: float


class KeyFigure(NamedTuple):
    """A card at the head of the report."""

    label: str
    value: str
    note: str


class Score(NamedTuple):
    """An evaluation; NaN where the row does not tell."""

    time_s: float
    version: float
    accuracy: float
    loss: float
    num_bytes: float  # up and down, since the start


def scores(run: Run) -> list[Score]:
    """The evaluations, from the metrics or else from the trace, by time."""
    found = [
        Score(
            time_s=number(row, "time_s"),
            version=number(row, "version"),
            accuracy=number(row, "accuracy"),
            loss=number(row, "loss"),
            num_bytes=number(row, "bytes_up") + number(row, "bytes_down"),
        )
        for row in run.metrics
        if row.get("kind") == "score"
    ] or [
        Score(
            time_s=event.time_s - run.start_s,
            version=event.version,
            accuracy=event.accuracy,
            loss=event.loss,
            num_bytes=math.nan,
        )
        for event in run.events
        if isinstance(event, trace.Evaluated)
    ]
    known = [score for score in found if math.isfinite(score.accuracy)]
    return sorted(known, key=lambda score: score.time_s)


def best_score(run: Run) -> Score | None:
    """The evaluation with the highest accuracy, the earliest of several."""
    return max(scores(run), key=lambda score: score.accuracy, default=None)


def verdicts(events: Iterable[trace.Event]) -> dict[tuple, str]:
    """The last word on every update, by (worker, session, seq).

    Server and worker may both have written it down, or either one alone may have left
    its trace; an update that is part of a version counts as committed in any case.
    """
    found: dict[tuple, str] = {}
    for event in events:
        if isinstance(event, trace.Settled):
            found[(event.worker, event.session, event.seq)] = event.verdict
        elif isinstance(event, trace.Aggregated):
            found.update((tuple(key), "committed") for key in event.updates)
    return found


def tally(run: Run) -> list[WorkerTally]:
    """The sums of every worker that the trace names, by number."""
    own: dict[int, list[trace.Event]] = defaultdict(list)
    staleness: dict[int, list[int]] = defaultdict(list)
    for event in run.events:
        if isinstance(event, trace.Aggregated):
            for key, behind in zip(event.updates, event.staleness, strict=True):
                staleness[key[0]].append(behind)
        elif (worker := worker_of(event)) is not None:
            own[worker].append(event)
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for (worker, *_), verdict in verdicts(run.events).items():
        counts[worker][verdict] += 1
    told = with_traces(run.events)
    batch_size = number(run.config, "training", "batch_size")
    found = []
    for worker in sorted(own.keys() | counts.keys() | staleness.keys()):
        of_server = (counts[worker], staleness[worker], batch_size)
        tallied = _tally_worker(worker, own[worker], run.start_s, *of_server)
        if worker not in told:
            tallied = tallied._replace(**_UNTOLD)
        found.append(tallied)
    return found


_UNTOLD: dict[str, Any] = dict.fromkeys(
    (
        *("steps", "epochs", "pushed", "merges", "share"),
        *("trained_s", "waited_s", "present_s"),
    ),
    math.nan,
)
"""Of a worker whose own trace is not there."""


def time_use(workers: Iterable[WorkerTally]) -> TimeUse | None:
    """How all workers together spent their time, of those whose trace is there.

    >>> one = WorkerTally(0, *[0] * 9, trained_s=6.0, waited_s=1.0, present_s=8.0,
    ...                   staleness=0.0)
    >>> time_use([one])
    TimeUse(trained=0.75, waited=0.125, rest=0.125)
    """
    told = [worker for worker in workers if worker.present_s > 0]
    if not told:
        return None
    trained_s, waited_s, rest_s = (
        sum(getattr(worker, name) for worker in told)
        for name in ("trained_s", "waited_s", "rest_s")
    )
    whole_s = trained_s + waited_s + rest_s
    return TimeUse(trained_s / whole_s, waited_s / whole_s, rest_s / whole_s)


_SIGNS_OF_LIFE = (trace.WorkerJoined, trace.Trained, trace.Waited)


def _present_s(events: Iterable[trace.Event], zero_s: float) -> float:
    """See `WorkerTally.present_s`; the events are those of one worker, by time."""
    total_s, until_s = 0.0, zero_s
    since_s: float | None = None  # None: it is away
    for event in events:
        if since_s is None:
            if not isinstance(event, _SIGNS_OF_LIFE):
                continue
            since_s = max(getattr(event, "start_s", event.time_s), until_s)
        until_s = max(event.time_s, until_s)
        if isinstance(event, trace.WorkerLeft):
            total_s += until_s - since_s
            since_s = None
    return total_s + (until_s - since_s if since_s is not None else 0.0)


def _tally_worker(
    worker: int,
    events: list[trace.Event],
    zero_s: float,
    counts: Counter[str],
    staleness: list[int],
    batch_size: float,
) -> WorkerTally:
    trained = [event for event in events if isinstance(event, trace.Trained)]
    waited = [event for event in events if isinstance(event, trace.Waited)]
    merges = [event for event in events if isinstance(event, trace.Merged)]
    joins = [event for event in events if isinstance(event, trace.WorkerJoined)]
    pushes = [event for event in events if isinstance(event, trace.Pushed)]
    steps = sum(event.steps for event in trained)
    num_examples = float(joins[-1].num_examples) if joins else math.nan
    batches = num_examples / batch_size  # of an epoch; NaN where either is unknown
    return WorkerTally(
        worker=worker,
        num_examples=num_examples,
        steps=steps,
        epochs=steps / (math.ceil(batches) if math.isfinite(batches) else math.nan),
        pushed=len({(event.session, event.seq) for event in pushes}),
        committed=counts["committed"],
        superseded=counts["superseded"],
        rejected=counts["rejected"],
        merges=len(merges),
        share=_mean(event.share for event in merges),
        trained_s=sum(_after(zero_s, event) for event in trained),
        waited_s=sum(_after(zero_s, event) for event in waited),
        present_s=_present_s(events, zero_s),
        staleness=_mean(staleness),
    )


def _after(zero_s: float, event: trace.Trained | trace.Waited) -> float:
    """Seconds of the stretch that lie after the start of the run."""
    return max(event.time_s - max(event.start_s, zero_s), 0.0)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def key_figures(run: Run) -> list[KeyFigure]:
    """The cards: what the summary says, or else what metrics and trace add up to."""
    summary, best = run.summary, best_score(run)
    accuracy = number(summary, "best_accuracy")
    version = number(summary, "best_version")
    if math.isnan(accuracy) and best:
        accuracy, version = best.accuracy, best.version
    final = number(summary, "final_accuracy")
    versions, wall_s = num_versions(run), duration_s(run)
    up, down = (_last(run, f"bytes_{way}") for way in ("up", "down"))
    every = number(summary, "broadcast_bytes_down")
    found = Counter(verdicts(run.events).values())
    committed, superseded, rejected = (
        units.as_number(_or(number(summary, "updates", name), found[name]))
        for name in ("committed", "superseded", "rejected")
    )
    merges = [event for event in run.events if isinstance(event, trace.Merged)]
    midway = sum(0.0 < event.epoch_fraction < 1.0 for event in merges)
    digest = str((summary or {}).get("params_sha256") or "")
    per_s = units.as_rate(versions / wall_s if wall_s > 0 else math.nan)
    return [
        KeyFigure("Strategy", strategy(run), _known("seed", number(summary, "seed"))),
        KeyFigure(
            "Best accuracy",
            units.as_percent(accuracy),
            _join(_known("at version", version), _known_percent("last", final)),
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
            "Merges in mid-epoch",
            units.as_number(midway),
            f"and {len(merges) - midway:,} between two epochs" if merges else "",
        ),
        KeyFigure(
            "Bytes moved",
            units.as_bytes(up + down),
            f"{units.as_bytes(up)} up, {units.as_bytes(down)} down"
            + (
                ""
                if math.isnan(every)
                else f" ({units.as_bytes(every)} as a broadcast)"
            ),
        ),
        KeyFigure("Parameters", digest[:12] or units.NONE, "their SHA-256, shortened"),
    ]


def strategy(run: Run) -> str:
    """The name of the strategy, or a dash."""
    named = (run.summary or {}).get("strategy")
    if named is None:
        named = (run.config or {}).get("strategy")
    if isinstance(named, dict):
        named = named.get("name")
    return str(named) if named else units.NONE


def _began(run: Run) -> str:
    """The day and hour of the first event, where the clock is a wall clock."""
    if not 1e9 < run.start_s < 1e11:  # seconds since 1970: from 2001 to far ahead
        return ""
    return f"{datetime.fromtimestamp(run.start_s, UTC):from %Y-%m-%d %H:%M} UTC"


def num_versions(run: Run) -> float:
    """Versions made after the initial one; NaN if nothing tells."""
    rows = [number(row, "version") for row in run.metrics]
    made = [
        event.version for event in run.events if isinstance(event, trace.Aggregated)
    ]
    counted = max((v for v in [*rows, *made] if math.isfinite(v)), default=math.nan)
    return _or(number(run.summary, "versions"), counted)


def duration_s(run: Run) -> float:
    """How long the run took, or has taken so far; NaN if nothing tells."""
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


def _known_percent(label: str, value: float) -> str:
    return f"{label} {units.as_percent(value)}" if math.isfinite(value) else ""


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
