"""The channels between a server and its peers, and what arrives on them.

CONTROL connects the server with each peer and is reliable while a connection lasts.
MODEL goes from the server to all subscribers, UPDATE from each peer to the server.
These two are publish/subscribe and lossy: a message that precedes the subscription, or
exceeds the high-water mark, is dropped.
"""

import enum
import functools
import hashlib
from typing import NamedTuple

from asyn2f.types import Buffer

UPDATES = b"update"  # the topic of workers
ALL = b"all"  # the topic of all peers
CONNECT_S = 5.0  # a channel that takes longer to connect is reported


class Channel(enum.Enum):
    CONTROL = "control"
    MODEL = "model"
    UPDATE = "update"


class Frames(NamedTuple):
    """A message has arrived. `sender` is the peer's address on the server's CONTROL,
    the topic on MODEL and UPDATE, and empty on a peer's CONTROL. `identity` is the
    authenticated name of the peer ("worker-3", "evaluator"), or "" without keys."""

    channel: Channel
    sender: bytes
    header: Buffer
    payload: Buffer  # empty on CONTROL
    identity: str = ""


class Subscribed(NamedTuple):
    """A subscription to this topic has arrived at its publisher."""

    topic: bytes


class Unsubscribed(NamedTuple):
    """The last subscriber of this topic has left; None: the subscribers of all topics,
    as the publisher has closed its connections."""

    topic: bytes | None


class Malformed(NamedTuple):
    """Frames that are not a message; they have been dropped."""

    channel: Channel
    reason: str


Arrival = Frames | Subscribed | Unsubscribed | Malformed
"""What a transport's `poll` returns."""


def closed_ports(
    role: str, hears: bool, is_heard: bool, model_port: int, update_port: int
) -> str:
    """The server's ports that a registered peer cannot reach, in words, or "". Through
    a firewall that passes the first port only, a peer registers and sends heartbeats,
    and would wait for a version forever.

    Args:
      role: of the peer.
      hears, is_heard: whether its subscription has arrived, and the server's to it.
      model_port, update_port: of the server.

    >>> closed_ports("worker", False, False, 5571, 5572)
    'port 5571 (models) and port 5572 (updates)'
    >>> closed_ports("evaluator", True, False, 5571, 5572)
    ''
    """
    found = [] if hears else [f"port {model_port} (models)"]
    if role == "worker" and not is_heard:
        found.append(f"port {update_port} (updates)")
    return " and ".join(found)


@functools.lru_cache(maxsize=4096)
def topic_of(session: str) -> bytes:
    """The topic of one session. A hash, as subscriptions are visible to others, and the
    name of a session authenticates its process where there are no keys."""
    return b"one/" + hashlib.sha256(session.encode()).hexdigest()[:32].encode()
