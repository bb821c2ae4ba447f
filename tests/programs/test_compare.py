"""Comparisons of methods as a user starts them: what is left, chosen, and refused.

All programs are started at once, two at a time, by `started`.
"""

import importlib.util
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from asyn2f.cli import trials
from asyn2f.cli.claim import in_use
from asyn2f.cli.grids import GRIDS
from asyn2f.cli.trials import Job, Results, inputs_digest
from asyn2f.config import build
from asyn2f.config.schema import flatten
from asyn2f.errors import RunDirError
from asyn2f.report import comparison, comparison_table
from asyn2f.strategies import BUILDERS
from asyn2f.tasks.classification import ACCURACY
from asyn2f.training.batches import make_evaluate
from asyn2f.training.experiment import initial_server_state
from configs.digits import get_config as digits
from tests.programs.test_replay import assert_ends_with, assert_refused
from tests.support.comparisons import (
    COMPARED,
    METHODS,
    SEEDS,
    SMALL,
    TARGET,
    compare,
    results_of,
    trials_of,
)
from tests.support.experiments import config_with
from tests.support.replays import Outcome
from tests.unit.test_report import Page

pytestmark = pytest.mark.processes
TRIALS, CHOICE_SEEDS = 2, 2
CHOSEN = [
    *SMALL,
    "--strategies=fedavg,fedbuff",
    f"--trials={TRIALS}",
    f"--choice_seeds={CHOICE_SEEDS}",
    "--seeds=1",
    "--config.seed=1000000",
    "--jobs=1",
]
Flags = list[str]
Words = list[str]
BAD_INPUT: dict[str, tuple[Flags, Words]] = {
    "no strategies": ([], ["--strategies must be given"]),
    "unknown": (["--strategies=fedavg,fedsgd"], ["'fedsgd'", *sorted(BUILDERS)]),
    "no time": (
        ["--strategies=fedavg", "--config.stop.max_time_s=0"],
        ["config.stop.max_time_s: found 0", "--config.stop.max_time_s=30"],
    ),
    "trials": (
        ["--strategies=fedavg", "--trials=7"],
        ["--trials: found 7", "fedavg", "at most 6", "--grids"],
    ),
    "range": (
        ["--strategies=fedavg,fedasync", "--config.strategy.fedasync.mixing=1.5"],
        ["config.strategy.fedasync.mixing: found 1.5"],
    ),
    "parameter": (
        ["--strategies=fedbuff", "--config.strategy.fedbuff.sever_rate=1.0"],
        ["sever_rate", "did you mean strategy.fedbuff.server_rate"],
    ),
    "timing": (
        ["--strategies=fedavg,asafl", "--config.timing.push_at_metric=0.5"],
        ["config.timing.push_at_metric: found 0.5", "asafl", "leave it at None"],
    ),
}
# What must be found before the folder is looked at.
SAID_EARLY: dict[str, tuple[Flags, Words]] = {
    "jobs": (
        ["--strategies=fedavg", "--jobs=-1"],
        ["jobs"],
    ),
    "target": (
        ["--strategies=fedavg", "--target=97"],
        ["target"],
    ),
    "profiles": (
        ["--strategies=fedavg", "--config.sim.profiles=none.csv"],
        ["config.sim.profiles", "none.csv"],
    ),
}
TORN = '{"strategy": "fedavg", "settings": {'


def corrupted(text: str, line: str) -> str:
    first, rest = text.split("\n", 1)
    return "\n".join([first, line, rest])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def started(folder):
    """By name, what came of each program."""
    file = folder / "file"
    file.write_text("precious")
    whole = folder / "whole"

    def again(name: str) -> Outcome:
        """On what the first one has left, once it has ended."""
        assert_ends_with(found["whole"].result(), 0)
        copy = shutil.copytree(whole, folder / name)
        if name == "corrupt":
            text = corrupted(results_of(copy), TORN)
            (copy / "results.jsonl").write_text(text)
        return compare(copy, *COMPARED, "--jobs=1")

    jobs: dict[str, Callable[[], Any]] = {
        "whole": partial(compare, whole, *COMPARED),
        "chosen": partial(compare, folder / "chosen", *CHOSEN),
        "in the way": partial(compare, file, *COMPARED),
        "again": partial(again, "again"),
        "corrupt": partial(again, "corrupt"),
    }
    for name, (flags, _) in BAD_INPUT.items():
        jobs[f"bad {name}"] = partial(compare, folder / f"bad {name}", *SMALL, *flags)
    for name, (flags, *_) in SAID_EARLY.items():
        jobs[f"bad {name}"] = partial(compare, file / "below", *SMALL, *flags)
    with ThreadPoolExecutor(2) as pool:
        found = {name: pool.submit(job) for name, job in jobs.items()}
        yield found


