"""The network between a server and its peers, with the semantics of ZeroMQ.

A subscription arrives only when the other side attends to its socket; what is published
before is gone. A full connection drops a model without a word, and says so of an
update. A connection that breaks takes what was on its way with it, but not what waits
at its reader to be read. What peers send meanwhile is kept, words and as many updates
as have room; models are not. A server that answers on a connection that is no more
speaks to nobody, and so does a peer that has not noticed. On one connection everything
keeps its order, across two nothing does; and there is chance: what is lost, comes
twice, or is overtaken. `tests/faults/test_network.py` compares all but
chance with real sockets.
"""

from typing import TYPE_CHECKING

from asyn2f.protocol import events as p
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import UPDATES, Channel, Subscribed
from tests.simulation.node import Line, Node

if TYPE_CHECKING:
    from tests.simulation.network import Net

UP, DOWN = 0, 1
CONTROL_DEPTH = 256
HEARTBEAT_S = 3.0  # a connection that carries nothing so long is given up
CHANNELS = {c.value: c for c in Channel}


class Wires:
    """All connections of a run; `net` keeps the time and draws at random."""

    def __init__(self, net: "Net") -> None:
        self._net = net
        self._world = net.world
        self._count = net.count

    # ------------------------------------------------------------- connections

    def plug_in(self, peer: Node) -> None:
        """Connects the CONTROL of a peer that has started."""
        peer.lines = {name: Line(peer, name) for name in CHANNELS}
        self._connect(peer.lines["control"], 0)

    def subscribe(self, peer: Node, topics: list[bytes]) -> None:
        """Connects its other channels, anew if they were connected."""
        for name, wanted in (("model", tuple(topics)), ("update", (UPDATES,))):
            line = peer.lines[name]
            self.unplug(line)
            line.wanted, line.topics, line.unsent = wanted, set(), []
            self.cut(line, 0.0, "")

    def cut(self, line: Line, seconds: float, what: str = "cut") -> None:
        """Breaks a connection, which is re-established after `seconds` and a delay."""
        if line.server is not None:
            self._count[what] += bool(what)
            self._count["lost on the way"] += line.in_flight
        self.unplug(line)
        low, high = self._world.reconnect_s
        span = (seconds + low, seconds + high)
        self._net.after(span, None, self._connect, line, line.number)

    def unplug(self, line: Line) -> None:
        """Ends a connection."""
        if line.server is not None and line.channel == "control":
            del line.server.routes[line.route]
        if line.channel == "model":
            line.topics = set()
        line.number += 1
        line.server, line.in_flight = None, 0
        line.stalled_s, line.swallows = 0.0, False

    def stall(self, line: Line, seconds: float) -> None:
        """Stalls a connection; it is given up if that takes too long."""
        line.stalled_s = self._net.now + seconds
        if seconds > HEARTBEAT_S:
            span = (HEARTBEAT_S, HEARTBEAT_S)
            self._net.after(span, None, self._give_up, line, line.number)

    def _give_up(self, line: Line, number: int) -> None:
        left_s = line.stalled_s - self._net.now
        if line.number == number and (left_s > 0.0 or line.swallows):
            self.cut(line, max(left_s, 0.0))

    def half_open(self, line: Line) -> None:
        """Closes the server's side, which the peer notices by its heartbeats."""
        if line.server is not None:
            self._count["half open"] += 1
            self.unplug(line)
            line.swallows = True
            span = (0.5 * HEARTBEAT_S, HEARTBEAT_S)
            self._net.after(span, None, self._give_up, line, line.number)

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
        for event in unsent:
            self._send(line, UP, event)
        if line.channel == "control":
            return
        # It takes its time, and until the server attends.
        args = (line, line.number)
        self._net.after(self._world.subscribe_s, server, self._subscribed, *args)

    def _subscribed(self, line: Line, number: int) -> None:
        """Delivers to the server."""
        if line.number != number:
            return
        if line.channel == "model":
            assert line.server is not None
            for topic in line.wanted:
                line.topics.add(topic)
                self._net.tell(line.server, Subscribed(topic))
        else:
            span = self._world.latency_s
            self._net.after(span, line.peer, self._heard, line, number)

    def _heard(self, line: Line, number: int) -> None:
        """The server's subscription has arrived at a peer."""
        if line.number == number:
            line.topics.add(UPDATES)
            self._net.tell(line.peer, Subscribed(UPDATES))

    # ------------------------------------------------------------- messages

    def up(self, peer: Node, message: messages.Message) -> bool:
        """Sends from a peer on CONTROL; returns whether there is room."""
        event = p.FromWire(Channel.CONTROL, b"", self._coded(message), b"")
        return self._rise(peer.lines["control"], event, CONTROL_DEPTH)

    def down(self, server: Node, route: bytes, message: messages.Message) -> bool:
        """Sends from a server on CONTROL; returns whether the peer exists."""
        line = server.routes.get(route)
        if line is None:
            self._count["no route"] += 1
            return False
        event = p.FromWire(Channel.CONTROL, b"", self._coded(message), b"")
        self._send(line, DOWN, event)
        return True

    def _rise(self, line: Line, event: p.FromWire, room: int) -> bool:
        """Queues what a peer sends while there is no connection."""
        if len(line.unsent) + line.in_flight >= room:
            return False
        if line.swallows:
            self._count["swallowed"] += 1
        elif line.server is None:
            self._count[f"{line.channel} kept while cut"] += 1
            line.unsent.append(event)
        else:
            self._send(line, UP, event)
        return True

    def publish(self, node: Node, sent: p.Broadcast) -> None:
        """Publishes from a server to all subscribers, or from a peer to its server."""
        message = self._coded(sent.message)
        if isinstance(message, messages.UpdateHeader):
            line = node.lines["update"]
            event = p.FromWire(Channel.UPDATE, sent.topic, message, sent.payload)
            if UPDATES not in line.topics:
                self._count["unheard"] += 1
            elif not self._rise(line, event, self._world.depth):
                self._count["not sent"] += 1
                self._net.tell(node, p.SendFailed(message))
            return
        event = p.FromWire(Channel.MODEL, sent.topic, message, sent.payload)
        for peer in self._net.peers:
            line = peer.lines["model"]
            if line.server is node and sent.topic in line.topics:
                if line.in_flight >= self._world.depth:
                    self._count["dropped when full"] += 1
                else:
                    self._send(line, DOWN, event)

    def _send(self, line: Line, way: int, event: p.FromWire) -> None:
        """On a connection that is there."""
        if event.channel is Channel.CONTROL:
            sender = line.route if way == UP else b""
            self._carry(line, way, event._replace(sender=sender))
        elif not self._net.happens("drop"):
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
        net.at(time_s, None, self._arrive, line, line.number, to, event)

    def _arrive(self, line: Line, number: int, to: Node, event: p.FromWire) -> None:
        """At the socket of its reader, who may stand still."""
        if line.number != number:
            return  # counted when it broke
        if line.stalled_s > self._net.now:
            self._net.at(line.stalled_s, None, self._arrive, line, number, to, event)
            self._count["stalled"] += 1
        elif to.paused:
            to.backlog.append((self._read, (line, number, to, event)))
        else:
            self._read(line, number, to, event)

    def _read(self, line: Line, number: int, to: Node, event: p.FromWire) -> None:
        if line.number == number:
            line.in_flight -= line.channel != "control"
        self._net.tell(to, event)

    def _coded(self, message: messages.Message) -> messages.Message:
        return (
            wire_format.decode(wire_format.encode(message))
            if self._world.codec
            else message
        )
