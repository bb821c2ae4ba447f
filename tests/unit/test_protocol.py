"""Both protocols, told by hand what happens."""

import math
import re

import pytest

from asyn2f import trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages as wire
from asyn2f.protocol import wire_format
from asyn2f.protocol.channels import (
    ALL,
    UPDATES,
    Channel,
    Subscribed,
    topic_of,
)
from asyn2f.timing import Stop
from tests.support.messages import RUNTIME, header_of, hello_of, made
from tests.support.protocol_harness import (
    ASYN2F,
    FEDAVG,
    WELCOME,
    PeerHarness,
    ProtocolHarness,
    key_of,
    messages,
    outcomes,
    pushed,
    those,
    with_,
)

ANNOUNCE = ("after_save", "before_save")


# ---------------------------------------------------------------- registration


@pytest.mark.parametrize(
    ("worker", "changes", "words"),
    [
        (0, {"protocol": 1}, "protocol 1, the server speaks 6"),
        (0, {"role": "spy"}, "role 'spy', allowed: worker, evaluator"),
        (0, {"fingerprint": "bush"}, "its model has other arrays"),
        (-1, {"fingerprint": "bush"}, "its model has other arrays"),
        (0, {"terms": ("seed=1",)}, "settings differ .*: seed is 1, there 0"),
        (0, {"coding": "int8"}, "config.wire is int8; the server's plain"),
        (2, {}, r"worker 2, the data is cut for 0\.\.1"),
        (0, {"worker": -1}, r"worker -1, the data is cut for 0\.\.1"),
        (-1, {"worker": 9}, "an evaluator of number 9, allowed: -1"),
        (0, {"num_examples": 0}, "0 examples"),
        (0, {"quality": 0.0}, "quality 0.0"),
        (0, {"quality": 1.5}, "quality 1.5"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_with_words(worker, changes, words):
    effects = ProtocolHarness().hear("x", hello_of(worker, "x", **changes))
    (refused,) = messages(effects, wire.Refused)
    assert re.search(words, refused.reason)
    assert not refused.retry


def test_one_number_has_one_live_worker():
    server = ProtocolHarness()
    server.join("0")
    (refused,) = messages(server.hear("0b", hello_of(0, "0b")), wire.Refused)
    assert refused.retry
    assert "a worker 0 is here already" in refused.reason


def test_when_the_first_of_a_number_falls_silent_the_second_is_let_in():
    server = ProtocolHarness()
    server.join("0")
    server.wait(1.0)
    assert not messages(server.join("0b"), wire.Welcome)
    server.wait(1.0)
    assert messages(server.join("0b"), wire.Welcome)


def test_a_worker_that_repeats_its_hello_is_not_its_own_rival():
    server = ProtocolHarness()
    server.join("0")
    assert messages(server.join("0"), wire.Welcome)


def test_nobody_is_welcomed_before_enough_have_come():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    effects = server.join("e", "0")
    assert not messages(effects, wire.Welcome)
    assert [m.missing for m in messages(effects, wire.Registered)] == [2, 1]


def test_when_enough_have_come_all_are_welcomed():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    server.join("e", "0")
    effects = server.join("1")
    for session in ("0", "1", "e"):
        assert messages(effects, wire.Welcome, to=session)


def test_who_falls_silent_while_waiting_is_not_counted():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    server.join("0")
    server.wait(2.0)
    assert not messages(server.join("1"), wire.Welcome)


def test_who_subscribes_gets_the_newest_version_for_itself():
    server = ProtocolHarness(with_(ASYN2F, min_workers=1))
    server.join("0")
    server.push("0", 0)
    server.make(1)
    server.save(1)
    (sent,) = those(server.join("1"), p.Broadcast)
    assert (sent.topic, sent.message.version) == (topic_of("1"), 1)


def test_the_same_subscription_again_gets_the_newest_version_again():
    server = ProtocolHarness()
    server.join("0")
    assert those(server.on(Subscribed(topic_of("0"))), p.Broadcast)


def test_a_subscription_of_a_stranger_gets_nothing():
    assert not those(ProtocolHarness().on(Subscribed(topic_of("0"))), p.Broadcast)


# ---------------------------------------------------------------- presence


def test_a_beat_is_answered_by_a_pulse():
    server = ProtocolHarness()
    server.join("0")
    assert messages(server.beat("0"), wire.HeartbeatAck, to="0") == [
        wire.HeartbeatAck(1, 0, True)
    ]


def test_a_stranger_is_asked_who_it_is():
    assert messages(ProtocolHarness().beat("0"), wire.UnknownSession, to="0") == [
        wire.UnknownSession(1)
    ]


def test_a_peer_that_was_stopped_does_not_take_it_for_the_servers_silence():
    peer = PeerHarness()
    peer.enter()
    peer.wait(1.0)
    peer.now += 2 * RUNTIME["server_timeout_s"]
    effects = peer.on(p.Tick())
    assert messages(effects, wire.Heartbeat)
    assert not those(effects, p.Finish)
    assert those(peer.wait(2 * RUNTIME["server_timeout_s"]), p.Finish), "now it listens"


def test_a_peer_that_is_asked_greets_again():
    peer = PeerHarness()
    peer.enter()
    peer.hear(wire.UnknownSession(1))
    assert messages(peer.wait(0.1), wire.Hello)


def test_a_peer_that_is_asked_many_times_greets_once():
    """Each beat that has waited for the next server is answered by this question."""
    peer = PeerHarness()
    peer.enter()
    effects = []
    for _ in range(10):
        effects += peer.hear(wire.UnknownSession(2)) + peer.hear(
            wire.HeartbeatAck(2, 0, True)
        )
        effects += peer.wait(0.001)
    assert len(messages(effects, wire.Hello)) == 1


def test_a_silent_worker_is_not_waited_for():
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    assert not those(server.push("0", 0), p.AggregateVersion)
    server.wait(1.0)
    server.beat("0")
    (make,) = those(server.wait(1.0), p.AggregateVersion)
    assert make.keys == (key_of("0", 0),)


def test_a_silent_worker_is_shown_and_noted_as_silent():
    server = ProtocolHarness()
    server.join("0")
    server.beat("0")
    noted = [record.event for record in those(server.wait(2.0), p.RecordEvent)]
    assert [(e.worker, e.reason) for e in noted] == [(0, "silent")]
    assert server.machine.status().workers[0].state == "silent"


def test_a_silent_worker_comes_back_with_its_next_beat():
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    server.wait(2.0)
    noted = [record.event for record in those(server.beat("0"), p.RecordEvent)]
    assert [type(event) for event in noted] == [trace.WorkerJoined]
    assert server.machine.status().workers[0].state == "training"
    server.beat("1")
    assert not those(server.push("0", 0), p.AggregateVersion)


def test_a_worker_that_says_goodbye_is_gone_at_once():
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    server.push("0", 0)
    assert those(server.hear("1", wire.Goodbye("1", "enough")), p.AggregateVersion)
    assert server.machine.status().workers[1].state == "gone"


def test_the_late_goodbye_of_a_process_does_not_remove_its_successor():
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    server.wait(1.0)
    server.beat("1")
    server.wait(1.0)  # session 0 is silent by now
    server.join("0b")
    server.hear("0", wire.Goodbye("0", "the terminal was closed"))
    assert not those(server.push("1", 0), p.AggregateVersion), (
        "0b is here and has not pushed"
    )


def test_a_number_that_has_a_successor_is_not_taken_back():
    server = ProtocolHarness()
    server.join("0")
    server.wait(2.0)
    server.join("0b")
    server.beat("0")
    server.push("1", 0)
    assert [w.worker for w in server.machine.status().workers] == [0]
    server.push("0b", 1)
    server.make(1)
    (announced,) = those(server.save(1), p.ReportVersion)
    assert announced.workers == 1


def test_an_update_of_a_process_that_has_a_successor_does_not_replace_its_updates():
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2))
    server.join("0", "1")
    server.wait(1.0)
    server.beat("1")
    server.wait(1.0)
    server.join("0b")
    server.push("0b", 1)
    assert ("0b", 1, "superseded") not in outcomes(server.push("0", 7))


# ---------------------------------------------------------------- models


def test_get_is_answered_with_the_newest_version():
    server = ProtocolHarness()
    server.join("0")
    (sent,) = those(server.hear("0", wire.FetchModel("0", -1)), p.Broadcast)
    assert (sent.topic, sent.message.version) == (topic_of("0"), 0)


def test_get_of_one_that_has_the_newest_is_not_answered():
    server = ProtocolHarness()
    server.join("0")
    assert not those(server.hear("0", wire.FetchModel("0", 0)), p.Broadcast)


def test_a_peer_asks_for_a_version_it_hears_of_the_second_time():
    peer = PeerHarness()
    peer.enter()
    peer.receive(0)
    assert not messages(peer.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel)
    assert messages(peer.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel) == [
        wire.FetchModel("0", 0)
    ]


def test_a_peer_does_not_ask_for_a_version_that_came():
    peer = PeerHarness()
    peer.enter()
    peer.receive(0)
    peer.hear(wire.HeartbeatAck(1, 1, True))
    peer.receive(1)
    assert not messages(peer.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel)


def test_a_peer_takes_only_what_is_newer():
    peer = PeerHarness()
    peer.enter()
    taken = [bool(those(peer.receive(v), p.Deliver)) for v in (1, 0, 1, 3, 2)]
    assert taken == [True, False, False, True, False]


def test_a_peer_takes_no_version_of_another_incarnation_or_run():
    peer = PeerHarness()
    peer.enter(WELCOME._replace(incarnation=2))
    assert not those(peer.receive(5, incarnation=1), p.Deliver)
    header, payload = made(5, incarnation=2)
    other = p.FromWire(Channel.MODEL, ALL, header._replace(run="run-2"), payload)
    assert not those(peer.on(other), p.Deliver)


def test_a_peer_takes_nothing_before_it_is_welcome():
    assert not those(PeerHarness().receive(0), p.Deliver)


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": 1}, "base version 1 is not in 0..0"),
        ({"base": -1}, "base version -1 is not in 0..0"),
        ({"base": 2**62}, "is not in 0..0"),
        ({"start_version": 1}, "is not in 0..0"),
        ({"run": "run-2"}, "of run run-2, this is run-1"),
        ({"worker": 1}, "from worker 1 in worker 0's session"),
        ({"num_examples": 11.0}, "11.0 examples, registered 10"),
        ({"num_examples": math.nan}, "nan examples"),
        ({"quality": 0.5}, "quality 0.5, registered 1.0"),
        ({"loss": -0.1}, "loss -0.1"),
        ({"loss": math.nan}, "loss nan"),
        ({"loss": math.inf}, "loss inf"),
        ({"metric": math.nan}, "metric nan"),
    ],
)
def test_an_update_whose_header_is_wrong_is_rejected_unchecked(changes, words):
    server = ProtocolHarness()
    server.join("0", "1")
    effects = server.receive("0", 0, **changes)
    (outcome,) = messages(effects, wire.UpdateOutcome, to="0")
    assert outcome.outcome == "rejected"
    assert words in outcome.reason
    assert not those(effects, p.ValidateUpdate)


