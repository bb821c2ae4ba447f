"""The guarantees of a run, checked on what it left in its folder."""

from pathlib import Path

from asyn2f import rundir, trace
from asyn2f.report.metrics import read_metrics
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace import invariants
from asyn2f.trace.artifacts import Records, RunArtifacts, commit_of
from asyn2f.trace.invariants import VerificationReport


def verify(folder: Path | str) -> VerificationReport:
    """Checks the guarantees of a run: no lost update, none counted twice, no rollback.

    Args:
      folder: of any run, real or simulated, finished, killed or still running.

    Returns:
      The violations found, and the invariants that this run cannot verify.

    Raises:
      RunDirError: there is no trace.
      TraceFormatError: it was recorded in another format.
      ValueError, KeyError, TypeError: an invalid trace or record.
    """
    return invariants.check(artifacts_of(Path(folder)))


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
