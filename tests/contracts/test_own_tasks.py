"""A regression, whose error falls, and a policy, whose return rises to 500: through
simulation, report, comparison, verification, replay and a target."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import asyn2f
from asyn2f import trace
from asyn2f.api.results import Simulation
from asyn2f.config import build
from asyn2f.config.schema import RunSettings, section
from asyn2f.errors import ConfigError
from asyn2f.report import comparison
from asyn2f.report.metrics import read_metrics
from asyn2f.store.orbax import OrbaxStore
from asyn2f.timing import Stop
from asyn2f.training.experiment import make_experiment
from asyn2f.training.settings import Training
from asyn2f.types import Best, Metric
from tests.support import tasks
from tests.support.experiments import config_with
from tests.support.programs import run
from tests.unit.test_report import Page

ROOT = Path(__file__).parents[2]
TASKS = {"regression": tasks.regression, "returns": tasks.returns}
# The headline; a target that is reached on the way.
HEADLINES = {"regression": ("mse", 1.0), "returns": ("return", 300.0)}
SETTINGS = {
    "workers": 3,
    "timing.epochs_per_push": 1,
    "timing.min_updates": 2,
    "training.batch_size": 4,
    "training.learning_rate": 0.05,
    "training.momentum": 0.0,
    "training.weight_decay": 0.0,
    "sim.executor": "serial",
    "stop.max_versions": 12,
}
every_task = pytest.mark.parametrize("name", TASKS)


def simulated(name: str, **changes) -> Simulation:
    """The run of a config, with a user-defined task."""
    config = config_with(**{k.replace(".", "__"): v for k, v in SETTINGS.items()})
    config["stop"] |= changes
    experiment = make_experiment(
        TASKS[name](),
        build.build_strategy(config),
        section(config, Training),
        section(config, Stop),
        section(config, RunSettings).seed,
        build.build_guards(config),
    )
    return asyn2f.simulate(config, experiment)


# ------------------------------------------------------------- as values


def test_the_initial_models_have_the_values_worked_by_hand():
    """y = 3 x + 1 without a line: the mean of (3 x + 1)^2; 500 exp(-4)."""
    run = simulated("regression", max_versions=1)
    x = np.linspace(-1, 1, 48, dtype=np.float32)[::4]
    first = run.history()[0]["scores"]
    assert first["mse"] == pytest.approx(np.mean((3 * x + 1) ** 2), rel=1e-6)
    assert first["bias"] == pytest.approx(-np.mean(3 * x + 1), rel=1e-6)
    first = simulated("returns", max_versions=1).history()[0]["scores"]
    assert first == {"return": pytest.approx(500 * math.exp(-4), rel=1e-5)}


@every_task
def test_the_best_version_is_that_of_the_best_headline(name):
    run, (metric, _) = simulated(name), HEADLINES[name]
    values = {row["version"]: row["scores"][metric] for row in run.history()}
    pick = min if name == "regression" else max
    best = pick(values, key=values.__getitem__)
    assert best > 0
    assert run.best() == Best(best, metric, values[best])
    summary = run.summary()
    assert summary["metric"] == run.experiment.task.metric._asdict()
    assert (summary["best_version"], summary["best_value"]) == (best, values[best])
    assert summary["final_scores"] == run.history()[-1]["scores"]


@every_task
def test_a_target_ends_the_run_with_the_first_version_that_reaches_it(name):
    metric, target = HEADLINES[name]
    run = simulated(name, target=target, max_versions=200)
    values = [row["scores"][metric] for row in run.history()]
    reaches = run.experiment.task.metric.reaches
    assert [reaches(value, target) for value in values] == [False] * (
        len(values) - 1
    ) + [True]
    assert run.order.reason == f"target {metric} {target:g} reached"


def test_a_value_that_is_not_finite_is_shown_and_never_the_best():
    run = simulated("regression")
    scores = {node: dict(score) for node, score in run.scores.items()}
    best = run.best()
    scores[best.version]["mse"] = -math.inf
    scores[1]["mse"] = math.nan
    run = run._replace(scores=scores)
    assert run.best().version not in (1, best.version)
    assert math.isnan(run.history()[1]["scores"]["mse"])
    everywhere = {node: {"mse": math.nan} for node in scores}
    assert run._replace(scores=everywhere).best() is None
    assert run._replace(scores=everywhere).summary()["best_version"] is None


@every_task
def test_a_report_speaks_of_the_headline_and_of_no_class(name, tmp_path):
    page = Page(simulated(name).report(tmp_path / "page.html"))
    assert f"Test {HEADLINES[name][0]}" in page.text
    shown = re.sub(r"<style.*?</style>|<details.*", "", page.text, flags=re.DOTALL)
    own, _, _ = shown.partition("Settings")
    assert not re.search(r"accuracy|\bclass\b|classes|labels", own)
    assert "Training examples per worker." in page.text


@pytest.mark.parametrize(
    ("higher", "target", "allowed"),
    [(True, 0.0, r"\(0, 1\]"), (True, 1.5, r"\(0, 1\]"), (False, 1.0, r"\[0, 1\)")],
)
def test_a_target_of_a_fraction_is_one(higher, target, allowed, monkeypatch):
    metric = Metric("rate", higher, is_fraction=True)
    task = tasks.regression(workers=5)._replace(metric=metric)
    monkeypatch.setattr(build, "build_task", lambda _: task)
    with pytest.raises(ConfigError, match=f"stop.target: found .*allowed: {allowed}"):
        build.build_experiment(config_with(stop__target=target))


# ------------------------------------------------------------- as programs


def program(name: str, *words: str) -> str:
    code, out, err = run(name, *words)
    assert code == 0, out + err
    return out


def factory(name: str) -> str:
    return f"--config.task.factory=tests/support/tasks.py:{name}"


FLAGS = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
FLAGS.append("--config.stop.target=None")


@pytest.fixture(scope="module", params=TASKS)
def folder(request, tmp_path_factory):
    """The folder of a simulated run, and the name of its task."""
    path = tmp_path_factory.mktemp(request.param) / "run"
    flags = ["--config=default", *FLAGS, factory(request.param)]
    out = program("simulate", *flags, f"--workdir={path}")
    return path, request.param, out


@pytest.mark.processes
def test_a_folder_names_headline_and_best(folder):
    path, name, out = folder
    metric, _ = HEADLINES[name]
    stored = OrbaxStore(path / "models").best()
    summary = json.loads((path / "summary.json").read_text())
    assert stored == Best(summary["best_version"], metric, summary["best_value"])
    assert f"best {metric} " in out
    rows = [r for r in read_metrics(path) if r["kind"] == "score"]
    values = [row["scores"][metric] for row in rows]
    assert stored.value == (min if name == "regression" else max)(values)
    split = json.loads((path / "split.json").read_text())
    assert (split["counts"], split["sizes"]) == (None, [16, 16, 16])
    evaluated = [e for e in trace.of_run(path) if isinstance(e, trace.Evaluated)]
    assert [event.scores for event in evaluated] == [row["scores"] for row in rows]


@pytest.mark.processes
def test_a_folder_is_verified_and_replayed_bit_for_bit(folder):
    path, _, _ = folder
    program("verify", f"--run={path}")
    assert "bit for bit" in program("replay", f"--run={path}")


@pytest.mark.processes
def test_a_worse_best_is_found(folder):
    path, _, _ = folder
    mark = path / "models" / "best.json"
    right = mark.read_text()
    try:
        wrong = json.loads(right) | {"value": 77.0}
        mark.write_text(json.dumps(wrong))
        found = asyn2f.verify(path)
    finally:
        mark.write_text(right)
    assert {violation.invariant for violation in found.violations} >= {"I16"}


@pytest.mark.processes
def test_a_run_of_processes_ends_at_its_target(tmp_path):
    flags = ["--config=default", *FLAGS[:-1], factory("regression")]
    flags += ["--config.stop.max_versions=100000", "--config.stop.target=0.5"]
    flags += ["--config.worker_speeds=200,", "--config.runtime.pin_cpus=False"]
    out = program("local", *flags, f"--workdir={tmp_path}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    reason = re.fullmatch(r"mse 0\.\d+ reached at (\d+)", summary["reason"])
    assert reason is not None
    assert summary["best_value"] <= 0.5
    assert re.search(r"\| mse \d\.\d+, best \d\.\d+ at \d+ \| bias ", out)
    rows = [r for r in read_metrics(tmp_path) if r["kind"] == "score"]
    before = [r["scores"]["mse"] for r in rows if r["version"] < int(reason[1])]
    assert min(before, default=9.0) > 0.5
    program("verify", f"--run={tmp_path}")
    assert "bit for bit" in program("replay", f"--run={tmp_path}")


@pytest.mark.processes
def test_the_quality_of_data_without_classes_is_refused():
    code, _, err = run(
        "quality", "--config=default", "--config.workers=3", factory("regression")
    )
    assert code == 2
    assert "line: found no labels" in err


@pytest.mark.processes
@every_task
def test_a_comparison_follows_the_direction(name, tmp_path):
    metric = TASKS[name]().metric
    flags = ["--config=default", *FLAGS, factory(name), "--config.stop.max_time_s=2"]
    flags += ["--strategies=asyn2f,fedavg", "--seeds=2"]
    out = program("compare", *flags, f"--workdir={tmp_path}")
    table = (tmp_path / "table.md").read_text()
    assert table in out
    better = "higher" if metric.higher_is_better else "lower"
    assert f"Values are of {metric.name} on the test set; {better} is better." in table
    assert "%" not in table.partition("Rows: ")[0]
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    trials = [comparison.Trial(**json.loads(line)) for line in lines]
    rows = comparison.rows_of(trials, 1.0, metric)
    ends = [row.at_time.mean for row in rows]
    assert ends == sorted(ends, reverse=metric.higher_is_better)
    page = (tmp_path / "report.html").read_text()
    assert f"Test {metric.name}" in page
    assert "accuracy" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