def test_an_update_that_does_not_decode_is_rejected_with_what_was_found():
    server = ProtocolHarness()
    server.join("0")
    server.receive("0", 0)
    effects = server.on(p.UpdateValidated(key_of("0", 0), "payload is damaged"))
    (outcome,) = messages(effects, wire.UpdateOutcome)
    assert (outcome.outcome, outcome.reason) == ("rejected", "payload is damaged")
    assert not those(effects, p.AggregateVersion)


def test_an_update_of_a_stranger_or_of_an_evaluator_is_left_alone():
    server = ProtocolHarness()
    server.join("e")
    header = header_of(0, "e")
    for session in ("e", "nobody"):
        sent = header._replace(session=session)
        effects = server.on(p.FromWire(Channel.UPDATE, UPDATES, sent, b""))
        assert effects == []


def test_an_update_gets_a_receipt_and_is_checked():
    server = ProtocolHarness()
    server.join("0")
    effects = server.receive("0", 0)
    assert messages(effects, wire.UpdateReceived, to="0") == [
        wire.UpdateReceived("0", 0)
    ]
    assert [check.key for check in those(effects, p.ValidateUpdate)] == [key_of("0", 0)]


def test_an_update_that_comes_twice_counts_once():
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2))
    server.join("0", "1")
    server.push("0", 0)
    effects = server.receive("0", 0)
    assert messages(effects, wire.UpdateReceived) == [wire.UpdateReceived("0", 0)]
    assert not those(effects, p.ValidateUpdate)
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("0", 0), key_of("1", 0))


