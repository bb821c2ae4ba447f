"""A task and a user-defined strategy in a config: keys, identity, split and errors."""

import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import rundir
from asyn2f.cli import app, claim
from asyn2f.config import build, config_file, identity, reference, schema, user_code
from asyn2f.config.default import default_config, load_config
from asyn2f.errors import ConfigError, TaskError
from asyn2f.tasks.base import Aux, Task, mean_evaluation
from asyn2f.tasks.checks import check_task
from asyn2f.types import Metric
from tests.support.user_code import write_package
from tests.unit.test_references import import_state as import_state

FACTORY = "mypackage.mine:make_task"
AGREEMENT = "mypackage.mine:agreement"


@pytest.fixture
def config(tmp_path):
    """The config of the file, as a program has it."""
    return parsed("simulate", f"--config={write_package(tmp_path / 'code')}")


def parsed(name: str, *arguments: str):
    """The config of a command line, checked."""
    rest, given = app.given_of(name, ["asyn2f", *arguments])
    del rest
    return app.checked(app.config_of(name, given))


# ------------------------------------------------------------- keys


def test_arguments_are_keys_with_types_ranges_and_defaults(config):
    assert config["task"]["args"] == {
        "count": 96,
        "kind": "plain",
        "noise": 0.0,
        "scales": (1.0,),
    }
    assert config["strategy"]["args"] == {"power": 1.0, "rate": 0.5}
    for key, value, words in [
        ("task.args.count", 9, "config.task.args.count: found 9, allowed: at least 10"),
        ("task.args.count", 9.5, "found 9.5, allowed: an integer, at least 10"),
        ("task.args.kind", "x", "found 'x', allowed: one of plain, split"),
        ("task.args.cuont", 12, "did you mean task.args.count"),
        ("strategy.args.power", -1.0, "config.strategy.args.power: found -1.0"),
        ("strategy.args.rate", "1", "config.strategy.args.rate: found '1'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            build.check(schema.changed(config, {key: value}))


def test_arguments_without_a_function_are_unknown_keys():
    for key, where in (("task.args.x", "task.factory"), ("strategy.args.x", "strateg")):
        with pytest.raises(
            ConfigError, match=f"unknown key config.{key}: config.{where}"
        ):
            default_config({key: 1})


def test_a_function_and_its_arguments_are_given_by_keyword(tmp_path, monkeypatch):
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = default_config(task__factory=FACTORY, task__args__count=50)
    assert (config.task.args.count, config.task.args.noise) == (50, 0.0)
    config.task.args.noise = 1
    found = schema.plain(config)["task"]["args"]
    assert (found["noise"], type(found["noise"])) == (1.0, float)
    with pytest.raises(ConfigError, match=r"task.args.count: found 1, allowed"):
        default_config(task__factory=FACTORY, task__args__count=1)


def test_flags_name_functions_and_replace_those_of_the_file(tmp_path):
    path = write_package(tmp_path)
    flags = ["--config.strategy.name", "fedavg", "--config.task.args.count=40"]
    rest, given = app.given_of("simulate", ["asyn2f", f"--config={path}", *flags])
    config = app.config_of("simulate", given)
    assert rest == ["asyn2f", *flags]
    assert (config.strategy.name, config.strategy.args.to_dict()) == ("fedavg", {})
    assert config.task.args.count == 96  # a flag of absl, from here on
    assert config.code_path == str(tmp_path)
    assert user_code.is_argument("task.args.count")


def test_the_help_lists_arguments(config):
    lines = reference.flags_help(config).splitlines()
    at = lines.index("  --config.task.args.count=120")
    assert lines[at + 1] == "      rows of the training set; at least 10"
    assert "  --config.strategy.args.rate=1.0" in lines
    assert "A regression." in lines


def test_without_a_config_a_factory_gets_the_default_one(tmp_path, monkeypatch, capsys):
    write_package(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = parsed("simulate", f"--config.task.factory={FACTORY}")
    assert found["task"]["partition"] == "iid"
    assert found["code_path"] == str(tmp_path)
    assert "taking default" in capsys.readouterr().err


# ------------------------------------------------------------- identity


def test_the_identity_is_the_sources_and_not_the_folder(config, tmp_path, monkeypatch):
    before = identity.experiment_digest(config)
    shutil.copytree(tmp_path / "code", tmp_path / "other")
    moved = schema.changed(config, {"code_path": str(tmp_path / "other")})
    assert identity.experiment_digest(moved) == before
    identity.check_same_experiment(config, moved)
    assert identity.changed_keys(config, moved) == {}
    terms = dict(term.split("=", 1) for term in identity.terms(moved))
    digest = user_code.digests(moved)["mypackage.mine"]
    assert terms["sources of mypackage.mine"] == f'"{digest}"'
    with open(tmp_path / "other" / "beside.py", "a") as file:
        file.write("# edited\n")
    assert identity.experiment_digest(moved) != before


def test_only_what_has_an_effect_is_part_of_the_identity(config):
    before = identity.experiment_digest(config)
    for key, value in [("task.hidden", (9,)), ("task.model", "cnn")]:
        same = schema.changed(config, {key: value})
        assert identity.experiment_digest(same) == before
    for key, value in [
        ("task.args.count", 97),
        ("strategy.args.rate", 0.6),
        ("task.quality", (0.5,)),
    ]:
        other = schema.changed(config, {key: value})
        assert identity.experiment_digest(other) != before


def test_a_default_is_the_same_as_the_value_given(config):
    flat = schema.flatten(config)
    del flat["task.args.noise"]
    assert identity.terms(schema.nested(flat)) == identity.terms(config)


def test_a_file_and_its_copy_elsewhere_are_one_experiment(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(
            "import asyn2f\n\ndef mine(*, rate=1.0):\n"
            "    return asyn2f.fedbuff(server_rate=rate)\n"
        )
    configs = [
        app.checked(default_config(strategy__name=f"{tmp_path}/{name}/mine.py:mine"))
        for name in "ab"
    ]
    assert configs[0] != configs[1]
    assert identity.terms(configs[0]) == identity.terms(configs[1])
    identity.check_same_experiment(*configs)
    assert build.build_strategy(configs[0]).name == "mine:mine"


def test_edited_sources_are_named_in_one_line(config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    task = build.build_task(config)
    claim.write_split(run, task, user_code.digests(config))
    assert claim.code_differences(run, user_code.digests(config)) == []
    with open(tmp_path / "code" / "mypackage" / "inner.py", "a") as file:
        file.write("# edited\n")
    (line,) = claim.code_differences(run, user_code.digests(config))
    assert line.startswith("the sources of mypackage.mine differ from those that the")
    with pytest.raises(ConfigError, match="restore them, or start another run"):
        claim.check_same_code(run, user_code.digests(config))


def test_the_config_of_a_run_is_read_without_its_code(config, tmp_path):
    (tmp_path / "run").mkdir()
    rundir.write_json(tmp_path / "run" / "config.json", dict(config))
    shutil.rmtree(tmp_path / "code")
    sys.modules.pop("mypackage.mine", None)
    user_code.references._found.clear()
    found = load_config(tmp_path / "run")
    assert found.task.args.count == 96
    with pytest.raises(ConfigError, match=r"no module mypackage.mine in .*code_path"):
        app.checked(found)


# ------------------------------------------------------------- split


def test_an_unsplit_task_is_split_as_configured(config):
    task = build.build_task(config)
    assert [len(shard) for shard in task.shards] == [32, 32, 32]
    assert task.qualities == (1.0, 1.0, 1.0)
    sizes = {"task.partition": "sizes", "task.sizes": (5, 6, 7), "task.quality": (0.5,)}
    task = build.build_task(schema.changed(config, sizes))
    assert [len(shard) for shard in task.shards] == [5, 6, 7]
    assert task.qualities == (0.5, 0.5, 0.5)
    other = build.build_task(schema.changed(config, {"seed": 1}))
    assert not np.array_equal(other.shards[0], build.build_task(config).shards[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"task.partition": "dirichlet"},
            "task.partition: found 'dirichlet', but regression has no labels; allowed: "
            "iid, sizes, normal, overlapping, file",
        ),
        (
            {"task.args.kind": "split", "task.partition": "normal"},
            "found 'normal', but regression is split already; leave it at iid",
        ),
        ({"task.partition": "sizes"}, "task.sizes: found 1 sizes"),
        ({"workers": 97}, "workers: found 97 shards"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(config, changes, words):
    with pytest.raises(ConfigError, match=words):
        build.build_experiment(schema.changed(config, changes))


def test_a_task_that_splits_its_data_is_told_the_workers(config):
    split = schema.changed(config, {"task.args.kind": "split", "workers": 4})
    assert [len(x) for x in build.build_task(split).shards] == [24] * 4
    task = build.unsplit_task(split)
    with pytest.raises(ConfigError, match="workers: found 3, but regression is split"):
        build.split_task(config, task)


def test_the_same_settings_share_compiled_programs(config):
    tasks = [build.build_task(schema.changed(config, {"seed": k})) for k in (0, 1)]
    assert tasks[0].init is tasks[1].init
    pair = [build.build_strategy(config) for _ in range(2)]
    assert pair[0] == pair[1]


# ------------------------------------------------------------- errors of factories


def task(**changes) -> Task:
    """A small task that is right, changed."""
    rows = np.ones((6, 2), np.float32)
    parts = {
        "name": "small",
        "init": lambda key: {"params": {"w": jnp.zeros((2,))}},
        "loss": lambda params, carry, batch, key: (
            jnp.mean(batch["x"] @ params["params"]["w"]),
            Aux(),
        ),
        "evaluation": mean_evaluation(
            {"loss": lambda params, batch: batch["x"] @ params["params"]["w"]}
        ),
        "metric": Metric("loss", higher_is_better=False),
        "train": {"x": rows},
        "test": {"x": rows},
    }
    return Task(**(parts | changes))


def returning(value):
    return lambda params, carry, batch, key: value(params["params"]["w"], batch)


W = {"w": jnp.zeros((2,))}
WRONG = {
    "none": (None, "found None, allowed: a Task; end the function with `return task`"),
    "dict": ({"a": 1}, r"found \{'a': 1\}, allowed: a Task"),
    "metric": (task(metric="loss"), "Task.metric: found 'loss', allowed"),
    "loss": (task(loss=None), "Task.loss: found None, allowed: a function"),
    "no columns": (task(train={}), r"Task.train: found \{\}, allowed: a dict"),
    "zero rows": (
        task(train={"x": np.ones((0, 2))}),
        r"Task.train\['x'\]: found shape \[0, 2\], allowed: .* N of at least 1",
    ),
    "a list": (
        task(test={"x": [1, 2]}),
        r"Task.test\['x'\]: found \[1, 2\], allowed: an",
    ),
    "texts": (
        task(test={"x": np.array(["a", "b"])}),
        r"Task.test\['x'\]: found <U1\[2\], allowed: an array of numbers; .*np.unique",
    ),
    "rows differ": (
        task(train={"x": np.ones((6, 2)), "y": np.ones(5)}),
        "Task.train: found 6 in 'x', 5 in 'y'; all columns need the same number",
    ),
    "empty shard": (
        task(shards=(np.arange(3), np.arange(0))),
        r"Task.shards\[1\]: found int64\[0\], allowed: row numbers",
    ),
    "rows outside": (
        task(shards=(np.array([0, 6]),)),
        r"Task.shards\[0\]: found rows 0 to 6, allowed: 0 to 5",
    ),
    "held out": (
        task(shards=(np.arange(3),), held_out=(np.array([6]),)),
        r"Task.held_out\[0\]: found rows 6 to 6, allowed: 0 to 5",
    ),
    "held out names": (
        task(shards=(np.arange(3),), held_out=(np.array(["a"]),)),
        r"Task.held_out\[0\]: found <U1\[1\], allowed: row numbers",
    ),
    "held out for others": (
        task(shards=(np.arange(3),), held_out=(np.arange(3), np.arange(3))),
        "Task.held_out: found 2, allowed: one for each of the 1 shards, or",
    ),
    "nothing held out": (
        task(shards=(np.arange(3),), held_out=(np.arange(0),)),
        "Task.held_out: found no row, allowed: some for some worker",
    ),
    "qualities": (
        task(shards=(np.arange(3),), qualities=(1.0, 1.0)),
        "Task.qualities: found 2, allowed: one for each of the 1 shards",
    ),
    "labels": (
        task(labels=np.ones(6)),
        r"Task.labels: found float64\[6\], .*int \[6\]",
    ),
    "init fails": (
        task(init=lambda key: 1 / 0),
        "Task.init failed: test_user_code.py, line .*ZeroDivisionError",
    ),
    "no params": (
        task(init=lambda key: W),
        r"Task.init: found \{w: float32\[2\]\}, allowed: a dict of collections",
    ),
    "no arrays": (
        task(init=lambda key: {"params": {}}),
        "Task.init: found no array in .params., so there is nothing to train",
    ),
    "integers": (
        task(init=lambda key: {"params": {"w": jnp.arange(2)}}),
        r'Task.init: found int32\[2\] in "params", allowed: floating point',
    ),
    "shapes": (
        task(init=lambda key: {"params": {"w": jnp.zeros((3,))}}),
        "Task.loss failed: test_user_code.py, line .*TypeError",
    ),
    "column": (
        task(loss=returning(lambda w, batch: (batch["y"], Aux()))),
        "Task.loss failed: test_user_code.py, line .*KeyError: 'y'",
    ),
    "no aux": (
        task(loss=returning(lambda w, batch: jnp.sum(w))),
        r"Task.loss: found float32\[\], allowed: \(loss f32 \[\], asyn2f.Aux\)",
    ),
    "no scalar": (
        task(loss=returning(lambda w, batch: (batch["x"] @ w, Aux()))),
        r"Task.loss: found float32\[32\], allowed: a scalar.* return their mean",
    ),
    "metric of a batch": (
        task(loss=returning(lambda w, batch: (jnp.sum(w), Aux(metric=w)))),
        r"Task.loss: found Aux.metric of shape \[2\], allowed: a scalar",
    ),
    "statistics": (
        task(loss=returning(lambda w, b: (jnp.sum(w), Aux(statistics={"s": w})))),
        r"Task.loss: found Aux.statistics\['s'\] = float32\[2\], allowed: as `init`",
    ),
    "carry": (
        task(loss=returning(lambda w, b: (jnp.sum(w), Aux(carry=w)))),
        r"Task.loss: found Aux.carry = float32\[2\], allowed: as before the step, \(\)",
    ),
    "evaluation": (
        task(test={"z": np.ones((6, 2))}),
        "Task.evaluation.sums failed: .*KeyError: 'x'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_task_is_one_line(name):
    value, words = WRONG[name]
    with pytest.raises(TaskError, match=words) as caught:
        check_task(value)
    assert "\n" not in str(caught.value)


def test_a_right_task_passes():
    check_task(task())
    halves = np.arange(3), np.arange(3, 6)
    check_task(task(shards=halves, labels=np.arange(6)))
    check_task(task(shards=halves, held_out=([], np.arange(6))))


FAILING = {
    "returns none": ("def make(): pass", "m:make: found None, allowed: a Task"),
    "raises": (
        "def make():\n    raise KeyError('gone')",
        "task.factory: m:make failed: m.py, line 2: KeyError: 'gone'",
    ),
    "file": (
        "def make():\n    return open('none.csv')",
        "m:make failed: m.py, line 2: FileNotFoundError.*none.csv",
    ),
    "speaks": (
        "import asyn2f\ndef make():\n    raise asyn2f.DataError('x.npz: no such file')",
        r"^config\.task\.factory: m:make: x\.npz: no such file$",
    ),
    "exits": ("def make():\n    exit(3)", "m:make failed: .*SystemExit: 3"),
    "range": (
        "def make(*, n=1):\n    raise ValueError('n: found 1, allowed: even')",
        r"^config\.task\.args\.n: found 1, allowed: even$",
    ),
    "argument": ("def make(n): pass", "m:make: argument n has no default"),
    "annotation": ("def make(n: 'No' = 1): pass", "m:make: an annotation cannot be"),
    "no function": ("make = 3", "found m:make, 3, allowed: a function"),
    "computes": (
        "import jax.numpy as jnp\nONE = jnp.ones(3)\ndef make(): pass",
        "m computes with JAX while it is imported|m:make: found None",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_factory_that_fails_is_one_line(name):
    text, words = FAILING[name]
    Path("m.py").write_text(text + "\n")
    with pytest.raises(ConfigError, match=words) as caught:
        build.build_experiment(schema.plain(default_config(task__factory="m:make")))
    assert "\n" not in str(caught.value)


STRATEGIES = {
    "returns none": (
        "return None",
        "m:make returned None, allowed: an asyn2f.Strategy",
    ),
    "aggregate fails": (
        "return fedavg()._replace(aggregate=lambda s, u, m: 1 / 0)",
        "m:make: aggregate failed: m.py, line 6: ZeroDivisionError.*check-strategy",
    ),
    "aggregate changes": (
        "return fedavg()._replace(init=lambda p, w: initial_state(p, w)._replace("
        "memory=jnp.zeros(3)))",
        "the state that aggregate returns",
    ),
    "push changes": (
        "return fedavg()._replace(push=lambda p, s: p['params'])",
        "m:make: push: PyTreeDef",
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_that_fails_is_one_line(name):
    text, words = STRATEGIES[name]
    Path("m.py").write_text(
        "import jax.numpy as jnp\nfrom asyn2f import fedavg\n"
        "from asyn2f.strategies.base import initial_state\n\n"
        f"def make():\n    {text}\n"
    )
    with pytest.raises(ConfigError, match=words) as caught:
        build.build_experiment(schema.plain(default_config(strategy__name="m:make")))
    assert "\n" not in str(caught.value)


def test_the_file_of_a_config_names_its_neighbours(tmp_path):
    path = write_package(tmp_path / "code")
    assert config_file.load(str(path)).task.factory == FACTORY
