"""The simulated network, with ends that only record what they receive."""

import math
from collections.abc import Callable
from typing import Any

from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.channels import UPDATES, Subscribed
from tests.simulation.network import Net
from tests.simulation.node import Node
from tests.simulation.world import TIMINGS, World
from tests.support.networks import End
from tests.support.updates import update_info

PATIENCE_S = 30.0
_STALL_S, _PART_S, _FOR_EVER_S = 1.0, 8.0, 1e6


class FakeNetwork:
    """The connections of `tests.simulation`; implements `Network`."""

    def __init__(self, seed: int) -> None:
        world = World(timing=TIMINGS["asyn2f"], workers=0, evaluator=False, depth=4)
        self._net = Net(seed, world)
        self._wires = self._net._wires
        self._nodes: dict[End, Node] = {}
        self._healed_s: dict[End, float] = {}
        self.server = self._attach(self._net.server)

    def _attach(self, node: Node) -> End:
        end = End()
        node.machine = _Recorder(end)
        self._nodes[end] = node
        return end

    def peer(self) -> End:
        self._net.start_peer(0)
        return self._attach(self._net.peers[-1])

    def subscribe(self, peer: End, *topics: bytes) -> None:
        self._wires.subscribe(self._nodes[peer], list(topics))

    def send(self, peer: End, number: int) -> bool:
        return self._wires.up(self._nodes[peer], messages.EvalAck(number))

    def answer(self, route: bytes, number: int) -> bool:
        server = self._nodes[self.server]
        return self._wires.down(server, route, messages.EvalAck(number))

    def publish(self, topic: bytes, number: int) -> bool:
        model = messages.ModelHeader("run", 1, number, 1.0, 1.0, 1.0, 1.0, "", 0, "")
        self._wires.publish(self._nodes[self.server], p.Broadcast(topic, model, b""))
        return True

    def push(self, peer: End, number: int) -> bool:
        update = messages.UpdateHeader(
            *("run", 1, 0, "session", number, update_info(), "", 0, ""),
        )
        node = self._nodes[peer]
        node.machine.refused = 0
        self._wires.publish(node, p.Broadcast(UPDATES, update, b""))
        return not node.machine.refused

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        end_s = self._net.now + PATIENCE_S
        while not condition():
            assert self._net.now < end_s, f"not in {PATIENCE_S} s: {what}"
            self._net.run(self._net.now + 0.01)

    def connect_all(self, peer: End) -> None:
        self._net.run(self._net.now + 1.0)

    def pause(self, end: End) -> None:
        self._nodes[end].paused = True

    def resume(self, end: End) -> None:
        self._net.faults.resume(self._nodes[end])

    def stall(self, peer: End) -> None:
        self._stall(peer, _STALL_S)

    def partition(self, peer: End) -> None:
        self._stall(peer, _PART_S)
        self._until_broken(self._nodes[peer])

    def half_open(self, peer: End) -> None:
        for line in self._nodes[peer].lines.values():
            self._wires.half_open(line)

    def refuse(self, peer: End) -> None:
        self._cut(peer, _FOR_EVER_S)

    def heal(self, peer: End) -> None:
        for line in self._nodes[peer].lines.values():
            if line.server is None:
                self._wires.cut(line, 0.0)
        self._net.run(max(self._net.now, self._healed_s.pop(peer, 0.0)))

    def cut(self, peer: End) -> None:
        self._cut(peer, 0.0)

    def push_and_cut(self, peer: End, number: int) -> bool:
        accepted = self.push(peer, number)
        self._wires.cut(self._nodes[peer].lines["update"], 0.0)
        return accepted

    def kill_server(self) -> None:
        self._net.faults.kill(self._nodes[self.server])
        for peer in self._net.peers:
            self._until_broken(peer)

    def start_server(self) -> None:
        self._net.start_server()
        self.server = self._attach(self._net.server)

    def wait_for_arrival(self) -> None:
        self._net.run(self._net.now + 1.0)

    def close(self) -> None:
        assert not self._net.problems

    def _stall(self, peer: End, seconds: float) -> None:
        self._healed_s[peer] = self._net.now + seconds
        for line in self._nodes[peer].lines.values():
            self._wires.stall(line, seconds)

    def _until_broken(self, node: Node) -> None:
        lines = node.lines.values()
        self.until("it has timed out", lambda: not any(line.server for line in lines))

    def _cut(self, peer: End, seconds: float) -> None:
        for line in self._nodes[peer].lines.values():
            self._wires.cut(line, seconds)


class _Recorder:
    """A protocol that only records."""

    due_s = math.inf

    def __init__(self, end: End) -> None:
        self._end = end
        self.refused = 0

    def on(self, event: p.Event, now: float) -> list[p.Effect]:
        match event:
            case Subscribed(topic):
                self._end.subscribed.append(topic)
            case p.SendFailed():
                self.refused += 1
            case p.FromWire(channel, sender, message):
                self._end.record(channel, _number_of(message), sender)
        return []


def _number_of(message: Any) -> int:
    match message:
        case messages.ModelHeader():
            return message.version
        case messages.UpdateHeader():
            return message.seq
    return int(message.version)
