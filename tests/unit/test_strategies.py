"""One contract over all strategies; for their numbers see `test_conformance`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import strategies
from asyn2f.types import UpdateInfo, WorkerUpdate
from tests.support import compilation
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

# Four rows, the last of which is padding.
MASK = np.array([True, True, True, False])


def f32(value):
    return np.array(value, np.float32)


def i32(value):
    return np.array(value, np.int32)


def model(seed):
    random = np.random.default_rng(seed)
    return {
        "params": {
            "kernel": random.normal(size=(3, 2)).astype(np.float32),
            "half": random.normal(size=(4,)).astype(jnp.bfloat16),
            "temperature": f32(random.normal()),
            "empty": np.zeros((0, 3), np.float32),
        },
        "batch_stats": {
            "mean": random.normal(size=(2,)).astype(np.float32),
            "count": i32(random.integers(100)),
        },
    }


def update(params, **changes):
    values = {
        "worker": i32(0),
        "base_version": i32(0),
        "start_version": i32(0),
        "step": i32(1),
        "num_examples": f32(100),
        "loss": f32(0.5),
        "quality": f32(0.8),
        "metric": f32(0.6),
        "signal": f32(0.6),
    }
    values |= changes
    worker = values.pop("worker")
    return WorkerUpdate(params, worker, UpdateInfo(**values))


def stack(updates):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *updates)


def four_updates(seed=0):
    return stack(
        [
            update(
                model(seed + row),
                worker=i32(row),
                num_examples=f32(100 * (row + 1)),
                loss=f32(0.5 + 0.25 * row),
                quality=f32(1 - 0.125 * row),
            )
            for row in range(4)
        ]
    )


def rows(updates, order):
    return jax.tree.map(lambda leaf: leaf[np.array(order)], updates)


@functools.cache
def jitted(name):
    """The strategy with its functions through `jit`, compiled once for all tests."""
    strategy = strategies.BUILDERS[name]()
    return strategy._replace(
        aggregate=jax.jit(strategy.aggregate), merge=jax.jit(strategy.merge)
    )


def next_state(name, updates, mask=MASK):
    """The state and the metrics after one aggregation."""
    strategy = jitted(name)
    return strategy.aggregate(strategy.init(model(99), 4), updates, mask)


def merged(name):
    """The parameters and the metrics after one merge."""
    state, _ = next_state(name, four_updates())
    return jitted(name).merge(update(model(1)), model(2), state.model)


def dtypes(tree):
    return jax.tree.map(lambda leaf: (np.asarray(leaf).dtype, np.shape(leaf)), tree)


def assert_same(one, other, rtol=0.0):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        left, right = (np.asarray(leaf).astype(np.float64) for leaf in (left, right))
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol)


def assert_finite(tree):
    for leaf in jax.tree.leaves(tree):
        assert np.all(np.isfinite(np.asarray(leaf).astype(np.float64)))


# The contract.


@every_strategy
def test_a_strategy_carries_the_name_it_is_built_by(name):
    assert strategies.BUILDERS[name]().name == name


@every_strategy
def test_the_first_version_is_zero_with_the_parameters_given(name):
    state = strategies.BUILDERS[name]().init(model(5), 4)
    assert int(state.model.version) == 0
    assert_same(state.model.params, model(5))


@every_strategy
def test_version_zero_has_no_examples(name):
    first = strategies.BUILDERS[name]().init(model(5), 4).model
    assert float(first.num_examples) == 0
    assert float(first.loss) == 0
    assert float(first.quality) == 1


@every_strategy
def test_an_aggregation_makes_the_version_one_higher(name):
    strategy = jitted(name)
    first, _ = next_state(name, four_updates())
    second, _ = strategy.aggregate(first, four_updates(), MASK)
    assert int(first.model.version) == 1
    assert int(second.model.version) == 2


@every_strategy
def test_an_aggregation_keeps_structure_shapes_and_dtypes(name):
    before = strategies.BUILDERS[name]().init(model(99), 4)
    after, _ = next_state(name, four_updates())
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert dtypes(after) == dtypes(before)


@every_strategy
def test_an_aggregation_is_finite(name):
    assert_finite(next_state(name, four_updates()))


@every_strategy
def test_the_coefficients_sum_to_one_over_the_real_rows(name):
    _, metrics = next_state(name, four_updates())
    shares = np.asarray(metrics["coefficients"])
    assert shares.dtype == np.float32
    assert shares.shape == MASK.shape
    assert np.all(shares >= 0)
    assert shares.sum() == pytest.approx(1, abs=1e-6)


@every_strategy
def test_the_coefficients_of_padding_are_zero(name):
    _, metrics = next_state(name, four_updates())
    assert float(metrics["coefficients"][3]) == 0


@every_strategy
@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_padding_is_inert(name, junk):
    clean = four_updates()

    def spoil(leaf):
        leaf = leaf.copy()
        leaf[3:] = np.asarray(junk, leaf.dtype) if leaf.dtype.kind != "i" else -7
        return leaf

    state, metrics = next_state(name, clean)
    spoilt_state, spoilt_metrics = next_state(name, jax.tree.map(spoil, clean))
    assert_same(spoilt_state, state)
    assert_same(spoilt_metrics["coefficients"], metrics["coefficients"])


@in_any_order
def test_the_order_of_updates_is_irrelevant(name):
    order = [2, 0, 3, 1]
    updates = four_updates()
    state, metrics = next_state(name, updates)
    shuffled, shuffled_metrics = next_state(name, rows(updates, order), MASK[order])
    assert_same(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), shuffled),
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), state),
        rtol=1e-5,
    )
    assert_same(
        shuffled_metrics["coefficients"],
        np.asarray(metrics["coefficients"])[order],
        rtol=1e-5,
    )


@averaging
def test_a_lone_update_becomes_the_model(name):
    updates = four_updates()
    state, _ = next_state(name, updates, np.array([False, True, False, False]))
    assert_same(state.model.params, model(1))


@mixing
def test_a_mixed_model_lies_between_the_old_one_and_the_updates(name):
    state, _ = next_state(name, four_updates())
    models = [model(seed) for seed in (99, 0, 1, 2)]
    for new, *others in zip(
        jax.tree.leaves(state.model.params), *map(jax.tree.leaves, models), strict=True
    ):
        others = np.array(others, np.float32)
        new = np.asarray(new, np.float32)
        slack = 1e-2 + (new.dtype.kind == "i")
        assert np.all(others.min(0) - slack <= new)
        assert np.all(new <= others.max(0) + slack)


@adding
def test_statistics_are_the_mean_of_what_has_arrived_whatever_was_there(name):
    # A running variance of 0.5 in all updates; added up as differences from 1.0 it
    # would fall below zero.
    updates = four_updates()
    small = np.full_like(updates.params["batch_stats"]["mean"], 0.5)
    updates.params["batch_stats"]["mean"] = small
    state, _ = next_state(name, updates)
    np.testing.assert_allclose(state.model.params["batch_stats"]["mean"], 0.5)


@adding
def test_no_change_changes_nothing(name):
    strategy = strategies.BUILDERS[name]()
    pushed = strategy.push(model(7), model(7))
    updates = stack([update(pushed, worker=i32(row)) for row in range(4)])
    state, _ = next_state(name, updates)
    assert_same(state.model.params["params"], model(99)["params"])


@every_strategy
def test_a_push_keeps_structure_shapes_and_dtypes(name):
    pushed = jax.jit(strategies.BUILDERS[name]().push)(model(1), model(2))
    assert jax.tree.structure(pushed) == jax.tree.structure(model(1))
    assert dtypes(pushed) == dtypes(model(1))


@every_strategy
def test_memory_does_not_grow(name):
    strategy = jitted(name)
    first = strategy.init(model(99), 4)
    state = first
    for _ in range(3):
        state, _ = strategy.aggregate(state, four_updates(), MASK)
    assert dtypes(state) == dtypes(first)
    # Nothing per update; per worker a model at most.
    own = sum(leaf.size for leaf in jax.tree.leaves(model(99)["params"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(first.memory)) <= max(3, 4) * own


@averaging
def test_equal_updates_give_the_plain_mean(name):
    updates = stack([update({"w": f32([value, 8])}) for value in (1, 2, 6)])
    strategy = strategies.BUILDERS[name]()
    state = strategy.init({"w": f32([100, 100])}, 3)
    state, _ = strategy.aggregate(state, updates, np.array([True, True, True]))
    np.testing.assert_allclose(state.model.params["w"], [3, 8], rtol=1e-6)


@every_strategy
def test_a_model_carries_sum_of_examples_mean_of_losses_and_of_qualities(name):
    # The real rows: s = 100, 200, 300; L = 0.5, 0.75, 1.0; Q = 1, 0.875, 0.75.
    state, _ = next_state(name, four_updates())
    assert float(state.model.num_examples) == 600
    assert float(state.model.loss) == pytest.approx(0.75)
    assert float(state.model.quality) == pytest.approx(0.875)


@every_strategy
def test_staleness_counts_versions_since_the_base(name):
    strategy = jitted(name)
    state = strategy.init(model(99), 4)
    state = state._replace(model=state.model._replace(version=jnp.int32(7)))
    updates = replaced(
        four_updates(), base_version=i32([7, 4, 0, 7]), start_version=i32([7, 4, 0, 7])
    )
    _, metrics = strategy.aggregate(state, updates, MASK)
    assert np.asarray(metrics["staleness"]).dtype == np.int32
    assert np.asarray(metrics["staleness"])[:3].tolist() == [0, 3, 7]


@every_strategy
def test_a_merge_keeps_structure_shapes_and_dtypes(name):
    params, _ = merged(name)
    assert jax.tree.structure(params) == jax.tree.structure(model(1))
    assert dtypes(params) == dtypes(model(1))


@every_strategy
def test_a_merge_is_finite(name):
    assert_finite(merged(name))


@every_strategy
def test_a_merge_reports_its_share(name):
    _, metrics = merged(name)
    assert np.shape(metrics["share"]) == ()
    assert 0 <= float(metrics["share"]) <= 1


@every_strategy
def test_a_merge_with_version_zero_is_finite(name):
    strategy = jitted(name)
    first = strategy.init(model(99), 4).model
    assert_finite(strategy.merge(update(model(1)), model(2), first))


@every_strategy
def test_a_strategy_works_without_jit_too(name):
    strategy = strategies.BUILDERS[name]()
    state, metrics = strategy.aggregate(
        strategy.init(model(99), 4), four_updates(), MASK
    )
    jitted_state, jitted_metrics = next_state(name, four_updates())
    assert_same(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), state),
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), jitted_state),
        rtol=1e-5,
    )
    assert_same(metrics["coefficients"], jitted_metrics["coefficients"], rtol=1e-5)


@every_strategy
def test_functions_are_pure_and_leave_their_inputs_alone(name):
    strategy = jitted(name)
    updates = four_updates()
    state = strategy.init(model(99), 4)
    first, _ = strategy.aggregate(state, updates, MASK)
    second, _ = strategy.aggregate(state, updates, MASK)
    assert_same(first, second)
    assert_same(updates, four_updates())


@every_strategy
def test_the_second_aggregation_compiles_nothing(name):
    strategy = strategies.BUILDERS[name]()
    aggregate = jax.jit(strategy.aggregate)
    state, _ = aggregate(strategy.init(model(99), 4), four_updates(), MASK)
    with compilation.nothing_compiles():
        aggregate(state, four_updates(5), ~MASK)


@every_strategy
def test_the_second_merge_compiles_nothing(name):
    strategy = strategies.BUILDERS[name]()
    merge = jax.jit(strategy.merge)
    state, _ = next_state(name, four_updates())
    first = strategy.init(model(99), 4).model
    merge(update(model(1)), model(2), first)
    with compilation.nothing_compiles():
        merge(update(model(3), loss=f32(0)), model(4), state.model)


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