def test_an_update_that_comes_after_its_outcome_is_told_it_again():
    server = ProtocolHarness()
    server.join("0")
    server.push("0", 0)
    server.make(1)
    told = messages(server.save(1), wire.UpdateOutcome)
    assert messages(server.receive("0", 0), wire.UpdateOutcome) == told
    assert server.machine.status().committed == 1


def test_a_newer_update_of_a_worker_replaces_its_pending_one():
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2))
    server.join("0", "1")
    server.push("0", 0)
    assert outcomes(server.push("0", 1)) == [("0", 0, "superseded")]
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("0", 1), key_of("1", 0))


def test_an_older_update_that_comes_after_a_newer_one_is_superseded():
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2))
    server.join("0", "1")
    server.push("0", 1)
    effects = server.receive("0", 0)
    assert outcomes(effects) == [("0", 0, "superseded")]
    assert not those(effects, p.ValidateUpdate)


def test_a_stale_update_is_rejected():
    server = ProtocolHarness(with_(ASYN2F, max_staleness=0))
    server.join("0", "1")
    server.push("0", 0)
    server.make(1)
    server.save(1)
    assert outcomes(server.push("1", 0)) == [("1", 0, "rejected")]


def test_a_beat_is_told_how_each_unsettled_update_stands():
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2))
    server.join("0", "1")
    server.push("0", 0)
    server.push("0", 1)
    effects = server.beat("0", 0, 1, 2)
    assert outcomes(effects) == [("0", 0, "superseded")]
    assert messages(effects, wire.UpdateReceived) == [wire.UpdateReceived("0", 1)]
    assert messages(effects, wire.Resend) == [wire.Resend("0", 2)]


@pytest.mark.parametrize("later", [1, 64, 200])
def test_an_outcome_is_told_as_long_as_its_worker_asks(later):
    """Its CONTROL was cut for a while, its updates came through."""
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2), workers=2)
    server.join("0", "1")
    for seq in range(later + 1):
        server.push("0", seq)
    assert outcomes(server.beat("0", 0)) == [("0", 0, "superseded")]


def test_while_a_version_is_saved_a_worker_fills_no_memory():
    """The store may be unavailable for minutes; workers push on."""
    server = ProtocolHarness()
    server.join("0")
    server.push("0", 0)
    server.make(1)
    effects = [e for seq in range(1, 50) for e in server.push("0", seq)]
    held = {check.key for check in those(effects, p.ValidateUpdate)}
    held -= {forget.key for forget in those(effects, p.DropUpdate)}
    assert len(held) <= 4


def test_what_is_settled_is_forgotten():
    server = ProtocolHarness()
    server.join("0")
    server.push("0", 0)
    server.make(1)
    assert [f.key for f in those(server.save(1), p.DropUpdate)] == [key_of("0", 0)]


# ---------------------------------------------------------------- versions


def test_durable_tells_nobody_of_a_version_before_it_is_saved():
    server = ProtocolHarness(publish="after_save")
    server.join("0")
    server.push("0", 0)
    effects = server.make(1)
    assert [save.version for save in those(effects, p.SaveVersion)] == [1]
    assert not those(effects, p.Broadcast)
    assert messages(server.beat("0"), wire.HeartbeatAck) == [
        wire.HeartbeatAck(1, 0, True)
    ]
    effects = server.save(1)
    assert [sent.message.version for sent in those(effects, p.Broadcast)] == [1]
    assert [announced.version for announced in those(effects, p.ReportVersion)] == [1]


def test_early_tells_of_a_version_as_soon_as_it_is_made():
    server = ProtocolHarness(publish="before_save")
    server.join("0")
    server.push("0", 0)
    effects = server.make(1)
    assert [save.version for save in those(effects, p.SaveVersion)] == [1]
    assert [sent.message.version for sent in those(effects, p.Broadcast)] == [1]


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_nothing_is_committed_before_it_is_saved(announce):
    server = ProtocolHarness(publish=announce)
    server.join("0")
    server.push("0", 0)
    assert outcomes(server.make(1)) == []
    assert outcomes(server.beat("0", 0)) == []
    (outcome,) = messages(server.save(1), wire.UpdateOutcome)
    assert (outcome.outcome, outcome.version) == ("committed", 1)


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_the_next_version_is_begun_when_the_one_before_is_saved(announce):
    server = ProtocolHarness(publish=announce)
    server.join("0")
    server.push("0", 0)
    assert not those(server.push("0", 1), p.AggregateVersion)
    assert not those(server.make(1), p.AggregateVersion)
    (make,) = those(server.save(1), p.AggregateVersion)
    assert make == p.AggregateVersion(2, (key_of("0", 1),))


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_version_that_could_not_be_saved_is_saved_again(announce):
    server = ProtocolHarness(publish=announce)
    server.join("0")
    server.push("0", 0)
    server.make(1)
    effects = server.on(p.SaveFailed(1, "no space left on device"))
    assert not those(effects, p.SaveVersion)
    assert [save.version for save in those(server.wait(1.5), p.SaveVersion)] == [1]
    server.on(p.SaveFailed(1, "no space left on device"))
    assert [save.version for save in those(server.wait(1.5), p.SaveVersion)] == [1]
    assert outcomes(server.save(1)) == [("0", 0, "committed")]


