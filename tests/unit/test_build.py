"""Every config builds; every wrong value is refused with a remedy."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from asyn2f import errors
from asyn2f.config import build, identity
from asyn2f.strategies import BUILDERS
from tests.support.experiments import config_with, experiment_with

CONFIGS = sorted(
    path.relative_to(Path(__file__).parents[2]).with_suffix("").as_posix()
    for path in (Path(__file__).parents[2] / "configs").rglob("*.py")
    if path.stem[0] != "_" and path.stem != "of_run"  # that one needs a run's folder
)
PREPARED = Path(__file__).parents[3] / "shared" / "data" / "tensorflow_datasets"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds(name):
    config = importlib.import_module(name.replace("/", ".")).get_config().to_dict()
    build.check(config)
    build.build_profiles(config)
    if config["task"]["dataset"] != "digits":
        if not (PREPARED / config["task"]["dataset"]).exists():
            pytest.skip(f"{config['task']['dataset']} is not prepared here")
        config["task"]["data_dir"] = str(PREPARED)
    task = build.build_task(config)
    assert len(task.shards) == config["workers"]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_strategy_builds_from_the_defaults(name):
    experiment = experiment_with(strategy__name=name)
    assert experiment.strategy.name == name
    assert experiment.strategy.timing.min_workers == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy__name": "fedsgd"}, "strategy.name.*'fedsgd'.*asyn2f.*fedavg"),
        ({"task__dataset": "mnits"}, "task.dataset.*'mnits'.*digits"),
        ({"task__partition": "random"}, "dirichlet, shards, file"),
        ({"task__model": "ember"}, "task.model: found 'ember'.*digits.*any but ember"),
        ({"task__dataset": "ember"}, "task.model: found 'mlp'.*allowed: ember"),
        (
            {
                "task__dataset": "ember",
                "task__model": "ember",
                "task__augment": "crop_flip",
            },
            "augment and normalise are for images",
        ),
        ({"task__alpha": 0.0}, r"task.alpha: found 0.0, allowed: above 0"),
        ({"task__alpha": float("nan")}, "task.alpha: found nan"),
        ({"training__momentum": 1.0}, r"momentum: found 1.0, allowed: \[0, 1\)"),
        ({"training__batch_size": 0}, "batch_size: found 0, allowed: at least 1"),
        ({"workers": 0}, "workers: found 0"),
        ({"workers": 2000}, "2000 shards.*allowed 1 to 1437"),
        ({"min_workers": 9}, "min_workers: found 9.*at most"),
        ({"strategy__asyn2f__beta": 1.5}, r"asyn2f.beta: found 1.5, allowed \[0, 1\]"),
        ({"strategy__asyn2f__convention": "mine"}, "appendix, reference_code"),
        (
            {"strategy__name": "kafl", "strategy__kafl__mixing": 0.0},
            r"strategy.kafl.mixing: found 0.0, allowed \(0, 1\]",
        ),
        (
            {"strategy__name": "asafl", "timing__push_at_metric": 0.5},
            "push_at_metric: found 0.5, but asafl has a rule of its own",
        ),
        ({"task__partition": "sizes", "task__sizes": (3, 4)}, "found 2 sizes"),
        (
            {"task__partition": "sizes", "task__sizes": (900, 900, 1, 1, 1)},
            "found a sum of 1803, allowed at most 1437",
        ),
        ({"stop__max_versions": 0}, "nothing that ends the run"),
        (
            {"runtime__heartbeat_interval_s": 5.0},
            "heartbeat_timeout_s.*above heartbeat_interval_s",
        ),
        ({"runtime__address": "localhost:5"}, "runtime.address.*tcp://host:port"),
        ({"worker_speeds": (-1.0,)}, "worker_speeds"),
        ({"task__quality": (0.0,)}, "task.quality"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_allowed_values(changes, words):
    with pytest.raises(errors.ConfigError, match=words):
        build.build_experiment(config_with(**changes))


@pytest.mark.parametrize("schedule", ["fixed", "synchronous"])
def test_schedule_epochs_are_refused_unless_the_schedule_is_cosine(schedule):
    epochs = {"training__schedule_epochs": 600}
    with pytest.raises(errors.ConfigError, match=r"schedule_epochs: found 600.*cosine"):
        build.check(config_with(**epochs, training__schedule=schedule))
    build.check(config_with(**epochs, training__schedule="cosine"))


@pytest.mark.parametrize("schedule", ["cosine", "synchronous"])
def test_a_minimal_rate_above_the_initial_one_is_refused(schedule):
    rates = {"training__learning_rate": 0.001, "training__schedule": schedule}
    words = r"learning_rate_min: found 0.005, allowed: at most .* 0.001.*" + schedule
    with pytest.raises(errors.ConfigError, match=words):
        build.check(config_with(**rates))
    build.check(config_with(**rates, training__learning_rate_min=0.001))
    build.check(config_with(**(rates | {"training__schedule": "fixed"})))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sim__jitter", 1000.0, r"sim.jitter: found 1000.0, allowed: \[0, 10\]"),
        ("sim__outage_every_s", 1e-9, r"outage_every_s: .*0, for never, or at least"),
        ("sim__outage_every_s", float("nan"), r"outage_every_s: found nan"),
    ],
)
def test_extreme_profiles_are_refused(key, value, words):
    with pytest.raises(errors.ConfigError, match=words):
        build.check(config_with(**{key: value}))


def test_the_nearest_key_is_suggested_for_a_misspelt_one():
    config = config_with()
    config["training"]["learning_rat"] = 0.1
    with pytest.raises(
        errors.ConfigError, match=r"did you mean training.learning_rate"
    ):
        build.check(config)


def test_a_missing_key_is_named():
    config = config_with()
    del config["timing"]["min_updates"]
    with pytest.raises(errors.ConfigError, match=r"timing.min_updates is missing"):
        build.check(config)


def test_a_wrong_type_is_refused():
    config = config_with()
    config["workers"] = "five"
    with pytest.raises(errors.ConfigError, match=r"workers: found 'five'"):
        build.check(config)
    config["workers"] = True
    with pytest.raises(errors.ConfigError, match=r"workers: found True"):
        build.check(config)


def test_the_digest_depends_on_what_the_numbers_depend_on():
    digest = identity.experiment_digest(config_with())
    same = config_with(
        runtime__publish="before_save", stop__max_versions=3, min_workers=2
    )
    assert identity.experiment_digest(same) == digest
    others = config_with(strategy__fedprox__mu=0.5)  # but the strategy is asyn2f
    assert identity.experiment_digest(others) == digest
    for other in (
        config_with(seed=1),
        config_with(training__momentum=0.8),
        config_with(strategy__asyn2f__beta=0.6),
        config_with(timing__min_updates=1),
        config_with(task__alpha=0.1),
    ):
        assert identity.experiment_digest(other) != digest


def test_a_run_is_resumed_only_under_the_same_experiment():
    stored = config_with()
    identity.check_same_experiment(stored, config_with(stop__max_versions=500))
    with pytest.raises(errors.ConfigError, match=r"training.batch_size: found 8"):
        identity.check_same_experiment(stored, config_with(training__batch_size=8))


def test_the_same_seed_builds_the_same_split_and_another_one_another():
    first, second, other = (
        experiment_with(task__partition="dirichlet", seed=seed).task.shards
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
