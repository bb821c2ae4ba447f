"""The guides are true: their code runs and gives the numbers that they show."""

import contextlib
import functools
import inspect
import io
import json
import re
import runpy
import tokenize
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import asyn2f
from asyn2f import errors, strategies
from asyn2f.config import build as build_module
from asyn2f.sim.serial import execute_serially
from asyn2f.training.batches import make_evaluate
from tests.contracts import test_conformance
from tests.support.executions import UNEQUAL, order_for
from tests.support.experiments import config_with
from tests.unit import test_strategies

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "your_own_strategy.md").read_text(encoding="utf-8")


MODEL_GUIDE = (ROOT / "docs" / "your_own_model.md").read_text(encoding="utf-8")


def blocks(kind, text=GUIDE):
    """The contents of a guide's fences of this kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


BUILDER, BY_HAND = blocks("python")
REFUSAL, PRINTED = blocks("text")
(CASES,) = map(json.loads, blocks("json"))
COMMANDS = "".join(blocks("sh")).replace("\\\n", " ").splitlines()


def builder_of(source):
    """The builder that a file with this text would have."""
    module = types.ModuleType("asyn2f.strategies.agreement")
    exec(compile(source, module.__name__, "exec"), vars(module))
    return module.agreement


@pytest.fixture
def register(monkeypatch):
    """Puts a builder with this text into BUILDERS until the test is over."""

    def put(source):
        monkeypatch.setitem(strategies.BUILDERS, "agreement", builder_of(source))
        # Of its own: the other one keeps what it has compiled by name.
        jitted = functools.cache(test_strategies.jitted.__wrapped__)
        monkeypatch.setattr(test_strategies, "jitted", jitted)

    return put


@pytest.fixture
def registered(register):
    register(BUILDER)


@pytest.fixture
def build(registered):
    """`asyn2f.config.build`, asked with the builder in its row."""
    return build_module


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


CONTRACT = {
    test.__name__: test
    for test in vars(test_strategies).values()
    for mark in getattr(test, "pytestmark", [])
    if mark.name == "parametrize"
    and mark in (test_strategies.every_strategy.mark, test_strategies.adding.mark)
}


def meet(name):
    """Runs a test of the contract on the builder, with all that it is run with."""
    test = CONTRACT[name]
    test_it = functools.partial(test, name="agreement")
    values = {m.args[0]: m.args[1] for m in test.pytestmark if m.args[0] != "name"}
    assert inspect.signature(test).parameters.keys() == {"name", *values}
    if not values:
        test_it()
    for argument, candidates in values.items():
        for value in candidates:
            test_it(**{argument: value})


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", CONTRACT)
def test_it_meets_the_contract(name):
    meet(name)


def test_the_contract_has_been_found():
    assert len(CONTRACT) > 20


@pytest.mark.parametrize(
    ("changes", "name", "error"),
    [
        pytest.param(
            {"shares_of(weights, mask)": "weights / jnp.sum(weights * mask)"},
            "test_padding_is_inert",
            "promotion",
            id="strict dtypes",
        ),
        pytest.param(
            {"mean[None]": "mean"},
            "test_an_aggregation_is_finite",
            "rank_promotion",
            id="strict ranks",
        ),
        pytest.param(
            {"weights = ": "weights = 0.0 if cosines[0] < 0 else "},
            "test_an_aggregation_is_finite",
            "boolean conversion of traced array",
            id="a branch",
        ),
        pytest.param(
            {
                "init=initial_state": "init=lambda p, w: initial_state(p, w)._replace("
                "memory=jnp.array(0.5))",
                "mask, shares)\n\n": "mask, shares, state.memory + shares[0])\n\n",
            },
            "test_the_second_aggregation_compiles_nothing",
            "compiled:",
            id="a weak type",
        ),
    ],
)
def test_a_pitfall_breaks_the_contract(register, changes, name, error):
    source = BUILDER
    for right, wrong in changes.items():
        assert right in source
        source = source.replace(right, wrong)
    register(source)
    with pytest.raises(Exception, match=error):
        meet(name)


# ------------------------------------------------------------- its numbers


@pytest.mark.usefixtures("registered")
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


def test_its_settings_are_in_the_config_by_themselves(build):
    config = config_with(strategy__name="agreement")
    assert config["strategy"]["agreement"] == {"power": 1.0}
    build.check(config)
    config["strategy"]["agreement"]["power"] = -1.0
    with pytest.raises(errors.ConfigError) as caught:
        build.check(config)
    assert f"error: {caught.value}\n" == REFUSAL


def test_it_trains_in_a_simulated_run(build):
    config = config_with(
        workers=3,  # shards of one size: what trains is compiled once
        task__hidden=(8,),
        training__batch_size=64,
        timing__epochs_per_push=1,
        timing__min_updates=2,
        strategy__name="agreement",
    )
    experiment = build.build_experiment(config)
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


def test_the_config_of_every_command_is_valid(build):
    commands = [line.split() for line in COMMANDS if line.startswith("asyn2f ")]
    assert {words[1] for words in commands} == {"simulate", "run", "replay", "compare"}
    for words in commands:  # flags and files: see test_readme.py
        changes = {}
        for argument in words[2:]:
            name, _, value = argument.removeprefix("--").partition("=")
            if name.startswith("config."):
                key = name.removeprefix("config.").replace(".", "__")
                with contextlib.suppress(ValueError):
                    value = float(value)
                changes[key] = value
        build.check(config_with(**changes))


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
