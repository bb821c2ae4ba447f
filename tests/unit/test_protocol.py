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
    Desk,
    Seat,
    key_of,
    messages,
    pushed,
    those,
    verdicts,
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
    effects = Desk().hear("x", hello_of(worker, "x", **changes))
    (refused,) = messages(effects, wire.Refused)
    assert re.search(words, refused.reason)
    assert not refused.retry


def test_one_number_has_one_live_worker():
    desk = Desk()
    desk.join("0")
    (refused,) = messages(desk.hear("0b", hello_of(0, "0b")), wire.Refused)
    assert refused.retry
    assert "a worker 0 is here already" in refused.reason


def test_when_the_first_of_a_number_falls_silent_the_second_is_let_in():
    desk = Desk()
    desk.join("0")
    desk.wait(1.0)
    assert not messages(desk.join("0b"), wire.Welcome)
    desk.wait(1.0)
    assert messages(desk.join("0b"), wire.Welcome)


def test_a_worker_that_repeats_its_hello_is_not_its_own_rival():
    desk = Desk()
    desk.join("0")
    assert messages(desk.join("0"), wire.Welcome)


def test_nobody_is_welcomed_before_enough_have_come():
    desk = Desk(with_(ASYN2F, min_workers=2))
    effects = desk.join("e", "0")
    assert not messages(effects, wire.Welcome)
    assert [m.missing for m in messages(effects, wire.Registered)] == [2, 1]


def test_when_enough_have_come_all_are_welcomed():
    desk = Desk(with_(ASYN2F, min_workers=2))
    desk.join("e", "0")
    effects = desk.join("1")
    for session in ("0", "1", "e"):
        assert messages(effects, wire.Welcome, to=session)


def test_who_falls_silent_while_waiting_is_not_counted():
    desk = Desk(with_(ASYN2F, min_workers=2))
    desk.join("0")
    desk.wait(2.0)
    assert not messages(desk.join("1"), wire.Welcome)


def test_who_subscribes_gets_the_newest_version_for_itself():
    desk = Desk(with_(ASYN2F, min_workers=1))
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    desk.save(1)
    (sent,) = those(desk.join("1"), p.Broadcast)
    assert (sent.topic, sent.message.version) == (topic_of("1"), 1)


def test_the_same_subscription_again_gets_the_newest_version_again():
    desk = Desk()
    desk.join("0")
    assert those(desk.on(Subscribed(topic_of("0"))), p.Broadcast)


def test_a_subscription_of_a_stranger_gets_nothing():
    assert not those(Desk().on(Subscribed(topic_of("0"))), p.Broadcast)


# ---------------------------------------------------------------- presence


def test_a_beat_is_answered_by_a_pulse():
    desk = Desk()
    desk.join("0")
    assert messages(desk.beat("0"), wire.HeartbeatAck, to="0") == [
        wire.HeartbeatAck(1, 0, True)
    ]


def test_a_stranger_is_asked_who_it_is():
    assert messages(Desk().beat("0"), wire.UnknownSession, to="0") == [
        wire.UnknownSession(1)
    ]


def test_a_peer_that_was_stopped_does_not_take_it_for_the_servers_silence():
    seat = Seat()
    seat.enter()
    seat.wait(1.0)
    seat.now += 2 * RUNTIME["server_timeout_s"]
    effects = seat.on(p.Tick())
    assert messages(effects, wire.Heartbeat)
    assert not those(effects, p.Finish)
    assert those(seat.wait(2 * RUNTIME["server_timeout_s"]), p.Finish), "now it listens"


def test_a_peer_that_is_asked_greets_again():
    seat = Seat()
    seat.enter()
    seat.hear(wire.UnknownSession(1))
    assert messages(seat.wait(0.1), wire.Hello)


def test_a_peer_that_is_asked_many_times_greets_once():
    """Each beat that has waited for the next server is answered by this question."""
    seat = Seat()
    seat.enter()
    effects = []
    for _ in range(10):
        effects += seat.hear(wire.UnknownSession(2)) + seat.hear(
            wire.HeartbeatAck(2, 0, True)
        )
        effects += seat.wait(0.001)
    assert len(messages(effects, wire.Hello)) == 1


def test_a_silent_worker_is_not_waited_for():
    desk = Desk(with_(FEDAVG, min_workers=2))
    desk.join("0", "1")
    assert not those(desk.push("0", 0), p.AggregateVersion)
    desk.wait(1.0)
    desk.beat("0")
    (make,) = those(desk.wait(1.0), p.AggregateVersion)
    assert make.keys == (key_of("0", 0),)


def test_a_silent_worker_is_shown_and_noted_as_silent():
    desk = Desk()
    desk.join("0")
    desk.beat("0")
    noted = [record.event for record in those(desk.wait(2.0), p.RecordEvent)]
    assert [(e.worker, e.reason) for e in noted] == [(0, "silent")]
    assert desk.machine.status().workers[0].state == "silent"


def test_a_silent_worker_comes_back_with_its_next_beat():
    desk = Desk(with_(FEDAVG, min_workers=2))
    desk.join("0", "1")
    desk.wait(2.0)
    noted = [record.event for record in those(desk.beat("0"), p.RecordEvent)]
    assert [type(event) for event in noted] == [trace.WorkerJoined]
    assert desk.machine.status().workers[0].state == "training"
    desk.beat("1")
    assert not those(desk.push("0", 0), p.AggregateVersion)