def test_of_a_store_that_does_not_answer_is_said_so_once_per_save():
    """It may hang for ever, and then nothing else would tell."""
    server = ProtocolHarness()
    server.join("0")
    server.push("0", 0)
    server.make(1)
    assert not those(server.wait(9.0), p.Warn)
    (warned,) = those(server.wait(60.0), p.Warn)
    assert "version 1" in warned.text
    server.save(1)
    server.push("0", 1, base=1)
    server.make(2)
    server.wait(5.0)
    server.save(2)
    assert not those(server.wait(60.0), p.Warn), "this one was in time"


def test_durable_does_not_announce_a_version_that_could_not_be_saved():
    server = ProtocolHarness(publish="after_save")
    server.join("0")
    server.push("0", 0)
    server.make(1)
    effects = server.on(p.SaveFailed(1, "no space left on device")) + server.wait(1.5)
    assert not those(effects, p.Broadcast)
    assert outcomes(effects) == []
    assert [sent.message.version for sent in those(server.save(1), p.Broadcast)] == [1]


def test_what_waits_too_long_is_aggregated():
    server = ProtocolHarness(
        with_(ASYN2F, min_updates=2, min_workers=2, deadline_s=1.0)
    )
    server.join("0", "1")
    server.push("0", 0)
    assert not those(server.wait(0.9), p.AggregateVersion)
    assert those(server.wait(0.2), p.AggregateVersion)


def test_a_rejected_update_does_not_hold_up_its_round():
    """Its worker waits for the next version: nothing else will come from it."""
    server = ProtocolHarness(with_(FEDAVG, min_workers=2))
    server.join("0", "1")
    server.receive("0", 0, loss=math.nan)
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("1", 0),)


# ---------------------------------------------------------------- scores


def scored(version, accuracy, loss=0.5):
    return wire.EvalResult("e", version, accuracy, loss, f1=0.5)


def test_a_score_is_noted_and_gets_a_receipt():
    server = ProtocolHarness()
    server.join("0", "e")
    effects = server.hear("e", scored(0, 0.7))
    assert messages(effects, wire.EvalAck, to="e") == [wire.EvalAck(0)]
    (judged,) = those(effects, p.ReportScore)
    assert (judged.version, judged.accuracy, judged.is_best) == (0, 0.7, True)


def test_a_score_that_is_told_twice_is_judged_once():
    server = ProtocolHarness()
    server.join("0", "e")
    server.hear("e", scored(0, 0.7))
    effects = server.hear("e", scored(0, 0.7))
    assert messages(effects, wire.EvalAck) == [wire.EvalAck(0)]
    assert not those(effects, p.ReportScore)


@pytest.mark.parametrize("version", [-1, 1, 2**62])
def test_a_score_of_a_version_that_does_not_exist_is_left_out(version):
    server = ProtocolHarness(stop=Stop(target_accuracy=0.9))
    server.join("0", "e")
    effects = server.hear("e", scored(version, 0.99))
    assert not those(effects, p.ReportScore)
    assert server.machine.status().best_version is None
    assert not messages(effects, wire.StopRun)


def test_a_worker_gives_no_scores_and_a_nan_is_none():
    server = ProtocolHarness()
    server.join("0", "e")
    assert not those(
        server.hear("0", wire.EvalResult("0", 0, 0.7, 0.5, 0.6)), p.ReportScore
    )
    assert not those(server.hear("e", scored(0, math.nan)), p.ReportScore)


def test_an_evaluator_repeats_its_score_until_it_has_a_receipt():
    peer = PeerHarness(worker=-1)
    peer.enter()
    assert messages(peer.on(p.VersionEvaluated(0, 0.7, 0.5, 0.6)), wire.EvalResult)
    assert messages(peer.wait(0.6), wire.EvalResult)
    peer.hear(wire.EvalAck(0))
    assert not messages(peer.wait(0.6), wire.EvalResult)


# ---------------------------------------------------------------- the end


def assert_all_settled(effects, *keys):
    told = [(v.session, v.seq) for v in messages(effects, wire.UpdateOutcome)]
    assert sorted(told) == sorted(key[1:] for key in keys)
    assert len(those(effects, p.Finish)) == 1


def test_the_last_version_ends_the_run():
    server = ProtocolHarness(stop=Stop(max_versions=1))
    server.join("0")
    server.push("0", 0)
    server.make(1)
    effects = server.save(1)
    assert messages(effects, wire.StopRun, to="0")
    assert outcomes(effects) == [("0", 0, "committed")]
    (finish,) = those(server.end(), p.Finish)
    assert finish == p.Finish("finished", "version 1 reached")


def test_a_run_resumed_at_its_end_ends_if_nobody_comes_back():
    server = ProtocolHarness(stop=Stop(max_versions=3), version=3)
    assert not those(server.wait(9.0), p.Finish)  # who lives is on the way
    (finish,) = those(server.wait(2.0), p.Finish)
    assert finish.status == "finished"


def test_a_run_resumed_before_its_end_waits_for_its_workers():
    server = ProtocolHarness(stop=Stop(max_versions=4), version=3)
    assert not those(server.wait(60.0), p.Finish)


def test_time_ends_the_run():
    server = ProtocolHarness(stop=Stop(max_time_s=1.0))
    server.join("0")
    assert not messages(server.wait(0.9), wire.StopRun)
    (finish,) = those(server.end(), p.Finish)
    assert finish == p.Finish("finished", "1 s have passed")


