"""Counters and status of a run: what the live view, the summary and a resume need."""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from asyn2f.protocol import messages
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.sessions import Session, SessionRegistry
from asyn2f.protocol.settings import ServerSettings
from asyn2f.timing import Stop

_RATE_WINDOW_S = 10.0
_MAX_STATE = 20  # characters of the state that a worker reports


class WorkerStatus(NamedTuple):
    """One worker, as of its last heartbeat."""

    worker: int
    state: str  # "registered" | "training" | "waiting" | "silent" | "gone"
    step: int  # local steps done
    epoch: float  # passes over its shard
    loss: float  # mean training loss of its present epoch
    metric: float  # mean training accuracy of its present epoch
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
    accuracy: float | None  # of the newest version evaluated, if any
    loss: float | None
    best_accuracy: float | None
    best_version: int | None
    committed: int
    superseded: int
    rejected: int
    bytes_up: int
    bytes_down: int
    workers: tuple[WorkerStatus, ...]
    # Made of fewer than `min_updates` updates, or, in a synchronous round, without that
    # of a live worker.
    incomplete_versions: int = 0


def incomplete(summary: Mapping[str, Any]) -> str:
    """A sentence on versions aggregated without all updates, or "".

    >>> incomplete({"incomplete_versions": 0, "versions": 30})
    ''
    >>> incomplete({"incomplete_versions": 12, "versions": 30})[:47]
    '12 of 30 versions were made without all updates'
    """
    count = summary.get("incomplete_versions") or 0
    if not count:
        return ""
    return (
        f"{count:,} of {summary.get('versions'):,} versions were made without all "
        "updates that they wait for: fewer than timing.min_updates, or a synchronous "
        "round that timing.deadline_s closed without a live worker"
    )


def warnings_of(summary: Mapping[str, Any]) -> list[str]:
    """Caveats of a run's results, in sentences.

    >>> warnings_of({"versions": 30, "best_accuracy": None})[0][:41]
    'no version was evaluated, so there is no '
    """
    found = [incomplete(summary)]
    if summary.get("versions") and summary.get("best_accuracy") is None:
        found.append(
            "no version was evaluated, so there is no accuracy and no best version: "
            "start an evaluator as well (asyn2f evaluator)"
        )
    return [warning for warning in found if warning]


class RunCounters:
    """Time, bytes, versions and scores of a run, those before a resume included."""

    def __init__(
        self, before: dict[str, Any], best: tuple[float | None, int | None]
    ) -> None:
        """
        Args:
          before: `totals` of the server before a resume, or {}.
          best: accuracy and version of the best version.
        """
        self._elapsed_before_s: float = before.get("elapsed_s", 0.0)
        self.bytes_up: int = before.get("bytes_up", 0)
        self.bytes_down: int = before.get("bytes_down", 0)
        self.incomplete: int = before.get("incomplete_versions", 0)
        self.best_accuracy, self.best_version = best
        self.accuracy: float | None = None  # of the newest version scored
        self.loss: float | None = None
        self.scored = -1  # the version of that score
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

    def score(self, version: int, accuracy: float, loss: float) -> bool | None:
        """Adds a score; whether it is the best, or None if it is invalid or known."""
        if version in self._scored_versions or not 0.0 <= accuracy <= 1.0:
            return None
        self._scored_versions.add(version)
        if version > self.scored:
            self.scored, self.accuracy, self.loss = version, accuracy, loss
        is_best = self.best_accuracy is None or accuracy > self.best_accuracy
        if is_best:
            self.best_accuracy, self.best_version = accuracy, version
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
        progress=_progress(settings.stop, version, elapsed_s, counters.best_accuracy),
        versions_per_s=counters.versions_per_s(now),
        accuracy=counters.accuracy,
        loss=counters.loss,
        best_accuracy=counters.best_accuracy,
        best_version=counters.best_version,
        **ledger.counts,
        bytes_up=counters.bytes_up,
        bytes_down=counters.bytes_down,
        workers=_worker_statuses(sessions, version, ledger.received, now),
        incomplete_versions=counters.incomplete,
    )


def _progress(
    stop: Stop, version: int, elapsed_s: float, accuracy: float | None
) -> float:
    """Progress towards the nearest limit, in 0..1."""
    reached = [
        (version, stop.max_versions),
        (elapsed_s, stop.max_time_s),
        (accuracy or 0.0, stop.target_accuracy),
    ]
    return min(1.0, max((x / limit for x, limit in reached if limit), default=0.0))


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