@pytest.fixture(scope="module")
def whole(started, folder):
    """A comparison that nothing has disturbed."""
    assert_ends_with(started["whole"].result(), 0)
    return folder / "whole"


@pytest.fixture(scope="module")
def chosen(started, folder):
    assert_ends_with(started["chosen"].result(), 0)
    return trials_of(folder / "chosen")


# ------------------------------------------------------------- what it leaves


def test_it_writes_results_a_table_and_a_page(started, whole):
    assert {path.name for path in whole.iterdir()} == {
        "results.jsonl",
        "table.md",
        "report.html",
    }
    assert_ends_with(started["whole"].result(), 0, f"results in {whole}")


def test_every_method_has_a_line_for_every_seed(whole):
    found = trials_of(whole)
    assert [(x.strategy, x.seed) for x in found] == [
        (name, seed) for name in METHODS for seed in SEEDS
    ]
    assert {(x.phase, *x.settings) for x in found} == {("result",)}
    assert len({x.key for x in found}) == len(found)


def test_the_fields_of_a_line_are_valid(whole):
    for trial in trials_of(whole):
        curves = (trial.time_s, trial.values, trial.updates, trial.num_bytes)
        assert len({len(curve) for curve in curves}) == 1
        assert (trial.time_s[0], trial.time_s[-1]) == (0.0, 1.0)
        assert np.all(np.diff(trial.time_s) > 0)
        assert all(0 <= x <= 1 for x in trial.values)
        assert trial.values[-1] > trial.values[0] + 0.2  # it has learned
        assert np.all(np.diff(trial.updates) >= 0)
        assert np.all(np.diff(trial.num_bytes) >= 0)
        assert trial.updates[0] == 0 < trial.versions
        assert trial.versions <= sum(trial.staleness) <= trial.updates[-1]
        assert trial.local_steps >= trial.updates[-1]
        assert trial.wall_s > 0
        assert len(trial.params_sha256) == 64


