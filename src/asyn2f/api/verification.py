"""The guarantees of a run, checked on what it left in its folder."""

from pathlib import Path

from asyn2f import rundir, trace
from asyn2f.config.default import load_config
from asyn2f.config.schema import RunSettings, RuntimeSettings, section, strategy_of
from asyn2f.report.metrics import read_metrics
from asyn2f.store.base import StoreSettings
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace import invariants
from asyn2f.trace.artifacts import Records, RunArtifacts, commit_of
from asyn2f.trace.invariants import VerificationReport
from asyn2f.types import metric_of


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
    return invariants.check(artifacts_of(rundir.as_folder(folder)))


def artifacts_of(folder: Path) -> RunArtifacts:
    """What a run has left in its folder.

    Raises:
      RunDirError: there is no trace.
      ValueError, KeyError, TypeError: an invalid trace or record.
    """
    events = trace.of_run(folder)
    summary, configured, runtime = {}, {}, RuntimeSettings()
    keep_last = 1
    if (folder / rundir.CONFIG).exists():
        config = load_config(folder)
        configured = {
            "strategy": strategy_of(config)[0],
            "seed": section(config, RunSettings).seed,
        }
        runtime = section(config, RuntimeSettings)
        keep_last = section(config, StoreSettings).keep_last
    if (folder / rundir.SUMMARY).exists():
        summary = rundir.read_json(folder / rundir.SUMMARY)
    commits, best, metric = {}, None, None
    versions = damaged = unreadable = frozenset[int]()
    if (folder / rundir.RUN).exists():
        metric = metric_of(rundir.read_json(folder / rundir.RUN))
    if (folder / rundir.MODELS).is_dir():
        store = OrbaxStore(folder / rundir.MODELS)
        versions = frozenset(store.versions())
        records = {version: store.record(version) for version in versions}
        commits = {v: commit_of(r) for v, r in records.items() if "version" in r}
        damaged = store.damaged()
        # A running server may have deleted some in the meantime.
        unreadable = frozenset(records.keys() - commits.keys()) & {*store.versions()}
        best = store.best()
        store.close()
    return RunArtifacts(
        events=events,
        commits=commits,
        damaged=damaged,
        unreadable=unreadable,
        best=best,
        before_save=runtime.publish == "before_save",
        finished=summary.get("status") in ("finished", "interrupted"),
        records=Records(
            metric=metric,
            configured=configured,
            keep_last=keep_last,
            summary=summary,
            metrics=read_metrics(folder),
            versions=versions,
        ),
    )
