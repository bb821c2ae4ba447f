"""A whole run in one thread: the protocols over a pretended network and clock.

`Net(seed, world).run(until_s)` binds a server's protocol, workers and an evaluator to a
heap of events; every delay and fault is drawn from one `random.Random(seed)`, so that a
seed is a run. Workers run their real program with drawn durations; a model is the list
of the updates in it. What happens is in `log`, and all is judged by that.

The network has ZeroMQ's vices: what is published before a subscription has arrived is
gone, MODEL and UPDATE lose, repeat and reorder, CONTROL keeps its order but can be cut,
and what a dead process had in its sockets is gone with it.
"""

import heapq
import itertools
import json
import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from asyn2f import programs, trace
from asyn2f.programs import UpdateKey
from asyn2f.runtime import payloads, wire
from asyn2f.runtime import protocol as p
from asyn2f.runtime.peer_protocol import PeerProtocol
from asyn2f.runtime.server_protocol import ServerProtocol
from asyn2f.runtime.settings import Announce, RuntimeSettings, ServerSettings
from asyn2f.runtime.transport import UPDATES, Channel, Subscribed
from asyn2f.timing import Stop, Timing

Span = tuple[float, float]  # a duration is drawn between these, in seconds
RUNTIME = {"beat_s": 0.5, "dead_after_s": 1.5, "lease_s": 8.0, "join_timeout_s": 8.0}
ENDLESS = Stop()


def server_settings(**changes: Any) -> ServerSettings:
    """Settings of a new run, but for those."""
    names = {"run": "run-1", "strategy": "any", "experiment": "same"}
    sizes = {"fingerprint": "tree", "num_bytes": 100, "workers": 2, "min_workers": 1}
    ports = {"incarnation": 1, "model_port": 1, "update_port": 2}
    start = {"stop": ENDLESS, "best": (None, None), "books": {}, "replaces": True}
    start |= {"waits": False, "most_open": 4}
    runtime = {"runtime": RuntimeSettings(**RUNTIME)}
    return ServerSettings(**(names | sizes | ports | start | runtime | changes))


def hello_of(worker: int, session: str, /, **changes: Any) -> wire.Hello:
    """What a worker says first, or for worker -1 the evaluator."""
    role, examples = ("worker", 10) if worker >= 0 else ("evaluator", 0)
    known = (session, "same", "tree", examples, 1.0)
    return wire.Hello(wire.PROTOCOL, role, worker, *known)._replace(**changes)


def made(
    version: int, keys: tuple[UpdateKey, ...] = (), incarnation: int = 1
) -> p.Made:
    """A version of these updates."""
    payload, numbers = json.dumps(keys).encode(), (10.0 * len(keys), 0.5, 1.0, 0.1)
    sums = ("tree", len(payload), payloads.digest(payload))
    header = wire.ModelHeader("run-1", incarnation, version, *numbers, *sums)
    return p.Made(header, payload)


def produced(worker: int, payload: bytes, base: int) -> p.Produced:
    """A worker's update."""
    numbers, sums = (
        (10.0, 0.5, 1.0, 0.0, 0.0),
        ("tree", len(payload), payloads.digest(payload)),
    )
    header = wire.UpdateHeader("", 0, worker, "", 0, base, base, 1, *numbers, *sums)
    return p.Produced(header, payload, time_s=0.0)


@dataclass(frozen=True, kw_only=True)
class World:
    """How a run goes: durations in seconds, chances in 0..1, no faults after `calm_s`.

    `cuts` (peer, from_s, to_s, "up", "down" or "up down"): its CONTROL carries nothing;
    `deaths` (time_s, worker): it dies, and another one comes soon. Peer -1 = evaluator.
    """

    timing: Timing
    announce: Announce = "durable"
    workers: int = 2
    evaluator: bool = True
    stop: Stop = ENDLESS
    calm_s: float = math.inf
    latency_s: Span = (0.001, 0.01)
    subscribe_s: Span = (0.0, 0.05)
    step_s: Span = (0.1, 0.3)
    make_s: Span = (0.01, 0.05)
    save_s: Span = (0.01, 0.1)
    drop: float = 0.0  # a model or an update, on its way to one receiver
    repeat: float = 0.0  # a model or an update comes twice
    save_fails: float = 0.0
    bad_updates: float = 0.0  # `Check` finds a problem
    cuts: tuple[tuple[int, float, float, str], ...] = ()
    deaths: tuple[tuple[float, int], ...] = ()


@dataclass(eq=False)
class Node:
    """A process: its protocol, its connections and, of a worker, its work."""

    machine: Any
    worker: int = -1
    session: str = "server"
    alive: bool = True
    finish: p.Finish | None = None
    tick_s: float = math.nan  # when the next tick is scheduled
    topics: set[bytes] = field(default_factory=set)  # subscriptions that have arrived
    free_s: Counter[str] = field(default_factory=Counter)  # connections and threads
    program: Any = None
    parked: int | None = None  # waits for a version newer than this
    stopping: bool = False
    base: int = -1
    newest: int = -1
    pushes: int = 0