def test_a_target_accuracy_ends_the_run():
    server = ProtocolHarness(stop=Stop(target_accuracy=0.9))
    server.join("0", "e")
    assert not messages(server.hear("e", scored(0, 0.89)), wire.StopRun)
    server.push("0", 0)
    server.make(1)
    server.save(1)
    assert messages(server.hear("e", scored(1, 0.9)), wire.StopRun, to="0")
    (finish,) = those(server.end(), p.Finish)
    assert finish.status == "finished"


def test_a_run_can_be_stopped_while_it_waits_for_workers():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    server.join("0", "e")
    effects = server.on(p.StopRequested("enough")) + server.end(2.0)
    assert messages(effects, wire.StopRun, to="0")
    assert messages(effects, wire.StopRun, to="e")
    assert those(effects, p.Finish) == [p.Finish("interrupted", "enough")]


def test_a_run_can_be_stopped_before_anybody_came():
    (finish,) = those(ProtocolHarness().on(p.StopRequested("enough")), p.Finish)
    assert finish == p.Finish("interrupted", "enough")


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_stop_settles_what_is_pending_and_what_is_being_checked(announce):
    server = ProtocolHarness(with_(ASYN2F, min_updates=2, min_workers=2), announce)
    server.join("0", "1")
    server.push("0", 0)
    server.receive("1", 0)
    effects = server.on(p.StopRequested("enough"))
    assert outcomes(effects) == [("0", 0, "rejected"), ("1", 0, "rejected")]
    effects += server.on(p.UpdateValidated(key_of("1", 0), "")) + server.end()
    assert_all_settled(effects, key_of("0", 0), key_of("1", 0))


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_stop_lets_the_version_on_its_way_be_made_and_saved(announce):
    server = ProtocolHarness(publish=announce)
    server.join("0")
    server.push("0", 0)
    server.push("0", 1)
    effects = server.on(p.StopRequested("enough"))
    assert outcomes(effects) == [("0", 1, "rejected")]
    server.wait(1.0)
    effects += server.make(1)
    assert not those(effects, p.Finish)
    effects += server.save(1)
    assert outcomes(effects)[-1] == ("0", 0, "committed")
    effects += server.end()
    assert not those(effects, p.AggregateVersion)
    assert_all_settled(effects, key_of("0", 0), key_of("0", 1))


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_stop_during_a_save_settles_what_waits_behind_it(announce):
    server = ProtocolHarness(publish=announce)
    server.join("0")
    server.push("0", 0)
    server.make(1)
    server.push("0", 1)
    effects = server.on(p.StopRequested("enough")) + server.save(1)
    assert ("0", 0, "committed") in outcomes(effects)
    assert_all_settled(effects + server.end(), key_of("0", 0), key_of("0", 1))


def test_what_a_stop_has_settled_is_not_settled_again_by_the_last_version():
    """It has become stale by that version, which is saved after the stop."""
    timing = with_(ASYN2F, pending="all", min_updates=2, min_workers=3, max_staleness=0)
    server = ProtocolHarness(timing, version=3, workers=3)
    server.join("0", "1")
    for session, seq in (("0", 0), ("1", 0), ("0", 1)):
        server.push(session, seq, base=3)
    assert those(server.join("2"), p.AggregateVersion)
    server.make(4)
    told = outcomes(server.on(p.StopRequested("enough")))
    assert told == [("0", 1, "rejected")]
    told = outcomes(server.save(4))
    assert told == [("0", 0, "committed"), ("1", 0, "committed")]
    server.end()


def test_a_store_that_fails_does_not_hold_up_the_end_for_ever():
    server = ProtocolHarness()
    server.join("0")
    server.push("0", 0)
    server.make(1)
    effects = server.on(p.StopRequested("enough"))
    for _ in range(20):
        effects += server.on(p.SaveFailed(1, "no space left on device"))
        effects += server.wait(1.5)
        if those(effects, p.Finish):
            break
    assert those(effects, p.Finish)
    assert ("0", 0, "committed") not in outcomes(effects)


def test_an_update_that_comes_after_the_end_is_rejected():
    server = ProtocolHarness()
    server.join("0")
    server.on(p.StopRequested("enough"))
    (outcome,) = messages(server.receive("0", 0), wire.UpdateOutcome)
    assert (outcome.outcome, outcome.reason) == ("rejected", "the run is over")


def test_who_comes_after_the_end_is_refused():
    server = ProtocolHarness()
    server.join("0")
    server.on(p.StopRequested("enough"))
    (refused,) = messages(server.hear("1", hello_of(1, "1")), wire.Refused)
    assert refused == wire.Refused("the run is over: enough", retry=False)


def test_a_worker_that_missed_the_end_is_told_with_its_next_beat():
    server = ProtocolHarness()
    server.join("0")
    server.on(p.StopRequested("enough"))
    assert messages(server.beat("0"), wire.StopRun, to="0")


def test_the_server_finishes_when_all_have_said_goodbye():
    server = ProtocolHarness()
    server.join("0", "1")
    effects = server.on(p.StopRequested("enough")) + server.hear(
        "0", wire.Goodbye("0", "")
    )
    assert not those(effects, p.Finish)
    assert those(server.hear("1", wire.Goodbye("1", "")), p.Finish)


def test_the_server_finishes_when_nobody_says_goodbye():
    server = ProtocolHarness()
    server.join("0", "1")
    server.on(p.StopRequested("enough"))
    for _ in range(4):
        server.wait(0.25)
        server.beat("0")
        server.beat("1")
    server.end(1.0)


def test_the_server_waits_for_the_score_of_the_last_version():
    server = ProtocolHarness(stop=Stop(max_versions=1))
    server.join("0", "e")
    server.push("0", 0)
    server.make(1)
    effects = server.save(1) + server.hear("0", wire.Goodbye("0", ""))
    for _ in range(4):
        effects += server.beat("e") + server.wait(0.5)
    assert not messages(effects, wire.StopRun, to="e")
    assert messages(server.hear("e", scored(1, 0.7)), wire.StopRun, to="e")
    assert those(server.hear("e", wire.Goodbye("e", "")), p.Finish)


