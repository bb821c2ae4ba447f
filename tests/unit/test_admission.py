"""Admission of peers and updates, and what is remembered of replaced processes."""

import json
import math

import pytest

from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages as wire
from asyn2f.protocol.channels import topic_of
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.timing import Stop
from asyn2f.types import Best
from tests.support.messages import RUNTIME, hello_of
from tests.support.protocol_harness import (
    ASYN2F,
    FEDAVG,
    PeerHarness,
    ProtocolHarness,
    heartbeat_of,
    joined,
    messages,
    outcomes,
    pushed,
    those,
    welcomed,
    with_,
)

BUFFER = with_(ASYN2F, pending="all", min_updates=3)
LIMITED = RuntimeSettings(**RUNTIME, max_updates_per_s=2.0)


# ---------------------------------------------------------------- how much


def test_a_worker_with_too_many_unsettled_updates_is_told_to_back_off():
    server = joined("0", "1", timing=with_(BUFFER, min_updates=9), most_open=2)
    server.push("0", 0)
    server.receive("0", 1)
    effects = server.receive("0", 2)
    (busy,) = messages(effects, wire.Backoff, to="0")
    assert (busy.session, busy.seq) == ("0", 2)
    assert busy.retry_s > 0
    assert not those(effects, p.ValidateUpdate)
    assert not messages(effects, wire.UpdateReceived)
    assert those(server.receive("1", 0), p.ValidateUpdate), (
        "the other worker is not held up"
    )


def test_an_update_is_admitted_after_its_backoff():
    server = joined("0", timing=with_(BUFFER, min_updates=2), most_open=2)
    server.push("0", 0)
    server.push("0", 1)  # makes a version; both are open until it is saved
    assert messages(server.receive("0", 2), wire.Backoff)
    server.make(1)
    server.save(1)
    assert those(server.receive("0", 2), p.ValidateUpdate)


def test_pushes_are_limited_to_max_updates_per_s():
    server = joined("0", runtime=LIMITED)
    taken = 0
    for seq in range(400):
        server.now = seq * 0.05
        taken += bool(those(server.receive("0", seq), p.ValidateUpdate))
        server.on(p.UpdateValidated(UpdateKey(0, "0", seq), "of no use"))
    assert 2 * 400 * 0.05 <= taken <= 2 * 400 * 0.05 + 2 * 2


def test_a_peer_sends_its_update_after_the_backoff():
    peer = welcomed()
    assert pushed(peer.push()) == [0]
    peer.hear(wire.Backoff("0", 0, 0.3))
    assert pushed(peer.wait(0.25)) == []
    assert pushed(peer.push()) == [], "what is newer waits as well"
    assert pushed(peer.wait(0.1)) == [0, 1]


def test_a_backoff_ends_with_the_server_that_asked_for_it():
    peer = welcomed()
    peer.push()
    peer.hear(wire.Backoff("0", 0, 5.0))
    effects = peer.hear(wire.UnknownSession(2)) + peer.enter(
        wire.Welcome(
            "run-1",
            2,
            0,
            0,
            1,
            2,
            RUNTIME["heartbeat_interval_s"],
            RUNTIME["server_timeout_s"],
        )
    )
    assert pushed(effects) == [0]


# ---------------------------------------------------------------- who


@pytest.mark.parametrize("identity", ["worker-1", "evaluator", "server"])
def test_a_peer_with_the_key_of_another_is_refused(identity):
    server = ProtocolHarness()
    effects = server.hear("0", hello_of(0, "0"), identity)
    (refused,) = messages(effects, wire.Refused)
    assert not refused.retry
    assert identity in refused.reason
    assert those(effects, p.Warn)


def test_a_peer_with_its_own_key_registers():
    server = ProtocolHarness(with_(ASYN2F, min_workers=1))
    assert messages(server.hear("0", hello_of(0, "0"), "worker-0"), wire.Welcome)
    assert messages(server.hear("e", hello_of(-1, "e"), "evaluator"), wire.Welcome)


def test_messages_in_the_name_of_another_peer_are_ignored():
    server = joined("0", "1", "e")
    before = server.machine.status()
    spoken = [
        server.hear("1", heartbeat_of("0", 0), "worker-1"),
        server.hear("1", wire.Goodbye("0", "farewell"), "worker-1"),
        server.hear("1", wire.EvalResult("e", 0, {"accuracy": 1.0}), "worker-1"),
        server.receive("0", 0, identity="worker-1"),
    ]
    kinds = [[type(effect) for effect in effects] for effects in spoken]
    # The same words in the log are said once.
    assert kinds == [[p.Warn], [], [p.Warn], []]
    after = server.machine.status()
    assert after._replace(bytes_up=0) == before
    assert those(server.receive("0", 0, identity="worker-0"), p.ValidateUpdate)


