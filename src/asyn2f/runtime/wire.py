"""What goes over the wire: typed messages.

A message is a header, msgpack of at most 4 KiB, and for models and updates a payload
(see `payloads`). Nothing is ever unpickled. Whatever is wrong with a message is a
`WireError` with a reason, and nothing else is raised.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_type_hints

import msgpack

PROTOCOL = 5
MAX_HEADER_BYTES = 4096
_MAX_TEXT = 512  # bytes
_MAX_LIST = 128
_INT_LIMIT = 2**62
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")

Buffer = bytes | bytearray | memoryview


class WireError(Exception):
    """A message that cannot be accepted, and why."""


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
    in `Welcome`, to be tried meanwhile; `hears` as in `Pulse`."""

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
    beat_s: float
    lease_s: float  # a peer that hears nothing for that long gives up


class Refused(NamedTuple):
    """Server to peer: no, because; `retry` says whether asking again may help."""

    reason: str
    retry: bool


class Beat(NamedTuple):
    """Peer to server, every `beat_s`: alive, and this far. All its updates with numbers
    below `settled_below` have their verdicts; `unsettled` names some that were sent a
    while ago and have none. `hears` and `is_heard` say whether its connections for
    models and for updates have come about."""

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


class Pulse(NamedTuple):
    """Server to peer, in answer to a beat: the newest version there is, and whether
    the peer's subscription to it has arrived."""

    incarnation: int
    version: int
    hears: bool


class Who(NamedTuple):
    """Server to peer: I do not know that session; say hello again."""

    incarnation: int


class Get(NamedTuple):
    """Peer to server: send me the newest version, I have only this one."""

    session: str
    version: int


class Bye(NamedTuple):
    """Peer to server: this process ends."""

    session: str
    reason: str


class StopRun(NamedTuple):
    """Server to peer: the run is over, unless a newer server goes on with it."""

    incarnation: int
    reason: str


# ------------------------------------------------------------- messages about updates


class Receipt(NamedTuple):
    """Server to worker: this update is in my memory; the verdict will follow."""

    session: str
    seq: int


class Resend(NamedTuple):
    """Server to worker: I do not have this update."""

    session: str
    seq: int


class Busy(NamedTuple):
    """Server to worker: this update has not been taken in; push nothing for so long."""

    session: str
    seq: int
    retry_s: float


class Verdict(NamedTuple):
    """Server to worker: the last word on an update, true within its incarnation, and
    for ever if it is "committed"."""

    incarnation: int
    session: str
    seq: int
    verdict: str  # "committed" | "superseded" | "rejected"
    version: int  # that holds it, or -1
    reason: str


class Scored(NamedTuple):
    """Evaluator to server: how good a version is."""

    session: str
    version: int
    accuracy: float
    loss: float
    f1: float


class ScoreReceipt(NamedTuple):
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
    base_version: int
    start_version: int
    step: int
    num_examples: float
    loss: float
    quality: float
    metric: float
    signal: float
    fingerprint: str
    num_bytes: int
    digest: str
    base: str = ""  # digest of the version that this is a change of, if it is one


Message = (
    Hello
    | Registered
    | Welcome
    | Refused
    | Beat
    | Pulse
    | Who
    | Get
    | Bye
    | StopRun
    | Receipt
    | Resend
    | Busy
    | Verdict
    | Scored
    | ScoreReceipt
    | ModelHeader
    | UpdateHeader
)

_KINDS: dict[str, Callable[..., Message]] = {
    kind.__name__: kind for kind in Message.__args__
}
_HINTS = {name: get_type_hints(kind) for name, kind in _KINDS.items()}
_NAMES = {"run", "session"}  # become parts of topics and file names
# A model in training may diverge, and its worker must be able to say so.
_MAY_BE_NAN = {"Beat", "UpdateHeader", "Scored"}


def encode(message: Message) -> bytes:
    """The message as msgpack: its kind and its fields in order. A text is cut where it
    is long; what cannot be printed in it becomes a space."""
    return bytes(msgpack.packb([type(message).__name__, *map(_sent, message)]))


def _sent(field: Any) -> Any:
    if isinstance(field, tuple):
        return [*map(_sent, field)]
    if not isinstance(field, str):
        return field
    line = "".join(c if c.isprintable() else " " for c in field[:_MAX_TEXT])
    return line.encode("utf-8", "replace")[:_MAX_TEXT].decode("utf-8", "ignore")


def decode(data: Buffer) -> Message:
    """The message that `encode` made; every field has its declared type. Floats are
    finite, but for those of beats, updates and scores: their users look at them. Texts
    are printable, one line each: they are shown in terminals, logs and reports.

    Raises:
      WireError: anything else.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise WireError(f"header of {len(data)} bytes, allowed {MAX_HEADER_BYTES}")
    try:
        parts = msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            max_array_len=_MAX_LIST,
            max_str_len=_MAX_TEXT,
            max_map_len=0,
            max_bin_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen kinds
        raise WireError(f"header is not msgpack: {type(error).__name__}") from None
    if not isinstance(parts, tuple) or not parts or not isinstance(parts[0], str):
        raise WireError("header is not a list that begins with its kind")
    kind = _KINDS.get(parts[0])
    if kind is None:
        # Without its name: reasons are counted, and names there are without end.
        raise WireError("unknown kind of message")
    hints = _HINTS[parts[0]]
    if kind is Hello and _is_of_another_protocol(parts):
        return _STRANGER._replace(protocol=parts[1])
    if len(parts) - 1 != len(hints):
        raise WireError(f"{parts[0]} with {len(parts) - 1} fields, has {len(hints)}")
    for (name, hint), value in zip(hints.items(), parts[1:], strict=True):
        problem = _problem(name, hint, value, finite=parts[0] not in _MAY_BE_NAN)
        if problem:
            raise WireError(f"{parts[0]}.{name}: {problem}")
    return kind(*parts[1:])


def _is_of_another_protocol(parts: tuple[Any, ...]) -> bool:
    """Whether only the number of a `Hello`'s protocol can be understood."""
    said = parts[1] if len(parts) > 1 else None
    return type(said) is int and said != PROTOCOL and 0 <= said < _INT_LIMIT


_STRANGER = Hello(0, "", -1, "-", -1, "", "", "", 0, 0.0, "", ())


def _problem(name: str, hint: Any, value: Any, finite: bool) -> str:
    """What is wrong with a field, or nothing."""
    if hint is float:
        if not isinstance(value, float):
            return "is not a float"
        if finite and not math.isfinite(value):
            return "is not finite"
    elif hint is int:
        if type(value) is not int or abs(value) > _INT_LIMIT:
            return "is not an integer of a sane size"
    elif hint is bool:
        if type(value) is not bool:
            return "is not true or false"
    elif hint is str:
        if not isinstance(value, str):
            return "is not text"
        if name in _NAMES and not _NAME.match(value):
            return "is not a name of 1 to 64 letters, digits, _ and -"
        if not value.isprintable():
            return "is not printable"
    elif not isinstance(value, tuple):
        return "is not a list"
    else:
        (kind, _) = get_args(hint)
        problems = (_problem("", kind, item, finite) for item in value)
        return next((f"an item {said}" for said in problems if said), "")
    return ""