def test_the_server_does_not_wait_for_a_score_for_ever():
    server = ProtocolHarness(stop=Stop(max_versions=1))
    server.join("0", "e")
    server.push("0", 0)
    server.make(1)
    effects = server.save(1)
    while not those(effects, p.Finish):
        assert server.now < 13.0
        effects = server.beat("e") + server.wait(0.5)


@pytest.mark.parametrize("timing", [ASYN2F, FEDAVG], ids=["asyn2f", "fedavg"])
def test_a_deadline_that_passes_during_the_end_is_no_reason_for_haste(timing):
    server = ProtocolHarness(
        with_(timing, min_updates=2, min_workers=2, deadline_s=0.5)
    )
    server.join("0", "1")
    server.push("0", 0)
    effects = server.on(p.StopRequested("enough")) + server.end()
    assert len(those(effects, p.ShowStatus)) < 20


def test_an_end_is_told_however_long_its_reason():
    server = ProtocolHarness()
    server.join("0")
    stop = messages(server.on(p.StopRequested("x" * 2000)), wire.StopRun)[0]
    assert isinstance(wire_format.decode(wire_format.encode(stop)), wire.StopRun)


# ---------------------------------------------------------------- the peer


def test_a_peer_says_hello_until_it_is_answered():
    peer = PeerHarness()
    assert len(messages(peer.wait(3.0), wire.Hello)) > 3
    peer.enter()
    assert not messages(peer.wait(3.0), wire.Hello)


def test_a_peer_that_gets_no_answer_gives_up():
    effects = PeerHarness().wait(RUNTIME["join_timeout_s"] + 2)
    assert those(effects, p.StopWork)
    (finish,) = those(effects, p.Finish)
    assert finish.status == "refused"
    assert finish.reason.startswith("could not register within 8 s: no answer; is a")


def test_a_peer_whose_place_stays_taken_gives_up():
    peer, effects = PeerHarness(), []
    while not those(effects, p.Finish):
        assert peer.now < RUNTIME["join_timeout_s"] + 2, "it tries for ever"
        peer.hear(wire.Refused("a worker 0 is here already", retry=True))
        effects = peer.wait(0.5)
    (finish,) = those(effects, p.Finish)
    assert finish.status == "refused"
    assert "a worker 0 is here already" in finish.reason


def test_a_peer_that_is_refused_for_a_moment_asks_again():
    peer = PeerHarness()
    effects = peer.hear(wire.Refused("a worker 0 is here already", retry=True))
    assert not those(effects, p.Finish)
    assert messages(peer.wait(1.5), wire.Hello)


def test_a_peer_waits_for_others_as_long_as_the_server_answers():
    peer = PeerHarness()
    for _ in range(20):
        peer.hear(wire.Registered(1, 1, 1, 2, True))
        peer.on(Subscribed(UPDATES))
        assert not those(peer.wait(1.0), p.Finish)


def test_a_peer_that_is_refused_for_good_ends():
    effects = PeerHarness().hear(wire.Refused("its config differs", retry=False))
    assert those(effects, p.StopWork)
    assert those(effects, p.Finish) == [p.Finish("refused", "its config differs")]


def test_a_peer_ends_when_the_server_has_been_silent_for_its_lease():
    peer = PeerHarness()
    peer.enter()
    effects = peer.wait(RUNTIME["server_timeout_s"] + 1)
    assert those(effects, p.StopWork)
    (finish,) = those(effects, p.Finish)
    assert finish == p.Finish("failed", "the server has been silent for 8 s")


def test_a_pulse_renews_the_lease():
    peer = PeerHarness()
    peer.enter()
    for _ in range(20):
        assert not those(peer.wait(1.0), p.Finish)
        peer.hear(wire.HeartbeatAck(1, 0, True))


def test_the_end_of_the_run_ends_the_work_and_not_yet_the_peer():
    peer = PeerHarness()
    peer.enter()
    effects = peer.hear(wire.StopRun(1, "version 1 reached"))
    assert those(effects, p.StopWork) == [p.StopWork("version 1 reached")]
    assert not those(effects, p.Finish)


def test_the_end_that_an_older_server_has_told_is_not_that_of_the_run():
    """It was to end and died before that; the next one goes on."""
    peer = PeerHarness()
    peer.enter(WELCOME._replace(incarnation=2))
    assert not those(peer.hear(wire.StopRun(1, "stopped")), p.StopWork)
    assert those(peer.hear(wire.StopRun(2, "stopped")), p.StopWork)


def test_a_peer_that_shall_stop_says_goodbye():
    peer = PeerHarness()
    peer.enter()
    effects = peer.on(p.StopRequested("enough"))
    assert messages(effects, wire.Goodbye) == [wire.Goodbye("0", "enough")]
    assert those(effects, p.Finish) == [p.Finish("finished", "enough")]
    assert peer.on(p.StopRequested("enough")) == []


def test_a_peer_beats_as_often_as_the_server_says():
    peer = PeerHarness()
    peer.enter()
    assert len(messages(peer.wait(2.1), wire.Heartbeat)) == 5


def test_an_update_is_published_when_the_server_hears_it_and_not_before():
    peer = PeerHarness()
    peer.hear(WELCOME)
    assert pushed(peer.push()) == []
    assert pushed(peer.on(Subscribed(UPDATES))) == [0]


def test_an_update_bears_the_run_the_session_and_its_number():
    peer = PeerHarness()
    peer.enter()
    peer.push()
    (sent,) = those(peer.push(), p.Broadcast)
    header = sent.message
    assert (header.run, header.incarnation) == ("run-1", 1)
    assert (header.session, header.seq) == ("0", 1)


