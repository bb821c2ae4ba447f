"""Who is believed, how much is taken in at once, and what is remembered of the gone."""

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
from tests.support.messages import RUNTIME, hello_of
from tests.support.protocol_harness import (
    ASYN2F,
    FEDAVG,
    PeerHarness,
    ProtocolHarness,
    beat_of,
    messages,
    outcomes,
    pushed,
    those,
    with_,
)

BUFFER = with_(ASYN2F, pending="all", min_updates=3)
LIMITED = RuntimeSettings(**RUNTIME, max_updates_per_s=2.0)


# ---------------------------------------------------------------- how much


def test_a_worker_with_too_much_under_way_is_told_to_wait():
    server = ProtocolHarness(with_(BUFFER, min_updates=9), most_open=2)
    server.join("0", "1")
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


def test_an_update_that_was_told_to_wait_is_as_good_as_new_when_it_comes_again():
    server = ProtocolHarness(with_(BUFFER, min_updates=2), most_open=2)
    server.join("0")
    server.push("0", 0)
    server.push("0", 1)  # makes a version; both are open until it is saved
    assert messages(server.receive("0", 2), wire.Backoff)
    server.make(1)
    server.save(1)
    assert those(server.receive("0", 2), p.ValidateUpdate)


def test_a_worker_may_push_so_often_in_the_long_run_and_no_oftener():
    server = ProtocolHarness(runtime=LIMITED)
    server.join("0")
    taken = 0
    for seq in range(400):
        server.now = seq * 0.05
        taken += bool(those(server.receive("0", seq), p.ValidateUpdate))
        server.on(p.UpdateValidated(UpdateKey(0, "0", seq), "of no use"))
    assert 2 * 400 * 0.05 <= taken <= 2 * 400 * 0.05 + 2 * 2


def test_a_peer_that_is_told_to_wait_keeps_its_update_and_sends_it_then():
    peer = PeerHarness()
    peer.enter()
    assert pushed(peer.push()) == [0]
    peer.hear(wire.Backoff("0", 0, 0.3))
    assert pushed(peer.wait(0.25)) == []
    assert pushed(peer.push()) == [], "what is newer waits as well"
    assert pushed(peer.wait(0.1)) == [0, 1]


def test_a_new_server_need_not_be_waited_for():
    peer = PeerHarness()
    peer.enter()
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
def test_a_peer_whose_key_is_anothers_is_refused(identity):
    server = ProtocolHarness()
    effects = server.hear("0", hello_of(0, "0"), identity)
    (refused,) = messages(effects, wire.Refused)
    assert not refused.retry
    assert identity in refused.reason
    assert those(effects, p.Warn)


def test_a_peer_with_its_own_key_comes_in():
    server = ProtocolHarness(with_(ASYN2F, min_workers=1))
    assert messages(server.hear("0", hello_of(0, "0"), "worker-0"), wire.Welcome)
    assert messages(server.hear("e", hello_of(-1, "e"), "evaluator"), wire.Welcome)


def test_whoever_speaks_in_anothers_name_is_not_listened_to():
    server = ProtocolHarness()
    server.join("0", "1", "e")
    before = server.machine.status()
    spoken = [
        server.hear("1", beat_of("0", 0), "worker-1"),
        server.hear("1", wire.Goodbye("0", "farewell"), "worker-1"),
        server.hear("1", wire.EvalResult("e", 0, 1.0, 0.1, 1.0), "worker-1"),
        server.receive("0", 0, identity="worker-1"),
    ]
    kinds = [[type(effect) for effect in effects] for effects in spoken]
    # The same words in the log are said once.
    assert kinds == [[p.Warn], [], [p.Warn], []]
    after = server.machine.status()
    assert after._replace(bytes_up=0) == before
    assert those(server.receive("0", 0, identity="worker-0"), p.ValidateUpdate)


# ---------------------------------------------------------------- rounds of nothing


def test_a_round_whose_updates_are_all_of_no_use_ends_the_run():
    """Its workers wait for a version that nothing can be made of."""
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    assert not those(server.receive("0", 0, loss=math.nan), p.Finish)
    server.receive("1", 0, loss=math.nan)
    (finish,) = those(server.end(), p.Finish)
    assert finish.status == "failed"
    assert "loss nan" in finish.reason


