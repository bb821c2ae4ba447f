"""How a run stands: what its server shows a few times per second."""

from asyn2f.protocol.counters import RunCounters
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.sessions import SessionRegistry
from asyn2f.protocol.settings import ServerSettings
from asyn2f.protocol.status import RunStatus
from asyn2f.timing import Stop


def status_of(
    settings: ServerSettings,
    figures: RunCounters,
    ledger: Ledger,
    roster: SessionRegistry,
    version: int,
    is_ending: bool,
    now: float,
) -> RunStatus:
    """The run as of now; `version` is the newest given out."""
    state = "running" if figures.has_started else "waiting for workers"
    elapsed_s = figures.elapsed_s(now)
    return RunStatus(
        run=settings.run,
        strategy=settings.strategy,
        state="stopping" if is_ending else state,
        elapsed_s=elapsed_s,
        version=version,
        max_versions=settings.stop.max_versions,
        progress=_progress(settings.stop, version, elapsed_s, figures.best_accuracy),
        versions_per_s=figures.versions_per_s(now),
        accuracy=figures.accuracy,
        loss=figures.loss,
        best_accuracy=figures.best_accuracy,
        best_version=figures.best_version,
        **ledger.counts,
        bytes_up=figures.bytes_up,
        bytes_down=figures.bytes_down,
        workers=roster.worker_statuses(version, ledger.taken_in, now),
        incomplete_versions=figures.incomplete,
    )


def _progress(
    stop: Stop, version: int, elapsed_s: float, accuracy: float | None
) -> float:
    """How far it is to the end, in 0..1, by whichever limit is nearest."""
    reached = [
        (version, stop.max_versions),
        (elapsed_s, stop.max_time_s),
        (accuracy or 0.0, stop.target_accuracy),
    ]
    return min(1.0, max((x / limit for x, limit in reached if limit), default=0.0))
