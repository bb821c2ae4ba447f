"""Small schedules with times worked out by hand."""

import numpy as np
import pytest

from asyn2f.sim import order as o
from asyn2f.sim.order import cut, until
from asyn2f.sim.virtual_worker import VirtualWorker
from tests.support.schedules import MEGABYTE, events_in, lines_of, run, same
from tests.unit.test_programs import adopting, asynchronous, synchronous

VERSIONS = o.ADOPT, o.MERGE
OUTCOMES = o.PUSH, o.SUPERSEDE, o.REJECT, o.LOSE, o.AGGREGATE


def test_asyn2f_merges_at_the_first_batch_boundary_at_or_after_arrival():
    # Worker 0 takes 1 s a step, worker 1 2.5 s. Version 1 is made of worker 0's push at
    # 2 s. Worker 1 is in its first step, which ends at 2.5 s. Worker 0 has gone on just
    # then: its next boundary is at 3 s.
    rows = [{"step_s": 1.0}, {"step_s": 2.5}]
    order = run(asynchronous(), rows, steps=2, max_versions=2)
    assert lines_of(order) == [
        "0 0 begin",
        "0 1 begin",
        "0 0 adopt 0",
        "0 1 adopt 0",
        "2 0 train 2",
        "2 0 push 0",
        "2 -1 aggregate 1",
        "2.5 1 train 1",
        "2.5 1 merge 1",
        "3 0 train 1",
        "3 0 merge 1",
        "4 0 train 1",
        "4 0 push 1",
        "4 -1 aggregate 2",
    ]
    assert order.members.tolist() == [0, 1]
    assert order.receivers.tolist() == [1, 2, 2]  # version 0: when worker 0 had come
    assert (order.end_s, order.num_steps) == (4.0, 5)
    assert order.reason == "max_versions = 2 reached"


def test_a_version_that_arrives_at_a_boundary_is_merged_there():
    # Version 1 (2 s) takes 1 s to worker 1, whose boundaries are at 1 + 0.5 n.
    rows = [{"step_s": 1.0}, {"step_s": 0.5, "download_s": 1.0}]
    order = run(asynchronous(), rows, steps=[2, 9], max_time_s=3.5)
    assert lines_of(order, o.ADOPT, o.TRAIN, o.MERGE, worker=1) == [
        "1 1 adopt 0",
        "3 1 train 4",
        "3 1 merge 1",
    ]


def test_a_version_at_hand_at_the_end_of_a_cycle_is_merged_and_then_pushed():
    # Version 1 (2 s) reaches worker 1 at 2.2 s, in the last step of its cycle, which
    # ends at 3 s: its update has base 1, and is of staleness 0 in version 2.
    rows = [{"step_s": 1.0, "leave_s": 2.5}, {"step_s": 1.5, "download_s": 0.2}]
    order = run(asynchronous(), rows, steps=2, max_versions=2)
    assert lines_of(order, o.TRAIN, *VERSIONS, o.PUSH, o.AGGREGATE, worker=1) == [
        "0.2 1 adopt 0",
        "3.2 1 train 2",
        "3.2 1 merge 1",
        "3.2 1 push 1",
    ]
    assert order.members_of(2).tolist() == [1]


@pytest.mark.parametrize("latency_s", [0.0625, 0.25, 1e6])
def test_what_rounding_puts_just_after_a_boundary_is_there_at_the_boundary(latency_s):
    # Three steps of 0.1 s take 0.30000000000000004 s, one of 0.3 s takes 0.3 s.
    assert 3 * 0.1 > 0.3
    rows = [{"step_s": 0.1, "leave_s": 0.5}, {"step_s": 0.3, "download_s": latency_s}]
    order = run(asynchronous(), rows, steps=[3, 1], max_versions=2)
    assert [did.kind for did in events_in(order, worker=1)] == [
        o.BEGIN,
        o.ADOPT,
        o.TRAIN,
        o.MERGE,
        o.PUSH,
    ]


