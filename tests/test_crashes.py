"""A server may die anywhere: nothing is lost by that, and nothing counts twice."""

import pytest

from asyn2f.runtime import crashes
from tests.crashed_run import crash, judge

pytestmark = pytest.mark.processes

BACK_S = 10.0  # promised
# The time at which a place is in the middle of the run; 1 where it comes once.
TIMES = {
    "received": 12,
    "checked": 12,
    "made": 6,
    "saving": 6,
    "written": 7,  # the first is version 0
    "saved": 6,
    "announcing": 9,
    "announced": 6,
    "answering": 11,
    "best": 2,
    "cleaning": 3,
}
PLACES = [f"{point}:{TIMES.get(point, 1)}" for point in crashes.POINTS]
QUICK = ["saved:6"]


@pytest.mark.timed
@pytest.mark.parametrize("place", QUICK)
def test_a_server_that_dies_loses_nothing(tmp_path, place):
    run = crash(tmp_path / "run", place)
    judge(run)
    print(f"{place}: back after {run.back_s} s")
    assert run.back_s is not None
    assert run.back_s < BACK_S


@pytest.mark.slow
@pytest.mark.parametrize("place", [p for p in PLACES if p not in QUICK])
def test_a_server_that_dies_anywhere_loses_nothing(tmp_path, place):
    run = crash(tmp_path / "run", place)
    judge(run)
    print(f"{place}: back after {run.back_s} s")
    if run.back_s is None:  # the run was over
        assert place == "ending:1"
    else:
        assert run.back_s < BACK_S
