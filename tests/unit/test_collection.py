"""Traces from other machines in the folder of their run: all of them, and no others."""

import json
import os

import pytest

from asyn2f import trace
from asyn2f.errors import RunDirError
from asyn2f.trace.causality import check
from asyn2f.trace.collection import collect
from asyn2f.trace.history import absent
from asyn2f.trace.ordering import shifted
from tests.programs.test_verify import run
from tests.support.handmade_trace import files_of, hand_made

NAMES = ["server", "worker-0", "worker-1"]


def lives_of(name, run_id="run-1"):
    """What that process wrote: each life is let in by a server of the run."""
    lives = [life for life in files_of(hand_made())[NAMES.index(name)] if life]
    if name == "server":
        return lives
    for life in lives:
        head = life[0]
        life.insert(1, trace.Registered(head.time_s, name, run_id, 1))
    return lives


def write(folder, name, lives):
    writer = trace.TraceWriter(folder / "trace", name)
    for event in (event for life in lives for event in life):
        writer.write(event)
    writer.close()
    return folder


@pytest.fixture
def folder(tmp_path):
    made = write(tmp_path / "run", "server", lives_of("server"))
    (made / "run.json").write_text(json.dumps({"run": "run-1"}))
    return made


def names_in(folder):
    return sorted(path.name for path in (folder / "trace").iterdir())


def test_the_run_is_whole_then_and_collecting_again_changes_nothing(folder, tmp_path):
    far = [
        write(tmp_path / "a", "worker-0", lives_of("worker-0")),
        write(tmp_path / "b", "worker-1", lives_of("worker-1")) / "trace",
    ]
    found = list(collect(folder, far))
    assert [x.lives for x in found] == [1, 2]
    events = trace.read(folder / "trace")
    assert absent(events) == []
    check(events)
    before = {path: path.read_bytes() for path in (folder / "trace").iterdir()}
    list(collect(folder, far[::-1]))
    assert {path: path.read_bytes() for path in (folder / "trace").iterdir()} == before
    assert len(before) == 3


def test_other_clocks_are_no_obstacle(folder, tmp_path):
    for name, by_s in (("worker-0", 3600.0), ("worker-1", -3600.0)):
        lives = [[shifted(e, by_s) for e in life] for life in lives_of(name)]
        list(collect(folder, [write(tmp_path / name, name, lives)]))
    check(trace.read(folder / "trace"))


def test_what_has_grown_since_replaces_what_was_collected(folder, tmp_path):
    lives = lives_of("worker-0")
    far = write(tmp_path / "a", "worker-0", [lives[0][:5]])
    list(collect(folder, [far]))
    write(tmp_path / "a", "worker-0", [lives[0][5:]])
    list(collect(folder, [far]))
    assert names_in(folder) == ["server.jsonl", "worker-0.jsonl"]
    assert trace.lives_in(folder / "trace" / "worker-0.jsonl") == lives
    (tmp_path / "a" / "trace" / "worker-0.jsonl").write_text(
        trace.to_line(lives[0][0]) + "\n" + trace.to_line(lives[0][1]) + "\n"
    )
    list(collect(folder, [far]))  # an older copy
    assert trace.lives_in(folder / "trace" / "worker-0.jsonl") == lives


def test_two_machines_that_were_the_same_worker_are_both_kept(folder, tmp_path):
    first, second = lives_of("worker-1")
    far = [
        write(tmp_path / "a", "worker-1", [first]),
        write(tmp_path / "b", "worker-1", [second]),
    ]
    list(collect(folder, far))
    assert names_in(folder) == ["server.jsonl", "worker-1.2.jsonl", "worker-1.jsonl"]
    list(collect(folder, [write(tmp_path / "c", "worker-0", lives_of("worker-0"))]))
    check(trace.read(folder / "trace"))


def test_lives_of_other_runs_stay_where_they_are(folder, tmp_path):
    other = lives_of("worker-0", "run-2")
    never_let_in = [trace.ProcessStarted(9.0, "worker-0", "", 0, {})]
    far = write(tmp_path / "a", "worker-0", [*other, *lives_of("worker-0")])
    write(tmp_path / "a", "worker-0", [never_let_in])
    (found,) = collect(folder, [far])
    assert (found.lives, found.others) == (1, ("run-2",))
    (found,) = collect(folder, [write(tmp_path / "b", "worker-0", other)])
    assert (found.target, found.others) == (None, ("run-2",))
    assert names_in(folder) == ["server.jsonl", "worker-0.jsonl"]


def test_what_is_no_workers_trace_is_refused_and_nothing_is_written(folder, tmp_path):
    lives = lives_of("worker-0")
    lives[0][0] = lives[0][0]._replace(actor="../../evil")
    cases = {
        "no trace": tmp_path / "none",
        "own folder": folder,
        "the trace of '../../evil'": write(tmp_path / "a", "worker-0", lives),
        "worker-0.jsonl:2": write(tmp_path / "b", "worker-0", lives_of("worker-0")),
    }
    path = tmp_path / "b" / "trace" / "worker-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "nonsense\n", *lines[2:]]))
    for words, source in cases.items():
        with pytest.raises((RunDirError, ValueError), match=words):
            list(collect(folder, [source]))
    assert names_in(folder) == ["server.jsonl"]


def test_a_link_in_the_way_is_not_written_through(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    os.symlink(victim, folder / "trace" / "worker-0.jsonl")
    far = write(tmp_path / "a", "worker-0", lives_of("worker-0"))
    (found,) = collect(folder, [far])
    assert victim.read_text() == "mine\n"
    assert found.target.name == "worker-0.2.jsonl"


@pytest.mark.processes
def test_the_program_says_what_is_missing_still(folder, tmp_path):
    far = [write(tmp_path / n, n, lives_of(n)) for n in ("worker-0", "worker-1")]
    code, out, err = run("collect", f"--run={folder}", f"--from={far[0]}")
    assert (code, err) == (1, "")
    assert "worker-1 is missing" in out
    code, out, _ = run("collect", f"--run={folder}", *(f"--from={x}" for x in far))
    assert code == 0, out
    assert "the trace of every process is here" in out
