"""Compares methods fairly: the same data, split, workers and time for each.

    python -m launch.compare --config=configs/digits.py --workdir=runs/compared \\
        --strategies=asyn2f,fedavg,fedbuff --seeds=5 --config.stop.max_time_s=30

The same command goes on where it was interrupted. What it leaves: results.jsonl (a line
per trial), table.md, report.html.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from asyn2f import errors, rundir
from asyn2f.cli import app, machine
from asyn2f.cli.claim import in_use
from asyn2f.cli.grids import GRIDS
from asyn2f.cli.trials import Book, Job, carry_out, inputs_digest, prepare_process
from asyn2f.config import build, config_file
from asyn2f.report import comparison, comparison_page
from asyn2f.report.comparison import Trial
from asyn2f.strategies import BUILDERS

app.takes("config", "workdir")
RESULTS, TABLE = "results.jsonl", "table.md"
_CHOICE_SEEDS = 1_000_000  # between the seeds of results and those of choices

_STRATEGIES = flags.DEFINE_list("strategies", None, "The methods, or: all.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 5, "Runs of each method.", lower_bound=1, upper_bound=_CHOICE_SEEDS
)
_TRIALS = flags.DEFINE_integer(
    "trials",
    1,
    "Settings tried for each method, from cli/grids.py; 1 = the config as it is. "
    "They are chosen on other seeds and one half of the test set, and the results are "
    "of the other half.",
    lower_bound=1,
)
_CHOICES = flags.DEFINE_integer(
    "choice_seeds", 2, "Runs by which each setting is judged.", lower_bound=1
)
_TARGET = flags.DEFINE_float(
    "target",
    0.0,
    "Accuracy that times and bytes are measured to; 0 = 0.98 of the best mean at the "
    "end.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Processes at a time; 0 = one per core, or one on an accelerator.",
    lower_bound=0,
)


def main() -> int:
    folder = Path(app.required(app.WORKDIR))
    config = app.plain(app.CONFIG.value)
    strategies = _strategies()
    if not config["stop"]["max_time_s"]:
        raise errors.ConfigError(
            "config.stop.max_time_s: found 0, but methods are compared at equal time; "
            "set it, for example --config.stop.max_time_s=30"
        )
    half = None if _TRIALS.value == 1 else 1
    inputs = inputs_digest(config, build.build_task(config))
    choices = {name: _settings(name, config) for name in strategies}
    first_seed = config["seed"] + _CHOICE_SEEDS
    choosing = [
        _job(config, name, settings, first_seed + seed, "choice", 0, inputs)
        for name, tried in choices.items()
        if len(tried) > 1
        for settings in tried
        for seed in range(_CHOICES.value)
    ]
    # Whatever is wrong with a method or its settings is said before anything starts.
    first = [_job(config, name, {}, 0, "result", half, inputs) for name in strategies]
    for job in (*choosing, *first):
        build.check(job.config)
        build.build_profiles(job.config)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(in_use(folder, alone=True))
            book = Book(folder / RESULTS)
        except OSError as error:
            raise errors.RunDirError(
                f"cannot use {folder}: {error.strerror}"
            ) from error
        machine.prepare_jax()
        with _pool() as pool:
            _make(pool, book, choosing, "choosing settings")
            chosen = {
                name: _best(name, tried, book, choosing)
                for name, tried in choices.items()
            }
            first_seed = config["seed"]
            final = [
                _job(config, name, settings, first_seed + seed, "result", half, inputs)
                for name, settings in chosen.items()
                for seed in range(_SEEDS.value)
            ]
            _make(pool, book, final, "comparing")
        _say(folder, config, [book.trials[job.key] for job in final])
    return 0


def _strategies() -> list[str]:
    names = _STRATEGIES.value
    if not names:
        app.fail("--strategies must be given, for example asyn2f,fedavg, or: all")
    if names == ["all"]:
        return sorted(BUILDERS)
    for name in names:
        if name not in BUILDERS:
            raise errors.ConfigError(
                f"--strategies: found {name!r}, allowed: {', '.join(sorted(BUILDERS))}"
            )
    return list(dict.fromkeys(names))


def _settings(name: str, config: build.Config) -> list[dict[str, Any]]:
    """The settings to be tried: the config's own, and others drawn from the grid."""
    count = _TRIALS.value
    if count == 1:
        return [{}]
    grid = GRIDS.get(name, {})
    combinations = [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    flat = build.flatten(config)
    others = [c for c in combinations if any(flat[key] != c[key] for key in c)]
    if len(others) < count - 1:
        raise errors.ConfigError(
            f"--trials: found {count}, but cli/grids.py has {len(others)} settings "
            f"of {name} beside the config's own; allowed: at most {len(others) + 1}"
        )
    drawn = np.random.default_rng(0).permutation(len(others))[: count - 1]
    return [{}, *(others[index] for index in drawn.tolist())]


def _job(
    config: build.Config,
    name: str,
    settings: dict[str, Any],
    seed: int,
    phase: str,
    half: int | None,
    inputs: str,
) -> Job:
    own = _with(config, {**settings, "strategy.name": name, "seed": seed})
    # Who is compared at equal time does not stop earlier.
    own = _with(own, {"stop.max_versions": 0, "stop.target_accuracy": 0.0})
    return Job(own, settings, phase, half, inputs)


def _with(config: build.Config, changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the config with dotted keys changed."""
    copy: dict[str, Any] = {
        key: _with(value, {}) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = copy
        for name in sections:
            section = section[name]
        section[last] = value
    return copy


def _pool() -> Executor:
    """One process per core, each with one thread and one device: together they do more
    than one process that lays its lanes over all cores."""
    jobs = _JOBS.value
    if not jobs:
        is_cpu = jax.default_backend() == "cpu"
        jobs = len(machine.usable_cores()) if is_cpu else 1
    os.environ["PJRT_NPROC"] = "1"  # read when a child imports JAX
    return ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("spawn"),
        initializer=prepare_process,
        initargs=(config_file.imported(),),
    )


def _make(pool: Executor, book: Book, jobs: Sequence[Job], title: str) -> None:
    """Makes the trials that are not in the book yet."""
    missing = {job.key: job for job in jobs if job.key not in book.trials}
    if not jobs:
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(title, total=len(jobs))
        progress.advance(bar, len(jobs) - len(missing))
        # Whom the first of them starts shall not hear Ctrl-C, from the very beginning.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        futures = [pool.submit(carry_out, job) for job in missing.values()]
        signal.signal(signal.SIGINT, before)
        try:
            for future in as_completed(futures):
                book.add(future.result())
                progress.advance(bar)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()  # it would go on with its trial for minutes
            progress.stop()
            done = len([job for job in jobs if job.key in book.trials])
            print(f"{done} of {len(jobs)} trials are kept; the same command goes on")
            if isinstance(error, BrokenProcessPool):
                app.fail(
                    "a trial's process has died, perhaps for want of memory: "
                    "--jobs=1 needs less"
                )
            raise


def _best(
    name: str, tried: list[dict[str, Any]], book: Book, jobs: Sequence[Job]
) -> dict[str, Any]:
    """The settings with the highest mean accuracy at the end."""
    if len(tried) == 1:
        return tried[0]

    def accuracy(settings: dict[str, Any]) -> float:
        found = [
            book.trials[job.key].accuracy[-1]
            for job in jobs
            if job.config["strategy"]["name"] == name and job.settings == settings
        ]
        return float(np.mean(found))

    return max(tried, key=accuracy)


def _say(folder: Path, config: build.Config, trials: list[Trial]) -> None:
    ends = [
        comparison.estimate([trial.accuracy[-1] for trial in own]).mean
        for own in comparison.by_strategy(trials).values()
    ]
    target = _TARGET.value or round(0.98 * max(ends), 3)
    rows = comparison.rows_of(trials, target)
    found = comparison.differences(trials)
    table = comparison.to_markdown(rows, found, target)
    (folder / TABLE).write_text(table, encoding="utf-8")
    page = comparison_page.to_html(trials, rows, found, target, dict(config))
    (folder / rundir.REPORT).write_text(page, encoding="utf-8")
    print(table)
    print(f"results in {folder}: {RESULTS}, {TABLE}, {rundir.REPORT}", flush=True)
