"""One contract over all strategies; for their numbers see `test_conformance`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import strategies
from asyn2f.errors import ContractError
from asyn2f.strategies.contract import PROPERTIES, Subject, problems
from asyn2f.strategies.requirements import require_same
from asyn2f.strategies.samples import (
    MASK,
    f32,
    four_updates,
    i32,
    model,
    stack,
    update,
)
from tests.support.updates import replaced

every_strategy = pytest.mark.parametrize("name", sorted(strategies.BUILDERS))
# Those that replace the model by an average of what has arrived, those that mix one
# update after the other into it, and those that are sent differences.
averaging = pytest.mark.parametrize("name", ["asyn2f", "fedavg", "fedprox"])
mixing = pytest.mark.parametrize("name", ["fedasync", "fedasmu", "kafl"])
adding = pytest.mark.parametrize("name", ["asafl", "ca2fl", "fadas", "fedbuff"])
in_any_order = pytest.mark.parametrize(
    "name", sorted(strategies.BUILDERS.keys() - {"fedasync", "fedasmu"})
)


def rows(updates, order):
    return jax.tree.map(lambda leaf: leaf[np.array(order)], updates)


@functools.cache
def subject(name):
    """The strategy, its functions compiled once for all tests."""
    return Subject(strategies.BUILDERS[name]())


# The contract.


@every_strategy
def test_a_strategy_carries_the_name_it_is_built_by(name):
    assert strategies.BUILDERS[name]().name == name


@every_strategy
@pytest.mark.parametrize("sentence", PROPERTIES)
def test_a_strategy_keeps_the_contract(sentence, name):
    PROPERTIES[sentence](subject(name))


def test_changes_are_pushed_by_those_that_add():
    adds = {name for name in strategies.BUILDERS if subject(name).adds}
    assert adds == {"asafl", "ca2fl", "fadas", "fedbuff"}


@in_any_order
def test_the_order_of_updates_is_irrelevant(name):
    order = [2, 0, 3, 1]
    updates = four_updates()
    state, metrics = subject(name).next_state(updates)
    shuffled, shuffled_metrics = subject(name).next_state(
        rows(updates, order), MASK[order]
    )
    as_f32 = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    require_same(as_f32(shuffled), as_f32(state), "shuffled", rtol=1e-5)
    shares = np.asarray(metrics["coefficients"])[order]
    require_same(shuffled_metrics["coefficients"], shares, "shuffled", rtol=1e-5)


@averaging
def test_a_lone_update_becomes_the_model(name):
    updates = four_updates()
    state, _ = subject(name).next_state(updates, np.array([False, True, False, False]))
    require_same(state.model.params, model(1), "a lone update")


@mixing
def test_a_mixed_model_lies_between_the_old_one_and_the_updates(name):
    state, _ = subject(name).next_state(four_updates())
    models = [model(seed) for seed in (99, 0, 1, 2)]
    for new, *others in zip(
        jax.tree.leaves(state.model.params), *map(jax.tree.leaves, models), strict=True
    ):
        others = np.array(others, np.float32)
        new = np.asarray(new, np.float32)
        slack = 1e-2 + (new.dtype.kind == "i")
        assert np.all(others.min(0) - slack <= new)
        assert np.all(new <= others.max(0) + slack)


@averaging
def test_equal_updates_give_the_plain_mean(name):
    updates = stack([update({"w": f32([value, 8])}) for value in (1, 2, 6)])
    strategy = strategies.BUILDERS[name]()
    state = strategy.init({"w": f32([100, 100])}, 3)
    state, _ = strategy.aggregate(state, updates, np.array([True, True, True]))
    np.testing.assert_allclose(state.model.params["w"], [3, 8], rtol=1e-6)


BREAKS = {
    "an aggregation makes the version one higher": lambda state, metrics: (
        state._replace(model=state.model._replace(version=state.model.version + 1)),
        metrics,
    ),
    "an aggregation is finite": lambda state, metrics: (
        jax.tree.map(lambda x: x * jnp.nan if x.dtype == jnp.float32 else x, state),
        metrics,
    ),
    "coefficients are at least 0, and sum to 1 over the real rows": (
        lambda state, metrics: (
            state,
            metrics | {"coefficients": metrics["coefficients"] * jnp.float32(2)},
        )
    ),
    "memory does not grow": lambda state, metrics: (
        state._replace(memory=jnp.zeros(1000)),
        metrics,
    ),
}


@pytest.mark.parametrize("sentence", BREAKS)
def test_a_strategy_that_breaks_a_property_is_found(sentence):
    strategy = strategies.fedavg()

    def aggregate(state, updates, mask):
        return BREAKS[sentence](*strategy.aggregate(state, updates, mask))

    broken = strategy._replace(aggregate=aggregate)
    with pytest.raises(ContractError):
        PROPERTIES[sentence](Subject(broken))
    found = dict(problems(broken))
    assert found[sentence]
    assert "\n" not in found[sentence]


def test_fedavg_is_synchronous():
    timing = strategies.fedavg().timing
    assert timing.while_training == "ignore"
    assert timing.after_push == "wait"
    assert timing.quorum == "all"
    assert timing.max_staleness == 0


def test_asyn2f_never_waits():
    timing = strategies.asyn2f().timing
    assert timing.while_training == "merge"
    assert timing.after_push == "continue"
    assert timing.quorum == "some"
    assert timing.max_staleness is None


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": -0.1},
        {"beta": 1.1},
        {"max_share": 0.0},
        {"max_share": 1.1},
    ],
)
def test_a_setting_of_asyn2f_out_of_range_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        strategies.asyn2f(**settings)


@pytest.mark.parametrize("settings", [{"beta1": 1.0}, {"beta2": 1.0}])
def test_a_correction_of_fadas_that_would_divide_by_zero_is_refused(settings):
    strategies.fadas(**settings)
    with pytest.raises(ValueError, match="bias_correction: found"):
        strategies.fadas(**settings, bias_correction=True)


def test_an_unknown_distance_of_kafl_is_refused():
    with pytest.raises(ValueError, match="distance_over"):
        strategies.kafl(distance_over="some")


# FedBuff as others compute it.


@pytest.mark.parametrize(
    ("variant", "moved"),
    [
        ("paper", 0.718),  # (1 + 1 / sqrt 2 + 1 / sqrt 5) / 3
        ("flsim", 2.154),  # that sum, undivided
        ("appfl", 2.154),
        ("nvflare", 0.408),  # (1 / 2 + 1 / (1 + sqrt 2) + 1 / (1 + sqrt 5)) / 3
        ("federatedscope", 0.567),  # (1 + 1 / 2 + 1 / 5) / 3
        ("fedscale", 1.0),  # divided by the sum of the weights
        ("plato", 1.0),  # W_k - W_t, without weights
    ],
)
def test_three_updates_of_size_one_move_the_server_as_each_reading_has_it(
    variant, moved
):
    strategy = strategies.fedbuff(variant=variant)
    zeros, ones = {"w": f32([0])}, {"w": f32([1])}
    since = i32([4, 3, 0])
    updates = stack([update(strategy.push(ones, zeros)) for _ in since])
    updates = replaced(updates, start_version=since, base_version=since)
    state = strategy.init(zeros, 3)
    state = state._replace(model=state.model._replace(version=jnp.int32(4)))
    state, _ = strategy.aggregate(state, updates, np.array([True] * 3))
    assert float(state.model.params["w"][0]) == pytest.approx(moved, abs=5e-4)


def test_federatedscope_weighs_by_examples_and_plato_by_the_current_model():
    # n = 100, 300, fresh: (100 * 1 + 300 * 5) / 400 = 4. Plato: W_t = 2, W_k = 3, 7:
    # 2 + ((3 - 2) + (7 - 2)) / 2 = 5, wherever they started.
    for variant, start, ends, expected in (
        ("federatedscope", 0, (1, 5), 4),
        ("plato", 2, (3, 7), 5),
    ):
        strategy = strategies.fedbuff(variant=variant)
        begin = {"w": f32([9])}
        pushed = [
            strategy.push({"w": f32([end + (9 if variant != "plato" else 0)])}, begin)
            for end in ends
        ]
        updates = stack([update(sent) for sent in pushed])
        updates = replaced(updates, num_examples=f32([100, 300]))
        state = strategy.init({"w": f32([start])}, 2)
        state, _ = strategy.aggregate(state, updates, np.array([True, True]))
        assert float(state.model.params["w"][0]) == pytest.approx(expected)