def test_what_rounding_puts_just_after_a_link_is_free_is_carried_next():
    # Versions at 0.1, 0.2 and 0.30000000000000004 s; worker 1's link is free at
    # 0.3 s: it carries version 3 then, not version 2.
    rows = [{"step_s": 0.1}, {"step_s": 50.0, "download_mbps": 80.0 / 3.0}]
    order = run(asynchronous(), rows, steps=[1, 9], max_time_s=60.0, num_bytes=MEGABYTE)
    made_s = order.time_s[order.kind == o.AGGREGATE]
    free_s = 8e-6 * MEGABYTE / (80.0 / 3.0)
    assert made_s[2] > free_s > 0.29
    link = VirtualWorker(1, None, 1.0, 0.0, 0.0, 0.0, free_s, 9.0, None)
    assert link.newest(free_s, [0.0]) == 0
    assert link.newest(2 * free_s, [0.0, *made_s[:3]]) == 3


def test_no_version_arrives_before_it_is_published():
    """Also where rounding alone lies between that and the moment its link is free."""
    rows = [{"step_s": 1.0, "join_s": 1e-45}, {"step_s": 2.0}]
    order = run(asynchronous(min_workers=2), rows, steps=1, max_versions=3)
    assert np.all(np.diff(order.time_s) >= 0)
    published_s = {0: order.start_s}
    for event in events_in(order, o.AGGREGATE):
        published_s[event.value] = event.time_s
    taken = [*events_in(order, o.ADOPT), *events_in(order, o.MERGE)]
    assert taken
    assert all(event.time_s >= published_s[event.value] for event in taken)


def test_a_push_may_depend_on_what_the_merge_before_it_has_made():
    # Worker 0 may always push, worker 1 once it has merged: at 3.2 s, as above.
    def signal(log, worker):
        merged = (o.MERGE, worker) in zip(log.kind, log.worker, strict=True)
        return float(merged or not worker)

    rows = [{"step_s": 1.0}, {"step_s": 1.5, "download_s": 0.2}]
    timing = asynchronous(push_at_metric=0.5)
    order = run(timing, rows, steps=2, max_time_s=3.5, signal_of=signal)
    assert lines_of(order, o.PUSH) == ["2 0 push 0", "3.2 1 push 1"]


def test_a_stretch_has_one_step_at_least():
    # Versions come every 0.35 s, faster than worker 1 does a step.
    rows = [{"step_s": 0.35}, {"step_s": 1.0}]
    order = run(asynchronous(), rows, steps=[1, 3], max_time_s=3.5)
    assert lines_of(order, o.TRAIN, *VERSIONS, worker=1) == [
        "0 1 adopt 0",
        "1 1 train 1",
        "1 1 merge 2",
        "2 1 train 1",
        "2 1 merge 5",
        "3 1 train 1",
        "3 1 merge 8",
    ]


def test_fedavg_rounds_take_as_long_as_the_slowest_worker_and_its_link():
    # Worker 0: 0.25 down, 2 steps of 1 s, 0.5 up; worker 1: 0.5 + 2 * 2 + 0.25 = 4.75.
    rows = [
        {"step_s": 1.0, "upload_s": 0.5, "download_s": 0.25},
        {"step_s": 2.0, "upload_s": 0.25, "download_s": 0.5},
    ]
    order = run(synchronous(min_workers=2), rows, steps=2, max_versions=2)
    assert lines_of(order) == [
        "0 0 begin",
        "0 1 begin",
        "0.25 0 adopt 0",
        "0.5 1 adopt 0",
        "2.25 0 train 2",
        "2.25 0 push 0",
        "4.5 1 train 2",
        "4.5 1 push 1",
        "4.75 -1 aggregate 1",
        "5 0 waited",
        "5 0 adopt 1",
        "5.25 1 waited",
        "5.25 1 adopt 1",
        "7 0 train 2",
        "7 0 push 2",
        "9.25 1 train 2",
        "9.25 1 push 3",
        "9.5 -1 aggregate 2",
    ]
    assert order.members_of(1).tolist() == [0, 1]
    assert order.members_of(2).tolist() == [2, 3]


def test_a_deadline_ends_a_round_and_what_comes_late_is_stale():
    # The same, but a round lasts 3 s at most. Worker 1's first update arrives at 4.75 s
    # in round 2; it adopts version 1 (there since 3.5) when it has pushed, at 4.5.
    rows = [
        {"step_s": 1.0, "upload_s": 0.5, "download_s": 0.25},
        {"step_s": 2.0, "upload_s": 0.25, "download_s": 0.5},
    ]
    order = run(
        synchronous(min_workers=2, deadline_s=3.0), rows, steps=2, max_versions=2
    )
    assert lines_of(order, *OUTCOMES, *VERSIONS)[2:] == [
        "2.25 0 push 0",
        "3 -1 aggregate 1",
        "3.25 0 adopt 1",
        "4.5 1 push 1",
        "4.5 1 adopt 1",
        "4.75 1 reject 1",
        "5.25 0 push 2",
        "6 -1 aggregate 2",
    ]


