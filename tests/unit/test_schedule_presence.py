"""Small schedules with joins, leaves and outages, worked out by hand."""

import math

import pytest

from asyn2f.sim import order as o
from asyn2f.sim import schedule as scheduling
from asyn2f.sim.virtual_worker import Presence
from tests.support.schedules import MEGABYTE, lines_of, run, same
from tests.unit.test_programs import adopting, asynchronous, synchronous

PRESENCE = o.BEGIN, o.LEAVE, o.RETURN


def test_a_late_worker_begins_with_the_newest_version():
    # Version n is made at n s.
    rows = [{"step_s": 1.0}, {"step_s": 1.0, "join_s": 2.5}]
    order = run(adopting(), rows, steps=1, max_time_s=4.0)
    assert lines_of(order, o.BEGIN, o.ADOPT, o.PUSH, worker=1) == [
        "2.5 1 begin",
        "2.5 1 adopt 2",
        "3.5 1 push 3",
        "3.5 1 adopt 3",
    ]


def test_an_update_that_has_not_arrived_when_its_worker_leaves_is_lost():
    # Worker 1 leaves at 3.5 s; its third push, at 3 s, would arrive at 3.75 s.
    rows = [{"step_s": 9.0}, {"step_s": 1.0, "upload_s": 0.75, "leave_s": 3.5}]
    order = run(adopting(min_workers=2), rows, steps=1, max_time_s=6.0)
    assert lines_of(order, o.PUSH, o.LOSE, o.AGGREGATE, o.LEAVE) == [
        "1 1 push 0",
        "1.75 -1 aggregate 1",
        "2 1 push 1",
        "2.75 -1 aggregate 2",
        "3 1 push 2",
        "3 1 lose 2",
        "3.5 1 leave",
    ]


def test_a_round_does_not_wait_for_a_worker_that_has_left():
    rows = [{"step_s": 1.0}, {"step_s": 9.0, "leave_s": 5.0}]
    order = run(synchronous(min_workers=2), rows, steps=1, max_versions=2)
    assert lines_of(order, o.AGGREGATE, o.LEAVE) == [
        "5 1 leave",
        "5 -1 aggregate 1",
        "6 -1 aggregate 2",
    ]


def test_a_worker_that_leaves_while_it_waits_does_not_return():
    # Worker 0 has pushed at 1 s, waits for worker 1 and leaves; the round ends at 4 s.
    rows = [{"step_s": 1.0, "leave_s": 2.0}, {"step_s": 4.0}]
    order = run(synchronous(min_workers=2), rows, steps=1, max_versions=2)
    assert lines_of(order, o.AGGREGATE, o.LEAVE, o.WAITED, o.ADOPT)[2:] == [
        "2 0 leave",
        "4 -1 aggregate 1",
        "4 1 waited",
        "4 1 adopt 1",
        "8 -1 aggregate 2",
    ]


def test_a_worker_that_leaves_before_the_run_begins_does_not_return():
    rows = [{"leave_s": 1.0}, {"join_s": 2.0}, {"join_s": 2.0}]
    order = run(adopting(min_workers=2), rows, steps=1, max_time_s=3.0)
    assert lines_of(order, o.BEGIN, o.LEAVE, o.ADOPT)[:5] == [
        "0 0 begin",
        "1 0 leave",
        "2 1 begin",
        "2 2 begin",
        "2 1 adopt 0",
    ]


def test_leaving_before_joining_turns_no_clock_back_or_is_refused():
    rows = [{"step_s": 1.0}, {"step_s": 1.0, "join_s": 3.0, "leave_s": 2.0}]
    try:
        order = run(adopting(), rows, steps=1, max_time_s=5.0)
    except ValueError:  # just as good
        return
    assert order.time_s.tolist() == sorted(order.time_s)


def test_when_all_have_left_the_run_is_over():
    rows = [{"step_s": 1.0, "leave_s": 2.5}]
    order = run(adopting(), rows, steps=1, max_versions=9)
    assert lines_of(order, o.AGGREGATE, o.LEAVE)[-1] == "2.5 0 leave"
    assert order.reason == "nothing more can happen: no worker is left to push"


def test_a_run_for_which_too_few_workers_come_ends():
    rows = [{}]
    order = run(adopting(min_workers=2), rows, steps=1, max_time_s=5.0)
    assert lines_of(order) == ["0 0 begin"]
    assert len(order.version) == 1
    assert order.num_updates == 0


def test_a_run_for_which_too_few_workers_come_ends_in_spite_of_outages(monkeypatch):
    class Patient(Presence):
        asked = 0

        def next_outage(self, time_s):
            Patient.asked += 1
            assert Patient.asked < 10_000, "it does not end"
            return super().next_outage(time_s)

    monkeypatch.setattr(scheduling, "Presence", Patient)
    rows = [
        {"leave_s": 1.0},
        {"join_s": 2.0, "outage_every_s": 5.0, "outage_s": 1.0},
    ]
    order = run(adopting(min_workers=2), rows, steps=1, max_time_s=50.0)
    assert order.num_updates == 0


# ------------------------------------------------------------- outages


def test_steps_stand_still_during_an_outage():
    # 2 steps of 1 s from 0 on, and an outage from 0.5 to 2 s: too short to be noticed.
    rows = [{"step_s": 1.0, "outages": [[0.5, 2.0]]}]
    order = run(adopting(), rows, steps=2, max_versions=1)
    assert lines_of(order) == [
        "0 0 begin",
        "0 0 adopt 0",
        "3.5 0 train 2",
        "3.5 0 push 0",
        "3.5 0 adopt 0",
        "3.5 -1 aggregate 1",
    ]


