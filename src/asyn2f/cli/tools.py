"""Small programs: before a run its keys and the quality of its data, after it checks,
traces of other machines, and the report."""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from asyn2f import rundir, trace
from asyn2f.api.verification import artifacts_of
from asyn2f.cli import app
from asyn2f.config import build
from asyn2f.config.default import load_config
from asyn2f.config.schema import RunSettings, section
from asyn2f.errors import StoreError
from asyn2f.store.orbax import OrbaxStore
from asyn2f.strategies import contract
from asyn2f.tasks.base import Task
from asyn2f.tasks.quality import Quality, quality_of
from asyn2f.trace import history, invariants
from asyn2f.trace.collection import collect as collect_traces
from asyn2f.trace.invariants import INVARIANTS, VerificationReport
from asyn2f.training.experiment import initial_server_state
from asyn2f.transport import keys as key_files

_DEEP = flags.DEFINE_bool(
    "deep", False, "Also check every version in the store against its digest."
)
_FROM = flags.DEFINE_multi_string(
    "from", [], "The folder of another process's trace; may be repeated."
)
_FOLDER = flags.DEFINE_string("folder", None, "The folder of keys.")
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Make keys for this number of workers, a server and an evaluator.",
    lower_bound=1,
)
_ADD = flags.DEFINE_list("add", [], "Names of further peers to make keys for.")
_MOST = flags.DEFINE_integer(
    "max_examples",
    2000,
    "The size of the sample of each worker's examples, drawn by the seed.",
    lower_bound=10,
)

_SHOWN = 3  # violations of an invariant that are printed
_CELLS = 8  # images are averaged over at most this number of cells, in each direction


def verify() -> int:
    """Verifies a run: nothing lost, nothing counted twice, no version going back.

        asyn2f verify --run=runs/demo

    Checks the trace and the store of any run, real or simulated, finished, killed or
    still running. Exit code 0: all invariants hold; 1: one is broken; 2: the folder
    cannot be read, or the run is empty.
    """
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
    config = app.checked(load_config(folder))
    experiment = build.build_experiment(config, build.build_task(config, "nobody"))
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


def report() -> int:
    """Writes the report of a run, finished or not, as one page of HTML.

        asyn2f report --run=runs/digits

    The page is report.html in the folder of the run.
    """
    from asyn2f.report.run_page import write_report

    folder = app.run_folder()
    try:
        print(write_report(folder))
    except ValueError as error:
        app.fail(str(error))
    except OSError as error:
        app.fail(f"cannot write the report: {error}")
    return 0


def collect() -> int:
    """Collects the traces of processes on other machines in the folder of their run.

        asyn2f collect --run=runs/demo --from=copied/a --from=copied/b

    A worker writes its trace to its own --workdir, on its machine. Copy those folders
    to the server's machine and collect them; then `asyn2f verify`, `asyn2f replay` and
    `asyn2f report` see the whole run. Collecting again changes nothing. Exit code 0:
    the trace is complete; 1: some processes are missing; 2: a folder cannot be read.
    """
    folder = app.run_folder()
    if not _FROM.value:
        app.fail("--from must be given: the --workdir of a worker, copied here")
    try:
        for found in collect_traces(folder, [Path(source) for source in _FROM.value]):
            if found.target is None:
                others = ", ".join(found.others) or "none: no server admitted it"
                print(f"{found.source}: nothing of this run; its run is {others}")
            else:
                print(
                    f"{found.source}: {found.events:,} events of {found.lives} "
                    f"processes, in {found.target}"
                )
        absence = history.absence_of(history.absent(trace.of_run(folder)))
    except (ValueError, OSError) as error:
        app.fail(str(error))
    print(absence or "the trace of every process is here")
    return 1 if absence else 0


def keys() -> int:
    """Makes the keys that authenticate a server and its peers to each other.

        asyn2f keys --folder=keys --workers=10
        asyn2f keys --folder=keys --add=worker-10

    `keys/server` stays on the server's machine; `keys/worker-3` goes to worker 3's
    machine, as `keys/worker-3` there, and `keys/evaluator` to the evaluator's. Start
    all of them with `--config.runtime.keys_dir=keys`. No file is ever overwritten. To
    revoke a key, delete `keys/server/allowed/worker-3.public`: the server then ignores
    its messages.
    """
    folder = Path(app.required(_FOLDER))
    if (_WORKERS.value is None) == (not _ADD.value):
        app.fail("give either --workers=10 for new keys, or --add=worker-10")
    if _WORKERS.value is not None:
        names = key_files.peers(_WORKERS.value)
        key_files.create(folder, names)
    else:
        names = _ADD.value
        for name in names:
            key_files.add(folder, name)
    count = f"{len(names)} more" if _ADD.value else f"{len(names)}"
    peers = "peer" if len(names) == 1 else "peers"
    print(f"{count} {peers} may join the server of {folder / key_files.SERVER}")
    print(f"copy {folder}/NAME to the machine of NAME, and nothing else")
    return 0