def test_a_deadline_without_rounds_counts_from_the_oldest_pending_update():
    # Worker 0's update arrives at 2.5 s and would wait for worker 1's, at 8 s.
    rows = [{"step_s": 2.0, "upload_s": 0.5}, {"step_s": 8.0}]
    timing = adopting(min_workers=2, min_updates=2, deadline_s=1.0)
    order = run(timing, rows, steps=1, max_versions=1)
    assert lines_of(order, *OUTCOMES) == ["2 0 push 0", "3.5 -1 aggregate 1"]


def test_a_deadline_that_passes_while_a_version_is_made_is_forgotten():
    # Worker 0 pushes at 1 s (due at 7), worker 1 at 6: version 1 is made from 6 to 9.
    # Worker 2's update of 6.5 s waits until then, and is due at 12.5.
    rows = [
        {"step_s": 1.0, "leave_s": 1.5},
        {"step_s": 6.0, "leave_s": 6.25},
        {"step_s": 6.5},
        {"step_s": 100.0},
    ]
    timing = adopting(min_workers=4, min_updates=2, deadline_s=6.0)
    order = run(timing, rows, steps=1, max_versions=2, aggregate_s=3.0)
    assert lines_of(order, o.AGGREGATE) == ["9 -1 aggregate 1", "15.5 -1 aggregate 2"]


def test_a_newer_update_of_the_same_worker_supersedes_the_pending_one():
    # Worker 0 pushes at 1 and 2 s, worker 1 at 2.5; in order of arrival.
    rows = [{"step_s": 1.0}, {"step_s": 2.5}]
    order = run(asynchronous(min_updates=2), rows, steps=1, max_versions=1)
    assert lines_of(order, *OUTCOMES) == [
        "1 0 push 0",
        "2 0 push 1",
        "2 0 supersede 0",
        "2.5 1 push 2",
        "2.5 -1 aggregate 1",
    ]
    assert order.members_of(1).tolist() == [1, 2]


# ------------------------------------------------------------- how long


def test_a_version_is_there_when_the_server_has_computed_for_a_while():
    # Pushes at 1, 2, 3 s; version 1 takes from 1 to 2.5 s; what has come by then waits,
    # and makes version 2 until 4 s.
    rows = [{"step_s": 1.0}]
    order = run(adopting(), rows, steps=1, max_versions=2, aggregate_s=1.5)
    assert lines_of(order, o.AGGREGATE, *VERSIONS) == [
        "0 0 adopt 0",
        "1 0 adopt 0",
        "2 0 adopt 0",
        "2.5 -1 aggregate 1",
        "3 0 adopt 1",
        "4 -1 aggregate 2",
    ]
    assert order.members.tolist() == [0, 1]


def test_time_counts_from_when_enough_workers_have_joined():
    rows = [{"step_s": 1.0}, {"step_s": 1.0, "join_s": 2.0}]
    order = run(adopting(min_workers=2), rows, steps=1, max_time_s=1.5)
    assert lines_of(order, o.BEGIN, o.ADOPT, o.TRAIN) == [
        "0 0 begin",
        "2 1 begin",
        "2 0 adopt 0",
        "2 1 adopt 0",
        "3 0 train 1",
        "3 0 adopt 0",
        "3 1 train 1",
        "3 1 adopt 0",
    ]
    assert (order.start_s, order.end_s) == (2.0, 3.5)
    assert order.reason == "max_time_s = 1.5 reached"


def test_whichever_limit_comes_first_ends_the_run():
    limits = {"max_versions": 3, "max_time_s": 2.5}
    order = run(adopting(), [{"step_s": 1.0}], steps=1, **limits)
    assert (len(order.version), order.end_s) == (3, 2.5)
    limits = {"max_versions": 2, "max_time_s": 2.5}
    order = run(adopting(), [{"step_s": 1.0}], steps=1, **limits)
    assert (len(order.version), order.end_s) == (3, 2.0)


def test_a_run_needs_something_that_ends_it():
    with pytest.raises(ValueError, match="neither max_versions nor max_time_s"):
        run(adopting(), [{}], steps=1, target=0.5)