def test_a_long_outage_counts_as_having_left_until_it_is_over():
    # From 0.5 to 4.5 s; missed after 3 s. Its step of 1 s is done at 5 s: too late.
    rows = [{"step_s": 1.0, "outages": [[0.5, 4.5]]}, {"step_s": 2.0}]
    order = run(synchronous(min_workers=2), rows, steps=1, max_versions=2)
    assert lines_of(order, *PRESENCE, o.PUSH, o.REJECT, o.AGGREGATE) == [
        "0 0 begin",
        "0 1 begin",
        "2 1 push 0",
        "3.5 0 leave",
        "3.5 -1 aggregate 1",
        "4.5 0 return",
        "5 0 push 1",
        "5 0 reject 1",
        "5.5 1 push 2",
        "5.5 -1 aggregate 2",
    ]
    assert order.receivers.tolist()[1] == 1


def test_an_outage_as_long_as_that_is_not_noticed():
    rows = [{"step_s": 1.0, "outages": [[0.5, 3.5]]}]
    order = run(adopting(), rows, steps=1, max_versions=1, heartbeat_timeout_s=3.0)
    assert lines_of(order, *PRESENCE) == ["0 0 begin"]
    order = run(adopting(), rows, steps=1, max_versions=1, heartbeat_timeout_s=2.5)
    assert lines_of(order, *PRESENCE) == ["0 0 begin", "3 0 leave", "3.5 0 return"]


def test_an_outage_that_rounding_ends_as_it_would_be_noticed_is_not():
    """7 - 5 is more than `heartbeat_timeout_s`, and yet 5 + `heartbeat_timeout_s` is
    7."""
    almost_s = math.nextafter(2.0, 0.0)
    assert almost_s < 7.0 - 5.0
    assert 5.0 + almost_s == 7.0
    rows = [{"step_s": 1.0, "outages": [[5.0, 7.0]]}]
    order = run(adopting(), rows, steps=1, max_versions=8, heartbeat_timeout_s=almost_s)
    assert lines_of(order, *PRESENCE) == ["0 0 begin"]


def test_leaving_for_good_in_an_outage_is_detected_as_soon_as_others():
    # Silent from 0.5 s on, missed after 3 s: the round need not wait until 50 s.
    rows = [{"step_s": 1.0}, {"step_s": 1.0, "outages": [[0.5, 99.0]], "leave_s": 50.0}]
    order = run(synchronous(min_workers=2), rows, steps=1, max_versions=1)
    assert lines_of(order, o.LEAVE, o.AGGREGATE) == [
        "3.5 1 leave",
        "3.5 -1 aggregate 1",
    ]


def test_an_outage_without_end_is_noticed_or_refused():
    rows = [{"step_s": 1.0}, {"step_s": 1.0, "outages": [[0.5, float("inf")]]}]
    try:
        order = run(synchronous(min_workers=2), rows, steps=1, max_versions=2)
    except ValueError:  # just as good
        return
    assert lines_of(order, o.LEAVE, o.AGGREGATE) == [
        "3.5 1 leave",
        "3.5 -1 aggregate 1",
        "4.5 -1 aggregate 2",
    ]


def test_transfers_stand_still_during_an_outage():
    # A megabyte down from 0 s, 1 s in all: half before the outage, half after it. A
    # step until 3.5 s. Up in 1 s from there, half before the next outage.
    row = {"step_s": 1.0, "download_mbps": 8.0, "upload_mbps": 8.0}
    rows = [row | {"outages": [[0.5, 2.0], [4.0, 6.0]]}]
    order = run(adopting(), rows, steps=1, max_versions=1, num_bytes=MEGABYTE)
    assert lines_of(order)[1:] == [
        "2.5 0 adopt 0",
        "3.5 0 train 1",
        "3.5 0 push 0",
        "3.5 0 adopt 0",
        "6.5 -1 aggregate 1",
    ]


def test_an_interrupted_stretch_ends_at_a_boundary_in_spite_of_an_outage():
    # Version 1 comes at 2 s, in worker 1's outage from 1.5 to 4 s; 0.5 s of its second
    # step are left.
    rows = [{"step_s": 2.0}, {"step_s": 1.0, "outages": [[1.5, 4.0]]}]
    order = run(asynchronous(min_workers=2), rows, steps=[1, 9], max_time_s=4.75)
    found = lines_of(order, o.TRAIN, o.MERGE, worker=1)
    assert found == ["4.5 1 train 2", "4.5 1 merge 2"]


def test_drawn_outages_are_the_seeds():
    def silent(seed):
        rows = [{"outage_every_s": 3.0, "outage_s": 2.0, "step_s": 1.0}] * 2
        return run(asynchronous(), rows, steps=2, seed=seed, max_time_s=30.0)

    assert same(silent(seed=1), silent(seed=1))
    assert not same(silent(seed=1), silent(seed=2))


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_returns_after_a_long_outage(seed):
    rows = [{"outage_every_s": 3.0, "outage_s": 4.0, "step_s": 1.0}] * 3
    order = run(asynchronous(), rows, steps=2, seed=seed, max_versions=40)
    assert len(order.version) == 41
    assert len(lines_of(order, o.LEAVE)) > len(lines_of(order, o.BEGIN))
