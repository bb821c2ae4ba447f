"""The guides are true: their code runs and gives the numbers that they show."""

import contextlib
import io
import json
import re
import runpy
import sys
import tokenize
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import asyn2f
from asyn2f import errors, strategies
from asyn2f.cli.grids import grids_of, settings_to_try
from asyn2f.config import build, schema
from asyn2f.config.default import default_config
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.strategies import contract
from asyn2f.training.batches import make_evaluate
from tests.contracts import test_conformance
from tests.support.executions import UNEQUAL, order_for

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "your_own_strategy.md").read_text(encoding="utf-8")


MODEL_GUIDE = (ROOT / "docs" / "your_own_model.md").read_text(encoding="utf-8")


def blocks(kind, text=GUIDE):
    """The contents of a guide's fences of this kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


BUILDER, BY_HAND, CONTRACT, GRIDS = blocks("python")
REFUSAL, PRINTED = blocks("text")
(CASES,) = map(json.loads, blocks("json"))
COMMANDS = "".join(blocks("sh")).replace("\\\n", " ").splitlines()


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """A working directory with the guide's file in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "agreement", raising=False)
    Path("agreement.py").write_text(BUILDER + GRIDS, encoding="utf-8")
    yield tmp_path
    sys.modules.pop("agreement", None)


@pytest.fixture
def registered(monkeypatch):
    """The builder in `BUILDERS`, as the guide's row puts it there."""
    monkeypatch.setitem(strategies.BUILDERS, "agreement", builder_of(BUILDER))


def builder_of(source):
    """The builder that a file with this text would have."""
    module = types.ModuleType("asyn2f.strategies.agreement")
    exec(compile(source, module.__name__, "exec"), vars(module))
    return module.agreement


