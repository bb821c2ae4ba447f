"""A task or a strategy that exists only in a notebook, and what is shown of a run."""

import re

import jax
import numpy as np
import pytest

import asyn2f
from asyn2f.errors import ConfigError, RunDirError, StoreError
from asyn2f.serialization import params_sha256
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.batches import make_evaluate
from asyn2f.training.experiment import published
from asyn2f.types import Best
from tests.support.user_code import task_of

CONFIG = {
    "workers": 2,
    "training.batch_size": 8,
    "training.learning_rate": 0.05,
    "timing.min_updates": 1,
    "stop.max_versions": 6,
    "sim.executor": "serial",
    "sim.evaluate_every": 1,
}


def simulated(**options):
    return asyn2f.simulate(asyn2f.default_config(CONFIG), **options)


@pytest.fixture(scope="module")
def run():
    return simulated(task=task_of())


def test_a_task_is_passed_itself(run):
    assert run.experiment.workers == 2
    assert [len(shard) for shard in run.experiment.task.shards] == [20, 20]
    assert {name for row in run.history() for name in row["scores"]} == {"error"}


def test_the_best_version_has_its_parameters(run):
    best = run.best()
    assert best.metric == "error"
    assert best.value == min(scores["error"] for scores in run.scores.values())
    evaluate = make_evaluate(run.experiment.task)
    assert evaluate(run.best_params)["error"] == best.value
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(run.best_params))


def test_without_a_config_a_task_that_is_split_has_its_workers():
    shards = (np.arange(10), np.arange(10, 25), np.arange(25, 40))
    task = task_of()._replace(shards=shards)
    config = asyn2f.default_config(CONFIG)
    with pytest.raises(ConfigError, match="workers: found 2, but regression is split"):
        asyn2f.simulate(config, task=task)
    config.workers = 3
    assert asyn2f.simulate(config, task=task).experiment.task.qualities == (1.0,) * 3


def test_a_strategy_is_passed_itself(run):
    strategy = asyn2f.fedbuff(server_rate=0.5)._replace(name="halved")
    halved = simulated(task=task_of(), strategy=strategy)
    assert halved.experiment.strategy.name == "halved"
    assert halved.experiment.strategy.timing.min_updates == 1
    assert params_sha256(halved.params) != params_sha256(run.params)


def test_what_cannot_be_trained_is_one_line():
    task = task_of()
    wrong = task._replace(train={"x": task.train["x"]})
    with pytest.raises(ConfigError, match=r"^task: Task.loss failed: .*KeyError: 'y'$"):
        simulated(task=wrong)
    strategy = asyn2f.fedavg()._replace(push=lambda params, start: {})
    with pytest.raises(ConfigError, match=r"strategy.name: fedavg: push: PyTreeDef"):
        simulated(strategy=strategy)
    with pytest.raises(ConfigError, match="an experiment and a task or strategy besid"):
        asyn2f.simulate(None, simulated(task=task).experiment, task=task)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"experiment": task_of()}, "experiment: found a Task, .*pass it as task=..."),
        (
            {"experiment": 3},
            "experiment: found 3, allowed: an Experiment; asyn2f.make_",
        ),
        (
            {"task": task_of},
            r"task: .*function task_of, .*call it: task=task_of\(...\)",
        ),
        (
            {"strategy": asyn2f.fedbuff},
            r"strategy: .* call it: strategy=fedbuff\(...\)",
        ),
        ({"strategy": "fedbuf"}, "strategy: found 'fedbuf', allowed: .*fedbuff"),
        ({"strategy": task_of()}, "strategy: found a Task, allowed: a Strategy"),
    ],
)
def test_what_is_none_of_these_is_one_line(given, message):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        simulated(**given)
    assert "\n" not in str(caught.value)


def test_a_task_besides_a_factory_is_refused():
    config = asyn2f.default_config(
        CONFIG, task__factory="tests.support.user_code:task_of"
    )
    with pytest.raises(ConfigError, match=r"one besides config\.task\.factory"):
        asyn2f.simulate(config, task=task_of())


def test_a_strategy_is_passed_by_its_name(run):
    named = simulated(task=task_of(), strategy="fedbuff")
    assert named.experiment.strategy.name == "fedbuff"
    assert named.config["strategy"]["name"] == "fedbuff"
    config = CONFIG | {"strategy.name": "fedbuff"}
    same = asyn2f.simulate(asyn2f.default_config(config), task=task_of())
    assert params_sha256(named.params) == params_sha256(same.params)


