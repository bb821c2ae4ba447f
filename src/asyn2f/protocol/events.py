"""Events and effects of the protocols.

`ServerProtocol` and `PeerProtocol` do no I/O: `on(event, now) -> effects`. Threads,
sockets and disks, or a simulation of them, carry the effects out. `now` is monotonic;
nothing depends on wall time.
"""

from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol.channels import Channel, Subscribed
from asyn2f.protocol.messages import Message, ModelHeader, UpdateHeader, WorkerProgress
from asyn2f.protocol.status import RunStatus
from asyn2f.types import Buffer, Scores, UpdateInfo

# ------------------------------------------------------------- events


class FromWire(NamedTuple):
    """A decoded message; with a payload if it is a model or an update. `sender` and
    `identity` as in `channels.Frames`."""

    channel: Channel
    sender: bytes
    message: Message
    payload: Buffer
    identity: str = ""


class Tick(NamedTuple):
    """It is `due_s`, or later."""


class StopRequested(NamedTuple):
    """This process, or at a server this run, is to end."""

    reason: str


# at a server


class UpdateValidated(NamedTuple):
    """An update has been decoded; `problem`: why it is invalid, or ""."""

    key: UpdateKey
    problem: str


class VersionAggregated(NamedTuple):
    """A version has been aggregated and encoded."""

    header: ModelHeader
    payload: Buffer


class AggregationFailed(NamedTuple):
    """The result of an aggregation is invalid; the version before it stays."""

    version: int
    reason: str


class VersionSaved(NamedTuple):
    """A version is durable."""

    version: int


class SaveFailed(NamedTuple):
    version: int
    reason: str


class Replaced(NamedTuple):
    """Another server has taken the run over; this one is fenced off the store."""

    reason: str


# at a peer


class UpdateReady(NamedTuple):
    """The worker has an update to push; fields as in `UpdateHeader`.

    `time_s` is when it was made: a later event of the worker may be recorded earlier.
    """

    info: UpdateInfo[int, float]
    fingerprint: str
    num_bytes: int
    digest: str
    payload: Buffer
    time_s: float
    base: str = ""


class SendFailed(NamedTuple):
    """An update could not be published: the high-water mark is reached."""

    header: UpdateHeader


class VersionEvaluated(NamedTuple):
    """The evaluator has evaluated a version."""

    version: int
    scores: Scores


_AtServer = UpdateValidated | VersionAggregated | AggregationFailed
_FromStore = VersionSaved | SaveFailed | Replaced
_AtPeer = UpdateReady | SendFailed | VersionEvaluated | WorkerProgress
Event = FromWire | Subscribed | Tick | StopRequested | _AtServer | _FromStore | _AtPeer

# ------------------------------------------------------------- effects


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
    """Connect to the server's ports, and subscribe to these topics."""

    topics: list[bytes]
    model_port: int
    update_port: int


class RecordEvent(NamedTuple):
    """Write an event, with monotonic times, into the trace."""

    event: trace.Event


class Warn(NamedTuple):
    """Log a warning."""

    text: str


# at a server


class ValidateUpdate(NamedTuple):
    """Decode and validate this update; then `UpdateValidated`."""

    key: UpdateKey
    header: UpdateHeader
    payload: Buffer


class DropUpdate(NamedTuple):
    """This update is settled."""

    key: UpdateKey


class AggregateVersion(NamedTuple):
    """Aggregate these updates into this version; then `VersionAggregated` or
    `AggregationFailed`."""

    version: int
    keys: tuple[UpdateKey, ...]
    lacking: int = 0  # see `programs.Aggregate`


class SaveVersion(NamedTuple):
    """Save this version; then `VersionSaved` or `SaveFailed`.

    `accounting` is JSON for its record: the ledger and the counters as of this save,
    which a server that resumes from it begins with.
    """

    version: int
    accounting: dict[str, Any]


class ReportVersion(NamedTuple):
    """A version has been published; counts are since the start of the run."""

    version: int
    time_s: float  # on the run's clock
    bytes_up: int
    bytes_down: int
    workers: int


class ReportScore(NamedTuple):
    """A version has been evaluated."""

    version: int
    scores: Scores
    time_s: float  # on the run's clock
    bytes_up: int
    bytes_down: int
    is_best: bool


class ShowStatus(NamedTuple):
    """Show the status in the live view."""

    status: RunStatus


class Finish(NamedTuple):
    """The protocol has ended; end this process."""

    status: str  # "finished" | "interrupted" | "failed" | "refused"
    reason: str


# at a peer


class NotifyAdmitted(NamedTuple):
    """The server has welcomed this process, for the first time or again."""

    run: str
    incarnation: int


class Deliver(NamedTuple):
    """A version has arrived that is newer than all before."""

    header: ModelHeader
    payload: Buffer


class StopWork(NamedTuple):
    """The run is over, or this process is to end: stop training."""

    reason: str


_Anywhere = Send | Broadcast | RecordEvent | Warn | Finish
_OfServer = ValidateUpdate | DropUpdate | AggregateVersion | SaveVersion
_OfRun = ReportVersion | ReportScore | ShowStatus
_OfPeer = Connect | NotifyAdmitted | Deliver | StopWork
Effect = _Anywhere | _OfServer | _OfRun | _OfPeer


class EffectQueue:
    """Collects the effects of a protocol's parts, which share its time."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._effects: list[Effect] = []

    def do(self, *effects: Effect) -> None:
        self._effects.extend(effects)

    def take(self) -> list[Effect]:
        """Removes and returns all effects, in order."""
        effects, self._effects = self._effects, []
        return effects