def quality() -> int:
    """Scores the quality of each worker's data, by the paper's six scores.

        asyn2f quality --config=configs/digits.py --config.workers=3

    Prints a table, and the value of `config.task.quality` for a run that uses it.
    """
    config = app.checked(app.CONFIG.value)
    task = build.build_task(config, "all", app.roots())
    seed, count = section(config, RunSettings).seed, len(task.shards)
    found = [_quality_of_worker(task, seed, worker) for worker in range(count)]
    table = Table("worker", "examples")
    for name in (*Quality._fields, "quality"):
        table.add_column(name.split("_")[-1], justify="right")
    for worker, (rows, each) in enumerate(zip(task.shards, found, strict=True)):
        scores = [f"{score:.3f}" for score in (*each, each.score)]
        table.add_row(str(worker), str(len(rows)), *scores)
    Console(width=120).print(table)
    values = ",".join(f"{each.score:.4f}" for each in found)
    print(f"--config.task.quality={values}")
    return 0


def check_strategy() -> int:
    """Checks the contract of a strategy of your own, property by property.

        asyn2f check-strategy mypackage.mine:agreement --config.strategy.args.power=2

    On models and updates of all kinds, as the tests check the built-in strategies: no
    data is read and nothing is trained. Exit code 0: all properties hold; 1: one does
    not.
    """
    config = app.checked(app.CONFIG.value)
    strategy = build.build_strategy(config)
    broken = 0
    for name, problem in contract.problems(strategy):
        print(f"{'BROKEN' if problem else 'holds':>10}  {name}", flush=True)
        if problem:
            print(f"{'':>12}{problem}")
        broken += bool(problem)
    print(f"{broken} broken" if broken else f"{strategy.name} keeps the contract")
    return int(bool(broken))


def _quality_of_worker(task: Task, seed: int, worker: int) -> Quality:
    rows = task.shards[worker]
    if task.labels is None:
        app.fail(f"{task.name}: found no labels; the quality of data needs classes")
    if len(rows) > _MOST.value:
        rng = np.random.default_rng([seed, worker])
        rows = np.sort(rng.permutation(rows)[: _MOST.value])
    try:
        features = _features(_inputs(task)[rows])
        classes = int(task.labels.max(initial=-1)) + 1
        return quality_of(features, task.labels[rows], classes)
    except ImportError as error:
        app.fail(f'{error}; pip install "asyn2f[quality]"')
    except ValueError as error:
        app.fail(f"worker {worker}: {error}")


def _inputs(task: Task) -> np.ndarray:
    """The column of the inputs: of built-in tasks `input`, of others `x`, or the only
    one besides labels."""
    labels = np.asarray(task.labels)
    columns = {k: v for k, v in task.train.items() if not np.array_equal(v, labels)}
    usual = [name for name in ("input", "x") if name in columns]
    if not usual and len(columns) != 1:
        app.fail(
            f"{task.name}: found the columns {', '.join(columns)}; the quality of data "
            "is computed of one, named input or x"
        )
    return columns[usual[0]] if usual else next(iter(columns.values()))


def _features(inputs: np.ndarray) -> np.ndarray:
    """Features [N, F]; of images [N, H, W, C] the mean brightness of 8 x 8 cells."""
    if inputs.ndim < 4:
        return inputs.reshape(len(inputs), -1)
    bands = [np.array_split(np.arange(n), min(n, _CELLS)) for n in inputs.shape[1:3]]
    grey = inputs.mean(axis=-1, dtype=np.float64)
    rows = np.stack([grey[:, band].mean(axis=1) for band in bands[0]], axis=1)
    cells = np.stack([rows[:, :, band].mean(axis=2) for band in bands[1]], axis=2)
    return cells.reshape(len(inputs), -1)
