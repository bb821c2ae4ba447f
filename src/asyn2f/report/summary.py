"""The sums of a run: what each worker did, and how the versions scored."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.report.load import Run, with_traces, worker_of
from asyn2f.report.rows import number


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


def outcomes(events: Iterable[trace.Event]) -> dict[tuple, str]:
    """The last word on every update, by (worker, session, seq).

    Server and worker may both have written it down, or either one alone may have left
    its trace; an update that is part of a version counts as committed in any case.
    """
    found: dict[tuple, str] = {}
    for event in events:
        if isinstance(event, trace.UpdateSettled):
            found[(event.worker, event.session, event.seq)] = event.outcome
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
    for (worker, *_), outcome in outcomes(run.events).items():
        counts[worker][outcome] += 1
    told, zero_s = with_traces(run.events), max(run.start_s, run.since_s)
    batch_size = number(run.config, "training", "batch_size")
    found = []
    for worker in sorted(own.keys() | counts.keys() | staleness.keys()):
        of_server = (counts[worker], staleness[worker], batch_size)
        tallied = _tally_worker(worker, own[worker], zero_s, *of_server)
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


_SIGNS_OF_LIFE = (trace.WorkerJoined, trace.Trained, trace.Blocked)


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
    waited = [event for event in events if isinstance(event, trace.Blocked)]
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


def _after(zero_s: float, event: trace.Trained | trace.Blocked) -> float:
    """Seconds of the stretch that lie after the start of the run."""
    return max(event.time_s - max(event.start_s, zero_s), 0.0)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
