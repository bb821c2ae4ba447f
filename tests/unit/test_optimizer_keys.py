"""Optimizers as keys of a config: their arguments, errors and identity."""

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import asyn2f
from asyn2f.config import build, identity, schema
from asyn2f.config.default import default_config, load_config
from asyn2f.errors import ConfigError, OptimizerError
from asyn2f.training.settings import Training
from tests.support.executions import experiment_of

ADAMW = {
    "training.optimizer": "optax:adamw",
    "training.optimizer_args.weight_decay": 0.1,
    "training.learning_rate": 0.01,
    "training.learning_rate_min": 0.001,
}
NESTEROV = {
    "strategy.server_optimizer": "optax:sgd",
    "strategy.server_optimizer_args.learning_rate": 0.7,
    "strategy.server_optimizer_args.momentum": 0.9,
    "strategy.server_optimizer_args.nesterov": True,
}
OWN = """
from typing import Annotated

import optax
from asyn2f import Range


def make(learning_rate, *, clip: Annotated[float, Range(above=0)] = 2.0, b2=0.95):
    return optax.chain(optax.clip(clip), optax.adam(learning_rate, b2=b2))


def fails(learning_rate, *, depth: int = 3):
    raise RuntimeError("no such depth")


def outside(*, learning_rate: float = 0.5):
    return optax.sgd(learning_rate)


def nothing(*, learning_rate: float = 0.5):
    return None


def untyped(learning_rate, depth):
    return optax.sgd(learning_rate)
"""


def config_of(*changes, **more):
    flat = {"task.hidden": (8,), "workers": 3, "stop.max_versions": 3}
    for each in changes:
        flat |= each
    return schema.plain(default_config(flat, **more))


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    return "mine.py:"


# ------------------------------------------------------------- arguments


@pytest.mark.parametrize("key", ["training.optimizer", "strategy.server_optimizer"])
def test_a_bare_name_of_optax_is_answered_with_its_reference(key):
    with pytest.raises(ConfigError, match=rf"{key}: found 'Adam', .*mean optax:adam\?"):
        build.check(config_of({key: "Adam"}))
    with pytest.raises(ConfigError) as caught:
        build.check(config_of({key: "momentum"}))
    assert "did you mean" not in str(caught.value)


def test_every_argument_of_an_optimizer_is_a_key_with_its_default():
    config = config_of(ADAMW)
    assert config["training"]["optimizer_args"] == {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "eps_root": 0.0,
        "mu_dtype": None,
        "nesterov": False,
        "weight_decay": 0.1,
    }


def test_the_values_of_a_config_reach_optax():
    made = build.build_experiment(config_of(ADAMW, NESTEROV))
    model = made.init_server().model
    state = made.trainer.start(model, 0, 30, 1.0)
    params = model.params["params"]
    expected = optax.adamw(0.01, weight_decay=0.1).init(params)
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert kinds(state.opt_state) == kinds(expected)
    memory = made.init_server().memory.optimizer
    outside = optax.sgd(0.7, momentum=0.9, nesterov=True)
    assert kinds(memory) == kinds(outside.init(params))


def test_a_moment_may_be_of_another_dtype():
    changes = {"training.optimizer_args.mu_dtype": "bfloat16"}
    made = build.build_experiment(config_of(ADAMW, changes))
    state = made.trainer.start(made.init_server().model, 0, 30, 1.0)
    assert "bfloat16" in {str(x.dtype) for x in jax.tree.leaves(state.opt_state)}


def test_experiments_of_equal_optimizers_share_compiled_programs():
    one, other = (
        build.build_experiment(config_of(ADAMW, NESTEROV, seed=seed)).computation
        for seed in (0, 1)
    )
    assert one.optimizer is other.optimizer
    assert one.strategy == other.strategy


def test_a_chain_of_ones_own_has_typed_arguments(own):
    config = config_of({"training.optimizer": own + "make"})
    assert config["training"]["optimizer_args"] == {"clip": 2.0, "b2": 0.95}
    build.build_experiment(config)
    with pytest.raises(ConfigError, match=r"optimizer_args.clip: found 0.0.*above 0"):
        config_of(
            {"training.optimizer": own + "make", "training.optimizer_args.clip": 0}
        )


