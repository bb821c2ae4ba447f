"""The network between a server and its peers, with ZeroMQ's vices.

A subscription arrives only when the other side attends to its socket; what is published
before is gone. A full connection drops a model without a word, and says so of an
update. A connection that breaks takes what was on its way with it; CONTROL keeps what
is sent meanwhile, the others do not. A server that answers on a connection that is no
more speaks to nobody. On one connection everything keeps its order, across two nothing
does; and there is chance: what is lost, comes twice, or is overtaken.
"""

from typing import TYPE_CHECKING

from asyn2f.runtime import protocol as p
from asyn2f.runtime import wire
from asyn2f.runtime.transport import UPDATES, Channel, Subscribed
from tests.net.node import Line, Node

if TYPE_CHECKING:
    from tests.net.net import Net

UP, DOWN = 0, 1
CONTROL_DEPTH = 256
CHANNELS = {c.value: c for c in Channel}


class Wires:
    """All connections of a run; `net` keeps the time and draws the chances."""

    def __init__(self, net: "Net") -> None:
        self._net = net
        self._world = net.world
        self._count = net.count

    # ------------------------------------------------------------- connections

    def plug_in(self, peer: Node) -> None:
        """A peer's process has started: it connects its CONTROL."""
        peer.lines = {name: Line(peer, name) for name in CHANNELS}
        self._connect(peer.lines["control"], 0)

    def subscribe(self, peer: Node, topics: list[bytes]) -> None:
        """It connects the other two, again if it had done so."""
        for name, wanted in (("model", tuple(topics)), ("update", (UPDATES,))):
            line = peer.lines[name]
            line.wanted = wanted
            self.cut(line, 0.0, "")

    def cut(self, line: Line, seconds: float, what: str = "cut") -> None:
        """The connection breaks; it comes back after so long, and a little."""
        if line.server is not None:
            self._count[what] += bool(what)
            self._count["lost on the way"] += line.in_flight
        self.unplug(line)
        low, high = self._world.reconnect_s
        span = (seconds + low, seconds + high)
        self._net.after(span, None, self._connect, line, line.number)

    def unplug(self, line: Line) -> None:
        """The connection is no more."""
        if line.server is not None and line.channel == "control":
            del line.server.routes[line.route]
        line.number += 1
        line.server, line.in_flight, line.topics = None, 0, set()
        line.stalled_s = 0.0

    def _connect(self, line: Line, number: int) -> None:
        if line.number != number or not line.peer.is_up or line.server:
            return
        server = self._net.server
        if not server.is_up or server.paused or line.peer.paused:
            span = self._world.reconnect_s
            self._net.after(span, None, self._connect, line, number)
            return
        line.server = server
        if line.channel == "control":
            server.routes[line.route] = line
            unsent, line.unsent = line.unsent, []
            for message in unsent:
                self._control(line, UP, message)
            return
        for topic in line.wanted:  # it takes its time, and until the server attends
            args = (line, number, topic)
            self._net.after(self._world.subscribe_s, server, self._subscribed, *args)

    def _subscribed(self, line: Line, number: int, topic: bytes) -> None:
        """At the server."""
        if line.number != number:
            return
        if line.channel == "model":
            line.topics.add(topic)
            assert line.server is not None
            self._net.tell(line.server, Subscribed(topic))
        else:
            span = self._world.latency_s
            self._net.after(span, line.peer, self._heard, line, number)

    def _heard(self, line: Line, number: int) -> None:
        """The server's subscription has come to a peer that publishes."""
        if line.number == number:
            line.topics.add(UPDATES)
            self._net.tell(line.peer, Subscribed(UPDATES))

    # ------------------------------------------------------------- messages

    def up(self, peer: Node, message: wire.Message) -> None:
        """From a peer, on CONTROL."""
        line = peer.lines["control"]
        if line.server is None:
            self._count["sent while cut"] += 1
            if len(line.unsent) < CONTROL_DEPTH:
                line.unsent.append(message)
            return
        self._control(line, UP, message)

    def down(self, server: Node, route: bytes, message: wire.Message) -> None:
        """From a server, on CONTROL."""
        line = server.routes.get(route)
        if line is None:
            self._count["no route"] += 1
            return
        self._control(line, DOWN, message)

    def _control(self, line: Line, way: int, message: wire.Message) -> None:
        sender = line.route if way == UP else b""
        event = p.FromWire(Channel.CONTROL, sender, self._coded(message), b"")
        self._carry(line, way, event)

    def publish(self, node: Node, sent: p.Broadcast) -> None:
        """From a server to all that hear the topic, or from a peer to its server."""
        message = self._coded(sent.message)
        if isinstance(message, wire.UpdateHeader):
            line = node.lines["update"]
            if line.server is None or UPDATES not in line.topics:
                self._count["unheard"] += 1
            elif line.in_flight >= self._world.depth:
                self._count["not sent"] += 1
                self._net.tell(node, p.NotSent(message))
            else:
                event = p.FromWire(Channel.UPDATE, sent.topic, message, sent.payload)
                self._publish(line, UP, event)
            return
        event = p.FromWire(Channel.MODEL, sent.topic, message, sent.payload)
        for peer in self._net.peers:
            line = peer.lines["model"]
            if line.server is node and sent.topic in line.topics:
                if line.in_flight >= self._world.depth:
                    self._count["dropped when full"] += 1
                else:
                    self._publish(line, DOWN, event)

    def _publish(self, line: Line, way: int, event: p.FromWire) -> None:
        if not self._net.happens("drop"):
            self._carry(line, way, event)

    def _carry(self, line: Line, way: int, event: p.FromWire) -> None:
        net, to = self._net, line.server if way == UP else line.peer
        assert to is not None
        if net.happens("repeat"):
            net.after((0.0, self._world.late_s), to, net.tell, to, event)
        if net.happens("late"):
            net.after((0.0, self._world.late_s), to, net.tell, to, event)
            return
        line.in_flight += line.channel != "control"
        time_s = net.now + net.uniform(self._world.latency_s)
        line.free_s[way] = time_s = max(time_s, line.free_s[way])
        net.at(time_s, to, self._arrive, line, line.number, to, event)

    def _arrive(self, line: Line, number: int, to: Node, event: p.FromWire) -> None:
        if line.number != number:
            return  # counted when it broke
        if line.stalled_s > self._net.now:
            self._net.at(line.stalled_s, to, self._arrive, line, number, to, event)
            self._count["stalled"] += 1
            return
        line.in_flight -= line.channel != "control"
        self._net.tell(to, event)

    def _coded(self, message: wire.Message) -> wire.Message:
        return wire.decode(wire.encode(message)) if self._world.codec else message
