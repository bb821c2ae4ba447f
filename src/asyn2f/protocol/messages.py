"""The messages between a server and its peers.

A message is a header (`wire_format`); models and updates have a payload (`payloads`).
"""

from typing import NamedTuple

from asyn2f.types import UpdateInfo

PROTOCOL = 6


# ------------------------------------------------------------- messages about a peer


class Hello(NamedTuple):
    """Peer to server: let me in. Repeated until it is answered.

    Whoever knows the name of a session can speak in it where there are no keys, so it
    is never published: see `protocol.topic_of`.
    """

    protocol: int
    role: str  # "worker" | "evaluator"
    worker: int  # -1 for an evaluator
    session: str  # drawn by the process at its start
    first: int  # `Welcome.first` of this process; -1 = it has not been welcomed
    token: str  # of the run, where there are no keys; or ""
    fingerprint: str  # of the model's template
    coding: str  # of updates and versions, in words
    num_examples: int
    quality: float
    data: str  # digest of a worker's shard, or of the evaluator's test set
    terms: tuple[str, ...]  # all else that the numbers depend on, "key=value" each

    @property
    def actor(self) -> str:
        """Who says so: "worker-3", "evaluator"."""
        return f"worker-{self.worker}" if self.role == "worker" else self.role


class Registered(NamedTuple):
    """Server to peer: you are in; the run begins when so many more have come. Ports as
    in `Welcome`, to be tried meanwhile; `hears` as in `HeartbeatAck`."""

    incarnation: int
    missing: int
    model_port: int
    update_port: int
    hears: bool


class Welcome(NamedTuple):
    """Server to peer: begin. Ports are those of the server's host."""

    run: str
    incarnation: int
    version: int  # newest announced
    first: int  # a worker's updates are numbered from here on, also over its lives
    model_port: int
    update_port: int
    heartbeat_interval_s: float
    server_timeout_s: float  # a peer that hears nothing for that long gives up


class Refused(NamedTuple):
    """Server to peer: no, because; `retry` says whether asking again may help."""

    reason: str
    retry: bool


class Heartbeat(NamedTuple):
    """Peer to server, every `heartbeat_interval_s`: alive, and this far. All its
    updates with numbers below `settled_below` have their verdicts; `unsettled` names
    some that were sent a while ago and have none. `hears` and `is_heard` say whether
    its connections for models and for updates have come about."""

    session: str
    incarnation: int
    state: str
    step: int
    epoch: float
    loss: float
    metric: float
    base_version: int
    newest: int  # newest version received
    merges: int
    merged_s_ago: float  # -1 = never
    hears: bool
    is_heard: bool
    settled_below: int
    unsettled: tuple[int, ...]


class HeartbeatAck(NamedTuple):
    """Server to peer, in answer to a beat: the newest version there is, and whether
    the peer's subscription to it has arrived."""

    incarnation: int
    version: int
    hears: bool


class UnknownSession(NamedTuple):
    """Server to peer: I do not know that session; say hello again."""

    incarnation: int


class FetchModel(NamedTuple):
    """Peer to server: send me the newest version, I have only this one."""

    session: str
    version: int


class Goodbye(NamedTuple):
    """Peer to server: this process ends."""

    session: str
    reason: str


class StopRun(NamedTuple):
    """Server to peer: the run is over, unless a newer server goes on with it."""

    incarnation: int
    reason: str


# ------------------------------------------------------------- messages about updates


class UpdateReceived(NamedTuple):
    """Server to worker: this update is in my memory; the verdict will follow."""

    session: str
    seq: int


class Resend(NamedTuple):
    """Server to worker: I do not have this update."""

    session: str
    seq: int


class Backoff(NamedTuple):
    """Server to worker: this update has not been taken in; push nothing for so long."""

    session: str
    seq: int
    retry_s: float


class UpdateOutcome(NamedTuple):
    """Server to worker: the last word on an update, true within its incarnation, and
    for ever if it is "committed"."""

    incarnation: int
    session: str
    seq: int
    verdict: str  # "committed" | "superseded" | "rejected"
    version: int  # that holds it, or -1
    reason: str


class EvalResult(NamedTuple):
    """Evaluator to server: how good a version is."""

    session: str
    version: int
    accuracy: float
    loss: float
    f1: float


class EvalAck(NamedTuple):
    """Server to evaluator: noted."""

    version: int


# ------------------------------------------------------------- headers with a payload


class ModelHeader(NamedTuple):
    """What stands before a global model."""

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
    """What stands before a worker's model."""

    run: str
    incarnation: int
    worker: int
    session: str
    seq: int
    info: UpdateInfo[int, float]
    fingerprint: str
    num_bytes: int
    digest: str
    base: str = ""  # digest of the version that this is a change of, if it is one


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