def test_workers_that_do_not_wait_may_fail_as_often_as_they_like():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    server.join("0", "1")
    for seq in range(3):
        for worker in ("0", "1"):
            server.receive(worker, seq, loss=math.nan)
    assert not those(server.wait(1.0), p.Finish)
    assert those(server.push("0", 3), p.AggregateVersion)


# ---------------------------------------------------------------- the gone


def test_what_a_process_left_is_forgotten_when_another_has_taken_its_place():
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


def test_a_process_whose_place_was_taken_is_refused_for_good():
    server = ProtocolHarness()
    server.join("0")
    server.hear("0", wire.Goodbye("0", "it seemed so"))
    server.join("0b")
    server.wait(0.6)
    (refused,) = messages(server.hear("0", hello_of(0, "0", first=0)), wire.Refused)
    assert not refused.retry
    assert outcomes(server.receive("0", 0)) == []


def test_an_evaluator_that_was_silent_for_a_while_is_let_in_again():
    server = ProtocolHarness()
    server.join("0", "e")
    for _ in range(8):
        server.wait(0.5)
        server.beat("0")
    assert messages(server.hear("e", beat_of("e")), wire.UnknownSession)
    assert messages(server.hear("e", hello_of(-1, "e")), wire.Welcome)


def test_no_update_counts_twice_however_often_its_worker_comes_again():
    """Quick lives of one key, and then the first of them again: numbers only grow."""
    server = ProtocolHarness(with_(ASYN2F, min_updates=1))
    server.join("0")
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


def test_a_process_that_was_replaced_is_refused_by_the_next_server_too():
    ledger = Ledger()
    assert [ledger.begin(0, session, -1) for session in "abb"] == [0, 1, 1]
    again = Ledger.restore(json.loads(json.dumps(ledger.snapshot(1, []))))
    assert again.is_past(0, "a", 0)
    assert not again.is_past(0, "b", 1)
    assert again.owner("b") == 0
    assert again.owner("a") is None


def test_who_was_let_in_by_a_server_that_saved_nothing_is_let_in_again():
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
def test_nobody_comes_in_by_the_session_of_another(session, identity):
    server = ProtocolHarness()
    server.join("0", "1", "e")
    server.push("0", 0)
    effects = server.hear("x", hello_of(1, session), identity)
    (refused,) = messages(effects, wire.Refused, to="x")
    assert "its session belongs to another" in refused.reason
    assert not refused.retry
    assert messages(server.beat("0"), wire.HeartbeatAck, to="0"), (
        "and it changes nothing"
    )
    told = messages(server.make(1) + server.save(1), wire.UpdateOutcome, to="0")
    assert [outcome.outcome for outcome in told] == ["committed"]


def test_a_session_is_its_workers_also_at_the_next_server():
    server = ProtocolHarness()
    server.join("0")
    server.push("0", 0)
    (save,) = those(server.make(1), p.SaveVersion)
    later = ProtocolHarness(version=1, accounting=save.accounting)
    (refused,) = messages(later.hear("x", hello_of(1, "0")), wire.Refused)
    assert "its session belongs to another" in refused.reason
    assert messages(later.hear("y", hello_of(0, "0", first=0)), wire.Welcome)


def test_without_keys_a_live_connection_keeps_its_session():
    server = ProtocolHarness()
    server.join("0")
    assert server.hear("x", beat_of("0")) == []
    assert server.hear("x", wire.Goodbye("0", "farewell")) == []
    (refused,) = messages(server.hear("x", hello_of(0, "0")), wire.Refused, to="x")
    assert refused.retry
    assert messages(server.beat("0"), wire.HeartbeatAck, to="0")
    server.wait(
        2 * RUNTIME["heartbeat_interval_s"]
    )  # it has fallen silent, as when it connects anew
    assert messages(server.hear("x", beat_of("0")), wire.HeartbeatAck, to="x")


def test_without_keys_who_connects_anew_is_told_of_the_end_at_once():
    """The server ends before two beats are over."""
    server = ProtocolHarness()
    server.join("0")
    server.on(p.StopRequested("enough"))
    for message in (beat_of("0"), hello_of(0, "0")):
        (stop,) = messages(server.hear("x", message), wire.StopRun, to="x")
        assert stop.reason == "enough"
    assert not messages(server.hear("x", hello_of(1, "1")), wire.StopRun)