# ------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training.optimizer": "adam"},
            "training.optimizer: found 'adam', allowed: sgd; MODULE:FUNCTION",
        ),
        ({"training.optimizer": "optax:adamww"}, "no adamww in .* did you mean adamw"),
        ({"training.optimizer": "nowhere:adam"}, "no module nowhere"),
        (
            ADAMW | {"training.optimizer_args.b1": 1.0},
            r"optimizer_args.b1: found 1.0, allowed: \[0, 1\)",
        ),
        (
            ADAMW | {"training.optimizer_args.nesterov": 1},
            "nesterov: found 1, allowed: True or False",
        ),
        (
            ADAMW | {"training.optimizer_args.beta1": 0.9},
            "unknown key config.training.optimizer_args.beta1; did you mean",
        ),
        (
            {"training.optimizer_args.b1": 0.9},
            "config.training.optimizer names no function that has arguments",
        ),
        (
            ADAMW | {"training.momentum": 0.5},
            "training.momentum: found 0.5, allowed: 0.9, its default, or 0, as it "
            "belongs to sgd",
        ),
        (
            ADAMW | {"training.weight_decay": 0.01},
            "training.weight_decay: found 0.01, .* set training.optimizer_args.weight",
        ),
        (
            {"training.optimizer": "optax:polyak_sgd"},
            "optax:polyak_sgd: it has no argument learning_rate.*def make_optimizer",
        ),
        (
            {"training.optimizer": "optax:lbfgs"},
            "training.optimizer: its update failed: .*value_fn",
        ),
        (
            {"strategy.server_optimizer": "optax:adam"},
            "server_optimizer_args.learning_rate: found None, needed: a number; the "
            "server has a rate of its own",
        ),
        (
            NESTEROV | {"strategy.server_optimizer_args.learning_rate": -1.0},
            "server_optimizer_args.learning_rate: found -1.0, allowed: above 0",
        ),
        (
            {"strategy.server_optimizer": "adam"},
            "server_optimizer: found 'adam', allowed: MODULE:FUNCTION",
        ),
        ({"training.momentum_at_merge": "keep"}, "is called .*optimizer_at_merge"),
    ],
)
def test_what_does_not_fit_is_answered_with_what_does(changes, words):
    with pytest.raises(ConfigError, match=words):
        build.build_experiment(config_of(changes))


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("training.optimizer", "fails", "construction failed: .*no such depth"),
        ("training.optimizer", "untyped", "untyped: argument depth has no default"),
        ("training.optimizer", "outside", "its construction failed|has no argument"),
        ("strategy.server_optimizer", "nothing", "returned None, not a Gradient"),
    ],
)
def test_an_error_of_ones_own_function_names_it(own, key, name, words):
    if name == "outside":  # it has the rate, and is fine
        build.build_experiment(config_of({key: own + name}))
        return
    with pytest.raises(ConfigError, match=words):
        build.build_experiment(config_of({key: own + name}))


def test_settings_that_name_an_optimizer_need_its_function():
    made = experiment_of()
    training = Training(optimizer="optax:adamw")
    with pytest.raises(OptimizerError, match="optimizer: found 'optax:adamw'"):
        asyn2f.make_experiment(made.task, made.strategy, training, made.stop, seed=0)


# ------------------------------------------------------------- identity


def test_arguments_are_part_of_an_experiment_and_what_has_no_effect_is_not():
    digest = identity.experiment_digest
    default, adamw = digest(config_of()), digest(config_of(ADAMW))
    assert default != adamw
    assert adamw != digest(
        config_of(ADAMW | {"training.optimizer_args.weight_decay": 0.2})
    )
    none = {"training.momentum": 0.0, "training.weight_decay": 0.0}
    assert adamw == digest(config_of(ADAMW, none))
    assert default != digest(config_of(none))
    assert default != digest(config_of(NESTEROV))


def test_the_sources_of_an_optimizer_are_part_of_an_experiment(own):
    config = config_of({"training.optimizer": own + "make"})
    before = identity.experiment_digest(config)
    Path("mine.py").write_text(OWN + "\n# edited\n")
    assert identity.experiment_digest(config) != before


# ------------------------------------------------------------- a run of it


def test_a_run_with_both_optimizers_is_replayed_from_its_folder(tmp_path):
    config = default_config(
        {**ADAMW, **NESTEROV, "strategy.name": "fedavg", "task.hidden": (8,)},
        workers=3,
        timing__epochs_per_push=0,
        timing__steps_per_push=4,
        training__optimizer_at_adopt="keep",
        stop__max_versions=4,
        sim__executor="serial",
    )
    run = asyn2f.simulate(config)
    losses = [row["loss"] for row in run.history()[1:]]
    assert np.isfinite(losses).all()
    again = asyn2f.simulate(config)
    assert run.summary()["params_sha256"] == again.summary()["params_sha256"]
    assert run.summary()["local_steps"] == 3 * 4 * 4


def test_a_config_without_these_keys_is_completed(tmp_path):
    (tmp_path / "config.json").write_text('{"strategy": {"name": "fedavg"}}')
    config = load_config(tmp_path)
    assert config.strategy.server_optimizer == ""
    assert config.training.optimizer == "sgd"
