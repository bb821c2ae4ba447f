"""Whether a run kept its promises: nothing lost, nothing counted twice, no going back.

    python -m launch.verify --run=runs/demo

Judges the trace and the store of any run, real or simulated, finished, killed or still
going on. Exit code 0: no promise was broken; 1: one was; 2: the folder cannot be read,
or nothing happened in that run.
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
from asyn2f.trace.accounts import Accounts
from asyn2f.trace.invariants import INVARIANTS, Found, Judgement, commit_of
from asyn2f.training.experiment import initial_server_state

app.takes("run")
_DEEP = flags.DEFINE_bool("deep", False, "Read every version in the store again.")

_SHOWN = 3  # cases of a broken promise that are printed


def main() -> int:
    folder = app.run_folder()
    try:
        found = found_in(folder)
        judgement = invariants.check(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        app.fail(f"--run: {folder} cannot be judged: {error}")
    print(f"{len(found.events):,} events, {len(found.commits)} versions in the store")
    fates = ", ".join(f"{count:,} {fate}" for fate, count in judgement.fates.items())
    print(f"{judgement.fates.total():,} updates pushed: {fates or 'none'}")
    broken = _say(judgement)
    if _DEEP.value:
        broken += _read_again(folder)
    if judgement.absence:
        print(judgement.absence)
    if broken:
        print(f"{broken} broken")
        return 1
    if not any(isinstance(x, trace.Pushed | trace.Aggregated) for x in found.events):
        print("nothing happened: no update was pushed, no version made")
        return app.USAGE_ERROR
    print("no promise was broken" + ", as far as is known" * bool(judgement.absence))
    return 0


def found_in(folder: Path) -> Found:
    """What a run left in its folder.

    Raises:
      RunDirError: there is no trace.
      ValueError, KeyError, TypeError: a trace or a record that is none.
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
        # Those of a run that goes on may have been deleted in the meantime.
        unreadable = frozenset(records.keys() - commits.keys()) & {*store.versions()}
        accuracy, version = store.best()
        if accuracy is not None and version is not None:
            best = version, accuracy
        store.close()
    return Found(
        events=events,
        commits=commits,
        damaged=damaged,
        unreadable=unreadable,
        best=best,
        early=config.get("runtime", {}).get("publish") == "before_save",
        finished=summary.get("status") in ("finished", "interrupted"),
        accounts=Accounts(config, summary, read_metrics(folder), versions),
    )


def _say(judgement: Judgement) -> int:
    """A line for each promise, and cases where it was broken; how many were."""
    broken = 0
    for name, promise in INVARIANTS.items():
        cases = [v.what for v in judgement.violations if v.invariant == name]
        why = judgement.not_shown.get(name)
        word = "BROKEN" if cases else "not shown" if why else "held"
        print(f"{word:>9}  {name:<9}  {promise}{f' ({why})' if why else ''}")
        for case in cases[:_SHOWN]:
            print(f"{'':>22} {case}")
        if len(cases) > _SHOWN:
            print(f"{'':>22} and {len(cases) - _SHOWN} more")
        broken += bool(cases)
    return broken


def _read_again(folder: Path) -> int:
    """Compares every version in the store with its digest; how many are damaged."""
    experiment = build.build_experiment(app.plain(of_run.get_config(str(folder))))
    like = jax.eval_shape(lambda: initial_server_state(experiment))
    store = OrbaxStore(folder / rundir.MODELS)
    versions, broken = store.versions(), 0
    for version in versions:
        try:
            store.load(version, like)
        except StoreError as error:
            if version in store.versions():  # not deleted in the meantime
                print(f"{'BROKEN':>9}  {error}")
                broken += 1
    store.close()
    print(f"{len(versions) - broken} of {len(versions)} versions read back as saved")
    return broken
