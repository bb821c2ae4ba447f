"""Both protocols, event by event."""

import math
import re

import pytest

from asyn2f import trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages as wire
from asyn2f.protocol import wire_format
from asyn2f.protocol.channels import ALL, UPDATES, Channel, Subscribed, topic_of
from asyn2f.timing import Stop
from asyn2f.types import Best, Metric
from tests.support.messages import RUNTIME, header_of, hello_of, made
from tests.support.protocol_harness import (
    ASYN2F,
    FEDAVG,
    WELCOME,
    PeerHarness,
    ProtocolHarness,
    joined,
    key_of,
    messages,
    outcomes,
    pushed,
    those,
    welcomed,
    with_,
)

PUBLISH = ("after_save", "before_save")


# ---------------------------------------------------------------- registration


@pytest.mark.parametrize(
    ("worker", "changes", "words"),
    [
        (0, {"protocol": 1}, "protocol 1, the server speaks 7"),
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
def test_a_peer_with_other_settings_is_refused_with_a_reason(worker, changes, words):
    effects = ProtocolHarness().hear("x", hello_of(worker, "x", **changes))
    (refused,) = messages(effects, wire.Refused)
    assert re.search(words, refused.reason)
    assert not refused.retry


def test_a_worker_number_has_one_live_process():
    server = joined("0")
    (refused,) = messages(server.hear("0b", hello_of(0, "0b")), wire.Refused)
    assert refused.retry
    assert "a worker 0 is here already" in refused.reason


def test_a_second_process_registers_once_the_first_is_silent():
    server = joined("0")
    server.wait(1.0)
    assert not messages(server.join("0b"), wire.Welcome)
    server.wait(1.0)
    assert messages(server.join("0b"), wire.Welcome)


def test_a_repeated_hello_is_welcomed():
    server = joined("0")
    assert messages(server.join("0"), wire.Welcome)


def test_no_peer_is_welcomed_before_min_workers_have_registered():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    effects = server.join("e", "0")
    assert not messages(effects, wire.Welcome)
    assert [m.missing for m in messages(effects, wire.Registered)] == [2, 1]


def test_all_peers_are_welcomed_once_min_workers_have_registered():
    server = joined("e", "0", timing=with_(ASYN2F, min_workers=2))
    effects = server.join("1")
    for session in ("0", "1", "e"):
        assert messages(effects, wire.Welcome, to=session)


def test_a_silent_worker_does_not_count_towards_min_workers():
    server = joined("0", timing=with_(ASYN2F, min_workers=2))
    server.wait(2.0)
    assert not messages(server.join("1"), wire.Welcome)


def test_a_subscriber_is_sent_the_newest_version_on_its_own_topic():
    server = joined("0", timing=with_(ASYN2F, min_workers=1))
    server.push("0", 0)
    server.make(1)
    server.save(1)
    (sent,) = those(server.join("1"), p.Broadcast)
    assert (sent.topic, sent.message.version) == (topic_of("1"), 1)


def test_a_repeated_subscription_is_sent_the_newest_version_again():
    server = joined("0")
    assert those(server.on(Subscribed(topic_of("0"))), p.Broadcast)


def test_an_unknown_subscription_is_sent_nothing():
    assert not those(ProtocolHarness().on(Subscribed(topic_of("0"))), p.Broadcast)


# ---------------------------------------------------------------- presence


def test_a_heartbeat_is_acknowledged():
    server = joined("0")
    assert messages(server.heartbeat("0"), wire.HeartbeatAck, to="0") == [
        wire.HeartbeatAck(1, 0, True)
    ]


def test_the_heartbeat_of_an_unknown_session_is_answered_as_such():
    assert messages(ProtocolHarness().heartbeat("0"), wire.UnknownSession, to="0") == [
        wire.UnknownSession(1)
    ]


def test_a_peer_that_was_suspended_does_not_count_that_time_as_silence():
    peer = welcomed()
    peer.wait(1.0)
    peer.now += 2 * RUNTIME["server_timeout_s"]
    effects = peer.on(p.Tick())
    assert messages(effects, wire.Heartbeat)
    assert not those(effects, p.Finish)
    assert those(peer.wait(2 * RUNTIME["server_timeout_s"]), p.Finish), (
        "from now on it counts"
    )


def test_a_peer_whose_session_is_unknown_registers_again():
    peer = welcomed()
    peer.hear(wire.UnknownSession(1))
    assert messages(peer.wait(0.1), wire.Hello)


def test_a_peer_registers_once_however_often_its_session_is_unknown():
    """Each heartbeat that waited for the next server is answered so."""
    peer = welcomed()
    effects = []
    for _ in range(10):
        effects += peer.hear(wire.UnknownSession(2)) + peer.hear(
            wire.HeartbeatAck(2, 0, True)
        )
        effects += peer.wait(0.001)
    assert len(messages(effects, wire.Hello)) == 1


def test_a_silent_worker_is_not_waited_for():
    server = joined("0", "1", timing=with_(FEDAVG, min_workers=2))
    assert not those(server.push("0", 0), p.AggregateVersion)
    server.wait(1.0)
    server.heartbeat("0")
    (make,) = those(server.wait(1.0), p.AggregateVersion)
    assert make.keys == (key_of("0", 0),)


def test_a_silent_worker_is_shown_and_recorded_as_silent():
    server = joined("0")
    server.heartbeat("0")
    recorded = [record.event for record in those(server.wait(2.0), p.RecordEvent)]
    assert [(e.worker, e.reason) for e in recorded] == [(0, "silent")]
    assert server.machine.status().workers[0].state == "silent"


def test_a_silent_worker_is_live_again_with_its_next_heartbeat():
    server = joined("0", "1", timing=with_(FEDAVG, min_workers=2))
    server.wait(2.0)
    recorded = [record.event for record in those(server.heartbeat("0"), p.RecordEvent)]
    assert [type(event) for event in recorded] == [trace.WorkerJoined]
    assert server.machine.status().workers[0].state == "training"
    server.heartbeat("1")
    assert not those(server.push("0", 0), p.AggregateVersion)


def test_a_worker_that_says_goodbye_is_gone_at_once():
    server = joined("0", "1", timing=with_(FEDAVG, min_workers=2))
    server.push("0", 0)
    assert those(server.hear("1", wire.Goodbye("1", "enough")), p.AggregateVersion)
    assert server.machine.status().workers[1].state == "gone"


def test_the_late_goodbye_of_a_process_does_not_remove_its_successor():
    server = joined("0", "1", timing=with_(FEDAVG, min_workers=2))
    server.wait(1.0)
    server.heartbeat("1")
    server.wait(1.0)  # session 0 is silent by now
    server.join("0b")
    server.hear("0", wire.Goodbye("0", "the terminal was closed"))
    assert not those(server.push("1", 0), p.AggregateVersion), (
        "0b is here and has not pushed"
    )


def test_a_replaced_process_is_not_admitted_again():
    server = joined("0")
    server.wait(2.0)
    server.join("0b")
    server.heartbeat("0")
    server.push("1", 0)
    assert [w.worker for w in server.machine.status().workers] == [0]
    server.push("0b", 1)
    server.make(1)
    (published,) = those(server.save(1), p.ReportVersion)
    assert published.workers == 1


def test_an_update_of_a_replaced_process_replaces_none():
    server = joined("0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2))
    server.wait(1.0)
    server.heartbeat("1")
    server.wait(1.0)
    server.join("0b")
    server.push("0b", 1)
    assert ("0b", 1, "superseded") not in outcomes(server.push("0", 7))


# ---------------------------------------------------------------- models


def test_a_fetch_is_answered_with_the_newest_version():
    server = joined("0")
    (sent,) = those(server.hear("0", wire.FetchModel("0", -1)), p.Broadcast)
    assert (sent.topic, sent.message.version) == (topic_of("0"), 0)


def test_a_fetch_by_a_peer_with_the_newest_version_is_not_answered():
    server = joined("0")
    assert not those(server.hear("0", wire.FetchModel("0", 0)), p.Broadcast)


def test_a_peer_fetches_a_version_that_is_acknowledged_twice_and_missing():
    peer = welcomed()
    peer.receive(0)
    assert not messages(peer.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel)
    assert messages(peer.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel) == [
        wire.FetchModel("0", 0)
    ]


def test_a_peer_does_not_fetch_a_version_that_arrived():
    peer = welcomed()
    peer.receive(0)
    peer.hear(wire.HeartbeatAck(1, 1, True))
    peer.receive(1)
    assert not messages(peer.hear(wire.HeartbeatAck(1, 1, True)), wire.FetchModel)


def test_a_peer_delivers_newer_versions_only():
    peer = welcomed()
    taken = [bool(those(peer.receive(v), p.Deliver)) for v in (1, 0, 1, 3, 2)]
    assert taken == [True, False, False, True, False]


def test_a_peer_delivers_no_version_of_another_incarnation_or_run():
    peer = welcomed(WELCOME._replace(incarnation=2))
    assert not those(peer.receive(5, incarnation=1), p.Deliver)
    header, payload = made(5, incarnation=2)
    other = p.FromWire(Channel.MODEL, ALL, header._replace(run="run-2"), payload)
    assert not those(peer.on(other), p.Deliver)


def test_a_peer_delivers_no_version_before_it_is_welcome():
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
def test_an_update_with_an_invalid_header_is_rejected_without_decoding(changes, words):
    server = joined("0", "1")
    effects = server.receive("0", 0, **changes)
    (outcome,) = messages(effects, wire.UpdateOutcome, to="0")
    assert outcome.outcome == "rejected"
    assert words in outcome.reason
    assert not those(effects, p.ValidateUpdate)


def test_an_update_that_does_not_decode_is_rejected_with_the_reason():
    server = joined("0")
    server.receive("0", 0)
    effects = server.on(p.UpdateValidated(key_of("0", 0), "payload is damaged"))
    (outcome,) = messages(effects, wire.UpdateOutcome)
    assert (outcome.outcome, outcome.reason) == ("rejected", "payload is damaged")
    assert not those(effects, p.AggregateVersion)


def test_an_update_of_an_unknown_session_or_of_an_evaluator_is_ignored():
    server = joined("e")
    header = header_of(0, "e")
    for session in ("e", "nobody"):
        sent = header._replace(session=session)
        effects = server.on(p.FromWire(Channel.UPDATE, UPDATES, sent, b""))
        assert effects == []


def test_an_update_is_acknowledged_and_validated():
    server = joined("0")
    effects = server.receive("0", 0)
    assert messages(effects, wire.UpdateReceived, to="0") == [
        wire.UpdateReceived("0", 0)
    ]
    assert [check.key for check in those(effects, p.ValidateUpdate)] == [key_of("0", 0)]


def test_an_update_that_arrives_twice_counts_once():
    server = joined("0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2))
    server.push("0", 0)
    effects = server.receive("0", 0)
    assert messages(effects, wire.UpdateReceived) == [wire.UpdateReceived("0", 0)]
    assert not those(effects, p.ValidateUpdate)
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("0", 0), key_of("1", 0))


def test_a_settled_update_that_arrives_again_is_answered_with_its_outcome():
    server = joined("0")
    server.push("0", 0)
    server.make(1)
    sent = messages(server.save(1), wire.UpdateOutcome)
    assert messages(server.receive("0", 0), wire.UpdateOutcome) == sent
    assert server.machine.status().committed == 1


def test_a_newer_update_of_a_worker_replaces_its_pending_one():
    server = joined("0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2))
    server.push("0", 0)
    assert outcomes(server.push("0", 1)) == [("0", 0, "superseded")]
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("0", 1), key_of("1", 0))


def test_an_update_that_a_newer_one_overtook_is_superseded():
    server = joined("0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2))
    server.push("0", 1)
    effects = server.receive("0", 0)
    assert outcomes(effects) == [("0", 0, "superseded")]
    assert not those(effects, p.ValidateUpdate)


def test_a_stale_update_is_rejected():
    server = joined("0", "1", timing=with_(ASYN2F, max_staleness=0))
    server.push("0", 0)
    server.make(1)
    server.save(1)
    assert outcomes(server.push("1", 0)) == [("1", 0, "rejected")]


def test_a_heartbeat_is_answered_with_the_state_of_each_unsettled_update():
    server = joined("0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2))
    server.push("0", 0)
    server.push("0", 1)
    effects = server.heartbeat("0", 0, 1, 2)
    assert outcomes(effects) == [("0", 0, "superseded")]
    assert messages(effects, wire.UpdateReceived) == [wire.UpdateReceived("0", 1)]
    assert messages(effects, wire.Resend) == [wire.Resend("0", 2)]


@pytest.mark.parametrize("later", [1, 64, 200])
def test_an_outcome_is_repeated_as_long_as_its_worker_asks(later):
    """Its CONTROL was cut for a while, UPDATE was not."""
    server = joined(
        "0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2), workers=2
    )
    for seq in range(later + 1):
        server.push("0", seq)
    assert outcomes(server.heartbeat("0", 0)) == [("0", 0, "superseded")]


def test_memory_is_bounded_while_a_version_is_saved():
    """The store may be unavailable for minutes while workers push."""
    server = joined("0")
    server.push("0", 0)
    server.make(1)
    effects = [e for seq in range(1, 50) for e in server.push("0", seq)]
    held = {check.key for check in those(effects, p.ValidateUpdate)}
    held -= {forget.key for forget in those(effects, p.DropUpdate)}
    assert len(held) <= 4


def test_settled_updates_are_dropped():
    server = joined("0")
    server.push("0", 0)
    server.make(1)
    assert [f.key for f in those(server.save(1), p.DropUpdate)] == [key_of("0", 0)]


# ---------------------------------------------------------------- versions


def test_after_save_publishes_no_version_before_it_is_saved():
    server = joined("0", publish="after_save")
    server.push("0", 0)
    effects = server.make(1)
    assert [save.version for save in those(effects, p.SaveVersion)] == [1]
    assert not those(effects, p.Broadcast)
    assert messages(server.heartbeat("0"), wire.HeartbeatAck) == [
        wire.HeartbeatAck(1, 0, True)
    ]
    effects = server.save(1)
    assert [sent.message.version for sent in those(effects, p.Broadcast)] == [1]
    assert [announced.version for announced in those(effects, p.ReportVersion)] == [1]


def test_before_save_publishes_a_version_as_soon_as_it_is_aggregated():
    server = joined("0", publish="before_save")
    server.push("0", 0)
    effects = server.make(1)
    assert [save.version for save in those(effects, p.SaveVersion)] == [1]
    assert [sent.message.version for sent in those(effects, p.Broadcast)] == [1]


@pytest.mark.parametrize("publish", PUBLISH)
def test_nothing_is_committed_before_it_is_saved(publish):
    server = joined("0", publish=publish)
    server.push("0", 0)
    assert outcomes(server.make(1)) == []
    assert outcomes(server.heartbeat("0", 0)) == []
    (outcome,) = messages(server.save(1), wire.UpdateOutcome)
    assert (outcome.outcome, outcome.version) == ("committed", 1)


@pytest.mark.parametrize("publish", PUBLISH)
def test_the_next_version_is_begun_when_the_one_before_is_saved(publish):
    server = joined("0", publish=publish)
    server.push("0", 0)
    assert not those(server.push("0", 1), p.AggregateVersion)
    assert not those(server.make(1), p.AggregateVersion)
    (make,) = those(server.save(1), p.AggregateVersion)
    assert make == p.AggregateVersion(2, (key_of("0", 1),))


@pytest.mark.parametrize("publish", PUBLISH)
def test_a_version_that_could_not_be_saved_is_saved_again(publish):
    server = joined("0", publish=publish)
    server.push("0", 0)
    server.make(1)
    effects = server.on(p.SaveFailed(1, "no space left on device"))
    assert not those(effects, p.SaveVersion)
    assert [save.version for save in those(server.wait(1.5), p.SaveVersion)] == [1]
    server.on(p.SaveFailed(1, "no space left on device"))
    assert [save.version for save in those(server.wait(1.5), p.SaveVersion)] == [1]
    assert outcomes(server.save(1)) == [("0", 0, "committed")]


def test_a_store_that_does_not_answer_is_reported_once_per_save():
    """It may hang forever, and nothing else would report it."""
    server = joined("0")
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


def test_after_save_does_not_publish_a_version_that_could_not_be_saved():
    server = joined("0", publish="after_save")
    server.push("0", 0)
    server.make(1)
    effects = server.on(p.SaveFailed(1, "no space left on device")) + server.wait(1.5)
    assert not those(effects, p.Broadcast)
    assert outcomes(effects) == []
    assert [sent.message.version for sent in those(server.save(1), p.Broadcast)] == [1]


def test_pending_updates_are_aggregated_at_the_deadline():
    server = joined(
        "0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2, deadline_s=1.0)
    )
    server.push("0", 0)
    assert not those(server.wait(0.9), p.AggregateVersion)
    assert those(server.wait(0.2), p.AggregateVersion)


def test_a_rejected_update_does_not_hold_up_its_round():
    """Its worker blocks until the next version."""
    server = joined("0", "1", timing=with_(FEDAVG, min_workers=2))
    server.receive("0", 0, loss=math.nan)
    (make,) = those(server.push("1", 0), p.AggregateVersion)
    assert make.keys == (key_of("1", 0),)


# ---------------------------------------------------------------- scores


def scored(version, accuracy, **others):
    return wire.EvalResult("e", version, {"accuracy": accuracy, **others})


def test_a_score_is_acknowledged_and_reported():
    server = joined("0", "e")
    effects = server.hear("e", scored(0, 0.7, tokens=9.0))
    assert messages(effects, wire.EvalAck, to="e") == [wire.EvalAck(0)]
    (reported,) = those(effects, p.ReportScore)
    assert (reported.version, reported.is_best) == (0, True)
    assert reported.scores == {"accuracy": 0.7, "tokens": 9.0}


def test_a_score_that_arrives_twice_is_reported_once():
    server = joined("0", "e")
    server.hear("e", scored(0, 0.7))
    effects = server.hear("e", scored(0, 0.7))
    assert messages(effects, wire.EvalAck) == [wire.EvalAck(0)]
    assert not those(effects, p.ReportScore)


@pytest.mark.parametrize("version", [-1, 1, 2**62])
def test_a_score_of_a_version_that_does_not_exist_is_ignored(version):
    server = joined("0", "e", stop=Stop(target=0.9))
    effects = server.hear("e", scored(version, 0.99))
    assert not those(effects, p.ReportScore)
    assert server.machine.status().best is None
    assert not messages(effects, wire.StopRun)


def test_scores_of_workers_and_scores_without_the_headline_are_ignored():
    server = joined("0", "e")
    of_worker = wire.EvalResult("0", 0, {"accuracy": 0.7})
    assert not those(server.hear("0", of_worker), p.ReportScore)
    without = wire.EvalResult("e", 0, {"loss": 0.7})
    assert not those(server.hear("e", without), p.ReportScore)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [Metric("return"), Metric("return", False)])
def test_a_value_that_is_not_finite_is_shown_and_is_no_best_and_no_end(value, metric):
    server = joined("0", "e", stop=Stop(target=0.0), metric=metric)
    effects = server.hear("e", wire.EvalResult("e", 0, {"return": value}))
    (reported,) = those(effects, p.ReportScore)
    assert not reported.is_best
    status = server.machine.status()
    assert status.best is None
    assert status.scores == {"return": pytest.approx(value, nan_ok=True)}
    assert not messages(effects, wire.StopRun)


def test_the_best_follows_the_direction():
    loss = Metric("loss", higher_is_better=False)
    server = joined("0", "e", metric=loss)
    first = server.hear("e", wire.EvalResult("e", 0, {"loss": 7.5}))
    assert those(first, p.ReportScore)[0].is_best
    assert server.machine.status().best == Best(0, "loss", 7.5)


def test_an_evaluator_repeats_its_score_until_it_is_acknowledged():
    peer = welcomed(worker=-1)
    assert messages(peer.on(p.VersionEvaluated(0, {"accuracy": 0.7})), wire.EvalResult)
    assert messages(peer.wait(0.6), wire.EvalResult)
    peer.hear(wire.EvalAck(0))
    assert not messages(peer.wait(0.6), wire.EvalResult)


# ---------------------------------------------------------------- the end


def assert_all_settled(effects, *keys):
    sent = [(v.session, v.seq) for v in messages(effects, wire.UpdateOutcome)]
    assert sorted(sent) == sorted(key[1:] for key in keys)
    assert len(those(effects, p.Finish)) == 1


def test_the_last_version_ends_the_run():
    server = joined("0", stop=Stop(max_versions=1))
    server.push("0", 0)
    server.make(1)
    effects = server.save(1)
    assert messages(effects, wire.StopRun, to="0")
    assert outcomes(effects) == [("0", 0, "committed")]
    (finish,) = those(server.end(), p.Finish)
    assert finish == p.Finish("finished", "version 1 reached")


def test_a_run_resumed_at_its_end_ends_if_nobody_comes_back():
    server = ProtocolHarness(stop=Stop(max_versions=3), version=3)
    assert not those(server.wait(9.0), p.Finish)  # live workers are on their way
    (finish,) = those(server.wait(2.0), p.Finish)
    assert finish.status == "finished"


def test_a_run_resumed_before_its_end_waits_for_its_workers():
    server = ProtocolHarness(stop=Stop(max_versions=4), version=3)
    assert not those(server.wait(60.0), p.Finish)


def test_time_ends_the_run():
    server = joined("0", stop=Stop(max_time_s=1.0))
    assert not messages(server.wait(0.9), wire.StopRun)
    (finish,) = those(server.end(), p.Finish)
    assert finish == p.Finish("finished", "1 s have passed")


def test_a_target_ends_the_run():
    server = joined("0", "e", stop=Stop(target=0.9))
    assert not messages(server.hear("e", scored(0, 0.89)), wire.StopRun)
    server.push("0", 0)
    server.make(1)
    server.save(1)
    assert messages(server.hear("e", scored(1, 0.9)), wire.StopRun, to="0")
    (finish,) = those(server.end(), p.Finish)
    assert finish.status == "finished"


def test_a_run_can_be_stopped_while_it_waits_for_workers():
    server = joined("0", "e", timing=with_(ASYN2F, min_workers=2))
    effects = server.on(p.StopRequested("enough")) + server.end(2.0)
    assert messages(effects, wire.StopRun, to="0")
    assert messages(effects, wire.StopRun, to="e")
    assert those(effects, p.Finish) == [p.Finish("interrupted", "enough")]


def test_a_run_can_be_stopped_before_any_peer_registers():
    (finish,) = those(ProtocolHarness().on(p.StopRequested("enough")), p.Finish)
    assert finish == p.Finish("interrupted", "enough")


@pytest.mark.parametrize("publish", PUBLISH)
def test_a_stop_settles_pending_updates_and_those_being_validated(publish):
    server = joined(
        "0", "1", timing=with_(ASYN2F, min_updates=2, min_workers=2), publish=publish
    )
    server.push("0", 0)
    server.receive("1", 0)
    effects = server.on(p.StopRequested("enough"))
    assert outcomes(effects) == [("0", 0, "rejected"), ("1", 0, "rejected")]
    effects += server.on(p.UpdateValidated(key_of("1", 0), "")) + server.end()
    assert_all_settled(effects, key_of("0", 0), key_of("1", 0))


@pytest.mark.parametrize("publish", PUBLISH)
def test_a_stop_completes_the_version_in_flight(publish):
    server = joined("0", publish=publish)
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


@pytest.mark.parametrize("publish", PUBLISH)
def test_a_stop_during_a_save_settles_the_updates_behind_it(publish):
    server = joined("0", publish=publish)
    server.push("0", 0)
    server.make(1)
    server.push("0", 1)
    effects = server.on(p.StopRequested("enough")) + server.save(1)
    assert ("0", 0, "committed") in outcomes(effects)
    assert_all_settled(effects + server.end(), key_of("0", 0), key_of("0", 1))


def test_an_update_settled_by_a_stop_is_not_settled_again_by_the_last_version():
    """It becomes stale by that version, which is saved after the stop."""
    timing = with_(ASYN2F, pending="all", min_updates=2, min_workers=3, max_staleness=0)
    server = joined("0", "1", timing=timing, version=3, workers=3)
    for session, seq in (("0", 0), ("1", 0), ("0", 1)):
        server.push(session, seq, base=3)
    assert those(server.join("2"), p.AggregateVersion)
    server.make(4)
    sent = outcomes(server.on(p.StopRequested("enough")))
    assert sent == [("0", 1, "rejected")]
    sent = outcomes(server.save(4))
    assert sent == [("0", 0, "committed"), ("1", 0, "committed")]
    server.end()


def test_a_store_that_fails_does_not_block_the_shutdown_forever():
    server = joined("0")
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


def test_an_update_after_the_end_is_rejected():
    server = joined("0")
    server.on(p.StopRequested("enough"))
    (outcome,) = messages(server.receive("0", 0), wire.UpdateOutcome)
    assert (outcome.outcome, outcome.reason) == ("rejected", "the run is over")


def test_a_peer_that_registers_after_the_end_is_refused():
    server = joined("0")
    server.on(p.StopRequested("enough"))
    (refused,) = messages(server.hear("1", hello_of(1, "1")), wire.Refused)
    assert refused == wire.Refused("the run is over: enough", retry=False)


def test_a_stop_is_repeated_with_the_next_heartbeat():
    server = joined("0")
    server.on(p.StopRequested("enough"))
    assert messages(server.heartbeat("0"), wire.StopRun, to="0")


def test_the_server_finishes_when_all_have_said_goodbye():
    server = joined("0", "1")
    effects = server.on(p.StopRequested("enough")) + server.hear(
        "0", wire.Goodbye("0", "")
    )
    assert not those(effects, p.Finish)
    assert those(server.hear("1", wire.Goodbye("1", "")), p.Finish)


def test_the_server_finishes_when_nobody_says_goodbye():
    server = joined("0", "1")
    server.on(p.StopRequested("enough"))
    for _ in range(4):
        server.wait(0.25)
        server.heartbeat("0")
        server.heartbeat("1")
    server.end(1.0)


def test_the_server_waits_for_the_score_of_the_last_version():
    server = joined("0", "e", stop=Stop(max_versions=1))
    server.push("0", 0)
    server.make(1)
    effects = server.save(1) + server.hear("0", wire.Goodbye("0", ""))
    for _ in range(4):
        effects += server.heartbeat("e") + server.wait(0.5)
    assert not messages(effects, wire.StopRun, to="e")
    assert messages(server.hear("e", scored(1, 0.7)), wire.StopRun, to="e")
    assert those(server.hear("e", wire.Goodbye("e", "")), p.Finish)


def test_the_server_does_not_wait_for_a_score_forever():
    server = joined("0", "e", stop=Stop(max_versions=1))
    server.push("0", 0)
    server.make(1)
    effects = server.save(1)
    while not those(effects, p.Finish):
        assert server.now < 13.0
        effects = server.heartbeat("e") + server.wait(0.5)


@pytest.mark.parametrize("timing", [ASYN2F, FEDAVG], ids=["asyn2f", "fedavg"])
def test_a_deadline_that_passes_during_the_shutdown_causes_no_busy_loop(timing):
    server = joined(
        "0", "1", timing=with_(timing, min_updates=2, min_workers=2, deadline_s=0.5)
    )
    server.push("0", 0)
    effects = server.on(p.StopRequested("enough")) + server.end()
    assert len(those(effects, p.ShowStatus)) < 20


def test_a_stop_can_be_sent_however_long_its_reason():
    server = joined("0")
    stop = messages(server.on(p.StopRequested("x" * 2000)), wire.StopRun)[0]
    assert isinstance(wire_format.decode(wire_format.encode(stop)), wire.StopRun)


# ---------------------------------------------------------------- the peer


def test_a_peer_repeats_its_hello_until_it_is_welcomed():
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


def test_a_peer_whose_worker_number_stays_taken_gives_up():
    peer, effects = PeerHarness(), []
    while not those(effects, p.Finish):
        assert peer.now < RUNTIME["join_timeout_s"] + 2, "it tries forever"
        peer.hear(wire.Refused("a worker 0 is here already", retry=True))
        effects = peer.wait(0.5)
    (finish,) = those(effects, p.Finish)
    assert finish.status == "refused"
    assert "a worker 0 is here already" in finish.reason


def test_a_peer_that_is_refused_with_retry_tries_again():
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


def test_a_peer_that_is_refused_without_retry_ends():
    effects = PeerHarness().hear(wire.Refused("its config differs", retry=False))
    assert those(effects, p.StopWork)
    assert those(effects, p.Finish) == [p.Finish("refused", "its config differs")]


def test_a_peer_ends_when_the_server_is_silent_for_server_timeout_s():
    peer = welcomed()
    effects = peer.wait(RUNTIME["server_timeout_s"] + 1)
    assert those(effects, p.StopWork)
    (finish,) = those(effects, p.Finish)
    assert finish == p.Finish("failed", "the server has been silent for 8 s")


def test_heartbeat_acks_keep_a_peer_alive():
    peer = welcomed()
    for _ in range(20):
        assert not those(peer.wait(1.0), p.Finish)
        peer.hear(wire.HeartbeatAck(1, 0, True))


def test_the_end_of_the_run_ends_the_work_and_not_yet_the_peer():
    peer = welcomed()
    effects = peer.hear(wire.StopRun(1, "version 1 reached"))
    assert those(effects, p.StopWork) == [p.StopWork("version 1 reached")]
    assert not those(effects, p.Finish)


def test_a_stop_by_an_older_server_is_ignored():
    """It crashed before its end; the next server resumes the run."""
    peer = welcomed(WELCOME._replace(incarnation=2))
    assert not those(peer.hear(wire.StopRun(1, "stopped")), p.StopWork)
    assert those(peer.hear(wire.StopRun(2, "stopped")), p.StopWork)


def test_a_peer_that_is_stopped_says_goodbye():
    peer = welcomed()
    effects = peer.on(p.StopRequested("enough"))
    assert messages(effects, wire.Goodbye) == [wire.Goodbye("0", "enough")]
    assert those(effects, p.Finish) == [p.Finish("finished", "enough")]
    assert peer.on(p.StopRequested("enough")) == []


def test_a_peer_sends_heartbeats_at_the_interval_of_the_server():
    peer = welcomed()
    assert len(messages(peer.wait(2.1), wire.Heartbeat)) == 5


def test_an_update_is_published_once_the_server_has_subscribed():
    peer = PeerHarness()
    peer.hear(WELCOME)
    assert pushed(peer.push()) == []
    assert pushed(peer.on(Subscribed(UPDATES))) == [0]


def test_the_header_of_an_update_names_run_session_and_number():
    peer = welcomed()
    peer.push()
    (sent,) = those(peer.push(), p.Broadcast)
    header = sent.message
    assert (header.run, header.incarnation) == ("run-1", 1)
    assert (header.session, header.seq) == ("0", 1)


def test_an_update_that_could_not_be_sent_is_published_again():
    peer = welcomed()
    (sent,) = those(peer.push(), p.Broadcast)
    peer.on(p.SendFailed(sent.message))
    assert pushed(peer.wait(0.6)) == [0]


@pytest.mark.parametrize("outcome", ["committed", "superseded", "rejected"])
def test_an_outcome_removes_an_update_from_the_outbox(outcome):
    peer = welcomed()
    peer.push()
    assert peer.unsettled() == (0,)
    peer.settle(0, outcome)
    assert peer.unsettled() == ()


def test_a_receipt_does_not_remove_it():
    peer = welcomed()
    peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    assert peer.unsettled() == (0,)


def test_an_update_is_sent_again_on_request():
    peer = welcomed()
    peer.push()
    assert pushed(peer.hear(wire.Resend("0", 0))) == [0]


def test_the_time_before_asking_doubles_with_each_send():
    """What is still in flight is not sent again."""
    peer = welcomed()
    peer.push()
    asked_s = []
    for _ in range(4):
        start_s = peer.now
        while not any(
            heartbeat.unsettled
            for heartbeat in messages(peer.wait(0.1), wire.Heartbeat)
        ):
            pass
        asked_s.append(peer.now - start_s)
        assert pushed(peer.hear(wire.Resend("0", 0))) == [0]
    heartbeat_interval_s = RUNTIME["heartbeat_interval_s"]
    for found_s, heartbeats in zip(asked_s, (1, 2, 4, 4), strict=True):
        assert (
            heartbeats * heartbeat_interval_s
            <= found_s + 0.01
            <= (heartbeats + 1) * heartbeat_interval_s + 0.2
        )


def test_updates_are_sent_again_one_by_one():
    """A link that breaks loses all that is in flight."""
    peer = welcomed()
    peer.push()
    peer.push()
    assert pushed(peer.hear(wire.Resend("0", 0))) == []  # 1 may still arrive
    assert pushed(peer.hear(wire.UpdateReceived("0", 1))) == [0]


def test_answers_to_another_session_are_ignored():
    peer = welcomed()
    peer.push()
    assert pushed(peer.hear(wire.Resend("1", 0))) == []
    peer.hear(wire.UpdateOutcome(1, "1", 0, "committed", 1, ""))
    assert peer.unsettled() == (0,)


def test_the_oldest_of_too_many_unacknowledged_updates_is_withdrawn():
    peer = welcomed()
    effects = [effect for _ in range(6) for effect in peer.push()]
    recorded = [record.event for record in those(effects, p.RecordEvent)]
    withdrawn = [e.seq for e in recorded if isinstance(e, trace.UpdateSettled)]
    assert withdrawn == [0, 1]
    assert peer.unsettled() == (2, 3, 4, 5)


def test_an_update_with_a_receipt_is_not_withdrawn():
    peer = welcomed()
    peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    for _ in range(5):
        peer.push()
    assert peer.unsettled() == (0, 3, 4, 5)


def test_a_heartbeat_fits_its_header_however_many_updates_are_unsettled():
    """The store is slow: all have receipts, none has an outcome."""
    peer = welcomed()
    for seq in range(80):
        peer.push()
        peer.hear(wire.UpdateReceived("0", seq))
    heartbeat = messages(peer.wait(1.0), wire.Heartbeat)[-1]
    assert wire_format.decode(wire_format.encode(heartbeat)) == heartbeat


def test_heartbeats_ask_about_every_overdue_update_in_turn():
    """The oldest 16 may wait for a version; later outcomes can be lost all the same."""
    peer = welcomed()
    for seq in range(40):
        peer.push()
        peer.hear(wire.UpdateReceived("0", seq))
    peer.wait(2 * RUNTIME["heartbeat_interval_s"])
    heartbeats = messages(
        peer.wait(3 * RUNTIME["heartbeat_interval_s"]), wire.Heartbeat
    )
    assert {seq for heartbeat in heartbeats for seq in heartbeat.unsettled} == set(
        range(40)
    )
    assert all(len(set(heartbeat.unsettled)) == 16 for heartbeat in heartbeats)


def test_a_peer_that_ends_withdraws_its_unsettled_updates():
    """Those with a receipt too: the server may have lost them in a crash."""
    peer = welcomed()
    peer.push()
    peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    recorded = [
        r.event for r in those(peer.on(p.StopRequested("enough")), p.RecordEvent)
    ]
    settled = [
        (e.seq, e.outcome) for e in recorded if isinstance(e, trace.UpdateSettled)
    ]
    assert settled == [(0, "withdrawn"), (1, "withdrawn")]


# ---------------------------------------------------------------- incarnations


def test_a_peer_registers_with_the_next_incarnation_of_the_server():
    peer = welcomed()
    peer.hear(wire.HeartbeatAck(2, 0, True))
    assert messages(peer.wait(0.1), wire.Hello)


def test_a_peer_connects_to_the_next_incarnation_and_sends_all_again():
    peer = welcomed()
    for _ in range(3):
        peer.push()
    peer.hear(wire.UpdateReceived("0", 0))
    peer.settle(1, "committed")
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
    """A worker with two updates that the last server acknowledged, and two in flight;
    the next server waits for other workers."""
    peer = welcomed()
    for seq in range(4):
        peer.push()
        if seq < 2:
            peer.hear(wire.UpdateReceived("0", seq))
    peer.hear(wire.HeartbeatAck(2, 0, True))
    peer.hear(NOT_YET)
    return peer


def test_updates_are_held_back_until_the_next_server_welcomes():
    peer = registered_anew()
    assert pushed(peer.push() + peer.hear(wire.Resend("0", 3)) + peer.wait(5.0)) == []
    assert pushed(peer.enter(RESUMED)) == [0, 1, 3, 4]


def test_the_outbox_does_not_grow_while_the_next_server_waits_for_others():
    """It acknowledges and settles what waited on the connection, but this peer does not
    follow it yet."""
    peer = registered_anew()
    for seq in range(4, 40):
        peer.hear(wire.UpdateReceived("0", seq - 1))
        peer.settle(seq - 1, "superseded", incarnation=2)
        peer.hear(NOT_YET)
        peer.push()
        peer.wait(0.3)
    assert pushed(peer.enter(RESUMED)) == [0, 1, 38, 39]


def test_outcomes_sent_before_the_welcome_of_the_next_server_are_asked_for_again():
    peer = registered_anew()
    peer.hear(wire.UpdateReceived("0", 3))
    peer.settle(3, "superseded", incarnation=2)
    assert pushed(peer.enter(RESUMED)) == [0, 1, 2, 3]
    peer.settle(3, "superseded", incarnation=2)
    assert peer.unsettled() == (0, 1, 2)


def test_a_receipt_during_a_registration_is_asked_for_again():
    """The same server welcomes it again, so nothing is sent anew."""
    peer = welcomed()
    peer.push()
    peer.hear(wire.UnknownSession(1))
    peer.hear(wire.UpdateReceived("0", 0))
    assert pushed(peer.hear(WELCOME)) == []
    assert peer.unsettled() == (0,)


def test_an_evaluator_keeps_a_score_until_the_next_server_has_welcomed_it():
    peer = welcomed(worker=-1)
    peer.on(p.VersionEvaluated(0, {"accuracy": 0.5}))
    peer.hear(wire.HeartbeatAck(2, 0, True))
    peer.hear(NOT_YET)
    peer.wait(5.0)
    sent = messages(peer.enter(RESUMED) + peer.wait(0.1), wire.EvalResult)
    assert [score.version for score in sent] == [0]
    peer.hear(wire.EvalAck(0))
    assert not messages(peer.wait(2.0), wire.EvalResult)


def test_a_second_welcome_of_the_same_server_keeps_the_connection():
    peer = welcomed()
    peer.hear(wire.UnknownSession(1))
    assert not those(peer.hear(WELCOME._replace(version=3)), p.Connect)


def test_an_older_server_is_not_followed():
    """Its messages are late, or it does not know of the new server."""
    peer = welcomed(WELCOME._replace(incarnation=2))
    assert peer.hear(WELCOME) == []
    assert peer.hear(wire.HeartbeatAck(1, 7, True)) == []
    assert not messages(peer.wait(0.01), wire.Hello)
    assert those(peer.receive(1, incarnation=2), p.Deliver)


def waiting(base):
    return wire.NO_PROGRESS._replace(state="waiting", step=1, base_version=base)


@pytest.mark.parametrize("outcome", ["committed", "rejected"])
def test_a_worker_blocked_on_a_lost_version_adopts_again(outcome):
    """Its update was in that version, or too stale for it."""
    peer = welcomed()
    peer.receive(0)
    peer.push()
    peer.on(waiting(0))
    peer.settle(0, outcome)
    peer.hear(WELCOME._replace(incarnation=2, version=0))
    assert those(peer.receive(0, incarnation=2), p.Deliver)


@pytest.mark.parametrize(("outcome", "by"), [("committed", 1), ("rejected", 2)])
def test_a_worker_blocked_on_a_late_outcome_adopts_again(outcome, by):
    """The next server has welcomed it before, without the version that the update is in
    or based on."""
    peer = welcomed()
    peer.receive(0)
    peer.push()
    peer.on(waiting(0))
    peer.hear(WELCOME._replace(incarnation=2, version=0))
    assert not those(peer.receive(0, incarnation=2), p.Deliver)
    effects = peer.settle(0, outcome, incarnation=by)
    assert messages(effects, wire.FetchModel) == [wire.FetchModel("0", -1)]
    assert those(peer.receive(0, incarnation=2), p.Deliver)


@pytest.mark.parametrize("is_waiting", [True, False])
def test_a_worker_that_trains_or_has_pushed_does_not_adopt_again(is_waiting):
    peer = welcomed()
    peer.receive(0)
    if is_waiting:
        peer.push()
        peer.on(waiting(0))
    peer.hear(WELCOME._replace(incarnation=2, version=0))
    assert not those(peer.receive(0, incarnation=2), p.Deliver)


def test_the_rejection_by_an_older_server_is_ignored():
    peer = welcomed(WELCOME._replace(incarnation=2))
    peer.push()
    for outcome in ("rejected", "superseded"):
        peer.settle(0, outcome, incarnation=1)
        assert peer.unsettled() == (0,)


def test_the_commitment_by_an_older_server_is_final():
    peer = welcomed(WELCOME._replace(incarnation=2))
    peer.push()
    peer.settle(0, "committed", incarnation=1)
    assert peer.unsettled() == ()