def test_a_worker_that_says_goodbye_is_gone_at_once():
    desk = Desk(with_(FEDAVG, min_workers=2))
    desk.join("0", "1")
    desk.push("0", 0)
    assert those(desk.hear("1", wire.Goodbye("1", "enough")), p.AggregateVersion)
    assert desk.machine.status().workers[1].state == "gone"


def test_the_late_goodbye_of_a_process_does_not_remove_its_successor():
    desk = Desk(with_(FEDAVG, min_workers=2))
    desk.join("0", "1")
    desk.wait(1.0)
    desk.beat("1")
    desk.wait(1.0)  # session 0 is silent by now
    desk.join("0b")
    desk.hear("0", wire.Goodbye("0", "the terminal was closed"))
    assert not those(desk.push("1", 0), p.AggregateVersion), (
        "0b is here and has not pushed"
    )


def test_a_number_that_has_a_successor_is_not_taken_back():
    desk = Desk()
    desk.join("0")
    desk.wait(2.0)
    desk.join("0b")
    desk.beat("0")
    desk.push("1", 0)
    assert [w.worker for w in desk.machine.status().workers] == [0]
    desk.push("0b", 1)
    desk.make(1)
    (announced,) = those(desk.save(1), p.ReportVersion)
    assert announced.workers == 1


def test_an_update_of_a_process_that_has_a_successor_does_not_replace_its_updates():
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2))
    desk.join("0", "1")
    desk.wait(1.0)
    desk.beat("1")
    desk.wait(1.0)
    desk.join("0b")
    desk.push("0b", 1)
    assert ("0b", 1, "superseded") not in verdicts(desk.push("0", 7))


# ---------------------------------------------------------------- models


def test_get_is_answered_with_the_newest_version():
    desk = Desk()
    desk.join("0")
    (sent,) = those(desk.hear("0", wire.FetchModel("0", -1)), p.Broadcast)
    assert (sent.topic, sent.message.version) == (topic_of("0"), 0)


def test_get_of_one_that_has_the_newest_is_not_answered():
    desk = Desk()
    desk.join("0")
    assert not those(desk.hear("0", wire.FetchModel("0", 0)), p.Broadcast)


def test_a_peer_asks_for_a_version_it_hears_of_the_second_time():
    seat = Seat()
    seat.enter()
    seat.receive(0)
    assert not messages(seat.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel)
    assert messages(seat.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel) == [
        wire.FetchModel("0", 0)
    ]


def test_a_peer_does_not_ask_for_a_version_that_came():
    seat = Seat()
    seat.enter()
    seat.receive(0)
    seat.hear(wire.HeartbeatAck(1, 1, True))
    seat.receive(1)
    assert not messages(seat.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel)


def test_a_peer_takes_only_what_is_newer():
    seat = Seat()
    seat.enter()
    taken = [bool(those(seat.receive(v), p.Deliver)) for v in (1, 0, 1, 3, 2)]
    assert taken == [True, False, False, True, False]


def test_a_peer_takes_no_version_of_another_incarnation_or_run():
    seat = Seat()
    seat.enter(WELCOME._replace(incarnation=2))
    assert not those(seat.receive(5, incarnation=1), p.Deliver)
    header, payload = made(5, incarnation=2)
    other = p.FromWire(Channel.MODEL, ALL, header._replace(run="run-2"), payload)
    assert not those(seat.on(other), p.Deliver)


def test_a_peer_takes_nothing_before_it_is_welcome():
    assert not those(Seat().receive(0), p.Deliver)


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
    desk = Desk()
    desk.join("0", "1")
    effects = desk.receive("0", 0, **changes)
    (verdict,) = messages(effects, wire.UpdateOutcome, to="0")
    assert verdict.verdict == "rejected"
    assert words in verdict.reason
    assert not those(effects, p.ValidateUpdate)


def test_an_update_that_does_not_decode_is_rejected_with_what_was_found():
    desk = Desk()
    desk.join("0")
    desk.receive("0", 0)
    effects = desk.on(p.UpdateValidated(key_of("0", 0), "payload is damaged"))
    (verdict,) = messages(effects, wire.UpdateOutcome)
    assert (verdict.verdict, verdict.reason) == ("rejected", "payload is damaged")
    assert not those(effects, p.AggregateVersion)


def test_an_update_of_a_stranger_or_of_an_evaluator_is_left_alone():
    desk = Desk()
    desk.join("e")
    header = header_of(0, "e")
    for session in ("e", "nobody"):
        sent = header._replace(session=session)
        effects = desk.on(p.FromWire(Channel.UPDATE, UPDATES, sent, b""))
        assert effects == []


def test_an_update_gets_a_receipt_and_is_checked():
    desk = Desk()
    desk.join("0")
    effects = desk.receive("0", 0)
    assert messages(effects, wire.UpdateReceived, to="0") == [
        wire.UpdateReceived("0", 0)
    ]
    assert [check.key for check in those(effects, p.ValidateUpdate)] == [key_of("0", 0)]


def test_an_update_that_comes_twice_counts_once():
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2))
    desk.join("0", "1")
    desk.push("0", 0)
    effects = desk.receive("0", 0)
    assert messages(effects, wire.UpdateReceived) == [wire.UpdateReceived("0", 0)]
    assert not those(effects, p.ValidateUpdate)
    (make,) = those(desk.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("0", 0), key_of("1", 0))


def test_an_update_that_comes_after_its_verdict_is_told_it_again():
    desk = Desk()
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    told = messages(desk.save(1), wire.UpdateOutcome)
    assert messages(desk.receive("0", 0), wire.UpdateOutcome) == told
    assert desk.machine.status().committed == 1


