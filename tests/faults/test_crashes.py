"""A server may die anywhere: nothing is lost by that, and nothing counts twice."""

import subprocess
import sys

import pytest

from asyn2f import failpoints, trace
from tests.support.crashed_run import ROOT, VERSIONS, check_run, crash
from tests.support.patience import PATIENCE_S, Crowd

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
PLACES = [f"{point}:{TIMES.get(point, 1)}" for point in failpoints.POINTS]
# At the very beginning and at the very end: of version 0, and of the last one.
LAST = [f"saved:{VERSIONS}", f"announced:{VERSIONS + 1}"]
PLACES += ["written:1", *LAST]
QUICK = ["saved:6"]


@pytest.mark.timed
@pytest.mark.parametrize("place", QUICK)
def test_a_server_that_dies_loses_nothing(tmp_path, place):
    with Crowd() as crowd:
        run = crash(tmp_path / "run", place)
    check_run(run)
    print(f"{place}: back after {run.back_s} s, {crowd}")
    assert run.back_s is not None
    assert run.back_s < BACK_S * crowd.factor


@pytest.mark.slow
@pytest.mark.parametrize("place", [p for p in PLACES if p not in QUICK])
def test_a_server_that_dies_anywhere_loses_nothing(tmp_path, place):
    with Crowd() as crowd:
        run = crash(tmp_path / "run", place)
    check_run(run)
    print(f"{place}: back after {run.back_s} s, {crowd}")
    if run.back_s is None:  # the run was over
        assert place == "ending:1"
    else:
        assert run.back_s < BACK_S * crowd.factor


@pytest.mark.slow
def test_two_servers_in_a_row_die_and_lose_nothing(tmp_path):
    run = crash(tmp_path / "run", "announced:3", "saved:4")
    check_run(run, deaths=2)


@pytest.mark.slow
def test_what_only_the_dead_server_had_is_sent_again_and_gives_the_same_bits(tmp_path):
    """Workers that wait for each other push once a round, so that a version that died
    with its server is made again of the very same updates."""
    folder = tmp_path / "run"
    run = crash(folder, "made:3", flags=("--config.strategy.name=fedavg",))
    check_run(run)
    made = [e for e in run.found.events if isinstance(e, trace.Aggregated)]
    lost, again = [e for e in made if e.version == 3]
    assert (lost.incarnation, again.incarnation) == (1, 2)
    assert sorted(lost.updates) == sorted(again.updates)
    assert lost.learning_rate == again.learning_rate
    # Executed again without any crash: the same parameters, bit for bit.
    replayed = subprocess.run(
        [sys.executable, "-m", "launch.replay", f"--run={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