@pytest.mark.parametrize(
    ("late", "most"),
    [
        ({"join_s": 1e308}, 1),
        ({"join_s": 3.0}, 1),
        ({"join_s": 0.5}, 2),
    ],
)
def test_a_run_whose_min_workers_never_join_has_that_reason(late, most):
    # Worker 0 leaves after 1 s; two at a time are not enough.
    rows = [{"step_s": 1.0, "leave_s": 1.0}, {"step_s": 1.0, **late}]
    order = run(adopting(min_workers=3), rows, steps=1, max_versions=3)
    never = f"it never began: min_workers = 3, and at most {most} of 2 workers "
    assert order.reason.startswith(never)
    assert len(order.version) == 1
    assert order.start_s == order.end_s <= 1e9


@pytest.mark.parametrize("limits", [{"max_versions": 9}, {"max_time_s": 1e300}])
def test_a_run_ends_where_its_clock_would_blur(limits):
    order = run(adopting(), [{"step_s": 4e8}], steps=1, **limits)
    assert (len(order.version), order.end_s) == (3, 1e9)
    assert order.reason == "1e+09 virtual s have passed"


def test_a_link_that_would_never_bring_an_update_is_refused():
    """A push a second, and each is on its way for 20,000 s."""
    rows = [{"step_s": 1.0}, {"step_s": 1.0, "upload_s": 2e4}]
    words = r"worker 1 would have 2e\+04 updates in flight.*allowed: 10,000"
    with pytest.raises(ValueError, match=words):
        run(adopting(), rows, steps=1, max_versions=3)
    # A worker that waits for the next version has one.
    order = run(synchronous(min_workers=2), rows, steps=1, max_versions=1)
    assert order.end_s == 20001.0


def test_jitter_is_the_seeds():
    def jittered(seed, jitter=0.5):
        rows = [{"step_s": 1.0, "jitter": jitter}] * 2
        return run(asynchronous(), rows, steps=2, seed=seed, max_time_s=30.0)

    assert same(jittered(seed=1), jittered(seed=1))
    assert not same(jittered(seed=1), jittered(seed=2))
    assert same(jittered(seed=1, jitter=0.0), jittered(seed=2, jitter=0.0))


# ------------------------------------------------------------- metrics


def steps_by_ten(log, worker):
    mine = (k == o.TRAIN and w == worker for k, w in zip(log.kind, log.worker))  # noqa: B905
    return sum(value for value, own in zip(log.value, mine, strict=True) if own) / 10


def test_a_push_is_held_back_until_the_metric_is_reached():
    # Epochs of 2 steps of 1 s: the metric is 0.2, 0.4, 0.6 after 2, 4, 6 s.
    order = run(
        asynchronous(push_at_metric=0.5),
        [{"step_s": 1.0}],
        steps=2,
        max_time_s=9.0,
        signal_of=steps_by_ten,
    )
    assert lines_of(order, o.PUSH) == ["6 0 push 0", "8 0 push 1"]


def test_a_push_is_held_back_for_a_limited_number_of_epochs():
    timing = asynchronous(push_at_metric=0.5, push_after_epochs=2)
    rows = [{"step_s": 1.0}]
    order = run(timing, rows, steps=2, max_time_s=5.0, signal_of=steps_by_ten)
    assert lines_of(order, o.PUSH) == ["4 0 push 0"]


def test_a_metric_needs_signal_of():
    with pytest.raises(ValueError, match="give signal_of"):
        run(asynchronous(push_at_metric=0.5), [{}], steps=2, max_time_s=5.0)


# ------------------------------------------------------------- a shorter run


def test_a_cut_order_knows_nothing_of_what_comes_later():
    # Versions at 1, 2, 3, ... s.
    order = run(adopting(), [{"step_s": 1.0}], steps=1, max_versions=5)
    short = cut(order, until(order, 2.5), "enough", 2.5)
    assert same(short, cut(short, until(short, 2.5), "enough", 2.5))
    assert short.time_s.max() == 2.0
    assert short.version.tolist() == [0, 1, 2]
    assert (short.num_updates, short.num_steps) == (2, 2)
    assert short.members.tolist() == [0, 1]
    assert (short.end_s, short.reason) == (2.5, "enough")
    assert len(order.version) == 6
    none = cut(order, until(order, 0.5), "too early", 0.5)
    assert (len(none.version), none.num_updates, len(none.members)) == (1, 0, 0)