# ---------------------------------------------------------------- rounds of nothing


def test_a_round_whose_updates_are_all_rejected_ends_the_run():
    """Its workers block on a version that cannot be created."""
    server = joined("0", "1", timing=with_(FEDAVG, min_workers=2))
    assert not those(server.receive("0", 0, loss=math.nan), p.Finish)
    server.receive("1", 0, loss=math.nan)
    (finish,) = those(server.end(), p.Finish)
    assert finish.status == "failed"
    assert "loss nan" in finish.reason


def test_rejected_updates_of_workers_that_do_not_block_end_no_run():
    server = joined("0", "1", timing=with_(ASYN2F, min_workers=2))
    for seq in range(3):
        for worker in ("0", "1"):
            server.receive(worker, seq, loss=math.nan)
    assert not those(server.wait(1.0), p.Finish)
    assert those(server.push("0", 3), p.AggregateVersion)


# ---------------------------------------------------------------- the gone


def test_the_state_of_a_replaced_process_is_dropped():
    server = ProtocolHarness(with_(ASYN2F, min_updates=2))
    for life in range(50):
        session = f"0{life}"
        server.join(session)
        server.receive(session, life)
        server.on(p.UpdateValidated(UpdateKey(0, session, life), "of no use"))
        server.hear(session, wire.Goodbye(session, "killed"))
        server.wait(2.1)
    server.join("0", "1")
    server.push("0", 50)
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    (save,) = those(server.make(make.version), p.SaveVersion)
    kept = save.accounting["ledger"]["workers"]
    assert {worker: life["session"] for worker, life in kept.items()} == {
        "0": "0",
        "1": "1",
    }


def test_a_replaced_process_is_refused_without_retry():
    server = joined("0")
    server.hear("0", wire.Goodbye("0", "it seemed so"))
    server.join("0b")
    server.wait(0.6)
    (refused,) = messages(server.hear("0", hello_of(0, "0", first=0)), wire.Refused)
    assert not refused.retry
    assert outcomes(server.receive("0", 0)) == []


def test_an_evaluator_that_was_silent_registers_again():
    server = joined("0", "e")
    for _ in range(8):
        server.wait(0.5)
        server.heartbeat("0")
    assert messages(server.hear("e", heartbeat_of("e")), wire.UnknownSession)
    assert messages(server.hear("e", hello_of(-1, "e")), wire.Welcome)


def test_no_update_counts_twice_however_often_its_worker_registers():
    """Several processes of one worker in short succession, then the first again."""
    server = joined("0", timing=with_(ASYN2F, min_updates=1))
    server.push("0", 0)
    (save,) = those(server.make(1), p.SaveVersion)
    server.save(1)
    size = len(json.dumps(save.accounting))
    server.hear("0", wire.Goodbye("0", "enough"))
    refused = 0
    for life in range(5000):
        session = f"0b{life}"
        effects = server.hear(session, hello_of(0, session))
        refused += len(messages(effects, wire.Refused))
        server.hear(session, wire.Goodbye(session, "enough"))
        server.wait(0.01)
    assert refused > 4900, "lives are limited"
    assert len(list(server.machine._sessions)) < 20
    server.wait(10.0)
    again = server.hear("0", hello_of(0, "0"))
    (welcome,) = messages(again, wire.Welcome)
    assert welcome.first > 0
    assert not those(server.push("0", 0), p.ValidateUpdate | p.AggregateVersion)
    assert those(server.push("0", welcome.first), p.AggregateVersion)
    (save,) = those(server.make(2), p.SaveVersion)
    assert len(json.dumps(save.accounting)) < size + 20


def test_a_replaced_process_is_refused_by_the_next_server_too():
    ledger = Ledger()
    assert [ledger.begin(0, session, -1) for session in "abb"] == [0, 1, 1]
    again = Ledger.restore(json.loads(json.dumps(ledger.snapshot(1, []))))
    assert again.is_past(0, "a", 0)
    assert not again.is_past(0, "b", 1)
    assert again.owner("b") == 0
    assert again.owner("a") is None


