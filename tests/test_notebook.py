"""Whole runs as values: what a notebook gets from `asyn2f.simulate` and `.replay`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asyn2f
from asyn2f import build
from asyn2f.build import ConfigError
from asyn2f.experiment import make_experiment
from asyn2f.sim import order as o
from asyn2f.simulation import bytes_by
from asyn2f.trees import params_sha256
from tests import golden_run


def config_with(**sections) -> build.Config:
    config = golden_run.config()
    for name, changes in sections.items():
        config[name] |= changes
    return config


def sha256(run: asyn2f.Simulation) -> str:
    return params_sha256(run.result.state.model.params)


@pytest.fixture(scope="module")
def simulated():
    return asyn2f.simulate(golden_run.config())


def test_what_is_simulated_and_what_is_replayed_are_the_same_bits(simulated):
    replayed = asyn2f.replay(golden_run.config(), golden_run.FOLDER)
    assert sha256(replayed) == sha256(simulated)
    assert replayed.scores == simulated.scores
    assert np.array_equal(replayed.order.members, simulated.order.members)


def test_versions_are_scored_from_the_first_to_the_last(simulated):
    assert list(simulated.scores) == list(range(11))
    assert simulated.scores[10].accuracy > simulated.scores[0].accuracy
    seldom = asyn2f.simulate(config_with(sim={"evaluate_every": 4}))
    assert list(seldom.scores) == [0, 4, 8, 10]
    assert all(simulated.scores[node] == score for node, score in seldom.scores.items())


def test_a_target_ends_it(simulated):
    target = sorted(score.accuracy for score in simulated.scores.values())[5]
    run = asyn2f.simulate(config_with(stop={"target_accuracy": target}))
    *before, last = run.scores.values()
    assert last.accuracy >= target
    assert all(score.accuracy < target for score in before)
    assert len(run.order.version) == len(run.scores) < 11
    assert "target accuracy" in run.order.reason
    # What has happened is what was recorded, whatever would have ended it.
    replayed = asyn2f.replay(
        config_with(stop={"target_accuracy": target}), golden_run.FOLDER
    )
    assert sha256(replayed) == sha256(simulated)


def test_an_experiment_of_ones_own(simulated):
    """A server that throws away what it has aggregated; all else happens as before."""
    experiment = build.build_experiment(golden_run.config())

    def aggregate(state, updates, mask):
        after, metrics = experiment.strategy.aggregate(state, updates, mask)
        zeros = jax.tree.map(jnp.zeros_like, after.model.params)
        return after._replace(model=after.model._replace(params=zeros)), metrics

    own = make_experiment(
        experiment.task,
        experiment.strategy._replace(aggregate=aggregate),
        experiment.training,
        experiment.stop,
        experiment.seed,
    )
    run = asyn2f.simulate(golden_run.config(), own)
    assert run.experiment is own
    assert np.array_equal(run.order.time_s, simulated.order.time_s)
    assert not any(np.any(x) for x in jax.tree.leaves(run.result.state.model.params))


def test_bytes_are_those_of_all_that_was_sent_by_then(simulated):
    experiment, order = simulated.experiment, simulated.order
    size = experiment.template.num_bytes
    pushed_s = order.time_s[order.kind == o.PUSH]
    times_s = np.array([order.start_s, pushed_s[0], order.end_s])
    first, with_one, all_of_it = bytes_by(experiment, order, times_s)
    assert first == order.receivers[0] * size
    assert with_one == first + size
    given = int(order.receivers.sum())
    assert all_of_it == (order.num_updates + given) * size


def test_a_config_that_is_wrong_is_said():
    with pytest.raises(ConfigError, match=r"config\.workers"):
        asyn2f.simulate(golden_run.config() | {"workers": 0})
    with pytest.raises(AttributeError, match="simulated"):
        _ = asyn2f.simulated
