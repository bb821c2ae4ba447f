"""Every alteration of what a run left behind is found; unaltered, it passes."""

import json

import pytest

from asyn2f import trace
from asyn2f.store.orbax import OrbaxStore
from asyn2f.tasks.classification import ACCURACY
from asyn2f.trace.artifacts import Records, RunArtifacts, commit_of
from asyn2f.trace.invariants import check
from asyn2f.types import Best
from tests.contracts.test_runtime import small
from tests.unit.test_causality import RecordedRun


def left_by(run, summary) -> RunArtifacts:
    records = {v: run.store.record(v) for v in run.store.versions()}
    rows = [json.loads(json.dumps(row)) for row in run.rows]
    accounts = Records(
        summary=summary, metrics=rows, versions=frozenset(records), metric=ACCURACY
    )
    return RunArtifacts(
        events=trace.read(run.folder / "trace"),
        commits={version: commit_of(record) for version, record in records.items()},
        best=run.store.best(),
        records=accounts,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a run with an evaluator has left."""
    folder = tmp_path_factory.mktemp("run")
    run = RecordedRun(1, folder, small(), store=OrbaxStore(folder / "models"))
    run.start_evaluator()
    for number in range(3):
        run.start_worker(number)
    found = left_by(run, run.finish())
    run.store.close()
    return found


def with_summary(found, **changes):
    summary = {**found.records.summary, **changes}
    return found._replace(records=found.records._replace(summary=summary))


def with_row(found, kind, **changes):
    rows = [dict(row) for row in found.records.metrics]
    row = [row for row in rows if row["kind"] == kind][1]
    row |= {key: change(row[key]) for key, change in changes.items()}
    return found._replace(records=found.records._replace(metrics=rows))


def without(found, drop):
    kept = [event for event in found.events if not drop(event)]
    assert len(kept) < len(found.events)
    return found._replace(events=kept)


def superseded(found):
    """One superseded update, or else a rejected one."""
    settled = [e for e in found.events if isinstance(e, trace.UpdateSettled)]
    (key, *_) = sorted(
        (e.outcome != "superseded", e.worker, e.session, e.seq)
        for e in settled
        if e.outcome in ("superseded", "rejected")
    )
    return key[1:]


def is_of(event, key):
    kinds = trace.Pushed | trace.UpdateSettled | trace.OutcomeReceived
    return isinstance(event, kinds) and (event.worker, event.session, event.seq) == key


def broken_by(found) -> set[str]:
    return {violation.invariant for violation in check(found).violations}


def test_what_a_run_has_left_agrees(found):
    judgement = check(found)
    assert judgement.violations == []
    assert "records" not in judgement.unverified
    assert judgement.absence == ""


ALTERED = {
    "versions": lambda f: with_summary(f, versions=7),
    "best version": lambda f: with_summary(f, best_version=-1),
    "best value": lambda f: with_summary(f, best_value=0.999),
    "final scores": lambda f: with_summary(f, final_scores={"accuracy": 0.999}),
    "headline": lambda f: with_summary(f, metric={"name": "loss"}),
    "duration": lambda f: with_summary(f, wall_s=f.records.summary["wall_s"] + 0.01),
    "run": lambda f: with_summary(f, run="run-2"),
    "updates": lambda f: with_summary(
        f, updates={**f.records.summary["updates"], "rejected": 99}
    ),
    "committed": lambda f: with_summary(
        f, updates={**f.records.summary["updates"], "committed": 1}
    ),
    "accuracy": lambda f: with_row(
        f, "score", scores=lambda x: x | {"accuracy": x["accuracy"] + 0.001}
    ),
    "loss of a score": lambda f: with_row(
        f, "score", scores=lambda x: x | {"loss": x["loss"] * 1.001}
    ),
    "staleness": lambda f: with_row(f, "version", staleness_mean=lambda x: x + 0.5),
    "members": lambda f: with_row(f, "version", updates=lambda x: x + 1),
    "rate": lambda f: with_row(f, "version", learning_rate=lambda x: x * 1.01),
    "time": lambda f: with_row(f, "version", time_s=lambda x: x + 0.001),
    "number": lambda f: with_row(f, "version", version=lambda x: 77),
    "a score that nobody gave": lambda f: with_row(f, "score", version=lambda x: 77),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_summary_or_row_is_found(found, name):
    assert broken_by(ALTERED[name](found)) == {"records"}


def test_another_best_is_found(found):
    """With its own accuracy, though another version has a higher one."""
    scores = {
        event.version: event.scores["accuracy"]
        for event in found.events
        if isinstance(event, trace.Evaluated)
    }
    version = min(scores, key=scores.__getitem__)
    assert scores[version] < max(scores.values())
    best = Best(version, "accuracy", scores[version])
    altered = with_summary(found, best_version=version, best_value=scores[version])
    assert broken_by(altered._replace(best=best)) == {"records"}
    assert broken_by(found._replace(best=Best(version, "accuracy", 0.999))) >= {"I16"}


def test_a_deleted_newest_version_is_found(found):
    newest = max(found.commits)
    commits = {v: c for v, c in found.commits.items() if v != newest}
    accounts = found.records._replace(versions=frozenset(commits))
    altered = found._replace(commits=commits, records=accounts, best=None)
    altered = altered._replace(records=accounts._replace(summary={}))
    (violation,) = [v for v in check(altered).violations if v.invariant == "I1"]
    assert violation.what == f"version {newest} was saved, but is not in the store"
    assert "I1" not in broken_by(altered._replace(damaged=frozenset({newest})))


def test_a_deleted_version_among_those_that_are_kept_is_found(found):
    accounts = found.records._replace(keep_last=5)
    versions = frozenset(found.commits) - {max(found.commits) - 2}
    what = check(found._replace(records=accounts._replace(versions=versions)))
    assert "I1" in {v.invariant for v in what.violations}


def test_a_removed_update_is_found(found):
    key = superseded(found)
    assert broken_by(without(found, lambda e: is_of(e, key)))
    assert "causality" in broken_by(
        without(found, lambda e: is_of(e, key) and isinstance(e, trace.Pushed))
    )
    assert "I7" in broken_by(
        without(found, lambda e: is_of(e, key) and not isinstance(e, trace.Pushed))
    )


def test_an_update_removed_from_the_middle_of_a_session_is_found(found):
    """Superseded or rejected, and nothing refers to it any more."""
    pushed = [e for e in found.events if isinstance(e, trace.Pushed)]
    session = max({e.session for e in pushed}, key=[e.session for e in pushed].count)
    (_, middle, *_) = [e for e in pushed if e.session == session]
    key = middle.worker, session, middle.seq
    assert "causality" in broken_by(without(found, lambda e: is_of(e, key)))


def test_a_deleted_trace_of_the_evaluator_is_named(found):
    theirs = trace.Evaluated | trace.Registered | trace.Stopped
    altered = without(
        found,
        lambda e: (
            isinstance(e, theirs) and getattr(e, "actor", "evaluator") == "evaluator"
        ),
    )
    judgement = check(altered)
    assert judgement.violations == []
    assert "evaluator is missing" in judgement.absence


@pytest.mark.parametrize("field", ["time_s", "start_s"])
def test_an_invalid_time_is_refused(field):
    line = trace.to_line(trace.Blocked(1.0, 0, 0.5, 1))
    fields = json.loads(line)
    for wrong in ("NaN", "Infinity", "-Infinity", '"1"', "null", "true", "[1.0]"):
        altered = line.replace(f'"{field}": {fields[field]}', f'"{field}": {wrong}')
        assert altered != line
        with pytest.raises(ValueError, match="not a trace event"):
            trace.from_line(altered)
