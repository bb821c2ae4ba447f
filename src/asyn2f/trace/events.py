"""The events that a trace consists of."""

from typing import Any, NamedTuple

from asyn2f.types import Scores, UpdateInfo

# Times are seconds on the wall clock, read once per process and advanced by its
# monotonic clock: comparable within one machine, and never decreasing.

FORMAT = 4
"""The format of traces. No other is read: an old trace is to be read, replayed and
reported by the version that wrote it."""


class ProcessStarted(NamedTuple):
    """The head of a process's file: what the numbers that follow depend on."""

    time_s: float
    actor: str  # "server", "worker-3", "evaluator"
    run: str
    incarnation: int
    environment: dict[str, Any]
    format: int = FORMAT


class Registered(NamedTuple):
    """The server has registered this process; again after a server restart."""

    time_s: float
    actor: str
    run: str
    incarnation: int


class WorkerJoined(NamedTuple):
    """A worker has registered, or is heard again after a silence."""

    time_s: float
    worker: int
    session: str
    num_examples: int
    quality: float = 1.0
    data: str = ""  # the digest of its shard


class WorkerLeft(NamedTuple):
    time_s: float
    worker: int
    session: str
    reason: str


class Received(NamedTuple):
    """A version has arrived at a worker's process, which need not have used it yet."""

    time_s: float
    worker: int
    version: int


class Blocked(NamedTuple):
    """A worker waited for a version newer than `newest` from `start_s` to `time_s`."""

    time_s: float
    worker: int
    start_s: float
    newest: int


class Adopted(NamedTuple):
    """A worker replaced its model by a version.

    `incarnation` is that of the publishing server: a crash can lose a version that was
    published before it was saved, and the next one of its number is another model.
    `restored` is the digest of the own state that a worker continues from after a
    restart, as in `StateKept`; "" = it was not restarted, or begins anew.
    """

    time_s: float
    worker: int
    version: int
    step: int
    incarnation: int = 1
    restored: str = ""


class StateKept(NamedTuple):
    """A worker is about to write its own state (the task's carry, and the part of the
    model that it keeps), which it continues from if it is restarted."""

    time_s: float
    worker: int
    step: int
    digest: str


class Trained(NamedTuple):
    """Consecutive local steps without interruption, the last one being `step`."""

    time_s: float
    worker: int
    start_s: float
    steps: int
    step: int
    base_version: int
    loss: float
    metric: float


class Merged(NamedTuple):
    """A worker merged a version into its model, at `epoch_fraction` of an epoch; its
    base was `from_version`, and `share` of the local model was kept."""

    time_s: float
    worker: int
    version: int
    from_version: int
    step: int
    epoch_fraction: float
    share: float
    incarnation: int = 1  # as in `Adopted`


class Pushed(NamedTuple):
    time_s: float
    worker: int
    session: str
    seq: int
    info: UpdateInfo[int, float]  # its fields stand beside the others in a line


TOO_LATE = "the run is over"
"""Reason for rejecting updates that arrive after the run's end."""


class UpdateSettled(NamedTuple):
    """The outcome of an update: committed in a version, superseded, or rejected.

    A worker records "withdrawn" for an update whose outcome it never received; the
    server's event for the same update takes precedence.
    """

    time_s: float
    worker: int
    session: str
    seq: int
    outcome: str  # "committed" | "superseded" | "rejected" | "withdrawn"
    version: int  # the version that holds it, or -1
    reason: str


class Aggregated(NamedTuple):
    """Version `version` was made of these updates; the lists are parallel."""

    time_s: float
    version: int
    incarnation: int
    updates: list[list[Any]]  # [worker, session, seq], in order of arrival
    base_versions: list[int]
    staleness: list[int]
    coefficients: list[float]
    learning_rate: float
    # What the guards did to each update or, observing, would have done; [] = nothing.
    guards: list[str] = []  # noqa: RUF012
    lacking: int = 0  # updates missing from a full round: see `programs.Aggregate`


class Saved(NamedTuple):
    """A version is durable in the store."""

    time_s: float
    version: int
    incarnation: int


class OutcomeReceived(NamedTuple):
    """A worker has received the outcome of an update, and drops it."""

    time_s: float
    worker: int
    session: str
    seq: int
    outcome: str
    version: int
    incarnation: int  # of the server that sent it


class Resumed(NamedTuple):
    """A server resumed from a stored version, made by incarnation `made_in`."""

    time_s: float
    incarnation: int
    version: int
    made_in: int


class Published(NamedTuple):
    time_s: float
    version: int
    num_bytes: int
    receivers: int


class Evaluated(NamedTuple):
    """A version has been scored: on a test set, or on the rows of these workers."""

    time_s: float
    version: int
    scores: Scores
    workers: list[int] = []  # noqa: RUF012


class WorkerScored(NamedTuple):
    """A worker has scored a version on held-out rows of its own; `step` counts its
    local steps by then, as it may keep a part of the model."""

    time_s: float
    worker: int
    version: int
    step: int
    rows: int
    scores: Scores


class Stopped(NamedTuple):
    time_s: float
    actor: str
    reason: str


Event = (
    ProcessStarted
    | Registered
    | WorkerJoined
    | WorkerLeft
    | Received
    | Blocked
    | Adopted
    | StateKept
    | Trained
    | Merged
    | Pushed
    | UpdateSettled
    | Aggregated
    | Saved
    | OutcomeReceived
    | Resumed
    | Published
    | Evaluated
    | WorkerScored
    | Stopped
)