def test_a_newer_update_of_a_worker_replaces_its_pending_one():
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2))
    desk.join("0", "1")
    desk.push("0", 0)
    assert verdicts(desk.push("0", 1)) == [("0", 0, "superseded")]
    (make,) = those(desk.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("0", 1), key_of("1", 0))


def test_an_older_update_that_comes_after_a_newer_one_is_superseded():
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2))
    desk.join("0", "1")
    desk.push("0", 1)
    effects = desk.receive("0", 0)
    assert verdicts(effects) == [("0", 0, "superseded")]
    assert not those(effects, p.ValidateUpdate)


def test_a_stale_update_is_rejected():
    desk = Desk(with_(ASYN2F, max_staleness=0))
    desk.join("0", "1")
    desk.push("0", 0)
    desk.make(1)
    desk.save(1)
    assert verdicts(desk.push("1", 0)) == [("1", 0, "rejected")]


def test_a_beat_is_told_how_each_unsettled_update_stands():
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2))
    desk.join("0", "1")
    desk.push("0", 0)
    desk.push("0", 1)
    effects = desk.beat("0", 0, 1, 2)
    assert verdicts(effects) == [("0", 0, "superseded")]
    assert messages(effects, wire.UpdateReceived) == [wire.UpdateReceived("0", 1)]
    assert messages(effects, wire.Resend) == [wire.Resend("0", 2)]


@pytest.mark.parametrize("later", [1, 64, 200])
def test_a_verdict_is_told_as_long_as_its_worker_asks(later):
    """Its CONTROL was cut for a while, its updates came through."""
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2), workers=2)
    desk.join("0", "1")
    for seq in range(later + 1):
        desk.push("0", seq)
    assert verdicts(desk.beat("0", 0)) == [("0", 0, "superseded")]


def test_while_a_version_is_saved_a_worker_fills_no_memory():
    """The store may be unavailable for minutes; workers push on."""
    desk = Desk()
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    effects = [e for seq in range(1, 50) for e in desk.push("0", seq)]
    held = {check.key for check in those(effects, p.ValidateUpdate)}
    held -= {forget.key for forget in those(effects, p.DropUpdate)}
    assert len(held) <= 4


def test_what_is_settled_is_forgotten():
    desk = Desk()
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    assert [f.key for f in those(desk.save(1), p.DropUpdate)] == [key_of("0", 0)]


# ---------------------------------------------------------------- versions


def test_durable_tells_nobody_of_a_version_before_it_is_saved():
    desk = Desk(publish="after_save")
    desk.join("0")
    desk.push("0", 0)
    effects = desk.make(1)
    assert [save.version for save in those(effects, p.SaveVersion)] == [1]
    assert not those(effects, p.Broadcast)
    assert messages(desk.beat("0"), wire.HeartbeatAck) == [
        wire.HeartbeatAck(1, 0, True)
    ]
    effects = desk.save(1)
    assert [sent.message.version for sent in those(effects, p.Broadcast)] == [1]
    assert [announced.version for announced in those(effects, p.ReportVersion)] == [1]


def test_early_tells_of_a_version_as_soon_as_it_is_made():
    desk = Desk(publish="before_save")
    desk.join("0")
    desk.push("0", 0)
    effects = desk.make(1)
    assert [save.version for save in those(effects, p.SaveVersion)] == [1]
    assert [sent.message.version for sent in those(effects, p.Broadcast)] == [1]


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_nothing_is_committed_before_it_is_saved(announce):
    desk = Desk(publish=announce)
    desk.join("0")
    desk.push("0", 0)
    assert verdicts(desk.make(1)) == []
    assert verdicts(desk.beat("0", 0)) == []
    (verdict,) = messages(desk.save(1), wire.UpdateOutcome)
    assert (verdict.verdict, verdict.version) == ("committed", 1)


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_the_next_version_is_begun_when_the_one_before_is_saved(announce):
    desk = Desk(publish=announce)
    desk.join("0")
    desk.push("0", 0)
    assert not those(desk.push("0", 1), p.AggregateVersion)
    assert not those(desk.make(1), p.AggregateVersion)
    (make,) = those(desk.save(1), p.AggregateVersion)
    assert make == p.AggregateVersion(2, (key_of("0", 1),))


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_version_that_could_not_be_saved_is_saved_again(announce):
    desk = Desk(publish=announce)
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    effects = desk.on(p.SaveFailed(1, "no space left on device"))
    assert not those(effects, p.SaveVersion)
    assert [save.version for save in those(desk.wait(1.5), p.SaveVersion)] == [1]
    desk.on(p.SaveFailed(1, "no space left on device"))
    assert [save.version for save in those(desk.wait(1.5), p.SaveVersion)] == [1]
    assert verdicts(desk.save(1)) == [("0", 0, "committed")]


def test_of_a_store_that_does_not_answer_is_said_so_once_per_save():
    """It may hang for ever, and then nothing else would tell."""
    desk = Desk()
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    assert not those(desk.wait(9.0), p.Warn)
    (warned,) = those(desk.wait(60.0), p.Warn)
    assert "version 1" in warned.text
    desk.save(1)
    desk.push("0", 1, base=1)
    desk.make(2)
    desk.wait(5.0)
    desk.save(2)
    assert not those(desk.wait(60.0), p.Warn), "this one was in time"


def test_durable_does_not_announce_a_version_that_could_not_be_saved():
    desk = Desk(publish="after_save")
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    effects = desk.on(p.SaveFailed(1, "no space left on device")) + desk.wait(1.5)
    assert not those(effects, p.Broadcast)
    assert verdicts(effects) == []
    assert [sent.message.version for sent in those(desk.save(1), p.Broadcast)] == [1]


