"""The server's protocol against whatever may be told to it, in any order."""

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyn2f import programs
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.channels import UPDATES, Channel, Subscribed, topic_of
from asyn2f.protocol.server import ServerProtocol
from asyn2f.protocol.settings import RuntimeSettings
from tests.simulation.bugs import BUGS
from tests.support.messages import RUNTIME, header_of, hello_of, made, server_settings
from tests.support.protocol_harness import ASYN2F, FEDAVG, heartbeat_of, with_

WORKERS = 3
MOST_OPEN = 4
TIMINGS = (
    with_(ASYN2F, min_updates=2, deadline_s=1.0),
    with_(ASYN2F, pending="all", max_staleness=1),
    with_(FEDAVG, deadline_s=1.0),
)

workers = st.integers(0, WORKERS - 1)


class ServerMachine(RuleBasedStateMachine):
    """Workers that lose, repeat, delay and forget; a store that fails; a server that
    dies. What each worker has pushed, it keeps until the server has the last word."""

    def __init__(self):
        super().__init__()
        self.now, self.incarnation = 0.0, 0
        self.store = {0: ((), {})}  # updates and accounting of each version
        self.begun_with = 0
        self.lives = [0] * WORKERS
        self.kept = {}  # by update: its header; nobody has heard the last word on it
        self.next_seq = {}
        self.firsts = {}  # by session, the number of its first update
        self.bases = {}
        self.told = {}  # the last word on an update, by incarnation
        self.given_out = 0

    @rule(
        timing=st.sampled_from(TIMINGS),
        publish=st.sampled_from(["after_save", "before_save"]),
    )
    @precondition(lambda self: self.incarnation == 0)
    def begin(self, timing, publish):
        self.timing, self.publish = timing, publish
        self.start()
        for worker in range(WORKERS):
            self.register(worker)

    def start(self):
        """The next incarnation, of what is in the store."""
        version = max(self.store)
        self.incarnation += 1
        self.doing = {"check": [], "make": [], "save": []}
        self.held = set()
        settings = server_settings(
            incarnation=self.incarnation,
            workers=WORKERS,
            most_open=MOST_OPEN,
            replaces=self.timing.replaces,
            waits=self.timing.after_push == "wait",
            deadline_s=self.timing.deadline_s,
            accounting=self.store[version][1],
            runtime=RuntimeSettings(publish=self.publish, **RUNTIME),
        )
        program = programs.server_program(self.timing, version)
        first = made(version, incarnation=self.incarnation)
        self.server = ServerProtocol(settings, program, first, self.now)
        self.begun_with = self.given_out = version
        self.finished = False

    def tell(self, event):
        """It happens; what is to be done is looked at, and remembered."""
        for effect in [] if self.finished else self.server.on(event, self.now):
            match effect:
                case p.ValidateUpdate(key):
                    self.doing["check"].append(key)
                case p.AggregateVersion():
                    assert self.held >= {*effect.keys}
                    assert effect.version == max(self.store) + 1
                    self.doing["make"].append(effect)
                case p.SaveVersion():
                    self.doing["save"].append(effect)
                case p.DropUpdate(key):
                    self.held.discard(key)
                case p.ReportVersion(version):
                    assert version in (self.given_out, self.given_out + 1)
                    assert version in self.store or self.publish == "before_save"
                    self.given_out = version
                case p.Send(_, messages.UpdateOutcome() as outcome):
                    self.hear(outcome)
                case p.Send(peer, messages.Welcome() as welcome):
                    self.firsts.setdefault(peer.decode(), welcome.first)
                case p.Finish():
                    self.finished = True

    def hear(self, outcome):
        incarnation, session, seq, word, version, reason = outcome
        assert self.told.setdefault((incarnation, session, seq), outcome) == outcome
        versions = [v for v, (keys, _) in self.store.items() if (session, seq) in keys]
        assert versions == ([version] if word == "committed" else [])
        assert reason or word != "rejected"

    def session(self, worker):
        return f"{worker}-{self.lives[worker]}"

    def say(self, worker, message):
        sender = self.session(worker).encode()
        self.tell(p.FromWire(Channel.CONTROL, sender, message, b""))

    # ------------------------------------------------------------- workers

    has_begun = precondition(lambda self: self.incarnation > 0)

    @has_begun
    @rule(worker=workers)
    def register(self, worker):
        session = self.session(worker)
        first = self.firsts.get(session, -1)
        self.say(worker, hello_of(worker, session, first=first))
        self.tell(Subscribed(topic_of(session)))

    @precondition(lambda self: max(self.store) > sum(self.lives))
    @rule(worker=workers)
    def come_again(self, worker):
        """The process is killed; another one begins."""
        gone = self.session(worker)
        self.kept = {k: h for k, h in self.kept.items() if k.session != gone}
        self.lives[worker] += 1

    @has_begun
    @rule(worker=workers, behind=st.sampled_from([0, 0, 1, -1]), arrives=st.booleans())
    def push(self, worker, behind, arrives):
        """An update; it comes now, or later, or never."""
        session = self.session(worker)
        seq = self.next_seq.get(session, self.firsts.get(session, 0))
        self.next_seq[session] = seq + 1
        base = max(self.given_out - behind, 0)  # -1: of a version that nobody knows
        self.bases[session, seq] = base
        header = header_of(worker, session, seq, base=base)
        self.kept[UpdateKey(worker, session, seq)] = header
        if arrives:
            self.tell(p.FromWire(Channel.UPDATE, UPDATES, header, b""))

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), forgets=st.booleans())
    def deliver(self, data, forgets):
        """Once, or once more; late, and in any order."""
        key = data.draw(st.sampled_from(sorted(self.kept)))
        header = self.kept[key]
        self.tell(p.FromWire(Channel.UPDATE, UPDATES, header, b""))
        if forgets and (self.incarnation, *key[1:]) in self.told:
            del self.kept[key]

    @has_begun
    @rule(worker=workers)
    def heartbeat(self, worker):
        """And asks for what it has; knows the last word on all below that."""
        session = self.session(worker)
        mine = sorted(key.seq for key in self.kept if key.session == session)
        below = min(mine, default=self.next_seq.get(session, 0))
        heartbeat = heartbeat_of(session, *mine[:16])._replace(settled_below=below)
        self.say(worker, heartbeat)

    # ------------------------------------------------------------- the server's threads

    @precondition(lambda self: self.incarnation and any(self.doing.values()))
    @rule(saves=st.booleans())
    def work(self, saves):
        """All that there is to be done, and nothing fails."""
        while self.doing["check"]:
            self.check(is_good=True)
        while self.doing["make"]:
            self.make(is_good=True)
        while saves and self.doing["save"]:
            self.save(succeeds=True, dies=False)

    @precondition(lambda self: self.incarnation and self.doing["check"])
    @rule(is_good=st.sampled_from([True, True, True, False]))
    def check(self, is_good):
        key = self.doing["check"].pop(0)
        self.held |= {key} if is_good else set()
        self.tell(p.UpdateValidated(key, "" if is_good else "w is not finite"))

    @precondition(lambda self: self.incarnation and self.doing["make"])
    @rule(is_good=st.sampled_from([True, True, True, False]))
    def make(self, is_good):
        making = self.doing["make"].pop(0)
        if is_good:
            self.made_of = making.keys
            self.tell(made(making.version, making.keys, self.incarnation))
        else:
            self.tell(p.AggregationFailed(making.version, "w is not finite"))

    @precondition(lambda self: self.incarnation and self.doing["save"])
    @rule(succeeds=st.sampled_from([True, True, False]), dies=st.booleans())
    def save(self, succeeds, dies):
        """The server may die when the version is final, and nobody knows that yet."""
        saving = self.doing["save"].pop(0)
        if not succeeds:
            self.tell(p.SaveFailed(saving.version, "no space left on device"))
            return
        keys = [(key.session, key.seq) for key in self.made_of]
        assert all(self.bases[key] < saving.version for key in keys)
        self.store[saving.version] = keys, saving.accounting
        if dies:
            self.start()
        else:
            self.tell(p.VersionSaved(saving.version))

    @precondition(lambda self: self.given_out > self.begun_with)
    @rule()
    def crash(self):
        self.start()

    @has_begun
    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0]))
    def wait(self, seconds):
        """And those who are there say so."""
        self.now += seconds
        for worker in range(WORKERS):
            self.heartbeat(worker)
        self.tell(p.Tick())

    @precondition(lambda self: self.given_out > self.begun_with)
    @rule()
    def hear_nobody(self):
        self.now += 2.0
        self.tell(p.Tick())

    # ------------------------------------------------------------- always

    @invariant()
    def no_update_counts_twice(self):
        keys = [key for keys, _ in self.store.values() for key in keys]
        assert len(keys) == len(set(keys))

    @invariant()
    def what_waits_is_bounded(self):
        if self.incarnation:
            lives = WORKERS + sum(self.lives)
            assert len(self.held) <= MOST_OPEN * lives
            for session in self.server._sessions:
                assert self.server._ledger.num_open(session.name) <= MOST_OPEN


TestServerMachine = ServerMachine.TestCase
TestServerMachine.settings = hypothesis.settings(
    max_examples=200, stateful_step_count=50, deadline=None, print_blob=True
)


FOUND = ("publish before the save", "ledger not saved", "base unchecked")


@pytest.mark.parametrize("name", FOUND)
def test_an_injected_bug_is_found(name, monkeypatch):
    """Those that show in what the server itself says and saves."""
    (bug,) = [bug for bug in BUGS if bug.name == name]
    bug.inject(monkeypatch)
    unshrunk = hypothesis.settings(
        TestServerMachine.settings,
        max_examples=1000,
        phases=[hypothesis.Phase.generate],
        database=None,
        derandomize=True,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(ServerMachine, settings=unshrunk)
