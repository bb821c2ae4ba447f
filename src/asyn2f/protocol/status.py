"""How a run stands at this moment: what the server tells whoever watches."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class WorkerStatus(NamedTuple):
    """One worker, as of its last beat."""

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
    """A sentence on versions that lack updates, or "" where none does.

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
    """What somebody should know who takes a run's numbers for good.

    >>> warnings_of({"versions": 30, "best_accuracy": None})[0][:41]
    'no version was evaluated, so there is no '
    """
    found = [incomplete(summary)]
    if summary.get("versions") and summary.get("best_accuracy") is None:
        found.append(
            "no version was evaluated, so there is no accuracy and no best version: "
            "start an evaluator as well (python -m launch.evaluator)"
        )
    return [warning for warning in found if warning]