def test_results_and_tasks_are_short_in_a_notebook(run):
    text = repr(run)
    assert re.fullmatch(
        r"<Simulation of regression by asyn2f, 2 workers: 6 versions in \d+\.\d "
        r"virtual s; error best [\d.e-]+ \(version \d\), last [\d.e-]+>",
        text,
    )
    assert repr(run.experiment.task) == (
        "<Task regression: train x float32[40, 3], y float32[40]; test x float32[20, "
        "3], y float32[20]; 2 shards; scored by error>"
    )


def test_progress_is_shown_or_passed_on(capsys):
    rows = []
    simulated(task=task_of(), progress=rows.append)
    assert [row["version"] for row in rows] == list(range(7))
    assert rows[0]["time_s"] == 0
    assert capsys.readouterr().err == ""
    simulated(task=task_of(), progress=True)
    lines = re.split("[\r\n]+", capsys.readouterr().err.rstrip())
    assert lines[-1].startswith("version 6 of 6, ")
    assert " virtual s, error " in lines[-1]


def test_a_report_is_titled_by_the_task(run, tmp_path):
    page = run.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "asyn2f on regression" in page


# ------------------------------------------------------------- stored parameters


@pytest.mark.parametrize("write_ahead", [True, False])
def test_stored_parameters_are_read_without_the_task(run, tmp_path, write_ahead):
    (tmp_path / "config.json").write_text("{}")
    store = OrbaxStore(tmp_path / "models", write_ahead=write_ahead)
    state = run.result.state
    for version in (5, 6):
        model = state.model._replace(version=np.int32(version))
        store.save(version, state._replace(model=model), {"version": version})
    store.set_best(Best(5, "error", 0.5))
    store.close()
    stored = published(run.experiment, state.model).params
    for version in ("best", "newest", 5, 6):
        found = asyn2f.load_params(tmp_path, version)
        assert params_sha256(found) == params_sha256(stored)
        assert found.keys() == stored.keys()
        assert found["params"].keys() == {"w", "b"}
    like = jax.eval_shape(run.experiment.task.init, jax.random.key(0))
    found = asyn2f.load_params(tmp_path, like=like)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    with pytest.raises(StoreError, match=r"version 9 is not in .*there are: 5, 6"):
        asyn2f.load_params(tmp_path, 9)
    with pytest.raises(StoreError, match=r"params/w: found float32\[3\], expected f"):
        asyn2f.load_params(tmp_path, like={"params": {"w": np.zeros(4, np.float32)}})


def test_lists_are_read_into_the_structure_that_is_given(tmp_path, run):
    (tmp_path / "config.json").write_text("{}")
    layers = [np.full((2,), k, np.float32) for k in range(12)]  # 10 comes after 9
    params = {"params": {"layers": layers, "pair": (layers[3], layers[4])}}
    for ahead in (True, False):
        folder = tmp_path / str(ahead)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        store = OrbaxStore(folder / "models", write_ahead=ahead)
        state = run.result.state
        state = state._replace(model=state.model._replace(params=params))
        store.save(1, state, {"version": 1})
        store.close()
        found = asyn2f.load_params(folder, "newest", like=params)
        assert params_sha256(found) == params_sha256(params)
        assert isinstance(found["params"]["layers"], list)


def test_a_folder_without_versions_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="no models/: no version was saved"):
        asyn2f.load_params(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(StoreError, match="has no best version"):
        asyn2f.load_params(tmp_path)
    with pytest.raises(StoreError, match="allowed: a number, best, newest"):
        asyn2f.load_params(tmp_path, "last")


def test_an_experiment_of_builders_that_were_not_called_is_one_line():
    rest = asyn2f.Training(), asyn2f.Stop(max_versions=1), 0
    with pytest.raises(ConfigError, match=r"^strategy: .*call it: strategy=fedbuff"):
        asyn2f.make_experiment(task_of(), asyn2f.fedbuff, *rest)
    with pytest.raises(ConfigError, match=r"^task: found the function task_of, .*call"):
        asyn2f.make_experiment(task_of, asyn2f.fedbuff(), *rest)


@pytest.mark.parametrize(
    "function", [asyn2f.replay, asyn2f.verify, asyn2f.load_config, asyn2f.load_params]
)
def test_a_folder_that_is_no_path_is_one_line(function):
    with pytest.raises(
        RunDirError, match=r"^folder: found .*allowed: the path of a run"
    ):
        function({"seed": 1})
