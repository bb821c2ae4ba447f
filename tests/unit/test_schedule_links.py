"""Transfers of versions and updates, in small schedules worked out by hand."""

from dataclasses import replace

from asyn2f.sim import order as o
from tests.support.schedules import MEGABYTE, lines_of, run
from tests.unit.test_programs import adopting, asynchronous, synchronous

VERSIONS = o.ADOPT, o.MERGE

# Worker 0 makes version n at 0.45 n s. Worker 1 has a boundary every 0.25 s; its own
# updates never arrive.
MAKER = {"step_s": 0.45}
WATCHER = {"step_s": 0.25, "upload_s": 100.0}


def seen_by_worker_1(steps=1, max_time_s=4.1, timing=None, **row):
    timing = timing or asynchronous(min_workers=2)
    rows, limits = [MAKER, WATCHER | row], {"max_time_s": max_time_s}
    order = run(timing, rows, steps=[1, steps], num_bytes=MEGABYTE, **limits)
    return lines_of(order, *VERSIONS, worker=1)


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
    assert seen_by_worker_1(steps=2, step_s=3.0) == ["0 1 adopt 0", "3 1 merge 6"]


def test_versions_that_came_and_went_during_a_cycle_are_never_used():
    # 8 steps: it pushes and adopts at 2 s (version 4: 1.8 s) and 4 s (version 8: 3.6).
    found = seen_by_worker_1(steps=8, timing=adopting(min_workers=2))
    assert found == ["0 1 adopt 0", "2 1 adopt 4", "4 1 adopt 8"]
    # A slow link carries 0, 2, 4 and 6 until 4 s, but its worker does not look before 5
    # s.
    found = seen_by_worker_1(
        steps=16, timing=adopting(min_workers=2), download_mbps=8.0, max_time_s=5.1
    )
    assert found == ["1 1 adopt 0", "5 1 adopt 8"]


def test_a_waiting_worker_has_the_next_version_after_one_transfer():
    # 1 s down, 2 steps, version 1 at 3 s, which is down at 4 s.
    rows = [{"step_s": 1.0, "download_mbps": 8.0}]
    for timing in (synchronous(), replace(asynchronous(), after_push="wait")):
        order = run(timing, rows, steps=2, max_versions=2, num_bytes=MEGABYTE)
        assert lines_of(order, *VERSIONS, o.AGGREGATE) == [
            "1 0 adopt 0",
            "3 -1 aggregate 1",
            "4 0 adopt 1",
            "6 -1 aggregate 2",
        ]


def test_an_upload_takes_latency_and_transfer():
    # A megabyte in 2 s.
    rows = [{"step_s": 1.0, "upload_s": 0.5, "upload_mbps": 4.0}]
    order = run(asynchronous(), rows, steps=1, max_versions=1, num_bytes=MEGABYTE)
    assert order.end_s == 1.0 + 0.5 + 2.0
