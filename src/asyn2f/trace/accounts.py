"""What a run's summary, its metrics and its best say, held against its trace."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.trace.history import History, Node

_ROUNDING = 2e-6  # of the difference of two times since 1970
_OF_A_VERSION = ("updates", "staleness_mean", "staleness_max", "learning_rate")


class Accounts(NamedTuple):
    """What stands beside trace and models.

    Attributes:
      config: of the run; {} = not known.
      summary: {} = it has not come to its end.
      metrics: the rows.
      versions: in the store; None = nobody has looked.
    """

    config: Mapping[str, Any] = {}
    summary: Mapping[str, Any] = {}
    metrics: Sequence[Mapping[str, Any]] = ()
    versions: Container[int] | None = None


def is_evaluator_absent(accounts: Accounts, events: Iterable[trace.Event]) -> bool:
    """Whether somebody scored versions, and no trace is there of it."""
    has_scores = any(row.get("kind") == "score" for row in accounts.metrics)
    return has_scores and not any(isinstance(x, trace.Evaluated) for x in events)


def missing(
    accounts: Accounts, saved: Iterable[int], damaged: Container[int]
) -> Iterator[str]:
    """Versions that are always kept, and are not in the store."""
    keep = accounts.config.get("runtime", {}).get("keep_last", 1)
    for version in sorted(saved)[-keep:]:
        is_there = accounts.versions is None or version in accounts.versions
        if not is_there and version not in damaged:
            yield f"version {version} was saved, and is not in the store"


def differences(
    accounts: Accounts,
    best: tuple[int, float] | None,
    events: Sequence[trace.Event],
    history: History,
    line: Sequence[Node],
) -> Iterator[str]:
    """Each thing that is said otherwise than in the trace.

    Args:
      accounts: what is said.
      best: version and accuracy of the best, as the store says.
      events: of all processes.
      history: of the events.
      line: the versions that live, the newest first.
    """
    told = _Told(events)
    if accounts.summary:
        for name, right in _summary_of(accounts, best, told, history, line).items():
            said = accounts.summary.get(name)
            if name in accounts.summary and not _agree(said, right):
                yield f"summary: {name} is {said!r}, the rest of the run says {right!r}"
    for row in accounts.metrics:
        yield from _row_differs(row, told)
    if best is not None and accounts.summary and told.is_one_life:
        for row in accounts.metrics:
            version, accuracy = row.get("version"), row.get("accuracy")
            is_there = accounts.versions is None or version in accounts.versions
            if is_there and isinstance(accuracy, float) and accuracy > best[1]:
                yield (
                    f"version {version} has accuracy {accuracy}, the best is said to "
                    f"be version {best[0]} with {best[1]}"
                )


class _Told:
    """What the trace says, by version."""

    def __init__(self, events: Iterable[trace.Event]) -> None:
        self.made: dict[int, list[dict[str, Any]]] = {}
        self.scored: dict[int, list[trace.Evaluated]] = {}
        self.given_s: dict[int, float] = {}
        self.verdicts: dict[str, set[tuple[Any, ...]]] = {}
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
                    self.given_s.setdefault(version, time_s)
                case trace.UpdateSettled(_, worker, session, seq, verdict):
                    self.verdicts.setdefault(verdict, set()).add((worker, session, seq))
                case trace.Stopped(time_s, "server" | "simulation"):
                    self.stopped_s = time_s
        self.is_one_life = servers == 1


def _row_of(made: trace.Aggregated) -> dict[str, Any]:
    mean = sum(made.staleness) / len(made.updates)
    values = len(made.updates), mean, max(made.staleness, default=0), made.learning_rate
    return dict(zip(_OF_A_VERSION, values, strict=True))


def _summary_of(
    accounts: Accounts,
    best: tuple[int, float] | None,
    told: _Told,
    history: History,
    line: Sequence[Node],
) -> dict[str, Any]:
    """What the summary should say, as far as the rest of the run knows."""
    version = line[0][1] if line else 0
    right: dict[str, Any] = {"versions": version}
    if len(told.runs) == 1:
        (right["run"],) = told.runs
    config, summary = accounts.config, accounts.summary
    if config:
        right["strategy"] = config.get("strategy", {}).get("name")
        right["seed"] = config.get("seed")
    if accounts.versions is not None:
        right["best_version"], right["best_accuracy"] = best or (None, None)
    scores = [event.accuracy for event in told.scored.get(version, ())]
    is_newest = not line or line[0] == history.newest
    if scores and is_newest and summary.get("final_accuracy") is not None:
        right["final_accuracy"] = scores[-1]
    made = [history.made[node] for node in line if node in history.made]
    counts = {"committed": sum(len(event.updates) for event in made)}
    if told.is_one_life and told.stopped_s is not None:
        for verdict in ("superseded", "rejected"):
            counts[verdict] = len(told.verdicts.get(verdict, ()))
        if 0 in told.given_s:
            right["wall_s"] = told.stopped_s - told.given_s[0]
    said = summary.get("updates")
    if isinstance(said, Mapping) and None not in said.values():
        right["updates"] = {**said, **counts}
    return right


def _row_differs(row: Mapping[str, Any], told: _Told) -> Iterator[str]:
    """How a row of the metrics differs from all that the trace says of its version."""
    version = row.get("version")
    if not isinstance(version, int):
        return
    name = f"metrics, {row.get('kind')} of version {version}"
    rights: list[dict[str, Any]] = []
    if row.get("kind") == "version":
        rights = told.made.get(version, [])
        if told.is_one_life and {0, version} <= told.given_s.keys():
            time_s = told.given_s[version] - told.given_s[0]
            rights = [{**right, "time_s": time_s} for right in rights]
    elif row.get("kind") == "score":
        if not told.scored:
            return  # the evaluator's trace is elsewhere
        rights = [
            {"accuracy": event.accuracy, "loss": event.loss}
            for event in told.scored.get(version, ())
        ]
    else:
        return
    wrong = [
        {key: x for key, x in right.items() if key in row and not _agree(row[key], x)}
        for right in rights
    ]
    if not wrong:
        yield f"{name}: the trace knows nothing of it"
    elif all(wrong):
        for key, value in sorted(wrong[-1].items()):
            yield f"{name}: {key} is {row[key]!r}, the trace says {value!r}"


def _agree(said: Any, right: Any) -> bool:
    """Whether they are the same, floats up to rounding; null stands for NaN."""
    if isinstance(right, float) and not math.isfinite(right):
        return said is None
    if isinstance(right, float) and isinstance(said, int | float):
        return math.isclose(said, right, rel_tol=1e-9, abs_tol=_ROUNDING)
    return bool(said == right)