def test_what_waits_too_long_is_aggregated():
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2, deadline_s=1.0))
    desk.join("0", "1")
    desk.push("0", 0)
    assert not those(desk.wait(0.9), p.AggregateVersion)
    assert those(desk.wait(0.2), p.AggregateVersion)


def test_a_rejected_update_does_not_hold_up_its_round():
    """Its worker waits for the next version: nothing else will come from it."""
    desk = Desk(with_(FEDAVG, min_workers=2))
    desk.join("0", "1")
    desk.receive("0", 0, loss=math.nan)
    (make,) = those(desk.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("1", 0),)


# ---------------------------------------------------------------- scores


def scored(version, accuracy, loss=0.5):
    return wire.EvalResult("e", version, accuracy, loss, f1=0.5)


def test_a_score_is_noted_and_gets_a_receipt():
    desk = Desk()
    desk.join("0", "e")
    effects = desk.hear("e", scored(0, 0.7))
    assert messages(effects, wire.EvalAck, to="e") == [wire.EvalAck(0)]
    (judged,) = those(effects, p.ReportScore)
    assert (judged.version, judged.accuracy, judged.is_best) == (0, 0.7, True)


def test_a_score_that_is_told_twice_is_judged_once():
    desk = Desk()
    desk.join("0", "e")
    desk.hear("e", scored(0, 0.7))
    effects = desk.hear("e", scored(0, 0.7))
    assert messages(effects, wire.EvalAck) == [wire.EvalAck(0)]
    assert not those(effects, p.ReportScore)


@pytest.mark.parametrize("version", [-1, 1, 2**62])
def test_a_score_of_a_version_that_does_not_exist_is_left_out(version):
    desk = Desk(stop=Stop(target_accuracy=0.9))
    desk.join("0", "e")
    effects = desk.hear("e", scored(version, 0.99))
    assert not those(effects, p.ReportScore)
    assert desk.machine.status().best_version is None
    assert not messages(effects, wire.StopRun)


def test_a_worker_gives_no_scores_and_a_nan_is_none():
    desk = Desk()
    desk.join("0", "e")
    assert not those(
        desk.hear("0", wire.EvalResult("0", 0, 0.7, 0.5, 0.6)), p.ReportScore
    )
    assert not those(desk.hear("e", scored(0, math.nan)), p.ReportScore)


def test_an_evaluator_repeats_its_score_until_it_has_a_receipt():
    seat = Seat(worker=-1)
    seat.enter()
    assert messages(seat.on(p.VersionEvaluated(0, 0.7, 0.5, 0.6)), wire.EvalResult)
    assert messages(seat.wait(0.6), wire.EvalResult)
    seat.hear(wire.EvalAck(0))
    assert not messages(seat.wait(0.6), wire.EvalResult)


# ---------------------------------------------------------------- the end


def assert_all_settled(effects, *keys):
    told = [(v.session, v.seq) for v in messages(effects, wire.UpdateOutcome)]
    assert sorted(told) == sorted(key[1:] for key in keys)
    assert len(those(effects, p.Finish)) == 1


def test_the_last_version_ends_the_run():
    desk = Desk(stop=Stop(max_versions=1))
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    effects = desk.save(1)
    assert messages(effects, wire.StopRun, to="0")
    assert verdicts(effects) == [("0", 0, "committed")]
    (finish,) = those(desk.end(), p.Finish)
    assert finish == p.Finish("finished", "version 1 reached")


def test_a_run_resumed_at_its_end_ends_if_nobody_comes_back():
    desk = Desk(stop=Stop(max_versions=3), version=3)
    assert not those(desk.wait(9.0), p.Finish)  # who lives is on the way
    (finish,) = those(desk.wait(2.0), p.Finish)
    assert finish.status == "finished"


def test_a_run_resumed_before_its_end_waits_for_its_workers():
    desk = Desk(stop=Stop(max_versions=4), version=3)
    assert not those(desk.wait(60.0), p.Finish)


def test_time_ends_the_run():
    desk = Desk(stop=Stop(max_time_s=1.0))
    desk.join("0")
    assert not messages(desk.wait(0.9), wire.StopRun)
    (finish,) = those(desk.end(), p.Finish)
    assert finish == p.Finish("finished", "1 s have passed")


def test_a_target_accuracy_ends_the_run():
    desk = Desk(stop=Stop(target_accuracy=0.9))
    desk.join("0", "e")
    assert not messages(desk.hear("e", scored(0, 0.89)), wire.StopRun)
    desk.push("0", 0)
    desk.make(1)
    desk.save(1)
    assert messages(desk.hear("e", scored(1, 0.9)), wire.StopRun, to="0")
    (finish,) = those(desk.end(), p.Finish)
    assert finish.status == "finished"


def test_a_run_can_be_stopped_while_it_waits_for_workers():
    desk = Desk(with_(ASYN2F, min_workers=2))
    desk.join("0", "e")
    effects = desk.on(p.StopRequested("enough")) + desk.end(2.0)
    assert messages(effects, wire.StopRun, to="0")
    assert messages(effects, wire.StopRun, to="e")
    assert those(effects, p.Finish) == [p.Finish("interrupted", "enough")]