def test_an_update_for_which_there_was_no_room_is_published_again():
    peer = PeerHarness()
    peer.enter()
    (sent,) = those(peer.push(), p.Broadcast)
    peer.on(p.SendFailed(sent.message))
    assert pushed(peer.wait(0.6)) == [0]


@pytest.mark.parametrize("outcome", ["committed", "superseded", "rejected"])
def test_an_outcome_empties_the_outbox(outcome):
    peer = PeerHarness()
    peer.enter()
    peer.push()
    assert peer.unsettled() == (0,)
    peer.judge(0, outcome)
    assert peer.unsettled() == ()


def test_a_receipt_does_not():
    peer = PeerHarness()
    peer.enter()
    peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    assert peer.unsettled() == (0,)


def test_an_update_that_did_not_arrive_is_sent_again():
    peer = PeerHarness()
    peer.enter()
    peer.push()
    assert pushed(peer.hear(wire.Resend("0", 0))) == [0]


def test_what_was_sent_often_is_asked_about_seldom():
    """What is still on its way is not to be sent again for that."""
    peer = PeerHarness()
    peer.enter()
    peer.push()
    asked_s = []
    for _ in range(4):
        start_s = peer.now
        while not any(
            beat.unsettled for beat in messages(peer.wait(0.1), wire.Heartbeat)
        ):
            pass
        asked_s.append(peer.now - start_s)
        assert pushed(peer.hear(wire.Resend("0", 0))) == [0]
    heartbeat_interval_s = RUNTIME["heartbeat_interval_s"]
    for found_s, beats in zip(asked_s, (1, 2, 4, 4), strict=True):
        assert (
            beats * heartbeat_interval_s
            <= found_s + 0.01
            <= (beats + 1) * heartbeat_interval_s + 0.2
        )


def test_what_is_sent_again_is_sent_one_after_the_other():
    """A link that is cut loses all that is on its way."""
    peer = PeerHarness()
    peer.enter()
    peer.push()
    peer.push()
    assert pushed(peer.hear(wire.Resend("0", 0))) == []  # 1 may still arrive
    assert pushed(peer.hear(wire.UpdateReceived("0", 1))) == [0]


def test_what_is_said_to_another_session_means_nothing():
    peer = PeerHarness()
    peer.enter()
    peer.push()
    assert pushed(peer.hear(wire.Resend("1", 0))) == []
    peer.hear(wire.UpdateOutcome(1, "1", 0, "committed", 1, ""))
    assert peer.unsettled() == (0,)


def test_of_too_many_unanswered_updates_the_oldest_is_withdrawn():
    peer = PeerHarness()
    peer.enter()
    effects = [effect for _ in range(6) for effect in peer.push()]
    noted = [record.event for record in those(effects, p.RecordEvent)]
    withdrawn = [e.seq for e in noted if isinstance(e, trace.UpdateSettled)]
    assert withdrawn == [0, 1]
    assert peer.unsettled() == (2, 3, 4, 5)


def test_an_update_with_a_receipt_is_not_withdrawn():
    peer = PeerHarness()
    peer.enter()
    peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    for _ in range(5):
        peer.push()
    assert peer.unsettled() == (0, 3, 4, 5)


def test_a_beat_can_be_read_however_many_updates_wait():
    """The store is slow: all have receipts, none has an outcome."""
    peer = PeerHarness()
    peer.enter()
    for seq in range(80):
        peer.push()
        peer.hear(wire.UpdateReceived("0", seq))
    beat = messages(peer.wait(1.0), wire.Heartbeat)[-1]
    assert wire_format.decode(wire_format.encode(beat)) == beat


def test_every_overdue_update_is_asked_about_however_many_there_are():
    """The oldest 16 may wait for a version; later outcomes can be lost all the same."""
    peer = PeerHarness()
    peer.enter()
    for seq in range(40):
        peer.push()
        peer.hear(wire.UpdateReceived("0", seq))
    peer.wait(2 * RUNTIME["heartbeat_interval_s"])
    beats = messages(peer.wait(3 * RUNTIME["heartbeat_interval_s"]), wire.Heartbeat)
    assert {seq for beat in beats for seq in beat.unsettled} == set(range(40))
    assert all(len(set(beat.unsettled)) == 16 for beat in beats)


def test_a_peer_that_ends_withdraws_what_has_no_outcome():
    """Receipts too: the server that gave one may have died with the update."""
    peer = PeerHarness()
    peer.enter()
    peer.push()
    peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    noted = [r.event for r in those(peer.on(p.StopRequested("enough")), p.RecordEvent)]
    settled = [(e.seq, e.outcome) for e in noted if isinstance(e, trace.UpdateSettled)]
    assert settled == [(0, "withdrawn"), (1, "withdrawn")]


# ---------------------------------------------------------------- incarnations


def test_a_peer_greets_the_next_incarnation_of_the_server():
    peer = PeerHarness()
    peer.enter()
    peer.hear(wire.HeartbeatAck(2, 0, True))
    assert messages(peer.wait(0.1), wire.Hello)


def test_a_peer_connects_anew_to_the_next_incarnation_and_sends_all_again():
    peer = PeerHarness()
    peer.enter()
    for _ in range(3):
        peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    peer.judge(1, "committed")
    peer.hear(wire.HeartbeatAck(2, 0, True))
    welcome = WELCOME._replace(incarnation=2, model_port=3, update_port=4)
    effects = peer.hear(welcome)
    assert those(effects, p.Connect) == [p.Connect([b"all", topic_of("0")], 3, 4)]
    assert pushed(effects) == []
    effects = peer.on(Subscribed(UPDATES))
    assert pushed(effects) == [0, 2]
    assert those(effects, p.Broadcast)[0].message.incarnation == 2


RESUMED = WELCOME._replace(incarnation=2)
NOT_YET = wire.Registered(2, 1, 1, 2, False)