def test_every_trial_runs_for_the_whole_time(whole):
    """Also with other limits in `stop`."""
    for trial in trials_of(whole):
        assert trial.versions > 2
        assert trial.updates[-1] > trial.updates[len(trial.updates) // 2]


def test_methods_begin_alike_and_end_otherwise(whole):
    """Of one seed they have the same data, split and initial model."""
    for seed in SEEDS:
        own = [trial for trial in trials_of(whole) if trial.seed == seed]
        assert len({(x.values[0], x.num_bytes[0]) for x in own}) == 1
        assert len({x.params_sha256 for x in own}) == len(own)


def test_the_table_is_that_of_the_lines_and_is_printed(started, whole):
    trials, table = trials_of(whole), (whole / "table.md").read_text()
    rows, found = (
        comparison.rows_of(trials, TARGET, ACCURACY),
        comparison.differences(trials),
    )
    assert table == comparison_table.to_markdown(rows, found, TARGET, ACCURACY)
    assert table in started["whole"].result()[1]


def test_the_page_names_every_method(whole):
    text = Page(whole / "report.html").text
    for name in [*METHODS, f"{len(SEEDS)} seeds", f"that reached {TARGET:.0%},"]:
        assert name in text


# ------------------------------------------------------------- going on


def test_the_same_command_again_runs_no_trial(started, folder, whole):
    """A trial that were made again would bring another wall time."""
    assert_ends_with(started["again"].result(), 0)
    for name in ("results.jsonl", "table.md", "report.html"):
        assert (folder / "again" / name).read_bytes() == (whole / name).read_bytes()


def test_a_corrupt_line_is_named_and_nothing_is_changed(started, folder, whole):
    path = folder / "corrupt" / "results.jsonl"
    assert_refused(started["corrupt"].result(), f"{path}, line 2:")
    assert path.read_text() == corrupted(results_of(whole), TORN)


@pytest.mark.parametrize(
    "line",
    [
        "",
        TORN,
        "{}",
        "3",
    ],
)
def test_any_corrupt_line_is_named(tmp_path, whole, line):
    path = tmp_path / "results.jsonl"
    path.write_text(corrupted(results_of(whole), line))
    with pytest.raises(RunDirError, match=f"{re.escape(str(path))}, line 2:"):
        Results(path)


# ------------------------------------------------------------- choosing settings


def test_every_method_chooses_from_as_many_trials(chosen):
    counts = Counter((trial.strategy, trial.phase) for trial in chosen)
    of_each = {"choice": TRIALS * CHOICE_SEEDS, "result": 1}
    assert counts == {
        (name, phase): count
        for name in ("fedavg", "fedbuff")
        for phase, count in of_each.items()
    }


def test_settings_come_from_the_config_and_the_grid(chosen):
    for name in ("fedavg", "fedbuff"):
        tried: dict[str, set[int]] = {}
        for trial in chosen:
            if (trial.strategy, trial.phase) == (name, "choice"):
                tried.setdefault(json.dumps(trial.settings), set()).add(trial.seed)
        own, other = sorted(tried, key=len)
        assert json.loads(own) == {}
        assert tried[own] == tried[other]
        settings = json.loads(other)
        assert settings.keys() == GRIDS[name].keys()
        assert all(value in GRIDS[name][key] for key, value in settings.items())


def test_results_have_the_settings_that_were_best_on_average(chosen):
    for name in ("fedavg", "fedbuff"):
        own = [trial for trial in chosen if trial.strategy == name]
        ends: dict[str, list[float]] = {}
        for trial in own:
            if trial.phase == "choice":
                ends.setdefault(json.dumps(trial.settings), []).append(trial.values[-1])
        best = max(np.mean(accuracies) for accuracies in ends.values())
        results = {json.dumps(t.settings) for t in own if t.phase == "result"}
        assert len(results) == 1
        assert np.mean(ends[results.pop()]) == best


def test_settings_are_chosen_on_other_seeds(chosen):
    by_phase: dict[str, set[int]] = {"choice": set(), "result": set()}
    for trial in chosen:
        by_phase[trial.phase].add(trial.seed)
    assert not by_phase["choice"] & by_phase["result"]


def test_choices_are_evaluated_on_even_rows_and_results_on_odd_ones(chosen):
    first = {(trial.phase, trial.seed): trial.values[0] for trial in chosen}
    halves = {"choice": 0, "result": 1}
    assert first == {
        (phase, seed): initial_accuracy(seed, halves[phase]) for phase, seed in first
    }


def initial_accuracy(seed: int, half: int) -> float:
    config = digits()
    config.update({"seed": seed, "workers": 3})
    config.task.hidden = (8,)
    experiment = build.build_experiment(config.to_dict())
    test = {name: rows[half::2] for name, rows in experiment.task.test.items()}
    evaluate = make_evaluate(experiment.task._replace(test=test))
    return evaluate(initial_server_state(experiment).model.params)["accuracy"]


def test_a_target_is_nearly_the_best_if_none_is_given(started, folder, chosen):
    results = [trial for trial in chosen if trial.phase == "result"]
    best, *_ = comparison.rows_of(results, 1.0, ACCURACY)
    target = round(0.98 * best.at_time.mean, 3)
    rows, found = (
        comparison.rows_of(results, target, ACCURACY),
        comparison.differences(results),
    )
    table = (folder / "chosen" / "table.md").read_text()
    assert table == comparison_table.to_markdown(rows, found, target, ACCURACY)


@pytest.mark.parametrize("name", GRIDS)
def test_all_settings_of_a_grid_are_valid(name):
    assert name in BUILDERS
    for key, values in GRIDS[name].items():
        assert key in flatten(config_with())
        for value in values:
            changes = {"strategy__name": name, key.replace(".", "__"): value}
            build.check(config_with(**changes))


# ------------------------------------------------------------- what a trial's key names


def key_of(half: int | None = None, **changes: Any) -> str:
    config = config_with(**changes)
    inputs = inputs_digest(config, build.build_task(config))
    return Job(config, {}, "result", half, inputs).key


@pytest.mark.parametrize(
    "changes",
    [
        {"half": 0},
        {"seed": 1},
        {"task__alpha": 0.1},
        {"training__learning_rate": 0.2},
        {"strategy__name": "fedavg"},
        {"strategy__asyn2f__beta": 0.3},
        {"timing__min_updates": 2},
        {"stop__max_time_s": 2.0},
        {"worker_speeds": (50.0,)},
        {"sim__jitter": 0.1},
        {"runtime__heartbeat_timeout_s": 0.5},
    ],
    ids=str,
)
def test_what_a_number_depends_on_makes_another_trial(changes):
    assert key_of(**changes) != key_of()


@pytest.mark.parametrize(
    "changes",
    [{"strategy__fedbuff__server_rate": 0.5}, {"runtime__server_timeout_s": 90.0}],
    ids=str,
)
def test_what_no_number_depends_on_does_not(changes):
    assert key_of(**changes) == key_of()


def test_another_partition_in_a_file_of_the_same_name_makes_another_trial(tmp_path):
    path = tmp_path / "partition.json"
    keys = set()
    for shards in ([[0, 1], [2, 3]], [[0, 1], [2, 4]], [[0, 1], [2, 3]]):
        path.write_text(json.dumps(shards))
        keys.add(key_of(workers=2, task__partition="file", task__indices=str(path)))
    assert len(keys) == 2


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_data_of_the_same_name_make_another_trial(part):
    config = config_with()
    task = build.build_task(config)
    data = getattr(task, part)
    changed = data["label"].copy()
    changed[-1] += 1
    other = task._replace(**{part: data | {"label": changed}})
    assert inputs_digest(config, other) != inputs_digest(config, task)


def test_other_flags_of_jax_make_another_trial(monkeypatch):
    before = key_of()
    monkeypatch.setattr(trials, "flags", lambda: {"jax_enable_x64": True})
    assert key_of() != before


def test_a_strategy_of_ones_own_that_was_edited_makes_another_trial(
    tmp_path, monkeypatch
):
    keys = set()
    for factor in (1, 2):
        path = tmp_path / f"{factor}" / "mine.py"
        path.parent.mkdir()
        path.write_text(
            "from asyn2f.strategies import fedavg\n"
            f"def mine():\n    return fedavg()  # {factor}\n"
        )
        spec = importlib.util.spec_from_file_location("mine", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(BUILDERS, "mine", module.mine)
        keys.add(key_of(strategy__name="mine"))
    assert len(keys) == 2


def test_other_profiles_in_a_file_of_the_same_name_make_another_trial(tmp_path):
    path = tmp_path / "profiles.csv"
    keys = set()
    for step_s in (0.01, 0.02):
        path.write_text(f"step_s\n{step_s}\n")
        keys.add(key_of(sim__profiles=str(path)))
    assert len(keys) == 2


# ------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_short_line_and_nothing_is_left(started, folder, name):
    outcome = started[f"bad {name}"].result()
    assert_refused(outcome, *BAD_INPUT[name][1])
    assert outcome[1] == ""
    assert len(outcome[2]) < 250
    assert not (folder / f"bad {name}").exists()


def test_a_file_where_the_folder_should_be_is_left_alone(started, folder):
    assert_refused(started["in the way"].result(), f"cannot use {folder / 'file'}")
    assert (folder / "file").read_text() == "precious"


def test_a_live_comparison_is_not_joined_by_another(tmp_path):
    """It would rewrite the results, without those of trials still running."""
    with in_use(tmp_path, alone=True):
        assert_refused(compare(tmp_path, *COMPARED), "is in use by a live run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SAID_EARLY)
def test_bad_input_is_reported_before_the_folder_is_changed(started, name):
    """A file of that name would be reported otherwise."""
    assert_refused(started[f"bad {name}"].result(), *SAID_EARLY[name][1])