def test_a_run_can_be_stopped_before_anybody_came():
    (finish,) = those(Desk().on(p.StopRequested("enough")), p.Finish)
    assert finish == p.Finish("interrupted", "enough")


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_stop_settles_what_is_pending_and_what_is_being_checked(announce):
    desk = Desk(with_(ASYN2F, min_updates=2, min_workers=2), announce)
    desk.join("0", "1")
    desk.push("0", 0)
    desk.receive("1", 0)
    effects = desk.on(p.StopRequested("enough"))
    assert verdicts(effects) == [("0", 0, "rejected"), ("1", 0, "rejected")]
    effects += desk.on(p.UpdateValidated(key_of("1", 0), "")) + desk.end()
    assert_all_settled(effects, key_of("0", 0), key_of("1", 0))


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_stop_lets_the_version_on_its_way_be_made_and_saved(announce):
    desk = Desk(publish=announce)
    desk.join("0")
    desk.push("0", 0)
    desk.push("0", 1)
    effects = desk.on(p.StopRequested("enough"))
    assert verdicts(effects) == [("0", 1, "rejected")]
    desk.wait(1.0)
    effects += desk.make(1)
    assert not those(effects, p.Finish)
    effects += desk.save(1)
    assert verdicts(effects)[-1] == ("0", 0, "committed")
    effects += desk.end()
    assert not those(effects, p.AggregateVersion)
    assert_all_settled(effects, key_of("0", 0), key_of("0", 1))


@pytest.mark.parametrize("announce", ANNOUNCE)
def test_a_stop_during_a_save_settles_what_waits_behind_it(announce):
    desk = Desk(publish=announce)
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    desk.push("0", 1)
    effects = desk.on(p.StopRequested("enough")) + desk.save(1)
    assert ("0", 0, "committed") in verdicts(effects)
    assert_all_settled(effects + desk.end(), key_of("0", 0), key_of("0", 1))


def test_what_a_stop_has_settled_is_not_settled_again_by_the_last_version():
    """It has become stale by that version, which is saved after the stop."""
    timing = with_(ASYN2F, pending="all", min_updates=2, min_workers=3, max_staleness=0)
    desk = Desk(timing, version=3, workers=3)
    desk.join("0", "1")
    for session, seq in (("0", 0), ("1", 0), ("0", 1)):
        desk.push(session, seq, base=3)
    assert those(desk.join("2"), p.AggregateVersion)
    desk.make(4)
    told = verdicts(desk.on(p.StopRequested("enough")))
    assert told == [("0", 1, "rejected")]
    told = verdicts(desk.save(4))
    assert told == [("0", 0, "committed"), ("1", 0, "committed")]
    desk.end()


def test_a_store_that_fails_does_not_hold_up_the_end_for_ever():
    desk = Desk()
    desk.join("0")
    desk.push("0", 0)
    desk.make(1)
    effects = desk.on(p.StopRequested("enough"))
    for _ in range(20):
        effects += desk.on(p.SaveFailed(1, "no space left on device"))
        effects += desk.wait(1.5)
        if those(effects, p.Finish):
            break
    assert those(effects, p.Finish)
    assert ("0", 0, "committed") not in verdicts(effects)


def test_an_update_that_comes_after_the_end_is_rejected():
    desk = Desk()
    desk.join("0")
    desk.on(p.StopRequested("enough"))
    (verdict,) = messages(desk.receive("0", 0), wire.UpdateOutcome)
    assert (verdict.verdict, verdict.reason) == ("rejected", "the run is over")


def test_who_comes_after_the_end_is_refused():
    desk = Desk()
    desk.join("0")
    desk.on(p.StopRequested("enough"))
    (refused,) = messages(desk.hear("1", hello_of(1, "1")), wire.Refused)
    assert refused == wire.Refused("the run is over: enough", retry=False)


def test_a_worker_that_missed_the_end_is_told_with_its_next_beat():
    desk = Desk()
    desk.join("0")
    desk.on(p.StopRequested("enough"))
    assert messages(desk.beat("0"), wire.StopRun, to="0")


def test_the_server_finishes_when_all_have_said_goodbye():
    desk = Desk()
    desk.join("0", "1")
    effects = desk.on(p.StopRequested("enough")) + desk.hear("0", wire.Goodbye("0", ""))
    assert not those(effects, p.Finish)
    assert those(desk.hear("1", wire.Goodbye("1", "")), p.Finish)


def test_the_server_finishes_when_nobody_says_goodbye():
    desk = Desk()
    desk.join("0", "1")
    desk.on(p.StopRequested("enough"))
    for _ in range(4):
        desk.wait(0.25)
        desk.beat("0")
        desk.beat("1")
    desk.end(1.0)


def test_the_server_waits_for_the_score_of_the_last_version():
    desk = Desk(stop=Stop(max_versions=1))
    desk.join("0", "e")
    desk.push("0", 0)
    desk.make(1)
    effects = desk.save(1) + desk.hear("0", wire.Goodbye("0", ""))
    for _ in range(4):
        effects += desk.beat("e") + desk.wait(0.5)
    assert not messages(effects, wire.StopRun, to="e")
    assert messages(desk.hear("e", scored(1, 0.7)), wire.StopRun, to="e")
    assert those(desk.hear("e", wire.Goodbye("e", "")), p.Finish)


def test_the_server_does_not_wait_for_a_score_for_ever():
    desk = Desk(stop=Stop(max_versions=1))
    desk.join("0", "e")
    desk.push("0", 0)
    desk.make(1)
    effects = desk.save(1)
    while not those(effects, p.Finish):
        assert desk.now < 13.0
        effects = desk.beat("e") + desk.wait(0.5)


@pytest.mark.parametrize("timing", [ASYN2F, FEDAVG], ids=["asyn2f", "fedavg"])
def test_a_deadline_that_passes_during_the_end_is_no_reason_for_haste(timing):
    desk = Desk(with_(timing, min_updates=2, min_workers=2, deadline_s=0.5))
    desk.join("0", "1")
    desk.push("0", 0)
    effects = desk.on(p.StopRequested("enough")) + desk.end()
    assert len(those(effects, p.ShowStatus)) < 20


