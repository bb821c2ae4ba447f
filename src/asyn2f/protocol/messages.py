"""The messages between a server and its peers.

A message is a header, and for models and updates a payload: see `wire_format`.
"""

from typing import NamedTuple

from asyn2f.types import Scores, UpdateInfo

PROTOCOL = 7
"""Raised with every change of the fields of a message, or of `UpdateInfo`: a server
refuses peers of another protocol."""


# ------------------------------------------------------------- messages about a peer


class Hello(NamedTuple):
    """Peer to server: a request to register, repeated until it is answered.

    Without keys the name of the session authenticates its process, so it is never
    published: see `events.topic_of`.
    """

    protocol: int
    role: str  # "worker" | "evaluator"
    worker: int  # -1 for an evaluator
    session: str  # random, of this process
    first: int  # `Welcome.first` of this process; -1 = not welcomed yet
    token: str  # of the run, without keys; or ""
    fingerprint: str  # of the model's template
    coding: str  # of updates and versions, in words
    num_examples: int
    quality: float
    data: str  # digest of a worker's shard, or of the evaluator's test set
    terms: tuple[str, ...]  # settings that determine the numbers, "key=value" each
    held_out: int = 0  # rows on which a worker scores versions; 0 = it does not

    @property
    def actor(self) -> str:
        """Its name in the trace: "worker-3", "evaluator"."""
        return f"worker-{self.worker}" if self.role == "worker" else self.role


class Registered(NamedTuple):
    """Server to peer: registered; the run begins when `missing` more workers have.
    Ports as in `Welcome`, to be tried meanwhile; `hears` as in `HeartbeatAck`."""

    incarnation: int
    missing: int
    model_port: int
    update_port: int
    hears: bool


class Welcome(NamedTuple):
    """Server to peer: the run has begun. Ports are those of the server's host."""

    run: str
    incarnation: int
    version: int  # newest published
    first: int  # number of this worker process's first update
    model_port: int
    update_port: int
    heartbeat_interval_s: float
    server_timeout_s: float  # of silence, before a peer gives up


class Refused(NamedTuple):
    """Server to peer: not registered; `retry`: whether this may change."""

    reason: str
    retry: bool


class WorkerProgress(NamedTuple):
    """The progress of a worker, as in its heartbeats and in the live view."""

    state: str  # "registered" | "training" | "waiting"
    step: int
    epoch: float
    loss: float
    metric: float
    base_version: int
    merges: int
    merged_s_ago: float  # -1 = never


NO_PROGRESS = WorkerProgress("registered", 0, 0.0, 0.0, 0.0, -1, 0, -1.0)


class Heartbeat(NamedTuple):
    """Peer to server, every `heartbeat_interval_s`. The outcomes of its updates below
    `settled_below` are acknowledged; `unsettled` asks about some that were sent a while
    ago. `hears` and `is_heard`: whether its subscription and the server's have arrived,
    on MODEL and UPDATE."""

    session: str
    incarnation: int
    progress: WorkerProgress
    newest: int  # newest version received
    hears: bool
    is_heard: bool
    settled_below: int
    unsettled: tuple[int, ...]


class HeartbeatAck(NamedTuple):
    """Server to peer, in answer to a heartbeat: the newest version published, and
    whether the peer's subscription has arrived."""

    incarnation: int
    version: int
    hears: bool


class UnknownSession(NamedTuple):
    """Server to peer: this session is not registered."""

    incarnation: int


class FetchModel(NamedTuple):
    """Peer to server: a request for the newest version, if newer than this one."""

    session: str
    version: int


class Goodbye(NamedTuple):
    """Peer to server: this process ends."""

    session: str
    reason: str


class StopRun(NamedTuple):
    """Server to peer: the run is over, unless a newer server resumes it."""

    incarnation: int
    reason: str


# ------------------------------------------------------------- messages about updates


class UpdateReceived(NamedTuple):
    """Server to worker: this update has been received; its outcome will follow."""

    session: str
    seq: int


class Resend(NamedTuple):
    """Server to worker: this update has not been received."""

    session: str
    seq: int


class Backoff(NamedTuple):
    """Server to worker: this update is not admitted; push nothing for `retry_s`."""

    session: str
    seq: int
    retry_s: float


class UpdateOutcome(NamedTuple):
    """Server to worker: the outcome of an update, final within the incarnation, and
    forever if it is "committed"."""

    incarnation: int
    session: str
    seq: int
    outcome: str  # "committed" | "superseded" | "rejected"
    version: int  # that contains it, or -1
    reason: str


class EvalResult(NamedTuple):
    """Evaluator or worker to server: the named numbers of a version."""

    session: str
    version: int
    scores: Scores


class EvalAck(NamedTuple):
    """Server to evaluator or worker: the score of this version has been received."""

    version: int


# ------------------------------------------------------------- headers with a payload


class ModelHeader(NamedTuple):
    """The header of a version."""

    run: str
    incarnation: int
    version: int
    num_examples: float
    loss: float
    quality: float
    learning_rate: float
    fingerprint: str
    num_bytes: int
    digest: str


class UpdateHeader(NamedTuple):
    """The header of an update."""

    run: str
    incarnation: int
    worker: int
    session: str
    seq: int
    info: UpdateInfo[int, float]
    fingerprint: str
    num_bytes: int
    digest: str
    base: str = ""  # of a delta: the digest of its base version


Message = (
    Hello
    | Registered
    | Welcome
    | Refused
    | Heartbeat
    | HeartbeatAck
    | UnknownSession
    | FetchModel
    | Goodbye
    | StopRun
    | UpdateReceived
    | Resend
    | Backoff
    | UpdateOutcome
    | EvalResult
    | EvalAck
    | ModelHeader
    | UpdateHeader
)
