"""Counters and status of a run: what the live view, the summary and a resume need."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from asyn2f.protocol import messages
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.sessions import Session, SessionRegistry
from asyn2f.protocol.settings import ServerSettings
from asyn2f.types import Best, Metric, Scores

_RATE_WINDOW_S = 10.0
_MAX_STATE = 20  # characters of the state that a worker reports


class WorkerStatus(NamedTuple):
    """One worker, as of its last heartbeat."""

    worker: int
    state: str  # "registered" | "training" | "waiting" | "silent" | "gone"
    step: int  # local steps done
    epoch: float  # passes over its shard
    loss: float  # mean training loss of its present epoch
    metric: float  # mean training metric of its present epoch
    base_version: int
    staleness: int  # newest version - base_version
    merges: int  # versions merged in mid-training
    merged_s_ago: float  # seconds since the last of them; -1 = none yet
    updates: int  # pushed so far
    num_examples: int


class RunStatus(NamedTuple):
    """The whole run. Rates are over the last few seconds, counts since the start."""

    run: str
    strategy: str
    state: str  # "waiting for workers" | "running" | "stopping" | ...
    elapsed_s: float
    version: int
    max_versions: int  # 0 = no such limit
    progress: float  # 0 to 1, towards whichever limit of the run is nearest
    versions_per_s: float
    metric: Metric  # the headline
    scores: Scores | None  # of the newest version evaluated, if any
    best: Best | None
    committed: int
    superseded: int
    rejected: int
    bytes_up: int
    bytes_down: int
    workers: tuple[WorkerStatus, ...]
    # Made of fewer than `min_updates` updates, or, in a synchronous round, without that
    # of a live worker.
    incomplete_versions: int = 0


class RunCounters:
    """Time, bytes, versions and scores of a run, those before a resume included."""

    def __init__(
        self, before: dict[str, Any], metric: Metric, best: Best | None
    ) -> None:
        """
        Args:
          before: `totals` of the server before a resume, or {}.
          metric: the headline.
          best: the best version so far.
        """
        self._elapsed_before_s: float = before.get("elapsed_s", 0.0)
        self.bytes_up: int = before.get("bytes_up", 0)
        self.bytes_down: int = before.get("bytes_down", 0)
        self.incomplete: int = before.get("incomplete_versions", 0)
        self._metric = metric
        self.best = best
        self.first: float | None = None  # finite value of the headline
        self.scores: Scores | None = None  # of the newest version scored
        self.scored = -1  # which is that
        self._scored_versions: set[int] = set()
        self._started_s: float | None = None
        self._published_s: deque[float] = deque()

    @property
    def has_started(self) -> bool:
        """Whether the run's clock is running."""
        return self._started_s is not None

    def start(self, now: float) -> None:
        """The run begins, or is resumed."""
        self._started_s = now

    def elapsed_s(self, now: float) -> float:
        """Seconds of the run, without the time between two servers."""
        here_s = 0.0 if self._started_s is None else now - self._started_s
        return self._elapsed_before_s + here_s

    def publish(self, now: float) -> None:
        """A version has been published."""
        self._published_s.append(now)

    def versions_per_s(self, now: float) -> float:
        """Over the last few seconds."""
        while self._published_s and now - self._published_s[0] > _RATE_WINDOW_S:
            self._published_s.popleft()
        here_s = now - self._started_s if self._started_s is not None else 0.0
        window_s = min(_RATE_WINDOW_S, here_s)
        return len(self._published_s) / window_s if window_s > 0 else 0.0

    def has_scores(self, version: int) -> bool:
        """Whether the scores of a version are known."""
        return version in self._scored_versions

    def score(self, version: int, scores: Scores) -> bool | None:
        """Adds the scores of a version; whether it is the best, or None if they are
        known, or lack the headline."""
        metric = self._metric
        if version in self._scored_versions or metric.name not in scores:
            return None
        self._scored_versions.add(version)
        if version > self.scored:
            self.scored, self.scores = version, scores
        value = scores[metric.name]
        if self.first is None and math.isfinite(value):
            self.first = value
        is_best = metric.is_better(value, self.best.value if self.best else None)
        if is_best:
            self.best = Best(version, metric.name, value)
        return is_best

    def so_far(self, now: float) -> tuple[float, int, int]:
        """Seconds of the run, bytes up and bytes down."""
        return self.elapsed_s(now), self.bytes_up, self.bytes_down

    def totals(self, now: float) -> dict[str, Any]:
        """What a resumed server begins with."""
        return {
            "elapsed_s": self.elapsed_s(now),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "incomplete_versions": self.incomplete,
        }