def test_an_end_is_told_however_long_its_reason():
    desk = Desk()
    desk.join("0")
    stop = messages(desk.on(p.StopRequested("x" * 2000)), wire.StopRun)[0]
    assert isinstance(wire_format.decode(wire_format.encode(stop)), wire.StopRun)


# ---------------------------------------------------------------- the peer


def test_a_peer_says_hello_until_it_is_answered():
    seat = Seat()
    assert len(messages(seat.wait(3.0), wire.Hello)) > 3
    seat.enter()
    assert not messages(seat.wait(3.0), wire.Hello)


def test_a_peer_that_gets_no_answer_gives_up():
    effects = Seat().wait(RUNTIME["join_timeout_s"] + 2)
    assert those(effects, p.StopWork)
    (finish,) = those(effects, p.Finish)
    assert finish.status == "refused"
    assert finish.reason.startswith("could not register within 8 s: no answer; is a")


def test_a_peer_whose_place_stays_taken_gives_up():
    seat, effects = Seat(), []
    while not those(effects, p.Finish):
        assert seat.now < RUNTIME["join_timeout_s"] + 2, "it tries for ever"
        seat.hear(wire.Refused("a worker 0 is here already", retry=True))
        effects = seat.wait(0.5)
    (finish,) = those(effects, p.Finish)
    assert finish.status == "refused"
    assert "a worker 0 is here already" in finish.reason


def test_a_peer_that_is_refused_for_a_moment_asks_again():
    seat = Seat()
    effects = seat.hear(wire.Refused("a worker 0 is here already", retry=True))
    assert not those(effects, p.Finish)
    assert messages(seat.wait(1.5), wire.Hello)


def test_a_peer_waits_for_others_as_long_as_the_server_answers():
    seat = Seat()
    for _ in range(20):
        seat.hear(wire.Registered(1, 1, 1, 2, True))
        seat.on(Subscribed(UPDATES))
        assert not those(seat.wait(1.0), p.Finish)


def test_a_peer_that_is_refused_for_good_ends():
    effects = Seat().hear(wire.Refused("its config differs", retry=False))
    assert those(effects, p.StopWork)
    assert those(effects, p.Finish) == [p.Finish("refused", "its config differs")]


def test_a_peer_ends_when_the_server_has_been_silent_for_its_lease():
    seat = Seat()
    seat.enter()
    effects = seat.wait(RUNTIME["server_timeout_s"] + 1)
    assert those(effects, p.StopWork)
    (finish,) = those(effects, p.Finish)
    assert finish == p.Finish("failed", "the server has been silent for 8 s")


def test_a_pulse_renews_the_lease():
    seat = Seat()
    seat.enter()
    for _ in range(20):
        assert not those(seat.wait(1.0), p.Finish)
        seat.hear(wire.HeartbeatAck(1, 0, True))


def test_the_end_of_the_run_ends_the_work_and_not_yet_the_peer():
    seat = Seat()
    seat.enter()
    effects = seat.hear(wire.StopRun(1, "version 1 reached"))
    assert those(effects, p.StopWork) == [p.StopWork("version 1 reached")]
    assert not those(effects, p.Finish)


def test_the_end_that_an_older_server_has_told_is_not_that_of_the_run():
    """It was to end and died before that; the next one goes on."""
    seat = Seat()
    seat.enter(WELCOME._replace(incarnation=2))
    assert not those(seat.hear(wire.StopRun(1, "stopped")), p.StopWork)
    assert those(seat.hear(wire.StopRun(2, "stopped")), p.StopWork)


def test_a_peer_that_shall_stop_says_goodbye():
    seat = Seat()
    seat.enter()
    effects = seat.on(p.StopRequested("enough"))
    assert messages(effects, wire.Goodbye) == [wire.Goodbye("0", "enough")]
    assert those(effects, p.Finish) == [p.Finish("finished", "enough")]
    assert seat.on(p.StopRequested("enough")) == []


def test_a_peer_beats_as_often_as_the_server_says():
    seat = Seat()
    seat.enter()
    assert len(messages(seat.wait(2.1), wire.Heartbeat)) == 5


def test_an_update_is_published_when_the_server_hears_it_and_not_before():
    seat = Seat()
    seat.hear(WELCOME)
    assert pushed(seat.push()) == []
    assert pushed(seat.on(Subscribed(UPDATES))) == [0]


def test_an_update_bears_the_run_the_session_and_its_number():
    seat = Seat()
    seat.enter()
    seat.push()
    (sent,) = those(seat.push(), p.Broadcast)
    header = sent.message
    assert (header.run, header.incarnation) == ("run-1", 1)
    assert (header.session, header.seq) == ("0", 1)


def test_an_update_for_which_there_was_no_room_is_published_again():
    seat = Seat()
    seat.enter()
    (sent,) = those(seat.push(), p.Broadcast)
    seat.on(p.SendFailed(sent.message))
    assert pushed(seat.wait(0.6)) == [0]


@pytest.mark.parametrize("verdict", ["committed", "superseded", "rejected"])
def test_a_verdict_empties_the_outbox(verdict):
    seat = Seat()
    seat.enter()
    seat.push()
    assert seat.unsettled() == (0,)
    seat.judge(0, verdict)
    assert seat.unsettled() == ()


def test_a_receipt_does_not():
    seat = Seat()
    seat.enter()
    seat.push()
    seat.hear(wire.UpdateReceived("0", 0))
    assert seat.unsettled() == (0,)


