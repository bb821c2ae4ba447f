"""A simulated run: its processes, its time, its random draws and its faults."""

import heapq
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from asyn2f import programs, trace
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.peer import PeerProtocol
from asyn2f.protocol.server import ServerProtocol, ServerSettings
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.types import Metric
from tests.simulation.disk import Disk
from tests.simulation.faults import Faults
from tests.simulation.node import Node
from tests.simulation.wires import Wires
from tests.simulation.workload import RUN, STEPS_PER_EPOCH, Work, made
from tests.simulation.world import Span, World

BEAT_S, DEAD_AFTER_S, JOIN_TIMEOUT_S = 0.5, 1.5, 8.0
NOTHING = "no update of the round can be used"
Logged = tuple[float, Node, p.Event, list[p.Effect]]


class Net:
    """A run, with full knowledge of it."""

    def __init__(self, seed: int, world: World, clocks_s: float | None = None) -> None:
        """`clocks_s`: the reading of all clocks at time 0; None = random ones."""
        self.now = 0.0
        self.seed = seed
        self._clocks_s = clocks_s
        self.world = world
        self.log: list[Logged] = []
        self.count: Counter[str] = Counter()  # what has happened, by kind
        self.disk = Disk()
        self.saved_s: dict[str, float] = {"0": 0.0}  # contents, when they were final
        self.peers: list[Node] = []  # every life of every peer
        self.servers: list[Node] = []
        self.bases: dict[UpdateKey, int] = {}
        self.trace: list[tuple[float, trace.Event]] = []
        self.believed: list[
            tuple[Node, messages.UpdateOutcome]
        ] = []  # by workers, and acted on
        self.problems: list[str] = []
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Node | None, Any, tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._effects = 0  # of servers
        self._crash_at = set(world.crash_at)
        self._wires = Wires(self)
        self.faults = Faults(self, self._wires)
        self._work = Work(self)
        self._runtime = RuntimeSettings(
            publish=world.publish,
            heartbeat_interval_s=BEAT_S,
            heartbeat_timeout_s=DEAD_AFTER_S,
            server_timeout_s=world.server_timeout_s,
            join_timeout_s=JOIN_TIMEOUT_S,
            max_updates_per_s=world.max_updates_per_s,
        )
        self.start_server()
        for worker in range(-int(world.evaluator), world.workers):
            self.after((0.0, 0.5), None, self.start_peer, worker)
        for fault in world.faults:
            self.at(fault.time_s, None, self.faults.suffer, fault)

    @property
    def server(self) -> Node:
        """The server that peers connect to."""
        return self.servers[-1]

    # ------------------------------------------------------------- time and chance

    def run(self, until_s: float) -> "Net":
        """Runs the simulation until then."""
        heap = self._heap
        while heap and heap[0][0] <= until_s and not self.problems:
            self.now, _, node, action, args = heapq.heappop(heap)
            if node is None:
                action(*args)
            elif node.paused:
                node.backlog.append((action, args))
            elif node.alive:
                action(*args)
        self.now = max(self.now, until_s)
        return self

    def at(
        self, time_s: float, node: Node | None, action: Callable[..., None], *args: Any
    ) -> None:
        """Calls `action` then, if the node is alive; if paused, when it resumes."""
        entry = (max(time_s, self.now), next(self._order), node, action, args)
        heapq.heappush(self._heap, entry)

    def after(
        self, span: Span, node: Node | None, action: Callable[..., None], *args: Any
    ) -> None:
        """The same after a delay."""
        self.at(self.now + self.uniform(span), node, action, *args)

    def uniform(self, span: Span) -> float:
        """A uniform draw."""
        return span[0] + (span[1] - span[0]) * self._random.random()

    def happens(self, fault: str) -> bool:
        """A random draw of a fault."""
        chance: float = getattr(self.world, fault)
        if not chance or self.now >= self.world.calm_s:
            return False
        happens = self._random.random() < chance
        self.count[fault] += happens
        return happens

    def _in_line(
        self, node: Node, thread: str, span: Span, action: Any, *args: Any
    ) -> None:
        """The same on one thread of the process, after its earlier jobs."""
        time_s = max(self.now, node.free_s[thread]) + self.uniform(span)
        node.free_s[thread] = time_s
        self.at(time_s, node, action, node, *args)

    # ------------------------------------------------------------- processes

    def settings(self) -> ServerSettings:
        """The settings of a server that starts now."""
        world, newest = self.world, self.disk.newest
        return ServerSettings(
            run=RUN,
            incarnation=self.disk.incarnation,
            strategy="any",
            terms=("seed=0",),
            fingerprint="tree",
            coding="plain",
            num_bytes=100,
            workers=world.workers,
            min_workers=world.timing.min_workers,
            replaces=world.timing.replaces,
            waits=world.timing.after_push == "wait",
            deadline_s=world.timing.deadline_s,
            most_open=max(4, world.timing.most_updates(world.workers)),
            stop=world.stop,
            runtime=self._runtime,
            model_port=1,
            update_port=2,
            metric=Metric("accuracy", is_fraction=True),
            best=None,
            accounting=json.loads(json.dumps(newest.accounting)),
        )

    def start_server(self) -> None:
        """Starts a server, with the newest version in the store."""
        incarnation, newest = self.disk.begin_incarnation(), self.disk.newest
        program = programs.server_program(self.world.timing, newest.version)
        first = made(newest.version, newest.content, incarnation)
        clock_s = self._clock()
        machine = ServerProtocol(self.settings(), program, first, self.now + clock_s)
        node = Node(machine, f"server-{incarnation}", clock_s, incarnation=incarnation)
        self.count["servers"] += 1
        self.servers.append(node)
        self.note(trace.ProcessStarted(0.0, "server", RUN, incarnation, {}))
        if newest.version:
            resumed = incarnation, newest.version, newest.incarnation
            self.note(trace.Resumed(0.0, *resumed))
        self._arm(node)

    def start_peer(self, worker: int) -> None:
        """Starts a worker, or for -1 the evaluator."""
        life = len(self.peers)
        role, examples = ("worker", 10) if worker >= 0 else ("evaluator", 0)
        session = session_of(worker, life)
        known = (role, worker, session, -1, "", "tree", "plain", examples, 1.0)
        hello = messages.Hello(messages.PROTOCOL, *known, "", ("seed=0",))
        clock_s = self._clock()
        machine = PeerProtocol(hello, self._runtime, self.now + clock_s)
        node = Node(machine, f"{worker}-{life}", clock_s, worker, session=session)
        if worker >= 0:
            node.program = programs.worker_program(self.world.timing, STEPS_PER_EPOCH)
            node.parked = next(node.program).known
        self.peers.append(node)
        self.note(trace.ProcessStarted(0.0, hello.actor, RUN, 0, {}))
        self._wires.plug_in(node)
        self._arm(node)

    def _clock(self) -> float:
        """Whole and not negative, so that a tick's time survives there and back."""
        drawn_s = float(self._random.randint(0, 7200))
        return drawn_s if self._clocks_s is None else self._clocks_s

    def retire(self, worker: Node) -> None:
        """Requests a process to stop."""
        worker.stopping = True
        self._work.wake(worker)

    # ------------------------------------------------------------- what happens

    def tell(self, node: Node, event: p.Event) -> None:
        """An event at a process; carries out its effects."""
        if not node.is_up:
            return
        seq = _judged_seq(node, event)
        effects = node.machine.on(event, self.now + node.clock_s)
        if seq is not None:
            outcome = event.message
            if seq in outbox_of(node):
                self.count["not believed"] += 1
            else:
                self.count["believed " + outcome.outcome] += 1
                self.believed.append((node, outcome))
        place = len(self.log)
        self.log.append((self.now, node, event, effects))
        for done, effect in enumerate(effects):
            if node.worker == -2:
                self._effects += 1
                if self._effects in self._crash_at and self.now < self.world.calm_s:
                    self.log[place] = (self.now, node, event, effects[:done])
                    self.count["crash inside"] += 1
                    self.faults.crash(node, (0.0, 2.0))
                    return
            self._carry_out(node, effect)
        self._arm(node)

    def note(self, event: trace.Event) -> None:
        """Writes an event into the trace, on the clock of the simulation."""
        self.trace.append((self.now, event))

    def traced(self) -> list[trace.Event]:
        """The trace as it would be read."""
        return [event._replace(time_s=time_s) for time_s, event in self.trace]

    def _arm(self, node: Node) -> None:
        due_s = node.machine.due_s - node.clock_s
        if node.tick_s != due_s:
            node.tick_s = due_s
            self.at(max(due_s, self.now), node, self._tick, node)

    def _tick(self, node: Node) -> None:
        due_s = node.machine.due_s
        if due_s <= self.now + node.clock_s and node.is_up:
            node.tick_s = None
            self.tell(node, p.Tick())
            if node.is_up and node.machine.due_s == due_s:
                self.problems.append(f"crash: {node.name} wants another tick at once")

    def _carry_out(self, node: Node, effect: p.Effect) -> None:
        world = self.world
        match effect:
            case p.Send(b"", message):
                self._wires.up(node, message)
            case p.Send(route, message):
                self._wires.down(node, route, message)
            case p.Broadcast():
                self._wires.publish(node, effect)
            case p.RecordEvent(event):
                self.note(event)
            case p.Connect(topics):
                self._wires.subscribe(node, topics)
            case p.ValidateUpdate():
                self._in_line(node, "main", world.check_s, self._work.check, effect)
            case p.DropUpdate(key):
                self._in_line(node, "main", (0.0, 0.0), _forget, key)
            case p.AggregateVersion():
                self._in_line(node, "main", world.make_s, self._work.make, effect)
            case p.SaveVersion():
                self._in_line(node, "store", world.save_s, self._work.save, effect)
            case p.Deliver(header):
                node.newest, node.newest_from = header.version, header.incarnation
                if node.program is None:
                    scores = {"accuracy": header.version / 100, "loss": 0.5}
                    grade = p.VersionEvaluated(header.version, scores)
                    self.after((0.05, 0.2), node, self.tell, node, grade)
                self._work.wake(node)
            case p.StopWork(reason):
                node.stopping = True
                if node.program is None:
                    stop = p.StopRequested(reason)
                    self.after((0.0, 0.1), node, self.tell, node, stop)
                self._work.wake(node)
            case p.Finish(_, reason):
                node.finish = effect
                self.count["round of nothing"] += (
                    node.worker == -2 and NOTHING in reason
                )
                for line in node.lines.values():
                    self.after((0.5, 0.5), None, self._wires.unplug, line)


def outbox_of(peer: Node) -> dict[int, Any]:
    """The updates in a peer's outbox, by number."""
    outbox: dict[int, Any] = peer.machine._outbox.entries
    return outbox


def _judged_seq(node: Node, event: p.Event) -> int | None:
    """The unsettled update that a blocked worker waits for, if any."""
    if isinstance(event, p.FromWire) and isinstance(
        event.message, messages.UpdateOutcome
    ):
        outcome = event.message
        if outcome.session == node.session and outcome.seq in outbox_of(node):
            return outcome.seq
    return None


def _forget(node: Node, key: UpdateKey) -> None:
    node.held.pop(key, None)


def session_of(worker: int, life: int) -> str:
    """The session of a process, unique."""
    return f"{worker}-{life}"