def status_of(
    settings: ServerSettings,
    counters: RunCounters,
    ledger: Ledger,
    sessions: SessionRegistry,
    version: int,
    is_ending: bool,
    now: float,
) -> RunStatus:
    """The run as of now; `version` is the newest published."""
    state = "running" if counters.has_started else "waiting for workers"
    elapsed_s = counters.elapsed_s(now)
    return RunStatus(
        run=settings.run,
        strategy=settings.strategy,
        state="stopping" if is_ending else state,
        elapsed_s=elapsed_s,
        version=version,
        max_versions=settings.stop.max_versions,
        progress=_progress(settings, counters, version, elapsed_s),
        versions_per_s=counters.versions_per_s(now),
        metric=settings.metric,
        scores=counters.scores,
        best=counters.best,
        **ledger.counts,
        bytes_up=counters.bytes_up,
        bytes_down=counters.bytes_down,
        workers=_worker_statuses(sessions, version, ledger.received, now),
        incomplete_versions=counters.incomplete,
    )


def _progress(
    settings: ServerSettings, counters: RunCounters, version: int, elapsed_s: float
) -> float:
    """Progress towards the nearest limit, in 0..1."""
    stop = settings.stop
    limits = (version, stop.max_versions), (elapsed_s, stop.max_time_s)
    reached = [x / limit for x, limit in limits if limit]
    if stop.target is not None and counters.best is not None:
        best, first = counters.best.value, counters.first
        reached.append(_approach(settings.metric, first, best, stop.target))
    return min(1.0, max(reached, default=0.0))


def _approach(metric: Metric, first: float | None, best: float, target: float) -> float:
    """How much of the way to a target the best value is, counted from 0 for a fraction
    that is to rise, else from the first value.

    >>> _approach(Metric("loss", higher_is_better=False), 3.0, 2.0, target=1.0)
    0.5
    """
    if metric.reaches(best, target):
        return 1.0
    begin = 0.0 if metric.is_fraction and metric.higher_is_better else first
    if begin is None or begin == target:
        return 0.0
    return min(max((best - begin) / (target - begin), 0.0), 0.999)


def _worker_statuses(
    sessions: SessionRegistry, version: int, updates: Mapping[str, int], now: float
) -> tuple[WorkerStatus, ...]:
    """One per worker, of its newest session."""
    latest: dict[int, Session] = {}
    for session in sessions:
        if session.is_worker:
            latest[session.hello.worker] = session
    return tuple(
        _worker_status(session, version, updates.get(session.name, 0), now)
        for _, session in sorted(latest.items())
    )


def _worker_status(
    session: Session, version: int, updates: int, now: float
) -> WorkerStatus:
    heartbeat = session.heartbeat
    progress = messages.NO_PROGRESS if heartbeat is None else heartbeat.progress
    since_s = now - session.heard_s if progress.merged_s_ago >= 0 else 0.0
    state = progress.state[:_MAX_STATE] if session.live else "silent"
    base = progress.base_version
    fields: dict[str, Any] = progress._asdict()
    fields["state"] = "gone" if session.gone else state
    fields["merged_s_ago"] += since_s
    return WorkerStatus(
        worker=session.hello.worker,
        staleness=max(version - base, 0) if base >= 0 else 0,
        updates=updates,
        num_examples=session.hello.num_examples,
        **fields,
    )
