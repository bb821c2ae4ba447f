"""What can happen in a run: the events of which traces consist, and their lines."""

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from asyn2f.types import UpdateInfo

# Times are seconds on the wall clock, taken once per process and carried on by its
# monotonic clock: comparable within one machine, and never running backwards.

FORMAT = 3
"""Of the traces written here. In format 1 a worker pushed before it merged a version
that was at hand at the last batch boundary of its cycle; since 2 it merges first."""


class ProcessStarted(NamedTuple):
    """The head of a process's file: what the numbers below it depend on."""

    time_s: float
    actor: str  # "server", "worker-3", "evaluator"
    run: str
    incarnation: int
    environment: dict[str, Any]
    format: int = 1  # see `FORMAT`; traces of format 1 do not say


class Registered(NamedTuple):
    """The server has let this process in; again after the server has come back."""

    time_s: float
    actor: str
    run: str
    incarnation: int


class WorkerJoined(NamedTuple):
    time_s: float
    worker: int
    session: str
    num_examples: int


class WorkerLeft(NamedTuple):
    time_s: float
    worker: int
    session: str
    reason: str


class Received(NamedTuple):
    """A version has reached a worker's process; it need not have looked at it yet."""

    time_s: float
    worker: int
    version: int


class Blocked(NamedTuple):
    """A worker stood still from `start_s` to `time_s`, for want of a newer version."""

    time_s: float
    worker: int
    start_s: float
    newest: int


class Adopted(NamedTuple):
    """`incarnation`: of the server that gave the version out. A crash can take a
    version that was announced early; the next one of that number is another model."""

    time_s: float
    worker: int
    version: int
    step: int
    incarnation: int = 1


class Trained(NamedTuple):
    """A stretch of local steps without interruption, ending with local step `step`."""

    time_s: float
    worker: int
    start_s: float
    steps: int
    step: int
    base_version: int
    loss: float
    metric: float


class Merged(NamedTuple):
    """`from_version` was the base before; `epoch_fraction` says where in an epoch."""

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
"""Why an update is rejected that nobody has looked at any more."""


class UpdateSettled(NamedTuple):
    """The last word on an update: committed in a version, superseded, or rejected.

    A worker writes "withdrawn" when it gives up one whose verdict it has not heard;
    where the server has written something of the same update, that stands.
    """

    time_s: float
    worker: int
    session: str
    seq: int
    verdict: str  # "committed" | "superseded" | "rejected" | "withdrawn"
    version: int  # the version that holds it, or -1
    reason: str


class Aggregated(NamedTuple):
    """Version `version` was made of these updates; the lists run in parallel."""

    time_s: float
    version: int
    incarnation: int
    updates: list[list[Any]]  # [worker, session, seq], in order of arrival
    base_versions: list[int]
    staleness: list[int]
    coefficients: list[float]
    learning_rate: float
    # What `guards` did to each update or, observing, would have; [] = nothing to any.
    guards: list[str] = []  # noqa: RUF012
    lacking: int = 0  # updates that it should have had besides: `programs.Aggregate`


class Saved(NamedTuple):
    """A version is in the store, whole and for good."""

    time_s: float
    version: int
    incarnation: int


class OutcomeReceived(NamedTuple):
    """A worker has heard the last word on an update, and keeps it no longer."""

    time_s: float
    worker: int
    session: str
    seq: int
    verdict: str
    version: int
    incarnation: int  # of the server that said so


class Resumed(NamedTuple):
    """A server goes on from a version in the store, which that incarnation made."""

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
    time_s: float
    version: int
    accuracy: float
    loss: float


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
    | Stopped
)

_KINDS: dict[str, Callable[..., Event]] = {
    kind.__name__: kind for kind in Event.__args__
}


_NO_EVENT = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(RecursionError, OverflowError),  # nested, or an integer of hundreds of digits
)


def to_line(event: Event) -> str:
    """The event as one line of JSON.

    >>> to_line(Evaluated(time_s=1.5, version=7, accuracy=0.9, loss=0.25))
    '{"kind": "Evaluated", "time_s": 1.5, "version": 7, "accuracy": 0.9, "loss": 0.25}'
    """
    fields = event._asdict()
    if isinstance(event, Pushed):
        fields |= fields.pop("info")._asdict()
    return json.dumps({"kind": type(event).__name__, **fields})


def from_line(line: str) -> Event:
    """The event that `to_line` wrote.

    Raises:
      ValueError: not such a line.
    """
    try:
        fields = json.loads(line)
        kind = _KINDS[fields.pop("kind")]
        if kind is Pushed:
            info = UpdateInfo(**{name: fields.pop(name) for name in UpdateInfo._fields})
            fields["info"] = info
        event = kind(**fields)
        for time_s in (event.time_s, fields.get("start_s", 0.0)):
            if type(time_s) not in (int, float) or not math.isfinite(time_s):
                raise ValueError(f"one of its times is {time_s!r}")
        return event
    except _NO_EVENT as error:
        raise ValueError(f"not a line of a trace: {line[:120]!r} ({error})") from error