def test_an_update_that_did_not_arrive_is_sent_again():
    seat = Seat()
    seat.enter()
    seat.push()
    assert pushed(seat.hear(wire.Resend("0", 0))) == [0]


def test_what_was_sent_often_is_asked_about_seldom():
    """What is still on its way is not to be sent again for that."""
    seat = Seat()
    seat.enter()
    seat.push()
    asked_s = []
    for _ in range(4):
        start_s = seat.now
        while not any(
            beat.unsettled for beat in messages(seat.wait(0.1), wire.Heartbeat)
        ):
            pass
        asked_s.append(seat.now - start_s)
        assert pushed(seat.hear(wire.Resend("0", 0))) == [0]
    heartbeat_interval_s = RUNTIME["heartbeat_interval_s"]
    for found_s, beats in zip(asked_s, (1, 2, 4, 4), strict=True):
        assert (
            beats * heartbeat_interval_s
            <= found_s + 0.01
            <= (beats + 1) * heartbeat_interval_s + 0.2
        )


def test_what_is_sent_again_is_sent_one_after_the_other():
    """A link that is cut loses all that is on its way."""
    seat = Seat()
    seat.enter()
    seat.push()
    seat.push()
    assert pushed(seat.hear(wire.Resend("0", 0))) == []  # 1 may still arrive
    assert pushed(seat.hear(wire.UpdateReceived("0", 1))) == [0]


def test_what_is_said_to_another_session_means_nothing():
    seat = Seat()
    seat.enter()
    seat.push()
    assert pushed(seat.hear(wire.Resend("1", 0))) == []
    seat.hear(wire.UpdateOutcome(1, "1", 0, "committed", 1, ""))
    assert seat.unsettled() == (0,)


def test_of_too_many_unanswered_updates_the_oldest_is_withdrawn():
    seat = Seat()
    seat.enter()
    effects = [effect for _ in range(6) for effect in seat.push()]
    noted = [record.event for record in those(effects, p.RecordEvent)]
    withdrawn = [e.seq for e in noted if isinstance(e, trace.UpdateSettled)]
    assert withdrawn == [0, 1]
    assert seat.unsettled() == (2, 3, 4, 5)


def test_an_update_with_a_receipt_is_not_withdrawn():
    seat = Seat()
    seat.enter()
    seat.push()
    seat.hear(wire.UpdateReceived("0", 0))
    for _ in range(5):
        seat.push()
    assert seat.unsettled() == (0, 3, 4, 5)


def test_a_beat_can_be_read_however_many_updates_wait():
    """The store is slow: all have receipts, none has a verdict."""
    seat = Seat()
    seat.enter()
    for seq in range(80):
        seat.push()
        seat.hear(wire.UpdateReceived("0", seq))
    beat = messages(seat.wait(1.0), wire.Heartbeat)[-1]
    assert wire_format.decode(wire_format.encode(beat)) == beat


def test_every_overdue_update_is_asked_about_however_many_there_are():
    """The oldest 16 may wait for a version; later verdicts can be lost all the same."""
    seat = Seat()
    seat.enter()
    for seq in range(40):
        seat.push()
        seat.hear(wire.UpdateReceived("0", seq))
    seat.wait(2 * RUNTIME["heartbeat_interval_s"])
    beats = messages(seat.wait(3 * RUNTIME["heartbeat_interval_s"]), wire.Heartbeat)
    assert {seq for beat in beats for seq in beat.unsettled} == set(range(40))
    assert all(len(set(beat.unsettled)) == 16 for beat in beats)


def test_a_peer_that_ends_withdraws_what_has_no_verdict():
    """Receipts too: the server that gave one may have died with the update."""
    seat = Seat()
    seat.enter()
    seat.push()
    seat.push()
    seat.hear(wire.UpdateReceived("0", 0))
    noted = [r.event for r in those(seat.on(p.StopRequested("enough")), p.RecordEvent)]
    settled = [(e.seq, e.verdict) for e in noted if isinstance(e, trace.UpdateSettled)]
    assert settled == [(0, "withdrawn"), (1, "withdrawn")]


# ---------------------------------------------------------------- incarnations


def test_a_peer_greets_the_next_incarnation_of_the_server():
    seat = Seat()
    seat.enter()
    seat.hear(wire.HeartbeatAck(2, 0, True))
    assert messages(seat.wait(0.1), wire.Hello)


def test_a_peer_connects_anew_to_the_next_incarnation_and_sends_all_again():
    seat = Seat()
    seat.enter()
    for _ in range(3):
        seat.push()
    seat.hear(wire.UpdateReceived("0", 0))
    seat.judge(1, "committed")
    seat.hear(wire.HeartbeatAck(2, 0, True))
    welcome = WELCOME._replace(incarnation=2, model_port=3, update_port=4)
    effects = seat.hear(welcome)
    assert those(effects, p.Connect) == [p.Connect([b"all", topic_of("0")], 3, 4)]
    assert pushed(effects) == []
    effects = seat.on(Subscribed(UPDATES))
    assert pushed(effects) == [0, 2]
    assert those(effects, p.Broadcast)[0].message.incarnation == 2


RESUMED = WELCOME._replace(incarnation=2)
NOT_YET = wire.Registered(2, 1, 1, 2, False)


def registered_anew():
    """A worker that has two updates with a receipt of the server before, and two on
    their way; the next server waits for others."""
    seat = Seat()
    seat.enter()
    for seq in range(4):
        seat.push()
        if seq < 2:
            seat.hear(wire.UpdateReceived("0", seq))
    seat.hear(wire.HeartbeatAck(2, 0, True))
    seat.hear(NOT_YET)
    return seat