class Net:
    """One run, and all that is known of it."""

    def __init__(self, seed: int, world: World) -> None:
        self.now = 0.0
        self.world = world
        self.log: list[tuple[float, str, p.Event, list[p.Effect]]] = []
        self.faults: Counter[str] = Counter()
        self.store: dict[int, tuple[UpdateKey, ...]] = {0: ()}
        self._books: dict[str, Any] = {}
        self.peers: list[Node] = []  # every life of every peer
        self._random = random.Random(seed)
        self._heap: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._incarnation = 0
        self.start_server()
        for worker in range(-int(world.evaluator), world.workers):
            self._after((0.0, 0.5), self.start_peer, worker)
        for time_s, worker in world.deaths:
            self._after((time_s, time_s), self._die, worker)

    def run(self, until_s: float) -> "Net":
        """Lets happen what happens until then."""
        while self._heap and self._heap[0][0] <= until_s:
            self.now, _, action, args = heapq.heappop(self._heap)
            action(*args)
        self.now = until_s
        return self

    def fates(self) -> dict[UpdateKey, str]:
        """What became of every update that was produced. The store has the last word,
        then the server, then the worker; "lost" is of what nobody says anything."""
        fates: dict[UpdateKey, str] = {}
        for _, name, _, effects in self.log:
            for noted in [x.event for x in effects if isinstance(x, p.Record)]:
                if isinstance(noted, trace.Pushed | trace.Settled):
                    key = UpdateKey(noted.worker, noted.session, noted.seq)
                    if isinstance(noted, trace.Pushed):
                        fates[key] = "lost"
                    elif name == "server" or fates[key] == "lost":
                        fates[key] = f"{noted.verdict}: {noted.reason}"
        dead = {node.session for node in self.peers if not node.alive}
        fates |= {k: "died" for k in fates if fates[k] == "lost" and k.session in dead}
        return fates | {k: "committed" for keys in self.store.values() for k in keys}

    # ------------------------------------------------------------- processes

    def start_server(self) -> None:
        """The server; after `crash_server`, its next incarnation."""
        world, version = self.world, max(self.store)
        self._incarnation += 1
        settings = server_settings(
            incarnation=self._incarnation,
            workers=world.workers,
            min_workers=world.timing.min_workers,
            stop=world.stop,
            books=self._books,
            runtime=RuntimeSettings(announce=world.announce, **RUNTIME),
        )
        program = programs.server_program(world.timing, version)
        first = made(version, self.store[version], self._incarnation)
        self.server = Node(ServerProtocol(settings, program, first, self.now))
        self._held: set[UpdateKey] = set()  # updates in its memory
        self._arm(self.server)

    def crash_server(self) -> None:
        """The server dies, with all that was on its way to it and from it."""
        self.server.alive = False
        for peer in self.peers:
            peer.topics = set()

    def start_peer(self, worker: int) -> None:
        """A worker's process, or for -1 the evaluator's."""
        session = f"{worker}-{len(self.peers)}"
        hello, settings = hello_of(worker, session), RuntimeSettings(**RUNTIME)
        node = Node(PeerProtocol(hello, settings, self.now), worker, session)
        if worker >= 0:
            node.program = programs.worker_program(self.world.timing, 3)
            node.parked = next(node.program).known
        self.peers.append(node)
        self._arm(node)

    def _die(self, worker: int) -> None:
        for node in self.peers:
            if node.worker == worker and node.alive and not node.finish:
                node.alive = False
                self._after((0.1, 2.0), self.start_peer, worker)

    # ------------------------------------------------------------- time and chance

    def _after(self, span: Span, action: Any, *args: Any, line: Any = None) -> None:
        """Later; in a line (of a node, its name), after all that is in it already."""
        time_s = self.now + self._random.uniform(*span)
        if line is not None:
            node, name = line
            node.free_s[name] = time_s = max(time_s, node.free_s[name])
        heapq.heappush(self._heap, (time_s, next(self._order), action, args))

    def _happens(self, fault: str) -> bool:
        chance = getattr(self.world, fault) if self.now < self.world.calm_s else 0.0
        happens = self._random.random() < chance
        self.faults[fault] += happens
        return happens

    def _arm(self, node: Node) -> None:
        if node.tick_s != node.machine.due_s:
            node.tick_s = node.machine.due_s
            entry = (max(node.tick_s, self.now), next(self._order), self._tick, (node,))
            heapq.heappush(self._heap, entry)

    def _tick(self, node: Node) -> None:
        if node.machine.due_s <= self.now and not node.finish:
            self.tell(node, p.Tick())
            spins = node.alive and not node.finish and node.machine.due_s <= self.now
            assert not spins, f"{node.session} wants another tick at once"

    # ------------------------------------------------------------- what happens

    def tell(self, node: Node, event: p.Event) -> None:
        """Something happens to a process, and it does what its protocol says."""
        if node.alive and not node.finish:
            effects = node.machine.on(event, self.now)
            self.log.append((self.now, node.session, event, effects))
            for effect in effects:
                self._carry_out(node, effect)
            self._arm(node)

    def _carry_out(self, node: Node, effect: p.Effect) -> None:
        server, main = self.server, (node, "main")
        match effect:
            case p.Send(b"", message):
                self._control(node, "up", server, message)
            case p.Send(session, message):
                for peer in [x for x in self.peers if x.session.encode() == session]:
                    self._control(peer, "down", peer, message)
            case p.Broadcast(_, wire.UpdateHeader()) if UPDATES in node.topics:
                self._publish(Channel.UPDATE, server, effect)
            case p.Broadcast(topic, wire.ModelHeader()):
                for peer in [x for x in self.peers if topic in x.topics]:
                    self._publish(Channel.MODEL, peer, effect)
            case p.Connect(topics):
                node.topics = set()
                for topic in [*topics, UPDATES]:
                    arrival = (self._subscribed, node, node.topics, topic)
                    self._after(self.world.subscribe_s, *arrival)
            case p.Check(key, _, payload):
                assert json.loads(bytes(payload)) == [key.session, key.seq]
                self._after((0.0, 0.01), self._check, node, key, line=main)
            case p.Forget(key):
                self._after((0, 0), self._held.discard, key, line=main)
            case p.Make():
                self._after(self.world.make_s, self._make, node, effect, line=main)
            case p.Save(version, books):
                store = (node, "store")
                saving = (self._save, node, version, books)
                self._after(self.world.save_s, *saving, line=store)
            case p.Deliver(header):
                node.newest = header.version
                grade = p.Graded(header.version, header.version / 100, 0.5, 0.5)
                if node.program is None:
                    self._after((0.05, 0.2), self.tell, node, grade)
                self._wake(node)
            case p.StopWork(reason):
                node.stopping = True
                if node.program is None:
                    self._after((0.0, 0.1), self.tell, node, p.StopRequested(reason))
                self._wake(node)
            case p.Finish():
                node.finish = effect

    def _control(self, peer: Node, way: str, to: Node, message: wire.Message) -> None:
        for who, from_s, to_s, ways in self.world.cuts:
            if who == peer.worker and way in ways and from_s <= self.now < to_s:
                self.faults["cut"] += 1
                return
        sender = b"" if to is peer else peer.session.encode()
        message = wire.decode(wire.encode(message))
        event = p.FromWire(Channel.CONTROL, sender, message, b"")
        self._after(self.world.latency_s, self.tell, to, event, line=(peer, way))

    def _publish(self, channel: Channel, to: Node, sent: p.Broadcast) -> None:
        message = wire.decode(wire.encode(sent.message))
        event = p.FromWire(channel, sent.topic, message, sent.payload)
        for _ in range(0 if self._happens("drop") else 1 + self._happens("repeat")):
            self._after(self.world.latency_s, self.tell, to, event)

    def _subscribed(self, peer: Node, topics: set[bytes], topic: bytes) -> None:
        if peer.topics is topics and self.server.alive:
            topics.add(topic)
            self.tell(peer if topic == UPDATES else self.server, Subscribed(topic))

    # ------------------------------------------------------------- the work

    def _check(self, server: Node, key: UpdateKey) -> None:
        bad = self._happens("bad_updates")
        if not bad:
            self._held.add(key)
        self.tell(server, p.Checked(key, "w is not finite" if bad else ""))

    def _make(self, server: Node, make: p.Make) -> None:
        if server.alive:
            assert self._held >= {*make.keys}, "an update was forgotten too early"
            self._unsaved = make.keys
            self.tell(server, made(*make, self._incarnation))

    def _save(self, server: Node, version: int, books: dict[str, Any]) -> None:
        if server.alive and self._happens("save_fails"):
            self.tell(server, p.SaveFailed(version, "no space left on device"))
        elif server.alive:
            assert version not in self.store, f"{version} was saved twice"
            self.store[version] = self._unsaved
            self._books = json.loads(json.dumps(books))
            self.tell(server, p.Saved(version))

    def _wake(self, peer: Node) -> None:
        if peer.parked is not None and (peer.newest != peer.parked or peer.stopping):
            peer.parked = None
            self._after((0.0, 0.0), self._work, peer, 0)

    def _work(self, peer: Node, steps: int) -> None:
        """The worker has done what its program said; what comes next?"""
        if not peer.alive:
            return
        try:
            seen = programs.Seen(steps, peer.newest, stop=peer.stopping)
            command = peer.program.send(seen)
        except StopIteration:
            self.tell(peer, p.StopRequested("its work is done"))
            return
        steps, span = 0, (0.0, 0.0)
        match command:
            case programs.Wait(known):
                peer.parked = known
                self._wake(peer)
                return
            case programs.Adopt(version) | programs.Merge(version):
                peer.base = version
            case programs.Train():
                steps, span = 1, self.world.step_s
            case programs.Push():
                payload = json.dumps([peer.session, peer.pushes]).encode()
                peer.pushes += 1
                self.tell(peer, produced(peer.worker, payload, peer.base))
        self._after(span, self._work, peer, steps)