def test_a_process_welcomed_by_a_server_that_saved_nothing_registers_again():
    ledger = Ledger()
    ledger.begin(0, "a", -1)
    ledger.add(UpdateKey(0, "a", 4), 0)
    assert ledger.is_past(0, "b", 4), "its numbers would be those of another"
    assert not ledger.is_past(0, "b", 5)
    assert ledger.begin(0, "b", 5) == 5
    assert ledger.is_past(0, "c", 2**50), "nobody has pushed so often"


# ---------------------------------------------------------------- whose session


@pytest.mark.parametrize("identity", ["", "worker-1"])
@pytest.mark.parametrize("session", ["0", "e"])
def test_no_peer_registers_with_the_session_of_another(session, identity):
    server = joined("0", "1", "e")
    server.push("0", 0)
    effects = server.hear("x", hello_of(1, session), identity)
    (refused,) = messages(effects, wire.Refused, to="x")
    assert "its session belongs to another" in refused.reason
    assert not refused.retry
    assert messages(server.heartbeat("0"), wire.HeartbeatAck, to="0"), (
        "and it changes nothing"
    )
    sent = messages(server.make(1) + server.save(1), wire.UpdateOutcome, to="0")
    assert [outcome.outcome for outcome in sent] == ["committed"]


def test_a_session_belongs_to_its_worker_at_the_next_server_too():
    server = joined("0")
    server.push("0", 0)
    (save,) = those(server.make(1), p.SaveVersion)
    later = ProtocolHarness(version=1, accounting=save.accounting)
    (refused,) = messages(later.hear("x", hello_of(1, "0")), wire.Refused)
    assert "its session belongs to another" in refused.reason
    assert messages(later.hear("y", hello_of(0, "0", first=0)), wire.Welcome)


def test_without_keys_a_live_connection_keeps_its_session():
    server = joined("0")
    assert server.hear("x", heartbeat_of("0")) == []
    assert server.hear("x", wire.Goodbye("0", "farewell")) == []
    (refused,) = messages(server.hear("x", hello_of(0, "0")), wire.Refused, to="x")
    assert refused.retry
    assert messages(server.heartbeat("0"), wire.HeartbeatAck, to="0")
    server.wait(
        2 * RUNTIME["heartbeat_interval_s"]
    )  # it has fallen silent, as when it connects anew
    assert messages(server.hear("x", heartbeat_of("0")), wire.HeartbeatAck, to="x")


def test_without_keys_a_peer_that_connects_anew_is_stopped_at_once():
    """The server ends within two heartbeats."""
    server = joined("0")
    server.on(p.StopRequested("enough"))
    for message in (heartbeat_of("0"), hello_of(0, "0")):
        (stop,) = messages(server.hear("x", message), wire.StopRun, to="x")
        assert stop.reason == "enough"
    assert not messages(server.hear("x", hello_of(1, "1")), wire.StopRun)


def test_with_keys_a_peer_that_connects_anew_is_heard_at_once():
    server = ProtocolHarness()
    server.hear("0", hello_of(0, "0"), "worker-0")
    assert messages(
        server.hear("x", heartbeat_of("0"), "worker-0"), wire.HeartbeatAck, to="x"
    )


def test_no_topic_contains_the_name_of_a_session():
    peer, server = PeerHarness(), ProtocolHarness()
    (connect,) = those(peer.enter(), p.Connect)
    effects = server.join("0") + server.hear("0", wire.FetchModel("0", -1))
    topics = [*connect.topics, *(sent.topic for sent in those(effects, p.Broadcast))]
    assert len(topics) > 3
    assert topic_of("0") in topics
    assert not any(hello_of(0, "s3cret").session.encode() in x for x in topics)
    assert b"s3cret" not in topic_of("s3cret")


def test_there_is_one_live_evaluator():
    server = joined("0", "e")
    (refused,) = messages(server.hear("f", hello_of(-1, "f")), wire.Refused)
    assert "an evaluator is here already" in refused.reason
    assert refused.retry
    lying = server.hear("f", wire.EvalResult("f", 0, {"accuracy": 1.0}))
    assert not those(lying, p.ReportScore)
    server.hear("e", wire.Goodbye("e", "done"))
    assert messages(server.hear("f", hello_of(-1, "f")), wire.Welcome)


