"""Harnesses of both protocols: each method is an event, and returns its effects."""

import dataclasses

from asyn2f import programs
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages as wire
from asyn2f.protocol.channels import ALL, UPDATES, Channel, Subscribed, topic_of
from asyn2f.protocol.peer import PeerProtocol
from asyn2f.protocol.server import ServerProtocol
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.timing import Timing
from tests.support.messages import (
    RUNTIME,
    header_of,
    hello_of,
    made,
    produced,
    server_settings,
)
from tests.support.updates import replaced

ASYN2F = Timing(while_training="merge", after_push="continue", quorum="some")
FEDAVG = Timing(
    while_training="ignore", after_push="wait", quorum="all", max_staleness=0
)


def with_(timing, **changes):
    return dataclasses.replace(timing, **changes)


def those(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]


def messages(effects, kind, to=None):
    """Messages of this kind sent on CONTROL, to any session or to this one."""
    return [
        effect.message
        for effect in those(effects, p.Send)
        if isinstance(effect.message, kind) and to in (None, effect.peer.decode())
    ]


def tick_until(machine, until_s, now):
    """All effects of the ticks until then."""
    effects = []
    for _ in range(10_000):
        if machine.due_s > until_s:
            return effects
        now = max(now, machine.due_s)
        effects += machine.on(p.Tick(), now)
        if those(effects, p.Finish):
            return effects
        assert machine.due_s > now, "another tick is due at once"
    raise AssertionError("too many ticks")


class ProtocolHarness:
    """A server's protocol. Worker w has the session "w"; the evaluator, "e"."""

    def __init__(self, timing=ASYN2F, publish="after_save", version=0, **changes):
        runtime = RuntimeSettings(publish=publish, **RUNTIME)
        own = {"min_workers": timing.min_workers, "replaces": timing.replaces}
        own |= {"waits": timing.after_push == "wait", "deadline_s": timing.deadline_s}
        changes = own | {"runtime": runtime} | changes
        program = programs.server_program(timing, version)
        self.now = 0.0
        settings, first = server_settings(**changes), made(version)
        self.machine = ServerProtocol(settings, program, first, 0.0)

    def on(self, event):
        return self.machine.on(event, self.now)

    def wait(self, seconds):
        effects = tick_until(self.machine, self.now + seconds, self.now)
        self.now += seconds
        return effects

    def hear(self, session, message, identity=""):
        sender = session.encode()
        event = p.FromWire(Channel.CONTROL, sender, message, b"", identity)
        return self.on(event)

    def join(self, *sessions):
        effects = []
        for session in sessions:
            worker = -1 if session == "e" else int(session[0])
            effects += self.hear(session, hello_of(worker, session))
            effects += self.on(Subscribed(topic_of(session)))
        return effects

    def heartbeat(self, session, *unsettled):
        return self.hear(session, heartbeat_of(session, *unsettled))

    def receive(self, session, seq, base=0, identity="", **changes):
        """An update arrives."""
        header = header_of(int(session[0]), session, seq, base=base)
        header = replaced(header, **changes)
        event = p.FromWire(Channel.UPDATE, UPDATES, header, b"", identity)
        return self.on(event)

    def push(self, session, seq, base=0):
        """An update arrives and is valid."""
        effects = self.receive(session, seq, base)
        return effects + self.on(p.UpdateValidated(key_of(session, seq), ""))

    def make(self, version):
        return self.on(made(version))

    def save(self, version):
        return self.on(p.VersionSaved(version))

    def end(self, seconds=12.0):
        """All effects until the server finishes."""
        effects = self.wait(seconds)
        assert those(effects, p.Finish), f"does not finish within {seconds} s"
        return effects


def key_of(session, seq):
    return UpdateKey(int(session[0]), session, seq)


def heartbeat_of(session, *unsettled):
    progress = wire.NO_PROGRESS._replace(state="training", base_version=0)
    return wire.Heartbeat(session, 1, progress, 0, True, True, 0, unsettled)


def outcomes(effects):
    """Session, number and outcome of the outcomes sent."""
    return [
        (v.session, v.seq, v.outcome) for v in messages(effects, wire.UpdateOutcome)
    ]


WELCOME = wire.Welcome(
    "run-1", 1, 0, 0, 1, 2, RUNTIME["heartbeat_interval_s"], RUNTIME["server_timeout_s"]
)


class PeerHarness:
    """A peer's protocol, worker 0's in session "0"."""

    def __init__(self, worker=0):
        self.now = 0.0
        settings = RuntimeSettings(**RUNTIME)
        self.machine = PeerProtocol(hello_of(worker, "0"), settings, 0.0)

    def on(self, event):
        return self.machine.on(event, self.now)

    def wait(self, seconds):
        effects = tick_until(self.machine, self.now + seconds, self.now)
        self.now += seconds
        return effects

    def hear(self, message):
        return self.on(p.FromWire(Channel.CONTROL, b"", message, b""))

    def enter(self, welcome=WELCOME):
        """Is welcomed and connected."""
        heard = wire.HeartbeatAck(welcome.incarnation, -1, True)
        return self.hear(welcome) + self.on(Subscribed(UPDATES)) + self.hear(heard)

    def push(self, base=0):
        return self.on(produced(b"", base))

    def receive(self, version, incarnation=1):
        header, payload = made(version, incarnation=incarnation)
        return self.on(p.FromWire(Channel.MODEL, ALL, header, payload))

    def settle(self, seq, outcome, incarnation=1):
        version = 1 if outcome == "committed" else -1
        return self.hear(
            wire.UpdateOutcome(incarnation, "0", seq, outcome, version, "so")
        )

    def unsettled(self):
        """The updates that the next heartbeat asks about."""
        heartbeats = messages(
            self.wait(2 * RUNTIME["heartbeat_interval_s"]), wire.Heartbeat
        )
        return heartbeats[-1].unsettled


def joined(*sessions, timing=ASYN2F, publish="after_save", **changes):
    """A server that these sessions have joined."""
    server = ProtocolHarness(timing, publish, **changes)
    server.join(*sessions)
    return server


def welcomed(welcome=WELCOME, worker=0):
    """A peer that has been welcomed."""
    peer = PeerHarness(worker)
    peer.enter(welcome)
    return peer


def pushed(effects):
    """The numbers of the updates that are published."""
    return [sent.message.seq for sent in those(effects, p.Broadcast)]