def test_what_is_made_before_the_next_server_welcomes_is_held_back():
    seat = registered_anew()
    assert pushed(seat.push() + seat.hear(wire.Resend("0", 3)) + seat.wait(5.0)) == []
    assert pushed(seat.enter(RESUMED)) == [0, 1, 3, 4]


def test_the_outbox_does_not_grow_while_the_next_server_waits_for_others():
    """That one takes in what waited on the connection, gives a receipt for it, and says
    what became of it: in vain, as it is not yet followed."""
    seat = registered_anew()
    for seq in range(4, 40):
        seat.hear(wire.UpdateReceived("0", seq - 1))
        seat.judge(seq - 1, "superseded", incarnation=2)
        seat.hear(NOT_YET)
        seat.push()
        seat.wait(0.3)
    assert pushed(seat.enter(RESUMED)) == [0, 1, 38, 39]


def test_what_the_next_server_has_said_too_early_is_asked_about_when_it_welcomes():
    seat = registered_anew()
    seat.hear(wire.UpdateReceived("0", 3))
    seat.judge(3, "superseded", incarnation=2)
    assert pushed(seat.enter(RESUMED)) == [0, 1, 2, 3]
    seat.judge(3, "superseded", incarnation=2)
    assert seat.unsettled() == (0, 1, 2)


def test_a_receipt_that_comes_during_a_greeting_is_asked_for_again():
    """The greeting was a mistake: the same server goes on, and nothing is sent anew."""
    seat = Seat()
    seat.enter()
    seat.push()
    seat.hear(wire.UnknownSession(1))
    seat.hear(wire.UpdateReceived("0", 0))
    assert pushed(seat.hear(WELCOME)) == []
    assert seat.unsettled() == (0,)


def test_an_evaluator_keeps_a_score_until_the_next_server_has_welcomed_it():
    seat = Seat(worker=-1)
    seat.enter()
    seat.on(p.VersionEvaluated(0, 0.5, 0.5, 0.5))
    seat.hear(wire.HeartbeatAck(2, 0, True))
    seat.hear(NOT_YET)
    seat.wait(5.0)
    told = messages(seat.enter(RESUMED) + seat.wait(0.1), wire.EvalResult)
    assert [score.version for score in told] == [0]
    seat.hear(wire.EvalAck(0))
    assert not messages(seat.wait(2.0), wire.EvalResult)


def test_a_peer_that_is_welcomed_again_by_the_same_server_stays_connected():
    seat = Seat()
    seat.enter()
    seat.hear(wire.UnknownSession(1))
    assert not those(seat.hear(WELCOME._replace(version=3)), p.Connect)


def test_an_older_server_is_not_followed():
    """Its words are late, or it does not know that it has a successor."""
    seat = Seat()
    seat.enter(WELCOME._replace(incarnation=2))
    assert seat.hear(WELCOME) == []
    assert seat.hear(wire.HeartbeatAck(1, 7, True)) == []
    assert not messages(seat.wait(0.01), wire.Hello)
    assert those(seat.receive(1, incarnation=2), p.Deliver)


def waiting(base):
    return p.WorkerProgress("waiting", 1, 1.0, 0.5, 0.5, base, 0, -1.0)


@pytest.mark.parametrize("verdict", ["committed", "rejected"])
def test_who_waits_for_the_version_after_one_that_is_lost_begins_again(verdict):
    """Its update was in it, or too stale for it; nothing else would ever wake it."""
    seat = Seat()
    seat.enter()
    seat.receive(0)
    seat.push()
    seat.on(waiting(0))
    seat.judge(0, verdict)
    seat.hear(WELCOME._replace(incarnation=2, version=0))
    assert those(seat.receive(0, incarnation=2), p.Deliver)


@pytest.mark.parametrize(("verdict", "by"), [("committed", 1), ("rejected", 2)])
def test_who_hears_late_what_became_of_its_update_begins_again(verdict, by):
    """The next server has greeted it by then, without the version that the update is
    in, or is a change of."""
    seat = Seat()
    seat.enter()
    seat.receive(0)
    seat.push()
    seat.on(waiting(0))
    seat.hear(WELCOME._replace(incarnation=2, version=0))
    assert not those(seat.receive(0, incarnation=2), p.Deliver)
    effects = seat.judge(0, verdict, incarnation=by)
    assert messages(effects, wire.FetchModel) == [wire.FetchModel("0", -1)]
    assert those(seat.receive(0, incarnation=2), p.Deliver)


@pytest.mark.parametrize("is_waiting", [True, False])
def test_who_trains_or_has_pushed_does_not_begin_again(is_waiting):
    seat = Seat()
    seat.enter()
    seat.receive(0)
    if is_waiting:
        seat.push()
        seat.on(waiting(0))
    seat.hear(WELCOME._replace(incarnation=2, version=0))
    assert not those(seat.receive(0, incarnation=2), p.Deliver)


def test_an_older_servers_rejection_is_not_believed():
    seat = Seat()
    seat.enter(WELCOME._replace(incarnation=2))
    seat.push()
    for verdict in ("rejected", "superseded"):
        seat.judge(0, verdict, incarnation=1)
        assert seat.unsettled() == (0,)


def test_an_older_servers_commitment_is_believed():
    seat = Seat()
    seat.enter(WELCOME._replace(incarnation=2))
    seat.push()
    seat.judge(0, "committed", incarnation=1)
    assert seat.unsettled() == ()