def lines_of_code(source):
    """Lines that are neither blank, nor comments, nor docstrings."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}
    silent |= {tokenize.DEDENT, tokenize.ENDMARKER}
    lines, begins = set(), True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            if not (begins and token.type == tokenize.STRING):
                lines |= set(range(token.start[0], token.end[0] + 1))
            begins = False
        begins = begins or token.type == tokenize.NEWLINE
    return len(lines)


def printed_by(run):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run()
    return out.getvalue()


# ------------------------------------------------------------- the builder


def test_lines_of_code_are_counted_without_docstrings_and_comments():
    assert lines_of_code('"""Two\nlines."""\n\n# One.\nx = f(\n    1,\n)\n') == 3


def test_a_strategy_has_at_most_40_lines():
    assert 30 < lines_of_code(BUILDER) <= 40


def test_its_row_is_the_one_that_the_guide_shows():
    (diff,) = blocks("diff")
    builders = (ROOT / "src/asyn2f/strategies/__init__.py").read_text(encoding="utf-8")
    for line in diff.splitlines():
        if line.startswith(" ") and line.strip() != "...":
            assert line[1:] in builders.splitlines()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_it_meets_the_contract(power):
    found = dict(contract.problems(builder_of(BUILDER)(power=power)))
    assert len(found) > 15
    assert not any(found.values()), found


@pytest.mark.usefixtures("guide")
def test_it_meets_the_contract_in_a_test_of_ones_own():
    exec(CONTRACT, {})


@pytest.mark.parametrize(
    ("changes", "sentence", "error"),
    [
        pytest.param(
            {"shares_of(weights, mask)": "weights / jnp.sum(weights * mask)"},
            "padding is inert",
            "promotion",
            id="strict dtypes",
        ),
        pytest.param(
            {"mean[None]": "mean"},
            "an aggregation is finite",
            "rank_promotion",
            id="strict ranks",
        ),
        pytest.param(
            {"weights = ": "weights = 0.0 if cosines[0] < 0 else "},
            "an aggregation is finite",
            "boolean conversion of traced array",
            id="a branch",
        ),
        pytest.param(
            {
                "init=initial_state": "init=lambda p, w: initial_state(p, w)._replace("
                "memory=jnp.array(0.5))",
                "mask, shares)\n\n": "mask, shares, state.memory + shares[0])\n\n",
            },
            "the second aggregation compiles nothing",
            "compiled:",
            id="a weak type",
        ),
    ],
)
def test_a_pitfall_breaks_the_contract(changes, sentence, error):
    source = BUILDER
    for right, wrong in changes.items():
        assert right in source
        source = source.replace(right, wrong)
    found = dict(contract.problems(builder_of(source)()))
    assert error in found[sentence]


# ------------------------------------------------------------- its numbers


@pytest.mark.usefixtures("guide")
def test_the_numbers_worked_by_hand_come_out():
    assert printed_by(lambda: exec(BY_HAND, {})) == PRINTED


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("arrangement", test_conformance.ARRANGEMENTS)
def test_its_case_is_one(arrangement):
    for case in CASES:
        test_conformance.test_every_case_names_its_source_and_shows_its_working(case)
        test_conformance.test_aggregations_give_the_numbers_worked_by_hand(
            case, arrangement
        )


# ------------------------------------------------------------- a run


def own_config(**changes):
    return default_config(strategy__name="agreement:agreement", **changes)


@pytest.mark.usefixtures("guide")
def test_its_settings_are_in_the_config_by_themselves():
    config = schema.plain(own_config())
    assert config["strategy"]["args"] == {"power": 1.0}
    build.check(config)
    with pytest.raises(errors.ConfigError) as caught:
        build.check(schema.changed(config, {"strategy.args.power": -1.0}))
    assert f"error: {caught.value}\n" == REFUSAL


@pytest.mark.usefixtures("guide")
def test_it_trains_in_a_simulated_run():
    config = own_config(
        workers=3,  # shards of one size: what trains is compiled once
        task__hidden=(8,),
        training__batch_size=64,
        timing__epochs_per_push=1,
        timing__min_updates=2,
    )
    experiment = build.build_experiment(schema.plain(config))
    assert experiment.strategy.name == "agreement:agreement"
    result = execute_serially(
        experiment, order_for(experiment, UNEQUAL[:3], versions=12)
    )
    assert int(result.state.model.version) == 12
    for leaf in jax.tree.leaves(result.state):
        assert np.all(np.isfinite(np.asarray(leaf)))
    losses = result.numbers.model_loss
    assert losses[-1] < 0.9 * losses[1]
    pairs = result.numbers.coefficients.reshape(12, 2)
    np.testing.assert_allclose(pairs.sum(axis=1), 1.0, rtol=1e-6)


@pytest.mark.usefixtures("guide")
def test_the_config_of_every_command_is_valid():
    commands = [line.split() for line in COMMANDS if line.startswith("asyn2f ")]
    names = {"simulate", "run", "replay", "compare", "check-strategy"}
    assert {words[1] for words in commands} == names
    for words in commands:  # flags and files: see test_readme.py
        changes = {"strategy.name": "agreement:agreement"}
        for argument in words[2:]:
            name, _, value = argument.removeprefix("--").partition("=")
            if name.startswith("config."):
                with contextlib.suppress(ValueError):
                    value = float(value)
                changes[name.removeprefix("config.")] = value
        build.check(schema.plain(default_config(changes)))


@pytest.mark.usefixtures("guide")
def test_its_grid_is_read():
    config = schema.plain(own_config())
    grids = grids_of(config, "agreement:GRIDS")
    tried = settings_to_try("agreement:agreement", config, 4, grids)
    assert tried[0] == {}
    assert {key for each in tried[1:] for key in each} == {
        "training.learning_rate",
        "strategy.args.power",
    }


# ------------------------------------------------------------- your own model


def test_a_regression_of_ones_own_trains():
    _, _, code = blocks("python", MODEL_GUIDE)
    _, told = blocks("text", MODEL_GUIDE)
    assert printed_by(lambda: exec(code, {})) == told


def test_a_loss_and_metrics_of_ones_own_are_evaluated():
    _, code, _ = blocks("python", MODEL_GUIDE)
    exec(code, names := {})
    model = (lambda key, x: np.float32(1.0), lambda w, x: w * x)
    task = names["quantile"](model, (np.arange(10.0), np.arange(10.0) - 2))
    scores = make_evaluate(task)({"params": np.float32(1.0)})
    assert scores == {"covered": 1.0, "mae": 2.0, "loss": pytest.approx(0.2)}
    assert task.metric == asyn2f.Metric("loss", higher_is_better=False)


def test_a_model_and_data_of_ones_own_train():
    code, _, _ = blocks("python", MODEL_GUIDE)
    told, _ = blocks("text", MODEL_GUIDE)
    printed = printed_by(lambda: exec(code, {}))
    accuracy = re.compile(r"0\.\d\d")
    assert accuracy.sub("A", printed) == accuracy.sub("A", told)
    here, there = (float(accuracy.search(text)[0]) for text in (printed, told))
    assert here == pytest.approx(there, abs=0.05)  # bits depend on the processor


# ------------------------------------------------------------- in a notebook


def test_the_notebook_prints_what_its_comments_say():
    path = ROOT / "examples" / "in_a_notebook.py"
    text = printed_by(lambda: runpy.run_path(str(path)))
    assert text == (
        "coefficients [0.4 0.6]\n"
        "model [2.2 4.4] 2.0\n"
        "share 0.55\n"
        "merged [3.   1.9  1.45]\n"
        "strategy  coefficients        w\n"
        "fedavg    0.25  0.50  0.25    (1.500, 1.750)\n"
        "fedbuff   0.50  0.25  0.25    (1.667, 1.667)\n"
        "asyn2f    0.25  0.25  0.50    (1.000, 1.750)\n"
        "fedavg    ignore  wait\n"
        "fedbuff   ignore  adopt\n"
        "asyn2f    merge   continue\n"
    )
