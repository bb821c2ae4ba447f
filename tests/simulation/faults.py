"""Fault injection: processes crash, pause and hang; disks and networks fail."""

from typing import TYPE_CHECKING

from tests.simulation.node import Line, Node
from tests.simulation.wires import Wires
from tests.simulation.world import Fault, Span

if TYPE_CHECKING:
    from tests.simulation.network import Net

_LOST_AFTER_S = 1.5  # a connection whose other end stands still that long is given up
_SERVER = -2


class Faults:
    """Injects the faults of a world into the processes and connections of `net`."""

    def __init__(self, net: "Net", wires: Wires) -> None:
        self._net = net
        self._wires = wires
        self._retired: set[int] = set()

    def suffer(self, fault: Fault) -> None:
        """Injects a fault, if its target exists."""
        net, seconds, span = self._net, fault.seconds, (fault.seconds, fault.seconds)
        found = self.live(fault.worker)
        if not found:
            return
        node = found[-1]
        match fault.kind:
            case "kill":
                self.kill(node)
                net.after(span, None, self._come_back, fault.worker)
            case "pause":
                self._pause(node, seconds)
            case "cut":
                for name in fault.channels.split():
                    self._wires.cut(node.lines[name], seconds)
                return
            case "stall":
                for name in fault.channels.split():
                    self._wires.stall(node.lines[name], seconds)
                return
            case "half open":
                for name in fault.channels.split():
                    self._wires.half_open(node.lines[name])
                return
            case "twin":
                net.start_peer(fault.worker)
            case "hang":
                node.hung = True
            case "retire":
                self._retired.add(fault.worker)
                net.retire(node)
            case "crash" | "rot":
                self.crash(node, span, rots=fault.kind == "rot")
            case "successor":
                self._pause(node, seconds)
                net.start_server()
            case "full":
                net.disk.full = True
                net.after(span, None, setattr, net.disk, "full", False)
        net.count[fault.kind] += 1

    def end(self) -> None:
        """Ends all faults, and restarts missing processes."""
        net = self._net
        for node in [*net.servers, *net.peers]:
            if node.paused:
                self.resume(node)
            for line in node.lines.values():
                line.stalled_s = min(line.stalled_s, net.now)
        net.disk.full = False
        for node in net.servers[:-1]:  # a person has seen that there are two
            self.kill(node)
        if not net.server.alive:
            net.start_server()
        self.replace_missing()

    # ------------------------------------------------------------- to die, to come back

    def live(self, worker: int) -> list[Node]:
        """The live processes of that worker."""
        net = self._net
        nodes = [net.server] if worker == _SERVER else net.peers
        return [node for node in nodes if node.worker == worker and node.is_up]

    def kill(self, node: Node) -> None:
        """Crashes a process; the network notices at once, or later."""
        if node.alive:
            node.alive = False
            for line in self._lines_of(node):
                span = (-0.3, 0.3)
                self._net.after(span, None, self._dies_away, line, node, line.number)

    def crash(self, server: Node, span: Span, rots: bool = False) -> None:
        """Crashes a server, and restarts it."""
        self.kill(server)
        self._net.after(span, None, self._restart, rots)

    def replace_missing(self) -> None:
        """Starts a process for each worker whose last one has crashed or failed, or was
        stopped by a server that has crashed."""
        net = self._net
        if net.server.finish is not None:
            return
        sent_home = any(x.machine._shutdown.has_begun for x in net.servers[:-1])
        for worker in range(-int(net.world.evaluator), net.world.workers):
            if worker in self._retired or self.live(worker):
                continue
            last = [peer for peer in net.peers if peer.worker == worker][-1:]
            ends = [peer.finish.status for peer in last if peer.finish]
            if sent_home or ends != ["finished"]:
                net.start_peer(worker)

    def _come_back(self, worker: int) -> None:
        if not self.live(worker):
            self._net.start_peer(worker)

    def _restart(self, rots: bool) -> None:
        net = self._net
        if not net.server.alive:
            if rots and net.now < net.world.calm_s:
                net.disk.set_aside_newest()
                net.count["rotted"] += 1
            net.start_server()

    def _dies_away(self, line: Line, node: Node, number: int) -> None:
        if line.number == number:
            if line.peer is node:
                self._wires.unplug(line)
            else:
                self._wires.cut(line, 0.0, "")

    def _lines_of(self, node: Node) -> list[Line]:
        return [
            line
            for peer in self._net.peers
            for line in peer.lines.values()
            if node is peer or line.server is node
        ]

    # ------------------------------------------------------------- to stand still

    def _pause(self, node: Node, seconds: float) -> None:
        net = self._net
        if not node.paused:
            node.paused = True
            net.after((seconds, seconds), None, self.resume, node)
            if seconds > _LOST_AFTER_S:  # the others notice, and come back
                net.count["pause long"] += 1
                for line in self._lines_of(node):
                    span = (_LOST_AFTER_S, 2 * _LOST_AFTER_S)
                    net.after(span, None, self._is_given_up, line, line.number)

    def _is_given_up(self, line: Line, number: int) -> None:
        server = line.server
        stands = line.peer.paused or (server is not None and server.paused)
        if line.number == number and stands:
            self._wires.cut(line, 0.0)

    def resume(self, node: Node) -> None:
        """Resumes a process, first with its backlog."""
        node.paused = False
        backlog, node.backlog = node.backlog, []
        self._net.count["backlog"] += len(backlog)
        for action, args in backlog:
            if node.alive:
                action(*args)
