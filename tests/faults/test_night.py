"""The long faults of `tests.soak`, shortened."""

import pytest

from tests.soak import peers, programs

pytestmark = [pytest.mark.processes, pytest.mark.slow]


def check(found):
    bad = [figure for figure in found if not figure.is_good]
    assert not bad, bad


def test_two_hundred_workers_find_the_server_that_takes_the_others_place(tmp_path):
    check(peers.restart(tmp_path, count=200, away_s=5.0))


@pytest.mark.parametrize("seed", range(2))
def test_a_stopped_server_that_was_replaced_ends_and_writes_nothing(tmp_path, seed):
    """Long enough for the second to find the ports taken."""
    check(programs.takeover(tmp_path, seed, stopped_s=12.0))


def test_a_server_without_memory_loses_nothing(tmp_path):
    check(programs.memory(tmp_path, seed=1, times=2))
