"""A run as a person reads it: one line for each event, and what was done about it."""

import hashlib
from collections.abc import Iterator
from typing import Any

from asyn2f.runtime import protocol as p
from asyn2f.runtime import wire
from tests.net.net import Net


def story(net: Net) -> Iterator[str]:
    """All that happened, in order; ticks that nothing came of are left out."""
    for time_s, node, event, effects in net.log:
        done = "; ".join(filter(None, map(_words, effects)))
        if done or not isinstance(event, p.Tick):
            yield f"{time_s:8.3f} {node.name:9} {_words(event)} => {done}"


def digest(net: Net) -> str:
    """Of all that happened: two runs with the same digest are the same run."""
    found = hashlib.sha256()
    for line in story(net):
        found.update(line.encode() + b"\n")
    return found.hexdigest()[:16]


def _words(it: Any) -> str:
    match it:
        case p.FromWire(channel, _, message):
            return f"{channel.value}: {_words(message)}"
        case p.Send(peer, message):
            return f"send {peer.decode()} {_words(message)}"
        case p.Broadcast(topic, message):
            return f"publish {topic.decode()} {_words(message)}"
        case p.Record(event):
            return f"record {event._replace(time_s=0.0)}"
        case p.Made(header) | p.Deliver(header):
            return f"{type(it).__name__} {_words(header)}"
        case p.Save(version):
            return f"Save {version}"
        case p.Check(key):
            return f"Check {key}"
        case p.Produced():
            return "Produced"
        case p.NotSent(header):
            return f"NotSent {_words(header)}"
        case wire.ModelHeader():
            return f"model {it.version} of {it.digest} from {it.incarnation}"
        case wire.UpdateHeader():
            return f"update {it.session},{it.seq} of base {it.base_version}"
        case wire.Beat():
            known = f"newest {it.newest}, below {it.settled_below}"
            return f"Beat({it.session}, {it.state}, {known}, {it.unsettled})"
        case wire.Hello():
            return f"Hello({it.session})"
        case p.Show():
            return ""
        case _:
            return repr(it)
