"""A run in which all invariants hold, and each invariant violated by hand."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from asyn2f import trace
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace.artifacts import Commit, Records, RunArtifacts, commit_of
from asyn2f.trace.invariants import INVARIANTS, check
from asyn2f.types import Best
from tests.contracts.test_runtime import SETTINGS, LocalRun, small
from tests.support.handmade_trace import by_time, hand_made
from tests.support.updates import update_info

ROOT = Path(__file__).parents[2]


def commit(version, incarnation, keys, bases, shares):
    return Commit(version, version - 1, incarnation, keys, bases, shares)


COMMITS = {
    0: commit(0, 1, (), (), ()),
    1: commit(1, 1, ((0, "a", 1), (1, "b", 0)), (0, 0), (0.6, 0.4)),
    2: commit(2, 2, ((0, "a", 2), (1, "c", 0)), (1, 1), (0.75, 0.25)),
    3: commit(3, 2, ((1, "c", 1), (0, "a", 3)), (1, 2), (0.25, 0.75)),
}
HEARD = [
    trace.OutcomeReceived(1.6, 0, "a", 0, "superseded", -1, 1),
    trace.OutcomeReceived(2.3, 0, "a", 1, "committed", 1, 1),
    trace.OutcomeReceived(2.3, 1, "b", 0, "committed", 1, 1),
    trace.OutcomeReceived(5.4, 0, "a", 2, "committed", 2, 2),
    trace.OutcomeReceived(6.8, 1, "c", 2, "rejected", -1, 2),
]
MORE = [
    *HEARD,
    trace.Saved(2.05, 1, 1),
    trace.Saved(5.35, 2, 2),
    trace.Saved(6.25, 3, 2),
    trace.Received(2.25, 0, 1),
    trace.Received(3.4, 0, 2),  # announced early, and lost with its server
    trace.Registered(0.45, "evaluator", "run-1", 1),
    trace.Registered(4.25, "worker-0", "run-1", 2),
    trace.Registered(4.25, "evaluator", "run-1", 2),
    trace.Received(4.3, 0, 1),
    trace.Received(5.45, 0, 2),
    trace.Evaluated(6.5, 2, {"accuracy": 0.8}),
    trace.Evaluated(6.55, 3, {"accuracy": 0.7}),
    trace.Stopped(6.9, "server", "version 3 reached"),
    trace.Stopped(7.0, "worker-0", "the run is over"),
    trace.Stopped(7.0, "worker-1", "the run is over"),
]
GOOD = RunArtifacts(
    by_time([*hand_made(), *MORE]),
    COMMITS,
    best=Best(2, "accuracy", 0.8),
    before_save=True,
)


def with_events(*more):
    return GOOD._replace(events=by_time([*GOOD.events, *more]))


def with_commit(number, /, **changes):
    changed = {number: COMMITS[number]._replace(**changes)}
    return GOOD._replace(commits=COMMITS | changed)


def without(kind, time_s):
    kept = [e for e in GOOD.events if not (type(e) is kind and e.time_s == time_s)]
    assert len(kept) == len(GOOD.events) - 1
    return GOOD._replace(events=kept)


def with_shares(version, incarnation, shares):
    def changed(event):
        is_it = isinstance(event, trace.Aggregated) and event.version == version
        if is_it and event.incarnation == incarnation:
            return event._replace(coefficients=shares)
        return event

    return GOOD._replace(events=[changed(event) for event in GOOD.events])


BROKEN = {
    "I1 a record nobody can read": ("I1", GOOD._replace(unreadable=frozenset({7}))),
    "I1 a record of another parent": ("I1", with_commit(3, parent=1)),
    "I1 a record of another version": ("I1", with_commit(3, version=4)),
    "I1 a record of other content": ("I1", with_commit(1, coefficients=(0.4, 0.6))),
    "I1 a record of another run": ("I1", with_commit(3, run="run-2")),
    "I1 a record of a lost incarnation": ("I1", with_commit(3, incarnation=1)),
    "I2 an update in two records": (
        "I2",
        with_commit(3, keys=((1, "c", 1), (0, "a", 2))),
    ),
    "I2 an update twice in a record": (
        "I2",
        with_commit(3, keys=((1, "c", 1), (1, "c", 1))),
    ),
    "I3 committed in another version": (
        "I3",
        with_events(trace.OutcomeReceived(6.8, 0, "a", 3, "committed", 2, 2)),
    ),
    "I3 committed in none": (
        "I3",
        with_events(trace.OutcomeReceived(6.8, 1, "b", 1, "committed", 2, 2)),
    ),
    "I4 rejected, and counted": (
        "I4",
        with_events(trace.OutcomeReceived(6.8, 0, "a", 3, "rejected", -1, 2)),
    ),
    "I4 superseded, and counted": (
        "I4",
        with_events(trace.OutcomeReceived(6.8, 1, "c", 0, "superseded", -1, 2)),
    ),
    "I5 a sum that is not one": ("I5", with_shares(2, 2, [0.7, 0.25])),
    "I5 a negative share": ("I5", with_shares(2, 2, [1.25, -0.25])),
    "I5 no number": ("I5", with_shares(2, 2, [float("nan"), 1.0])),
    "I6 published, then saved": (
        "I6",
        RunArtifacts(
            [e for e in GOOD.events if e.time_s < 3.1]
            + [trace.Published(3.2, 2, 400, 2), trace.Saved(3.3, 2, 1)],
            {},
            finished=False,
        ),
    ),
    "I6 published in place of one that was saved": (
        "I6",
        RunArtifacts(
            [
                trace.Published(0.5, 0, 400, 2),
                trace.Saved(1.0, 1, 1),
                trace.Saved(2.0, 2, 1),
                trace.Resumed(3.0, 2, 1, 1),
                trace.Published(4.0, 2, 400, 2),
                trace.Saved(5.0, 2, 2),
            ],
            {},
            damaged=frozenset({2}),
            finished=False,
        ),
    ),
    "I7 an update that disappears": ("I7", without(trace.UpdateSettled, 6.7)),
    "I9 an incarnation again": (
        "I9",
        with_events(trace.ProcessStarted(6.95, "server", "run-1", 2, {})),
    ),
    "I9 from an older version": (
        "I9",
        with_events(
            trace.ProcessStarted(6.95, "server", "run-1", 3, {}),
            trace.Resumed(6.96, 3, 2, 2),
        ),
    ),
    "I9 from the very beginning": (
        "I9",
        with_events(
            trace.ProcessStarted(6.95, "server", "run-1", 3, {}),
            trace.Published(6.96, 0, 400, 2),
        ),
    ),
    "I10 an update nobody pushed": (
        "I10",
        with_commit(3, keys=((1, "c", 1), (0, "z", 9))),
    ),
    "I11 back to an older version": ("I11", with_events(trace.Received(5.5, 0, 1))),
    "I12 two writers": ("I12", with_events(trace.Saved(6.3, 3, 1))),
    "I13 a base of the future": ("I13", with_commit(3, base_versions=(1, 3))),
    "I16 a score of no version": (
        "I16",
        with_events(trace.Evaluated(6.6, 9, {"accuracy": 0.9})),
    ),
    "I16 the best is not there": ("I16", GOOD._replace(best=Best(7, "accuracy", 0.8))),
    "I16 the best has another score": (
        "I16",
        GOOD._replace(best=Best(2, "accuracy", 0.9)),
    ),
    "I17 a process that stays": (
        "I17",
        with_events(trace.Stopped(17.5, "evaluator", "at last")),
    ),
    "records": (
        "records",
        GOOD._replace(records=Records(summary={"versions": 2})),
    ),
    "causality": ("causality", with_events(trace.Adopted(6.5, 0, 5, 16))),
}


def test_all_invariants_hold_in_a_run_with_crashes():
    report = check(GOOD)
    assert report.violations == []
    assert report.outcomes == Counter(
        {"committed": 6, "superseded": 1, "rejected": 1, "lost with its worker": 1}
    )


@pytest.mark.parametrize("name", BROKEN)
def test_a_violation_is_named(name):
    invariant, found = BROKEN[name]
    broken = {violation.invariant for violation in check(found).violations}
    assert invariant in broken


def test_every_invariant_is_violated_here_or_left_to_the_simulation():
    by_hand = {invariant for invariant, _ in BROKEN.values()}
    left = {k for k, why in check(GOOD).unverified.items() if "simulation" in why}
    assert by_hand | left == set(INVARIANTS)


def test_a_running_run_has_pending_updates():
    until = [event for event in GOOD.events if event.time_s < 5.95]
    found = GOOD._replace(events=until, commits={}, best=None, finished=False)
    report = check(found)
    assert report.violations == []
    assert report.outcomes["pending"] == 2
    assert "I7" in report.unverified


def test_a_server_may_resume_from_before_a_damaged_version():
    events = [
        *GOOD.events,
        trace.ProcessStarted(8.0, "server", "run-1", 3, {}),
        trace.Resumed(8.1, 3, 2, 2),
    ]
    found = GOOD._replace(events=events, damaged=frozenset({3}), commits={})
    found = found._replace(best=None)
    assert "I9" not in {v.invariant for v in check(found).violations}


def test_a_simulated_run_ends_with_updates_in_flight():
    events = [
        trace.ProcessStarted(0.0, "simulation", "run-1", 1, {}),
        trace.Published(0.0, 0, 400, 1),
        trace.Adopted(0.0, 0, 0, 0),
        trace.Trained(1.0, 0, 0.0, 8, 8, 0, 0.5, 0.5),
        trace.Pushed(1.0, 0, "simulated", 0, update_info(step=8)),
        trace.Stopped(1.5, "simulation", "1.5 s have passed"),
    ]
    report = check(RunArtifacts(events, {}))
    assert report.outcomes == Counter({"pending": 1})
    assert report.violations == []
    assert "simulated" in report.unverified["I7"]


def test_what_lacks_events_is_unverified():
    few = [
        e for e in GOOD.events if not isinstance(e, trace.Saved | trace.OutcomeReceived)
    ]
    report = check(GOOD._replace(events=few, before_save=False))
    assert report.violations == []
    assert {"I3", "I4", "I6", "I12"} <= set(report.unverified)


# ------------------------------------------------------------- real runs


@pytest.mark.parametrize("announce", ["after_save", "before_save"])
def test_all_invariants_of_a_real_run_hold(tmp_path, announce):
    settings = dataclasses.replace(SETTINGS, publish=announce)
    store = OrbaxStore(tmp_path / "models")
    run = LocalRun(tmp_path, small(), "zmq", settings, store)
    for number in range(3):
        run.start_worker(number)
    run.finish()
    records = {v: run.store.record(v) for v in run.store.versions()}
    found = RunArtifacts(
        events=trace.read(tmp_path / "trace"),
        commits={version: commit_of(record) for version, record in records.items()},
        before_save=announce == "before_save",
    )
    report = check(found)
    assert report.violations == []
    assert {"I3", "I7", "I12"}.isdisjoint(report.unverified)
    assert ("I6" in report.unverified) == (announce == "before_save")


def verify(folder, *flags):
    done = subprocess.run(
        [sys.executable, "-m", "launch.verify", f"--run={folder}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    return done.returncode, done.stdout, done.stderr


def write(folder, found):
    writer = trace.TraceWriter(folder / "trace", "all")
    for event in found.events:
        if not isinstance(event, trace.Saved):  # there are no models beside it
            writer.write(event)
    writer.close()
    status = {"status": "finished" if found.finished else "failed"}
    (folder / "summary.json").write_text(json.dumps(status))
    announce = "before_save" if found.before_save else "after_save"
    config = {"runtime": {"publish": announce}}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.processes
def test_the_program_reports_what_holds_and_what_is_broken(tmp_path):
    good, bad = tmp_path / "good", tmp_path / "bad"
    write(good, GOOD)
    code, out, err = verify(good)
    assert (code, err) == (0, "")
    assert "all invariants hold" in out
    write(bad, BROKEN["I4 rejected, and counted"][1])
    code, out, err = verify(bad)
    assert (code, err) == (1, "")
    (line,) = [line for line in out.splitlines() if "BROKEN" in line]
    assert "I4" in line
    assert "update 3 of worker 0, session a" in out


@pytest.mark.processes
@pytest.mark.parametrize("content", ["", "no trace", '{"kind": "Settled"}\n{}\n'])
def test_what_cannot_be_verified_is_one_line_and_exit_code_2(tmp_path, content):
    if content:
        (tmp_path / "trace").mkdir()
        (tmp_path / "trace" / "server.jsonl").write_text(content + "\n" + content)
    code, _, err = verify(tmp_path)
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
