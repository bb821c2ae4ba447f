"""The channels between a server and its peers, and what arrives on them.

Three channels. CONTROL goes both ways between the server and each peer and is reliable
while a connection lasts. MODEL goes from the server to all who subscribed; UPDATE from
each peer to the server. The latter two are publish/subscribe: what is sent before a
subscription has arrived, or faster than it is taken, is dropped without a word.
"""

import enum
from typing import NamedTuple

from asyn2f.types import Buffer

UPDATES = b"update"  # the topic that workers publish under


class Channel(enum.Enum):
    CONTROL = "control"
    MODEL = "model"
    UPDATE = "update"


class Frames(NamedTuple):
    """Something has arrived. `sender` is the peer's address on the server's CONTROL,
    the topic on MODEL and UPDATE, and empty on a peer's CONTROL. `identity` is whom the
    transport knows the peer to be ("worker-3", "evaluator"), or "" where it has no
    keys to know it by."""

    channel: Channel
    sender: bytes
    header: Buffer
    payload: Buffer  # empty on CONTROL
    identity: str = ""


class Subscribed(NamedTuple):
    """Somebody now hears what is published here under this topic."""

    topic: bytes


class Malformed(NamedTuple):
    """Something arrived that is no message at all; it has been dropped."""

    channel: Channel
    reason: str
