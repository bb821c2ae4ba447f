"""Who is believed, how much is taken in at once, and what is remembered of the gone."""

import math

import pytest

from asyn2f.programs import UpdateKey
from asyn2f.runtime import protocol as p
from asyn2f.runtime import wire
from asyn2f.runtime.ledger import MOST_ENDED, Ledger
from asyn2f.runtime.settings import RuntimeSettings
from asyn2f.timing import Stop
from tests.desk import (
    ASYN2F,
    FEDAVG,
    Desk,
    Seat,
    beat_of,
    messages,
    pushed,
    those,
    verdicts,
    with_,
)
from tests.messages import RUNTIME, hello_of

BUFFER = with_(ASYN2F, pending="all", min_updates=3)
LIMITED = RuntimeSettings(**RUNTIME, max_updates_per_s=2.0)


# ---------------------------------------------------------------- how much


def test_a_worker_with_too_much_under_way_is_told_to_wait():
    desk = Desk(with_(BUFFER, min_updates=9), most_open=2)
    desk.join("0", "1")
    desk.push("0", 0)
    desk.receive("0", 1)
    effects = desk.receive("0", 2)
    (busy,) = messages(effects, wire.Busy, to="0")
    assert (busy.session, busy.seq) == ("0", 2)
    assert busy.retry_s > 0
    assert not those(effects, p.Check)
    assert not messages(effects, wire.Receipt)
    assert those(desk.receive("1", 0), p.Check), "the other worker is not held up"


def test_an_update_that_was_told_to_wait_is_as_good_as_new_when_it_comes_again():
    desk = Desk(with_(BUFFER, min_updates=2), most_open=2)
    desk.join("0")
    desk.push("0", 0)
    desk.push("0", 1)  # makes a version; both are open until it is saved
    assert messages(desk.receive("0", 2), wire.Busy)
    desk.make(1)
    desk.save(1)
    assert those(desk.receive("0", 2), p.Check)


def test_a_worker_may_push_so_often_in_the_long_run_and_no_oftener():
    desk = Desk(runtime=LIMITED)
    desk.join("0")
    taken = 0
    for seq in range(400):
        desk.now = seq * 0.05
        taken += bool(those(desk.receive("0", seq), p.Check))
        desk.on(p.Checked(UpdateKey(0, "0", seq), "of no use"))
    assert 2 * 400 * 0.05 <= taken <= 2 * 400 * 0.05 + 2 * 2


def test_a_peer_that_is_told_to_wait_keeps_its_update_and_sends_it_then():
    seat = Seat()
    seat.enter()
    assert pushed(seat.push()) == [0]
    seat.hear(wire.Busy("0", 0, 0.3))
    assert pushed(seat.wait(0.25)) == []
    assert pushed(seat.push()) == [], "what is newer waits as well"
    assert pushed(seat.wait(0.1)) == [0, 1]


def test_a_new_server_need_not_be_waited_for():
    seat = Seat()
    seat.enter()
    seat.push()
    seat.hear(wire.Busy("0", 0, 5.0))
    effects = seat.hear(wire.Who(2)) + seat.enter(
        wire.Welcome("run-1", 2, 0, 1, 2, RUNTIME["beat_s"], RUNTIME["lease_s"])
    )
    assert pushed(effects) == [0]


# ---------------------------------------------------------------- who


@pytest.mark.parametrize("identity", ["worker-1", "evaluator", "server"])
def test_a_peer_whose_key_is_anothers_is_refused(identity):
    desk = Desk()
    effects = desk.hear("0", hello_of(0, "0"), identity)
    (refused,) = messages(effects, wire.Refused)
    assert not refused.retry
    assert identity in refused.reason
    assert those(effects, p.Warn)


def test_a_peer_with_its_own_key_comes_in():
    desk = Desk(with_(ASYN2F, min_workers=1))
    assert messages(desk.hear("0", hello_of(0, "0"), "worker-0"), wire.Welcome)
    assert messages(desk.hear("e", hello_of(-1, "e"), "evaluator"), wire.Welcome)


def test_whoever_speaks_in_anothers_name_is_not_listened_to():
    desk = Desk()
    desk.join("0", "1", "e")
    before = desk.machine.status()
    spoken = [
        desk.hear("1", beat_of("0", 0), "worker-1"),
        desk.hear("1", wire.Bye("0", "farewell"), "worker-1"),
        desk.hear("1", wire.Scored("e", 0, 1.0, 0.1, 1.0), "worker-1"),
        desk.receive("0", 0, identity="worker-1"),
    ]
    for effects in spoken:
        assert [type(effect) for effect in effects] == [p.Warn]
    after = desk.machine.status()
    assert after._replace(bytes_up=0) == before
    assert those(desk.receive("0", 0, identity="worker-0"), p.Check)


