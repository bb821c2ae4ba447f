"""Small schedules whose times have been worked out by hand."""

import pytest

from asyn2f.sim import order as o
from asyn2f.sim.profiles import profiles_of
from asyn2f.sim.schedule import schedule
from asyn2f.timing import Stop
from tests.schedules import MEGABYTE, run, same, story
from tests.test_programs import adopting, asynchronous, synchronous

VERSIONS = o.ADOPT, o.MERGE
FATES = o.PUSH, o.SUPERSEDE, o.REJECT, o.LOSE, o.AGGREGATE


def test_asyn2f_merges_at_the_first_batch_boundary_at_or_after_arrival():
    # Worker 0 takes 1 s a step, worker 1 2.5 s. Version 1 comes of worker 0's push at
    # 2 s. Worker 1 is in its first step, which ends at 2.5 s. Worker 0 has gone on just
    # then: its next boundary is at 3 s.
    order = run(asynchronous(), [{"step_s": 1.0}, {"step_s": 2.5}], steps=2, max_versions=2)  # fmt: skip
    assert story(order) == [
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
    order = run(asynchronous(), rows, steps=[2, 9][0], max_versions=2, num_bytes=1)
    assert "3 1 merge 1" in story(order, o.MERGE, worker=1)


def test_fedavg_rounds_take_as_long_as_the_slowest_worker_and_its_link():
    # Worker 0: 0.25 down, 2 steps of 1 s, 0.5 up; worker 1: 0.5 + 2 * 2 + 0.25 = 4.75.
    rows = [
        {"step_s": 1.0, "upload_s": 0.5, "download_s": 0.25},
        {"step_s": 2.0, "upload_s": 0.25, "download_s": 0.5},
    ]
    order = run(synchronous(min_workers=2), rows, steps=2, max_versions=2)
    assert story(order) == [
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
    assert story(order, *FATES, *VERSIONS)[2:] == [
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
    assert story(order, *FATES) == ["2 0 push 0", "3.5 -1 aggregate 1"]


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
    assert story(order, o.AGGREGATE) == ["9 -1 aggregate 1", "15.5 -1 aggregate 2"]


def test_a_newer_update_of_the_same_worker_supersedes_the_pending_one():
    # Worker 0 pushes at 1 and 2 s, worker 1 at 2.5; in order of arrival.
    rows = [{"step_s": 1.0}, {"step_s": 2.5}]
    order = run(asynchronous(min_updates=2), rows, steps=1, max_versions=1)
    assert story(order, *FATES) == [
        "1 0 push 0",
        "2 0 push 1",
        "2 0 supersede 0",
        "2.5 1 push 2",
        "2.5 -1 aggregate 1",
    ]
    assert order.members_of(1).tolist() == [1, 2]


# ------------------------------------------------------------- links

# Worker 0 makes version n at 0.45 n s. Worker 1 has a boundary every 0.25 s.
MAKER = {"step_s": 0.45}
WATCHER = {"step_s": 0.25, "leave_s": 100.0}


def seen_by_worker_1(steps=1, max_time_s=4.1, timing=None, **row):
    many = [1, steps]
    profiles = profiles_of([MAKER, WATCHER | row], 2)
    order = schedule(
        timing or asynchronous(min_workers=2),
        profiles,
        Stop(max_time_s=max_time_s),
        seed=0,
        steps_per_epoch=many,
        num_bytes=MEGABYTE,
    )
    return story(order, *VERSIONS, worker=1)


def test_a_link_carries_one_version_at_a_time_and_the_newest_first():
    # A second each: 0 to 1 s; then version 2 (0.9 s) while 3 and 4 are made; then 4.
    found = seen_by_worker_1(steps=99, download_mbps=8.0)
    assert found == ["1 1 adopt 0", "2 1 merge 2", "3 1 merge 4", "4 1 merge 6"]


def test_latency_delays_every_version_and_leaves_none_out():
    # Version n arrives at 0.45 n + 1: 1.45, 1.9, 2.35; boundaries from 1 s on.
    found = seen_by_worker_1(steps=99, download_s=1.0, max_time_s=2.6)
    assert found == ["1 1 adopt 0", "1.5 1 merge 1", "2 1 merge 2", "2.5 1 merge 3"]


def test_latency_comes_after_the_link_which_is_free_in_the_meantime():
    # As without latency, but half a second later.
    found = seen_by_worker_1(steps=99, download_mbps=8.0, download_s=0.5)
    assert found == ["1.5 1 adopt 0", "2.5 1 merge 2", "3.5 1 merge 4"]


def test_versions_that_came_and_went_during_a_step_are_never_used():
    # The boundary is at 3 s: version 6 is of 2.7 s.
    assert seen_by_worker_1(step_s=3.0) == ["0 1 adopt 0"]
    assert seen_by_worker_1(steps=2, step_s=3.0) == ["0 1 adopt 0", "3 1 merge 6"]


def test_versions_that_came_and_went_during_a_cycle_are_never_used():
    # 8 steps: it pushes and adopts at 2 s (version 4: 1.8 s) and 4 s (version 8: 3.6).
    found = seen_by_worker_1(steps=8, timing=adopting(min_workers=2))
    assert found == ["0 1 adopt 0", "2 1 adopt 4", "4 1 adopt 8"]
    # A slow link carries 0, 2, 4 and 6 until 4 s, but nobody looks before 5 s.
    found = seen_by_worker_1(
        steps=16, timing=adopting(min_workers=2), download_mbps=8.0, max_time_s=5.1
    )
    assert found == ["1 1 adopt 0", "5 1 adopt 8"]


@pytest.mark.parametrize("while_training", ["merge", "ignore"])
def test_who_waits_has_the_next_version_after_one_transfer(while_training):
    # 1 s down, 2 steps, version 1 at 3 s, which is down at 4 s.
    timing = synchronous()._replace if False else synchronous
    made = timing() if while_training == "ignore" else waiting_merger()
    rows = [{"step_s": 1.0, "download_mbps": 8.0}]
    order = run(made, rows, steps=2, max_versions=2, num_bytes=MEGABYTE)
    found = story(order, *VERSIONS, o.AGGREGATE)
    assert found == [
        "1 0 adopt 0",
        "3 -1 aggregate 1",
        "4 0 adopt 1",
        "6 -1 aggregate 2",
    ]


def test_an_upload_takes_latency_and_transfer():
    rows = [{"step_s": 1.0, "upload_s": 0.5, "upload_mbps": 4.0}]
    order = run(asynchronous(), rows, steps=1, max_versions=1, num_bytes=MEGABYTE)
    assert order.end_s == 1.0 + 0.5 + 2.0
