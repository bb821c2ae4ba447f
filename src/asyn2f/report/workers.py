"""What each worker did: the sums of its events, and their table."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.report import page, theme, units
from asyn2f.report.load import Run, with_traces, worker_of
from asyn2f.report.metrics import number
from asyn2f.report.summary import outcomes

MAX_ROWS = 200
"""Workers in the table: of more, the first ones; the sums are over all."""


class WorkerTally(NamedTuple):
    """One worker over the whole run; NaN if the trace lacks it."""

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
    present_s: float  # between its first and last event after the run's start, without
    # the time between leaving and rejoining
    staleness: float  # mean over its committed updates

    @property
    def rest_s(self) -> float:
        """Neither training nor waiting: starting, merging, encoding, sending."""
        return max(self.present_s - self.trained_s - self.waited_s, 0.0)

    @property
    def cycle(self) -> float:
        """Steps per push, the last cycle's included; NaN without a push."""
        return self.steps / self.pushed if self.pushed > 0 else math.nan


class TimeUse(NamedTuple):
    """Shares of the time of all workers together; they sum to 1."""

    trained: float
    waited: float
    rest: float


def tally(run: Run) -> list[WorkerTally]:
    """The sums of every worker named in the trace, by number."""
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
    traced, zero_s = with_traces(run.events), max(run.start_s, run.since_s)
    batch_size = number(run.config, "training", "batch_size")
    found = []
    for worker in sorted(own.keys() | counts.keys() | staleness.keys()):
        of_server = (counts[worker], staleness[worker], batch_size)
        tallied = _tally_worker(worker, own[worker], zero_s, *of_server)
        if worker not in traced:
            tallied = tallied._replace(**_UNTRACED)
        found.append(tallied)
    return found


_UNTRACED: dict[str, Any] = dict.fromkeys(
    (
        *("steps", "epochs", "pushed", "merges", "share"),
        *("trained_s", "waited_s", "present_s"),
    ),
    math.nan,
)
"""Unknown for a worker whose own trace is missing."""


def time_use(workers: Iterable[WorkerTally]) -> TimeUse | None:
    """How the workers spent their time, those with a trace.

    >>> one = WorkerTally(0, *[0] * 9, trained_s=6.0, waited_s=1.0, present_s=8.0,
    ...                   staleness=0.0)
    >>> time_use([one])
    TimeUse(trained=0.75, waited=0.125, rest=0.125)
    """
    present = [worker for worker in workers if worker.present_s > 0]
    if not present:
        return None
    trained_s, waited_s, rest_s = (
        sum(getattr(worker, name) for worker in present)
        for name in ("trained_s", "waited_s", "rest_s")
    )
    whole_s = trained_s + waited_s + rest_s
    return TimeUse(trained_s / whole_s, waited_s / whole_s, rest_s / whole_s)


_SIGNS_OF_LIFE = (trace.WorkerJoined, trace.Trained, trace.Blocked)


def _present_s(events: Iterable[trace.Event], zero_s: float) -> float:
    """See `WorkerTally.present_s`; the events of one worker, by time."""
    total_s, until_s = 0.0, zero_s
    since_s: float | None = None  # None: absent
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
    """The duration of an event, without what precedes the start of the run."""
    return max(event.time_s - max(event.start_s, zero_s), 0.0)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


# ------------------------------------------------------------- the table

_COLUMNS: tuple[tuple[str, Callable[[WorkerTally], str]], ...] = (
    ("examples", lambda worker: units.as_number(worker.num_examples)),
    ("steps", lambda worker: units.as_number(worker.steps)),
    ("epochs", lambda worker: units.as_number(worker.epochs, digits=1)),
    ("steps per push", lambda worker: units.as_number(worker.cycle, digits=1)),
    ("committed", lambda worker: units.as_number(worker.committed)),
    ("superseded", lambda worker: units.as_number(worker.superseded)),
    ("rejected", lambda worker: units.as_number(worker.rejected)),
    ("mean staleness", lambda worker: units.as_number(worker.staleness, digits=2)),
    ("merges", lambda worker: units.as_number(worker.merges)),
    ("share kept", lambda worker: units.as_percent(worker.share, digits=0)),
    ("trained", lambda worker: _part(worker.trained_s, worker.present_s)),
    ("waited", lambda worker: _part(worker.waited_s, worker.present_s)),
    ("rest", lambda worker: _part(worker.rest_s, worker.present_s)),
)


def table(workers: Sequence[WorkerTally]) -> str:
    """A table with a row per worker and their sums; "" without workers."""
    if not workers:
        return ""
    rows = "".join(_row(worker) for worker in workers[:MAX_ROWS])
    if (hidden := len(workers) - MAX_ROWS) > 0:
        rows += f'<tr><td colspan="{len(_COLUMNS) + 2}">and {hidden:,} more</td></tr>'
    if len(workers) > 1:
        rows += _row(_all(workers), total=True)
    return page.table(["worker", *(name for name, _ in _COLUMNS), ""], rows)


def _row(worker: WorkerTally, *, total: bool = False) -> str:
    colour = theme.css_colour(worker.worker)
    name = f'<span class="dot" style="background:{colour}"></span>{worker.worker}'
    cells = "".join(f"<td>{value(worker)}</td>" for _, value in _COLUMNS)
    return (
        f'<tr class="{"total" if total else "one"}"><td>{"all" if total else name}</td>'
        f"{cells}<td>{_bar(worker)}</td></tr>"
    )


def _all(workers: Sequence[WorkerTally]) -> WorkerTally:
    """The sums of all workers, and their weighted means."""

    def mean(name: str, weight: str) -> float:
        pairs = [(getattr(w, name), getattr(w, weight)) for w in workers]
        pairs = [(value, n) for value, n in pairs if n > 0 and math.isfinite(value)]
        of = sum(n for _, n in pairs)
        return sum(value * n for value, n in pairs) / of if of else math.nan

    def known(name: str) -> list[float]:
        values = [getattr(worker, name) for worker in workers]
        return [value for value in values if math.isfinite(value)]

    sums: dict[str, Any] = {
        name: sum(known(name)) if known(name) else math.nan
        for name in WorkerTally._fields
        if name not in ("worker", "share", "staleness")
    }
    return WorkerTally(
        worker=0,
        share=mean("share", "merges"),
        staleness=mean("staleness", "committed"),
        **sums,
    )


def _bar(worker: WorkerTally) -> str:
    if not worker.present_s > 0:
        return ""
    parts = (("trained", worker.trained_s), ("waited", worker.waited_s))
    return page.share_bar((name, part / worker.present_s) for name, part in parts)


def _part(part_s: float, whole_s: float) -> str:
    return units.as_percent(part_s / whole_s if whole_s > 0 else math.nan, digits=0)