# ---------------------------------------------------------------- rounds of nothing


def test_a_round_whose_updates_are_all_of_no_use_ends_the_run():
    """Its workers wait for a version that nothing can be made of."""
    desk = Desk(with_(FEDAVG, min_workers=2))
    desk.join("0", "1")
    assert not those(desk.receive("0", 0, loss=math.nan), p.Finish)
    desk.receive("1", 0, loss=math.nan)
    (finish,) = those(desk.end(), p.Finish)
    assert finish.status == "failed"
    assert "loss nan" in finish.reason


def test_workers_that_do_not_wait_may_fail_as_often_as_they_like():
    desk = Desk(with_(ASYN2F, min_workers=2))
    desk.join("0", "1")
    for seq in range(3):
        for worker in ("0", "1"):
            desk.receive(worker, seq, loss=math.nan)
    assert not those(desk.wait(1.0), p.Finish)
    assert those(desk.push("0", 3), p.Make)


# ---------------------------------------------------------------- the gone


def test_what_a_process_left_is_forgotten_when_another_has_taken_its_place():
    desk = Desk(with_(ASYN2F, min_updates=2))
    for life in range(50):
        session = f"0{life}"
        desk.join(session)
        desk.receive(session, 0)
        desk.on(p.Checked(UpdateKey(0, session, 0), "of no use"))
        desk.hear(session, wire.Bye(session, "killed"))
        desk.wait(0.3)
    desk.join("0", "1")
    desk.push("0", 0)
    (make,) = those(desk.push("1", 0), p.Make)
    (save,) = those(desk.make(make.version), p.Save)
    assert set(save.books["ledger"]["sessions"]) <= {"0", "1", "049"}
    assert len(save.books["ledger"]["ended"]) >= 49


def test_a_process_whose_place_was_taken_is_refused_for_good():
    desk = Desk()
    desk.join("0")
    desk.hear("0", wire.Bye("0", "it seemed so"))
    desk.join("0b")
    desk.wait(0.6)
    (refused,) = messages(desk.hear("0", hello_of(0, "0")), wire.Refused)
    assert not refused.retry
    assert verdicts(desk.receive("0", 0)) == []


def test_an_evaluator_that_was_silent_for_a_while_is_let_in_again():
    desk = Desk()
    desk.join("0", "e")
    for _ in range(8):
        desk.wait(0.5)
        desk.beat("0")
    assert messages(desk.hear("e", beat_of("e")), wire.Who)
    assert messages(desk.hear("e", hello_of(-1, "e")), wire.Welcome)


def test_ended_sessions_outlive_the_server_and_are_bounded():
    ledger = Ledger()
    for life in range(MOST_ENDED + 10):
        ledger.end(f"s{life}")
    again = Ledger.restore(ledger.snapshot(1, []))
    assert again.has_ended(f"s{MOST_ENDED + 9}")
    assert not again.has_ended("s9")


def test_nothing_of_it_is_counted_again_after_a_restart():
    ledger = Ledger()
    ledger.take_in(UpdateKey(0, "a", 0))
    assert ledger.num_open("a") == 1
    snapshot = ledger.snapshot(1, [UpdateKey(0, "a", 0)])
    again = Ledger.restore(snapshot)
    assert again.is_known("a", 0)
    assert again.num_open("a") == 0


# ---------------------------------------------------------------- at the end


def test_who_was_let_in_and_asks_again_at_the_end_is_told_that_it_is_over():
    """It has greeted a server that came back twice; the second time it was too late."""
    desk = Desk()
    desk.join("0", "1")
    desk.on(p.StopRequested("enough"))
    assert messages(desk.hear("1", hello_of(1, "1")), wire.StopRun)
    (refused,) = messages(desk.hear("2", hello_of(1, "1b")), wire.Refused)
    assert "enough" in refused.reason


def test_an_evaluator_may_come_back_for_the_last_version():
    desk = Desk(stop=Stop(max_versions=3), best=(0.5, 1))
    desk.join("0")
    for version in (1, 2, 3):
        desk.push("0", version)
        desk.make(version)
        desk.save(version)
    assert messages(desk.hear("e", hello_of(-1, "e")), wire.Welcome)
    desk.hear("e", wire.Scored("e", 3, 0.75, 0.5, 0.5))
    (finish,) = those(desk.end(), p.Finish)
    assert finish.status == "finished"
    assert desk.machine.status().best_version == 3
