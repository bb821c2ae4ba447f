"""Runs with missing traces: reported as such."""

import shutil

import pytest

import asyn2f
from asyn2f import trace
from asyn2f.errors import IncompleteTraceError, RunDirError
from asyn2f.trace.artifacts import RunArtifacts
from asyn2f.trace.history import absent, check_complete
from asyn2f.trace.invariants import check
from configs.digits import get_config
from tests.programs.test_verify import run
from tests.support.golden_run import FOLDER
from tests.support.handmade_trace import files_of, hand_made
from tests.unit.test_invariants import GOOD, verify, write


def write_files(folder, events):
    """The traces of the processes of a run, each in its file."""
    names = ["server", "worker-0", "worker-1"]
    for name, lives in zip(names, files_of(events), strict=True):
        writer = trace.TraceWriter(folder / "trace", name)
        for event in (event for life in lives for event in life):
            writer.write(event)
        writer.close()


@pytest.mark.parametrize("name", ["no/such/run", "file", "empty", "without", "cut"])
def test_where_no_run_is_there_is_no_result(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "trace").mkdir(parents=True)
    (tmp_path / "without").mkdir()
    (tmp_path / "cut" / "trace").mkdir(parents=True)
    (tmp_path / "cut" / "trace" / "server.jsonl").write_text('{"kind": "Rec')
    with pytest.raises(RunDirError, match=name):
        asyn2f.replay(tmp_path / name, get_config().to_dict())


def test_no_name_is_no_run():
    with pytest.raises(RunDirError, match="is not a run"):
        asyn2f.replay("", get_config().to_dict())


@pytest.mark.processes
def test_the_programs_say_that_there_is_nothing(tmp_path):
    (tmp_path / "empty" / "trace").mkdir(parents=True)
    head = trace.ProcessStarted(1.0, "server", "run-1", 1, {})
    idle = [head, trace.Stopped(2.0, "server", "interrupted")]
    write(tmp_path / "idle", RunArtifacts(idle, {}))
    code, out, err = verify(tmp_path / "empty")
    assert (code, out) == (2, "")
    assert "has no events" in err
    code, out, _ = verify(tmp_path / "idle")
    assert code == 2
    assert "the run is empty: no update was pushed, no version made" in out
    assert "all invariants hold" not in out
    for name in ("empty", "none"):
        code, _, err = run("replay", f"--run={tmp_path / name}")
        assert code == 2
        assert name in err
        assert "not a run" in err or "no events" in err


# ------------------------------------------------------- traces on other machines


def test_workers_whose_traces_lie_elsewhere_are_named():
    events = hand_made()
    assert absent(events) == []
    server, first, second = ([e for life in x for e in life] for x in files_of(events))
    assert absent(server) == ["worker-0", "worker-1"]
    assert absent([*server, *second]) == ["worker-0"]
    assert absent([*first, *second]) == ["server"]
    half = [e for e in second if e.time_s < 4.3]  # not of its second life
    assert absent([*server, *first, *half]) == ["worker-1"]
    with pytest.raises(IncompleteTraceError, match=r"worker-0.*asyn2f collect"):
        check_complete([*server, *second])


def test_a_run_without_its_workers_traces_breaks_no_promise_by_that():
    of_server = files_of(GOOD.events)[1]
    judgement = check(GOOD._replace(events=[e for life in of_server for e in life]))
    assert judgement.violations == []
    assert {"I3", "I4", "I7", "I10", "I11", "causality"} <= set(judgement.unverified)
    assert "worker-0, worker-1 are missing" in judgement.absence


@pytest.mark.processes
def test_the_programs_name_them_and_what_to_do(tmp_path):
    write_files(tmp_path / "run", hand_made())
    (tmp_path / "run" / "trace" / "worker-1.jsonl").unlink()
    shutil.copy(FOLDER / "config.json", tmp_path / "run")
    code, out, _ = verify(tmp_path / "run")
    assert code == 0, out
    assert "the trace of worker-1 is missing" in out
    assert "all invariants hold, as far as they are known" in out
    code, _, err = run("replay", f"--run={tmp_path / 'run'}")
    assert code == 2
    assert "the trace of worker-1 is missing" in err
    assert "asyn2f collect" in err
