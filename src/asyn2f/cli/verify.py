"""Verifies a run: nothing lost, nothing counted twice, no version going back.

    python -m launch.verify --run=runs/demo

Checks the trace and the store of any run, real or simulated, finished, killed or still
running. Exit code 0: all invariants hold; 1: one is broken; 2: the folder cannot be
read, or the run is empty.
"""

from pathlib import Path

import jax
from absl import flags

from asyn2f import rundir, trace
from asyn2f.cli import app
from asyn2f.config import build, of_run
from asyn2f.errors import StoreError
from asyn2f.report.metrics import read_metrics
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace import invariants
from asyn2f.trace.artifacts import Records, RunArtifacts, commit_of
from asyn2f.trace.invariants import INVARIANTS, VerificationReport
from asyn2f.training.experiment import initial_server_state

app.takes("run")
_DEEP = flags.DEFINE_bool(
    "deep", False, "Also check every version in the store against its digest."
)

_SHOWN = 3  # violations of an invariant that are printed


def main() -> int:
    folder = app.run_folder()
    try:
        artifacts = artifacts_of(folder)
        report = invariants.check(artifacts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        app.fail(f"--run: {folder} cannot be verified: {error}")
    events = artifacts.events
    print(f"{len(events):,} events, {len(artifacts.commits)} versions in the store")
    counts = ", ".join(f"{count:,} {word}" for word, count in report.outcomes.items())
    print(f"{report.outcomes.total():,} updates pushed: {counts or 'none'}")
    broken = _print_report(report)
    if _DEEP.value:
        broken += _verify_models(folder)
    if report.absence:
        print(report.absence)
    if broken:
        print(f"{broken} broken")
        return 1
    if not any(isinstance(x, trace.Pushed | trace.Aggregated) for x in events):
        print("the run is empty: no update was pushed, no version made")
        return app.USAGE_ERROR
    print("all invariants hold" + ", as far as they are known" * bool(report.absence))
    return 0


def artifacts_of(folder: Path) -> RunArtifacts:
    """What a run has left in its folder.

    Raises:
      RunDirError: there is no trace.
      ValueError, KeyError, TypeError: an invalid trace or record.
    """
    events = trace.of_run(folder)
    config, summary = {}, {}
    if (folder / rundir.CONFIG).exists():
        config = rundir.read_json(folder / rundir.CONFIG)
    if (folder / rundir.SUMMARY).exists():
        summary = rundir.read_json(folder / rundir.SUMMARY)
    commits, best = {}, None
    versions = damaged = unreadable = frozenset[int]()
    if (folder / rundir.MODELS).is_dir():
        store = OrbaxStore(folder / rundir.MODELS)
        versions = frozenset(store.versions())
        records = {version: store.record(version) for version in versions}
        commits = {v: commit_of(r) for v, r in records.items() if "version" in r}
        damaged = store.damaged()
        # A running server may have deleted some in the meantime.
        unreadable = frozenset(records.keys() - commits.keys()) & {*store.versions()}
        accuracy, version = store.best()
        if accuracy is not None and version is not None:
            best = version, accuracy
        store.close()
    return RunArtifacts(
        events=events,
        commits=commits,
        damaged=damaged,
        unreadable=unreadable,
        best=best,
        before_save=config.get("runtime", {}).get("publish") == "before_save",
        finished=summary.get("status") in ("finished", "interrupted"),
        records=Records(config, summary, read_metrics(folder), versions),
    )


def _print_report(report: VerificationReport) -> int:
    """Prints a line per invariant, with some of its violations; returns how many
    invariants are broken."""
    broken = 0
    for name, invariant in INVARIANTS.items():
        cases = [v.what for v in report.violations if v.invariant == name]
        why = report.unverified.get(name)
        word = "BROKEN" if cases else "unverified" if why else "holds"
        print(f"{word:>10}  {name:<9}  {invariant}{f' ({why})' if why else ''}")
        for case in cases[:_SHOWN]:
            print(f"{'':>23} {case}")
        if len(cases) > _SHOWN:
            print(f"{'':>23} and {len(cases) - _SHOWN} more")
        broken += bool(cases)
    return broken


def _verify_models(folder: Path) -> int:
    """Checks every version in the store against its digest; returns how many are
    damaged."""
    experiment = build.build_experiment(app.plain(of_run.get_config(str(folder))))
    like = jax.eval_shape(lambda: initial_server_state(experiment))
    store = OrbaxStore(folder / rundir.MODELS)
    versions, broken = store.versions(), 0
    for version in versions:
        try:
            store.load(version, like)
        except StoreError as error:
            if version in store.versions():  # it was not deleted in the meantime
                print(f"{'BROKEN':>10}  {error}")
                broken += 1
    store.close()
    print(f"{len(versions) - broken} of {len(versions)} versions match their digests")
    return broken