def test_with_keys_who_connects_anew_need_not_wait():
    server = ProtocolHarness()
    server.hear("0", hello_of(0, "0"), "worker-0")
    assert messages(
        server.hear("x", beat_of("0"), "worker-0"), wire.HeartbeatAck, to="x"
    )


def test_a_sessions_name_is_in_no_topic():
    peer, server = PeerHarness(), ProtocolHarness()
    (connect,) = those(peer.enter(), p.Connect)
    effects = server.join("0") + server.hear("0", wire.FetchModel("0", -1))
    topics = [*connect.topics, *(sent.topic for sent in those(effects, p.Broadcast))]
    assert len(topics) > 3
    assert topic_of("0") in topics
    assert not any(hello_of(0, "s3cret").session.encode() in x for x in topics)
    assert b"s3cret" not in topic_of("s3cret")


def test_there_is_one_evaluator_at_a_time():
    server = ProtocolHarness()
    server.join("0", "e")
    (refused,) = messages(server.hear("f", hello_of(-1, "f")), wire.Refused)
    assert "an evaluator is here already" in refused.reason
    assert refused.retry
    lying = server.hear("f", wire.EvalResult("f", 0, 1.0, 0.0, 1.0))
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


def test_updates_that_their_headers_forbid_are_limited():
    server = ProtocolHarness()
    server.join("0", "1")
    settled = 0
    for seq in range(500):
        server.now = seq * 0.01
        effects = server.receive("0", seq, loss=math.nan)
        settled += len(messages(effects, wire.UpdateOutcome))
    assert 20 <= settled <= 40
    assert messages(effects, wire.Backoff)
    assert those(server.receive("1", 0), p.ValidateUpdate), "another's are taken in"


def test_nobody_pushes_in_the_name_of_another_worker():
    """Nor moves the numbers of another on."""
    server = ProtocolHarness()
    server.join("0", "1")
    effects = server.receive("1", 2**40, worker=0)
    assert not those(effects, p.ValidateUpdate)
    server.receive("1", 5, worker=0)
    assert those(server.push("0", 0), p.ValidateUpdate)
    server.hear("0", wire.Goodbye("0", "done"))
    (welcome,) = messages(server.hear("0b", hello_of(0, "0b")), wire.Welcome)
    assert welcome.first == 1


# ---------------------------------------------------------------- what differs


def test_a_refusal_names_what_differs_and_the_log_says_it_too():
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


def test_nothing_of_it_is_counted_again_after_a_restart():
    ledger = Ledger()
    ledger.begin(0, "a", -1)
    ledger.add(UpdateKey(0, "a", 0), 0)
    assert ledger.num_open("a") == 1
    snapshot = ledger.snapshot(1, [UpdateKey(0, "a", 0)])
    again = Ledger.restore(snapshot)
    assert again.is_known("a", 0)
    assert again.num_open("a") == 0


# ---------------------------------------------------------------- at the end


def test_who_was_let_in_and_asks_again_at_the_end_is_told_that_it_is_over():
    """It has greeted a server that came back twice; the second time it was too late."""
    server = ProtocolHarness()
    server.join("0", "1")
    server.on(p.StopRequested("enough"))
    assert messages(server.hear("1", hello_of(1, "1")), wire.StopRun)
    (refused,) = messages(server.hear("2", hello_of(1, "1b")), wire.Refused)
    assert "enough" in refused.reason


def test_an_evaluator_may_come_back_for_the_last_version():
    server = ProtocolHarness(stop=Stop(max_versions=3), best=(0.5, 1))
    server.join("0")
    for version in (1, 2, 3):
        server.push("0", version)
        server.make(version)
        server.save(version)
    assert messages(server.hear("e", hello_of(-1, "e")), wire.Welcome)
    server.hear("e", wire.EvalResult("e", 3, 0.75, 0.5, 0.5))
    (finish,) = those(server.end(), p.Finish)
    assert finish.status == "finished"
    assert server.machine.status().best_version == 3
