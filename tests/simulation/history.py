"""A run in text: a line for each event, with its effects."""

import hashlib
from collections.abc import Iterator
from typing import Any

from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from tests.simulation.network import Net


def lines_of(net: Net) -> Iterator[str]:
    """All events in order, without ticks that have no effect."""
    for time_s, node, event, effects in net.log:
        done = "; ".join(filter(None, map(_words, effects)))
        if done or not isinstance(event, p.Tick):
            yield f"{time_s:8.3f} {node.name:9} {_words(event)} => {done}"


def digest(net: Net) -> str:
    """The digest of a run: equal for equal runs."""
    found = hashlib.sha256()
    for line in lines_of(net):
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
        case p.RecordEvent(event):
            return f"record {event._replace(time_s=0.0)}"
        case p.VersionAggregated(header) | p.Deliver(header):
            return f"{type(it).__name__} {_words(header)}"
        case p.SaveVersion(version):
            return f"Save {version}"
        case p.ValidateUpdate(key):
            return f"Check {key}"
        case p.UpdateReady():
            return "Produced"
        case p.SendFailed(header):
            return f"NotSent {_words(header)}"
        case messages.ModelHeader():
            return f"model {it.version} of {it.digest} from {it.incarnation}"
        case messages.UpdateHeader():
            return f"update {it.session},{it.seq} of base {it.info.base_version}"
        case messages.Heartbeat():
            known = f"newest {it.newest}, below {it.settled_below}"
            return (
                f"Heartbeat({it.session}, {it.progress.state}, {known}, {it.unsettled})"
            )
        case messages.Hello():
            return f"Hello({it.session})"
        case p.ShowStatus():
            return ""
        case _:
            return repr(it)
