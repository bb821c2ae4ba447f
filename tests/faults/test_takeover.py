"""A second server on a live run takes it over, with its workers."""

import os
import time

import pytest

from asyn2f import rundir, trace
from asyn2f.api.verification import artifacts_of
from asyn2f.trace import invariants
from tests.support.crashed_run import SMALL, VERSIONS, newest_saved, processes
from tests.support.patience import PATIENCE_S, Crowd, wait_until

ENDED_S = 2.0  # promised


@pytest.mark.processes
@pytest.mark.timed
@pytest.mark.slow
def test_a_second_server_takes_a_live_run_over_with_its_workers(tmp_path):
    folder = tmp_path / "run"
    logs = tmp_path / "logs"
    logs.mkdir()
    flags = [*SMALL, "--config.stop.max_versions=100000", f"--workdir={folder}"]
    with Crowd() as crowd, processes(logs) as start:
        first = start("server", *flags)
        wait_until(lambda: (folder / rundir.SERVER).exists(), first)
        peers = [start("worker", *flags, f"--worker={n}") for n in (0, 1)]
        peers.append(start("evaluator", *flags))
        wait_until(lambda: newest_saved(folder / "models") >= 3, first)
        last = f"--config.stop.max_versions={5 * VERSIONS}"
        second = start("server", *flags, last, "--resume")
        begun = folder / "models" / "incarnations" / "2"
        wait_until(begun.exists, second)
        assert first.wait(PATIENCE_S) == 2
        ended_s = time.time() - os.stat(begun).st_mtime
        codes = [process.wait(PATIENCE_S) for process in (second, *peers)]
    said = "\n".join(log.read_text() for log in sorted(logs.iterdir()))
    print(f"the first server ended {ended_s:.2f} s after the second began, {crowd}")
    assert codes == [0, 0, 0, 0], said
    # Orbax's threads may complain before: their files are swept up under their hands.
    last_words = (logs / "0-server.log").read_text().splitlines()[-1]
    assert last_words.startswith("error: ")
    assert "another server has taken this run over, as incarnation 2" in last_words
    assert ended_s < ENDED_S * crowd.factor
    found = artifacts_of(folder)
    assert not invariants.check(found).violations, said
    made = [e for e in found.events if isinstance(e, trace.Aggregated)]
    assert {event.incarnation for event in made} == {1, 2}
    assert max(found.commits) == 5 * VERSIONS