def registered_anew():
    """A worker that has two updates with a receipt of the server before, and two on
    their way; the next server waits for others."""
    peer = PeerHarness()
    peer.enter()
    for seq in range(4):
        peer.push()
        if seq < 2:
            peer.hear(wire.UpdateReceived("0", seq))
    peer.hear(wire.HeartbeatAck(2, 0, True))
    peer.hear(NOT_YET)
    return peer


def test_what_is_made_before_the_next_server_welcomes_is_held_back():
    peer = registered_anew()
    assert pushed(peer.push() + peer.hear(wire.Resend("0", 3)) + peer.wait(5.0)) == []
    assert pushed(peer.enter(RESUMED)) == [0, 1, 3, 4]


def test_the_outbox_does_not_grow_while_the_next_server_waits_for_others():
    """That one takes in what waited on the connection, gives a receipt for it, and says
    what became of it: in vain, as it is not yet followed."""
    peer = registered_anew()
    for seq in range(4, 40):
        peer.hear(wire.UpdateReceived("0", seq - 1))
        peer.judge(seq - 1, "superseded", incarnation=2)
        peer.hear(NOT_YET)
        peer.push()
        peer.wait(0.3)
    assert pushed(peer.enter(RESUMED)) == [0, 1, 38, 39]


def test_what_the_next_server_has_said_too_early_is_asked_about_when_it_welcomes():
    peer = registered_anew()
    peer.hear(wire.UpdateReceived("0", 3))
    peer.judge(3, "superseded", incarnation=2)
    assert pushed(peer.enter(RESUMED)) == [0, 1, 2, 3]
    peer.judge(3, "superseded", incarnation=2)
    assert peer.unsettled() == (0, 1, 2)


def test_a_receipt_that_comes_during_a_greeting_is_asked_for_again():
    """The greeting was a mistake: the same server goes on, and nothing is sent anew."""
    peer = PeerHarness()
    peer.enter()
    peer.push()
    peer.hear(wire.UnknownSession(1))
    peer.hear(wire.UpdateReceived("0", 0))
    assert pushed(peer.hear(WELCOME)) == []
    assert peer.unsettled() == (0,)


def test_an_evaluator_keeps_a_score_until_the_next_server_has_welcomed_it():
    peer = PeerHarness(worker=-1)
    peer.enter()
    peer.on(p.VersionEvaluated(0, 0.5, 0.5, 0.5))
    peer.hear(wire.HeartbeatAck(2, 0, True))
    peer.hear(NOT_YET)
    peer.wait(5.0)
    told = messages(peer.enter(RESUMED) + peer.wait(0.1), wire.EvalResult)
    assert [score.version for score in told] == [0]
    peer.hear(wire.EvalAck(0))
    assert not messages(peer.wait(2.0), wire.EvalResult)


def test_a_peer_that_is_welcomed_again_by_the_same_server_stays_connected():
    peer = PeerHarness()
    peer.enter()
    peer.hear(wire.UnknownSession(1))
    assert not those(peer.hear(WELCOME._replace(version=3)), p.Connect)


def test_an_older_server_is_not_followed():
    """Its words are late, or it does not know that it has a successor."""
    peer = PeerHarness()
    peer.enter(WELCOME._replace(incarnation=2))
    assert peer.hear(WELCOME) == []
    assert peer.hear(wire.HeartbeatAck(1, 7, True)) == []
    assert not messages(peer.wait(0.01), wire.Hello)
    assert those(peer.receive(1, incarnation=2), p.Deliver)


def waiting(base):
    return p.WorkerProgress("waiting", 1, 1.0, 0.5, 0.5, base, 0, -1.0)


@pytest.mark.parametrize("outcome", ["committed", "rejected"])
def test_who_waits_for_the_version_after_one_that_is_lost_begins_again(outcome):
    """Its update was in it, or too stale for it; nothing else would ever wake it."""
    peer = PeerHarness()
    peer.enter()
    peer.receive(0)
    peer.push()
    peer.on(waiting(0))
    peer.judge(0, outcome)
    peer.hear(WELCOME._replace(incarnation=2, version=0))
    assert those(peer.receive(0, incarnation=2), p.Deliver)


@pytest.mark.parametrize(("outcome", "by"), [("committed", 1), ("rejected", 2)])
def test_who_hears_late_what_became_of_its_update_begins_again(outcome, by):
    """The next server has greeted it by then, without the version that the update is
    in, or is a change of."""
    peer = PeerHarness()
    peer.enter()
    peer.receive(0)
    peer.push()
    peer.on(waiting(0))
    peer.hear(WELCOME._replace(incarnation=2, version=0))
    assert not those(peer.receive(0, incarnation=2), p.Deliver)
    effects = peer.judge(0, outcome, incarnation=by)
    assert messages(effects, wire.FetchModel) == [wire.FetchModel("0", -1)]
    assert those(peer.receive(0, incarnation=2), p.Deliver)


@pytest.mark.parametrize("is_waiting", [True, False])
def test_who_trains_or_has_pushed_does_not_begin_again(is_waiting):
    peer = PeerHarness()
    peer.enter()
    peer.receive(0)
    if is_waiting:
        peer.push()
        peer.on(waiting(0))
    peer.hear(WELCOME._replace(incarnation=2, version=0))
    assert not those(peer.receive(0, incarnation=2), p.Deliver)


def test_an_older_servers_rejection_is_not_believed():
    peer = PeerHarness()
    peer.enter(WELCOME._replace(incarnation=2))
    peer.push()
    for outcome in ("rejected", "superseded"):
        peer.judge(0, outcome, incarnation=1)
        assert peer.unsettled() == (0,)


def test_an_older_servers_commitment_is_believed():
    peer = PeerHarness()
    peer.enter(WELCOME._replace(incarnation=2))
    peer.push()
    peer.judge(0, "committed", incarnation=1)
    assert peer.unsettled() == ()
