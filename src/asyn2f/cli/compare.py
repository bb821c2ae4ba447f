"""Compares methods: the same data, partition, workers and virtual time for each.

    asyn2f compare --config=configs/digits.py --workdir=runs/compared \\
        --strategies=asyn2f,fedavg,fedbuff --seeds=5 --config.stop.max_time_s=30

After an interruption, the same command continues. Results: results.jsonl (a line per
trial), table.md, report.html.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from asyn2f import errors, rundir
from asyn2f.cli import app, machine
from asyn2f.cli.claim import in_use
from asyn2f.cli.grids import grids_of, settings_to_try
from asyn2f.cli.trials import (
    Job,
    Results,
    in_turns,
    inputs_digest,
    prepare_process,
    run_trial,
)
from asyn2f.config import build, config_file, schema, user_code
from asyn2f.config.references import is_reference, label_of
from asyn2f.config.schema import RunSettings, StrategyChoice, section
from asyn2f.config.task import TaskSettings
from asyn2f.report import comparison, comparison_page, comparison_table, spread
from asyn2f.report.comparison import Trial
from asyn2f.strategies import BUILDERS
from asyn2f.timing import Stop
from asyn2f.types import Metric

RESULTS, TABLE = "results.jsonl", "table.md"
_CHOICE_SEEDS = 1_000_000  # from the seeds of results to those of choices

_STRATEGIES = flags.DEFINE_list("strategies", None, "The methods; all = every one.")
_SEEDS = flags.DEFINE_integer(
    "seeds", 5, "Runs of each method.", lower_bound=1, upper_bound=_CHOICE_SEEDS
)
_TRIALS = flags.DEFINE_integer(
    "trials",
    1,
    "Settings tried for each method, from the grids in cli/grids.py; 1 = only the "
    "config's own. They are chosen on other seeds and one half of the test set, and "
    "results are measured on the other half.",
    lower_bound=1,
)
_GRIDS = flags.DEFINE_string(
    "grids",
    None,
    "Grids of your own for --trials, MODULE:NAME or FILE.py:NAME: a dict of values by "
    "method and key, or a function that returns it.",
)
_CHOICES = flags.DEFINE_integer(
    "choice_seeds", 2, "Runs of each setting.", lower_bound=1
)
_TARGET = flags.DEFINE_float(
    "target",
    None,
    "Times and bytes are measured to this value of the headline; by default 0.98 of "
    "the way from the initial model's to the best final mean, of a fraction from 0.",
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Concurrent processes; 0 = one per core, or one on an accelerator.",
    lower_bound=0,
)


class _Plan(NamedTuple):
    """What is compared."""

    config: build.Config
    metric: Metric  # the headline
    inputs: str  # see `inputs_digest`
    choices: dict[str, list[dict[str, Any]]]  # by method, the settings to choose from
    half: int | None  # of the test set, for results

    def job(self, name: str, settings: dict[str, Any], seed: int, phase: str) -> Job:
        """A trial of a method; `seed` is counted from that of the config."""
        first, half = section(self.config, RunSettings).seed, self.half
        if phase == "choice":
            first, half = first + _CHOICE_SEEDS, 0
        # Methods are compared at equal time, so nothing may stop one of them earlier.
        changes: dict[str, Any] = {"stop.max_versions": 0, "stop.target": None}
        changes |= {**settings, "strategy.name": name, "seed": first + seed}
        config = self.config
        if section(config, StrategyChoice).name != name:  # whose arguments are others
            config = user_code.without_arguments(config, "strategy.name")
        config = user_code.completed(schema.changed(config, changes))
        data = app.roots()
        return Job(config, settings, phase, half, self.inputs, data)

    def choosing(self) -> list[Job]:
        """The trials by which settings are chosen."""
        return [
            self.job(name, settings, seed, "choice")
            for name, tried in self.choices.items()
            if len(tried) > 1
            for settings in tried
            for seed in range(_CHOICES.value)
        ]


def main() -> int:
    folder, plan = Path(app.required(app.WORKDIR)), _plan()
    choosing = plan.choosing()
    # All settings are checked before anything starts.
    for job in (*choosing, *(plan.job(name, {}, 0, "result") for name in plan.choices)):
        build.check(job.config)
        build.build_profiles(job.config)
    with _results_in(folder) as results:
        machine.prepare_jax()
        with _pool() as pool:
            _run(pool, results, choosing, "choosing settings")
            final = [
                plan.job(name, chosen, seed, "result")
                for name, tried in plan.choices.items()
                for chosen in [_best(name, tried, results, choosing, plan.metric)]
                for seed in range(_SEEDS.value)
            ]
            _run(pool, results, final, "comparing")
        trials = [results.trials[job.key] for job in final]
        _write_table(folder, plan.config, plan.metric, trials)
    return 0


def _plan() -> _Plan:
    config, strategies = app.checked(app.CONFIG.value), _strategies()
    if not section(config, Stop).max_time_s:
        raise errors.ConfigError(
            "config.stop.max_time_s: found 0, but methods are compared at equal time; "
            "set it, for example --config.stop.max_time_s=30"
        )
    grids = grids_of(config, _GRIDS.value)
    choices = {
        name: settings_to_try(name, config, _TRIALS.value, grids) for name in strategies
    }
    task = build.build_task(config, "all", app.roots())
    _check_target(task.metric)
    inputs, half = inputs_digest(config, task), None if _TRIALS.value == 1 else 1
    return _Plan(config, task.metric, inputs, choices, half)


def _check_target(metric: Metric) -> None:
    """Checks that a target of a fraction is one. Raises ConfigError."""
    target = _TARGET.value
    if target is not None and metric.is_fraction and not 0.0 <= target <= 1.0:
        raise errors.ConfigError(
            f"--target: found {target:g}, allowed: 0 to 1, as the metric is "
            f"{metric.name}"
        )


@contextlib.contextmanager
def _results_in(folder: Path) -> Iterator[Results]:
    """The results in a folder, which no other process uses meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(in_use(folder, alone=True))
            results = Results(folder / RESULTS)
        except OSError as error:
            raise errors.RunDirError(
                f"cannot use {folder}: {error.strerror}"
            ) from error
        yield results


