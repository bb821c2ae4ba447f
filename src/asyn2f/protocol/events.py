"""The vocabulary of the protocols: what they are told, and what they want done.

`server_protocol` and `peer_protocol` do no I/O: `on(event, now) -> effects`. Threads,
sockets and disks, or a simulation of them, carry the effects out. `now` is a monotonic
clock; wall time decides nothing.
"""

import functools
import hashlib
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol.channels import (
    Channel,
    Subscribed,
)
from asyn2f.protocol.messages import Message, ModelHeader, UpdateHeader
from asyn2f.protocol.status import RunStatus
from asyn2f.types import Buffer, UpdateInfo

# ------------------------------------------------------------- what happens


class FromWire(NamedTuple):
    """A message that decoded well; payload only with a model or an update. `identity`
    as in `transport.Frames`."""

    channel: Channel
    sender: bytes
    message: Message
    payload: Buffer
    identity: str = ""


class Tick(NamedTuple):
    """The time that `due_s` named has come."""


class StopRequested(NamedTuple):
    """Somebody wants this process, or at a server this run, to end."""

    reason: str


# at a server


class UpdateValidated(NamedTuple):
    """An update has been decoded; `problem` says why it cannot be used, or is empty."""

    key: UpdateKey
    problem: str


class VersionAggregated(NamedTuple):
    """A version has been computed and stands ready to be sent."""

    header: ModelHeader
    payload: Buffer


class AggregationFailed(NamedTuple):
    """What came of a version's updates cannot be used; the one before stays."""

    version: int
    reason: str


class VersionSaved(NamedTuple):
    """A version is in the store, whole and for good."""

    version: int


class SaveFailed(NamedTuple):
    version: int
    reason: str


class Replaced(NamedTuple):
    """Another server has taken this run over; this one may not write any more."""

    reason: str


# at a peer


class UpdateReady(NamedTuple):
    """The worker has an update to push; run, session and number are the protocol's.

    `time_s` is when it was made: what the worker does next may be noted before this is.
    Digests and `fingerprint` as in `UpdateHeader`.
    """

    info: UpdateInfo[int, float]
    fingerprint: str
    num_bytes: int
    digest: str
    payload: Buffer
    time_s: float
    base: str = ""


class SendFailed(NamedTuple):
    """There was no room for an update that was to be published."""

    header: UpdateHeader


class VersionEvaluated(NamedTuple):
    """The evaluator has evaluated a version."""

    version: int
    accuracy: float
    loss: float
    f1: float


class WorkerProgress(NamedTuple):
    """How far the worker is: what its next beat shall say."""

    state: str
    step: int
    epoch: float
    loss: float
    metric: float
    base_version: int
    merges: int
    merged_s: float  # monotonic time of the last merge, or -1


Event = (
    FromWire
    | Subscribed
    | Tick
    | StopRequested
    | UpdateValidated
    | VersionAggregated
    | AggregationFailed
    | VersionSaved
    | SaveFailed
    | Replaced
    | UpdateReady
    | SendFailed
    | VersionEvaluated
    | WorkerProgress
)

# ------------------------------------------------------------- what shall be done


class Send(NamedTuple):
    """Send on CONTROL; a peer's only peer is b""."""

    peer: bytes
    message: Message


class Broadcast(NamedTuple):
    """Publish on MODEL (server) or UPDATE (worker)."""

    topic: bytes
    message: ModelHeader | UpdateHeader
    payload: Buffer


class Connect(NamedTuple):
    """A peer's: hear these topics, publish updates."""

    topics: list[bytes]
    model_port: int
    update_port: int


class RecordEvent(NamedTuple):
    """Write into the trace; times are monotonic."""

    event: trace.Event


class Warn(NamedTuple):
    """Something happened that a person should know of."""

    text: str


# at a server


class ValidateUpdate(NamedTuple):
    """Decode this update and look at its numbers; then `UpdateValidated`."""

    key: UpdateKey
    header: UpdateHeader
    payload: Buffer


class DropUpdate(NamedTuple):
    """This update will not be needed any more."""

    key: UpdateKey


class AggregateVersion(NamedTuple):
    """Compute this version from these updates; then `VersionAggregated` or
    `AggregationFailed`."""

    version: int
    keys: tuple[UpdateKey, ...]
    lacking: int = 0  # see `programs.Aggregate`


class SaveVersion(NamedTuple):
    """Put this version into the store; then `VersionSaved` or `SaveFailed`.

    `accounting` is JSON and goes into its record: the ledger and the totals of the
    run as they are true once it is saved. A server that resumes from it begins with
    them.
    """

    version: int
    accounting: dict[str, Any]


class ReportVersion(NamedTuple):
    """A version has been given out; counts are since the start of the run."""

    version: int
    time_s: float  # on the run's clock
    bytes_up: int
    bytes_down: int
    workers: int


class ReportScore(NamedTuple):
    """A version's score has come in."""

    version: int
    accuracy: float
    loss: float
    f1: float
    time_s: float  # on the run's clock
    bytes_up: int
    bytes_down: int
    is_best: bool


class ShowStatus(NamedTuple):
    """Let people see this."""

    status: RunStatus


class Finish(NamedTuple):
    """All is said; end this process."""

    status: str  # "finished" | "interrupted" | "failed" | "refused"
    reason: str


# at a peer


class NotifyAdmitted(NamedTuple):
    """The server has let this process in, for the first time or again."""

    run: str
    incarnation: int


class Deliver(NamedTuple):
    """A version has come that is newer than all before."""

    header: ModelHeader
    payload: Buffer


class StopWork(NamedTuple):
    """The run is over, or this process shall end: stop training."""

    reason: str


Effect = (
    Send
    | Broadcast
    | Connect
    | RecordEvent
    | Warn
    | ValidateUpdate
    | DropUpdate
    | AggregateVersion
    | SaveVersion
    | ReportVersion
    | ReportScore
    | ShowStatus
    | Finish
    | NotifyAdmitted
    | Deliver
    | StopWork
)


class EffectQueue:
    """Where the parts of a protocol put their effects, and what time it is for them."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._effects: list[Effect] = []

    def do(self, *effects: Effect) -> None:
        self._effects.extend(effects)

    def take(self) -> list[Effect]:
        """All effects since the last time, in order."""
        effects, self._effects = self._effects, []
        return effects


ALL = b"all"  # the topic every peer hears


@functools.lru_cache(maxsize=4096)
def topic_of(session: str) -> bytes:
    """The topic that this session's process alone subscribes to. Others can, and see
    it: the session's name cannot be found from it."""
    return b"one/" + hashlib.sha256(session.encode()).hexdigest()[:32].encode()