@pytest.mark.parametrize("worker", [0, -1])
@pytest.mark.parametrize("token", ["", "t0ken2", "é"])
def test_without_keys_a_peer_presents_the_runs_token(worker, token):
    server = ProtocolHarness(token="t0ken")
    (refused,) = messages(
        server.hear("x", hello_of(worker, "x", token=token)), wire.Refused
    )
    assert "token" in refused.reason
    assert refused.retry, "its server may be about to write it"
    good = hello_of(worker, "x", token="t0ken")
    assert messages(server.hear("x", good), wire.Welcome | wire.Registered)


def test_updates_with_invalid_headers_are_rate_limited():
    server = joined("0", "1")
    settled = 0
    for seq in range(500):
        server.now = seq * 0.01
        effects = server.receive("0", seq, loss=math.nan)
        settled += len(messages(effects, wire.UpdateOutcome))
    assert 20 <= settled <= 40
    assert messages(effects, wire.Backoff)
    assert those(server.receive("1", 0), p.ValidateUpdate), "another's are taken in"


def test_no_worker_pushes_in_the_name_of_another():
    """Nor advances the numbers of another."""
    server = joined("0", "1")
    effects = server.receive("1", 2**40, worker=0)
    assert not those(effects, p.ValidateUpdate)
    server.receive("1", 5, worker=0)
    assert those(server.push("0", 0), p.ValidateUpdate)
    server.hear("0", wire.Goodbye("0", "done"))
    (welcome,) = messages(server.hear("0b", hello_of(0, "0b")), wire.Welcome)
    assert welcome.first == 1


# ---------------------------------------------------------------- what differs


def test_a_refusal_names_what_differs_and_is_logged():
    server = ProtocolHarness(terms=("seed=0", "training.batch_size=32", "x=1"))
    terms = ("seed=1", "training.batch_size=64", "x=1")
    effects = server.hear("x", hello_of(0, "x", terms=terms))
    (refused,) = messages(effects, wire.Refused)
    words = "seed is 1, there 0; training.batch_size is 64, there 32"
    assert words in refused.reason
    assert [words in warned.text for warned in those(effects, p.Warn)] == [True]
    assert those(server.hear("x", hello_of(0, "x", terms=terms)), p.Warn) == []


def test_a_worker_with_other_data_of_the_same_size_is_refused():
    server = ProtocolHarness(data=("aa", "bb", "cc"))
    for worker, right in enumerate(("aa", "bb")):
        (refused,) = messages(
            server.hear("x", hello_of(worker, f"x{worker}", data="dd")), wire.Refused
        )
        assert f"digest dd, there {right}" in refused.reason
    (refused,) = messages(server.hear("x", hello_of(-1, "e", data="aa")), wire.Refused)
    assert "the test data are others" in refused.reason
    assert messages(server.hear("0", hello_of(0, "0", data="aa")), wire.Welcome)
    assert messages(server.hear("e", hello_of(-1, "e", data="cc")), wire.Welcome)


# ---------------------------------------------------------------- after a restart


def test_a_committed_update_is_not_counted_again_after_a_restart():
    ledger = Ledger()
    ledger.begin(0, "a", -1)
    ledger.add(UpdateKey(0, "a", 0), 0)
    assert ledger.num_open("a") == 1
    snapshot = ledger.snapshot(1, [UpdateKey(0, "a", 0)])
    again = Ledger.restore(snapshot)
    assert again.is_known("a", 0)
    assert again.num_open("a") == 0


# ---------------------------------------------------------------- at the end


def test_a_registered_peer_that_sends_a_hello_after_the_end_is_stopped():
    """It registers with a server that was restarted twice; the second time too late."""
    server = joined("0", "1")
    server.on(p.StopRequested("enough"))
    assert messages(server.hear("1", hello_of(1, "1")), wire.StopRun)
    (refused,) = messages(server.hear("2", hello_of(1, "1b")), wire.Refused)
    assert "enough" in refused.reason


def test_an_evaluator_may_come_back_for_the_last_version():
    server = joined("0", stop=Stop(max_versions=3), best=Best(1, "accuracy", 0.5))
    for version in (1, 2, 3):
        server.push("0", version)
        server.make(version)
        server.save(version)
    assert messages(server.hear("e", hello_of(-1, "e")), wire.Welcome)
    server.hear("e", wire.EvalResult("e", 3, {"accuracy": 0.75}))
    (finish,) = those(server.end(), p.Finish)
    assert finish.status == "finished"
    assert server.machine.status().best.version == 3