def _strategies() -> list[str]:
    names = _STRATEGIES.value
    if not names:
        app.fail("--strategies must be given, for example asyn2f,fedavg, or: all")
    if names == ["all"]:
        return sorted(BUILDERS)
    for name in names:
        if name not in BUILDERS and not is_reference(name):
            raise errors.ConfigError(
                f"--strategies: found {name!r}, allowed: "
                f"{', '.join(sorted(BUILDERS))}; or a user-defined one, MODULE:FUNCTION"
            )
    return list(dict.fromkeys(names))


def _num_processes() -> int:
    """One per core, each with one thread and one device: together they are faster than
    one process whose lanes are sharded over all cores."""
    is_cpu = jax.default_backend() == "cpu"
    return _JOBS.value or (len(machine.usable_cores()) if is_cpu else 1)


def _pool() -> Executor:
    os.environ["PJRT_NPROC"] = "1"  # read when a child imports JAX
    return ProcessPoolExecutor(
        _num_processes(),
        multiprocessing.get_context("spawn"),
        initializer=prepare_process,
        initargs=(config_file.imported(),),
    )


def _run(pool: Executor, results: Results, jobs: Sequence[Job], title: str) -> None:
    """Runs the trials that have no result yet."""
    missing = {job.key: job for job in jobs if job.key not in results.trials}
    if not jobs:
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(title, total=len(jobs))
        progress.advance(bar, len(jobs) - len(missing))
        # The processes of the pool, started by the first of them, ignore Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        ordered = in_turns(missing.values(), _num_processes())
        futures = [pool.submit(run_trial, job) for job in ordered]
        signal.signal(signal.SIGINT, before)
        try:
            for future in as_completed(futures):
                results.add(future.result())
                progress.advance(bar)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()  # its trial may take minutes
            progress.stop()
            done = len([job for job in jobs if job.key in results.trials])
            print(f"{done}/{len(jobs)} trials completed; the same command continues")
            if isinstance(error, BrokenProcessPool):
                app.fail(
                    "the process of a trial was killed, perhaps for lack of memory: "
                    "--jobs=1 needs less"
                )
            raise


def _best(
    name: str,
    tried: list[dict[str, Any]],
    results: Results,
    jobs: Sequence[Job],
    metric: Metric,
) -> dict[str, Any]:
    """The settings with the best mean final value; one that is not finite is worst."""
    if len(tried) == 1:
        return tried[0]

    def worth(settings: dict[str, Any]) -> float:
        found = [
            results.trials[job.key].values[-1]
            for job in jobs
            if job.method == name and job.settings == settings
        ]
        return metric.worth(float(np.mean(found)))

    return max(tried, key=worth)


def _write_table(
    folder: Path, config: build.Config, metric: Metric, trials: list[Trial]
) -> None:
    target = _TARGET.value
    if target is None:
        target = comparison.default_target(trials, metric)
    rows = comparison.rows_of(trials, target, metric)
    found = comparison.differences(trials)
    table = comparison_table.to_markdown(rows, found, target, metric)
    if at_workers := spread.in_words(trials, rows, metric):
        table += f"\n{at_workers}\n"
    (folder / TABLE).write_text(table, encoding="utf-8")
    task, workers = section(config, TaskSettings), section(config, RunSettings).workers
    name = task.factory and label_of(task.factory)
    split = task.partition
    if split == "dirichlet":
        split += f"({task.alpha:g})"
    setting = f"{workers} workers, {split} split"
    page = comparison_page.to_html(
        trials, rows, found, target, metric, name or task.dataset, setting
    )
    (folder / rundir.REPORT).write_text(page, encoding="utf-8")
    print(table)
    print(f"results in {folder}: {RESULTS}, {TABLE}, {rundir.REPORT}", flush=True)
