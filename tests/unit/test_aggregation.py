"""Coefficients and sums: by hand, by the oracle, by their properties."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.errors import ContractError
from asyn2f.kernels import aggregation
from tests.support import compilation, oracles

ROWS = 6  # one size for all properties: one compilation

settings = hypothesis.settings(deadline=None, print_blob=True, max_examples=100)


def f32(*values):
    return np.array(values, np.float32)


def i32(*values):
    return np.array(values, np.int32)


def everyone(count):
    return np.ones(count, bool)


def floats(low, high):
    return st.floats(low, high, width=32, allow_subnormal=False)


def rows(values):
    return st.lists(values, min_size=ROWS, max_size=ROWS)


@st.composite
def reports(draw):
    """What ROWS workers say of themselves, within the ranges of the specification."""
    mask = np.array(draw(rows(st.booleans()).filter(any)))
    return {
        "num_examples": f32(*draw(rows(floats(1, 2**20)))),
        "loss": f32(*draw(rows(st.just(0.0) | floats(2**-20, 2**10)))),
        "quality": f32(*draw(rows(floats(2**-10, 1)))),
        "staleness": i32(*draw(rows(st.integers(0, 1000)))),
        "mask": mask,
    }


def shares_of(report, max_share=1.0):
    return np.asarray(aggregation.coefficients(**report, max_share=max_share))


max_shares = st.sampled_from([0.05, 0.3, 0.5, 1.0])  # static: one compilation each


# Coefficients by hand.


def test_coefficients_worked_by_hand():
    # a_1 = Q s / ((L + eps)(1 + tau)) = 0.8 * 100 / (0.4 * (1 + 1)) =  80 / 0.8 = 100
    # a_2 =                              0.5 * 300 / (0.5 * (1 + 0)) = 150 / 0.5 = 300
    # a_3 =                              1.0 * 600 / (2.0 * (1 + 2)) = 600 / 6.0 = 100
    # sum = 500, so alpha = 0.2, 0.6, 0.2; eps = 1e-7 changes the seventh digit.
    shares = aggregation.coefficients(
        f32(100, 300, 600),
        f32(0.4, 0.5, 2.0),
        f32(0.8, 0.5, 1.0),
        i32(1, 0, 2),
        everyone(3),
    )
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=1e-6)


def test_the_sum_of_one_aggregation_worked_by_hand():
    # The first two workers above, alone: a = 100, 300, so alpha = 0.25, 0.75.
    # W_1 = (1, 2), W_2 = (3, -2):
    # G = (0.25 * 1 + 0.75 * 3, 0.25 * 2 - 0.75 * 2) = (2.5, -1.0)
    shares = aggregation.coefficients(
        f32(100, 300), f32(0.4, 0.5), f32(0.8, 0.5), i32(1, 0), everyone(2)
    )
    total = aggregation.weighted_sum({"w": f32([1, 2], [3, -2])}, shares)
    np.testing.assert_allclose(total["w"], [2.5, -1.0], atol=1e-6)


def test_one_version_of_staleness_halves_what_an_update_counts():
    # Alike but for tau = 0 and tau = 1: a : a/2 = 2/3 : 1/3
    shares = aggregation.coefficients(
        f32(10, 10), f32(1, 1), f32(1, 1), i32(0, 1), everyone(2)
    )
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3], atol=1e-6)


def test_fractional_staleness_is_taken_as_it_is():
    # 1 / (1 + 0) : 1 / (1 + 0.5) = 1 : 2/3 = 0.6 : 0.4
    shares = aggregation.coefficients(
        f32(10, 10), f32(1, 1), f32(1, 1), f32(0, 0.5), everyone(2)
    )
    np.testing.assert_allclose(shares, [0.6, 0.4], atol=1e-6)


def test_epsilon_is_added_to_every_loss():
    # eps = 1: 1 / (0 + 1) : 1 / (3 + 1) = 1 : 0.25 = 0.8 : 0.2
    shares = aggregation.coefficients(
        f32(10, 10), f32(0, 3), f32(1, 1), i32(0, 0), everyone(2), epsilon=1.0
    )
    np.testing.assert_allclose(shares, [0.8, 0.2], atol=1e-6)


def test_a_loss_of_zero_owns_the_model():
    # a = 1 / 1e-7 = 1e7 against 1 / 0.5 = 2: alpha_2 = 2e-7. The paper's weakness,
    # and what `max_share` is there for.
    shares = aggregation.coefficients(
        f32(1, 1), f32(0, 0.5), f32(1, 1), i32(0, 0), everyone(2)
    )
    np.testing.assert_allclose(shares, [1 - 2e-7, 2e-7], rtol=1e-3)


def test_losses_of_zero_share_equally():
    shares = aggregation.coefficients(
        f32(5, 5), f32(0, 0), f32(1, 1), i32(0, 0), everyone(2)
    )
    np.testing.assert_array_equal(shares, f32(0.5, 0.5))


def test_a_cap_worked_by_hand():
    # Sizes 700, 200, 100, otherwise alike: 0.7, 0.2, 0.1. Cap 0.4: the first keeps 0.4,
    # the others share 0.6 as 2 : 1, i.e. 0.4 and 0.2.
    shares = aggregation.coefficients(
        f32(700, 200, 100), f32(1, 1, 1), f32(1, 1, 1), i32(0, 0, 0), everyone(3),
        max_share=0.4,
    )  # fmt: skip
    np.testing.assert_allclose(shares, [0.4, 0.4, 0.2], atol=1e-6)


def test_a_cap_that_lifts_another_share_over_it_worked_by_hand():
    # 0.6, 0.3, 0.1, cap 0.4: the first is cut to 0.4; of the 0.6 left the second would
    # get 0.45 and is cut to 0.4 in its turn; the third gets the last 0.2.
    shares = aggregation.coefficients(
        f32(600, 300, 100), f32(1, 1, 1), f32(1, 1, 1), i32(0, 0, 0), everyone(3),
        max_share=0.4,
    )  # fmt: skip
    np.testing.assert_allclose(shares, [0.4, 0.4, 0.2], atol=1e-6)


def test_a_cap_below_one_over_m_makes_all_shares_equal():
    # Three real updates cannot all stay below 0.1: the cap acts as 1/3.
    shares = aggregation.coefficients(
        f32(600, 300, 100, 1), f32(1, 1, 1, 1), f32(1, 1, 1, 1), i32(0, 0, 0, 0),
        np.array([True, True, True, False]), max_share=0.1,
    )  # fmt: skip
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-6)


def test_a_lone_update_owns_the_model_under_any_cap():
    shares = aggregation.coefficients(
        f32(3, 9), f32(1, 1), f32(1, 1), i32(0, 0), np.array([False, True]),
        max_share=0.3,
    )  # fmt: skip
    np.testing.assert_array_equal(shares, f32(0, 1))


def test_without_a_real_row_every_coefficient_is_zero():
    shares = aggregation.coefficients(
        f32(3, 9), f32(1, 1), f32(1, 1), i32(0, 0), np.array([False, False])
    )
    np.testing.assert_array_equal(shares, f32(0, 0))


@pytest.mark.parametrize("max_share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_limit_outside_its_range_is_refused(max_share):
    with pytest.raises(ValueError, match="max_share"):
        aggregation.coefficients(
            f32(1), f32(1), f32(1), i32(0), everyone(1), max_share=max_share
        )


# Coefficients by their laws.


@settings
@hypothesis.given(reports(), max_shares)
def test_coefficients_agree_with_the_oracle(report, max_share):
    expected = oracles.coefficients(**report)
    if max_share < 1:
        expected = oracles.cap(expected, report["mask"], max_share)
    shares = shares_of(report, max_share)
    np.testing.assert_allclose(shares, expected, rtol=2e-5, atol=1e-6)


@settings
@hypothesis.given(reports(), max_shares)
def test_coefficients_are_not_negative_and_sum_to_one(report, max_share):
    shares = shares_of(report, max_share)
    assert np.all(shares >= 0)
    assert float(np.sum(shares, dtype=np.float64)) == pytest.approx(1, abs=1e-6)


@settings
@hypothesis.given(reports(), max_shares, st.permutations(range(ROWS)))
def test_the_order_of_updates_changes_no_coefficient(report, max_share, order):
    shuffled = {name: values[list(order)] for name, values in report.items()}
    np.testing.assert_allclose(
        shares_of(shuffled, max_share),
        shares_of(report, max_share)[list(order)],
        rtol=2e-5,
        atol=1e-6,
    )


@settings
@hypothesis.given(
    reports(),
    max_shares,
    st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 0.0, 1e38]),
)
def test_masked_rows_are_inert_whatever_they_hold(report, max_share, junk):
    dirty = dict(report)
    for name in ("num_examples", "loss", "quality"):
        dirty[name] = np.where(report["mask"], report[name], np.float32(junk))
    dirty["staleness"] = np.where(report["mask"], report["staleness"], np.int32(-1))
    shares = shares_of(dirty, max_share)
    np.testing.assert_array_equal(shares, shares_of(report, max_share))
    np.testing.assert_array_equal(shares[~report["mask"]], 0)


@settings
@hypothesis.given(reports(), max_shares)
def test_no_coefficient_is_above_the_cap(report, max_share):
    limit = max(max_share, 1 / report["mask"].sum())
    assert np.all(shares_of(report, max_share) <= limit * (1 + 1e-6))


@settings
@hypothesis.given(reports(), max_shares)
def test_rows_that_are_not_capped_keep_their_proportions(report, max_share):
    limit = max(max_share, 1 / report["mask"].sum())
    shares = shares_of(report, max_share).astype(np.float64)
    formula = oracles.coefficients(**report)
    free = (shares < limit * (1 - 1e-4)) & (formula > 1e-30)
    if free.any():
        np.testing.assert_allclose(
            shares[free] / shares[free].sum(),
            formula[free] / formula[free].sum(),
            rtol=2e-5,
        )


@settings
@hypothesis.given(reports(), max_shares)
def test_the_cap_takes_from_none_that_is_below_it(report, max_share):
    formula = oracles.coefficients(**report)
    limit = max(max_share, 1 / report["mask"].sum())
    shares = shares_of(report, max_share)
    assert np.all(shares >= np.minimum(formula, limit) * (1 - 2e-5))


def test_equal_updates_without_staleness_give_the_plain_mean():
    shares = aggregation.coefficients(
        f32(9, 9, 9, 9), f32(2, 2, 2, 2), f32(0.5, 0.5, 0.5, 0.5), i32(0, 0, 0, 0),
        everyone(4),
    )  # fmt: skip
    models = f32([1, 2], [3, 2], [5, 2], [7, 2])
    np.testing.assert_array_equal(shares, f32(0.25, 0.25, 0.25, 0.25))
    np.testing.assert_array_equal(aggregation.weighted_sum(models, shares), f32(4, 2))


@pytest.mark.parametrize("count", [1, 2, 33, 100])
def test_coefficients_take_any_number_of_updates(count):
    shares = aggregation.coefficients(
        np.full(count, 5, np.float32),
        np.full(count, 0.3, np.float32),
        np.full(count, 0.9, np.float32),
        np.zeros(count, np.int32),
        everyone(count),
        max_share=0.5,
    )
    np.testing.assert_allclose(shares, np.full(count, 1 / count), rtol=1e-6)


# The weighted sum.


def stack(models):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *models)


def test_the_weighted_sum_agrees_with_the_oracle_on_every_kind_of_leaf():
    models = [oracles.odd_model(seed) for seed in range(4)]
    shares = f32(0.125, 0.5, 0.0, 0.375)
    total = aggregation.weighted_sum(stack(models), shares)
    oracles.assert_agrees(total, oracles.weighted_sum(models, shares), models)


def test_the_weighted_sum_keeps_the_structure_of_the_tree():
    models = [oracles.odd_model(seed) for seed in range(2)]
    total = aggregation.weighted_sum(stack(models), f32(0.5, 0.5))
    assert jax.tree.structure(total) == jax.tree.structure(models[0])


@pytest.mark.parametrize("count", range(1, 41))
def test_the_weighted_sum_takes_any_number_of_models(count):
    random = np.random.default_rng(count)
    models = list(random.normal(size=(count, 5)).astype(np.float32))
    shares = random.dirichlet(np.ones(count)).astype(np.float32)
    total = aggregation.weighted_sum(np.stack(models), shares)
    oracles.assert_agrees(total, oracles.weighted_sum(models, shares), models)


def test_integers_are_rounded_not_cut_off():
    # 0.75 * 1 + 0.25 * 4 = 1.75 -> 2;   0.75 * -1 + 0.25 * -4 = -1.75 -> -2
    total = aggregation.weighted_sum(i32([1, -1], [4, -4]), f32(0.75, 0.25))
    np.testing.assert_array_equal(total, i32(2, -2))


def test_sums_of_half_precision_leaves_are_taken_in_float32():
    # In bfloat16 (8 bits of mantissa) 1 + 1/256 is 1, so that a running sum would stay
    # at 1. In float32 all 64 small terms arrive: 0.5 + 64 / 128 = 1.
    ones = np.ones((65, 1), jnp.bfloat16)
    shares = np.concatenate([f32(0.5), np.full(64, 1 / 128, np.float32)])
    scaled = ones * np.asarray(256, jnp.bfloat16)
    total = aggregation.weighted_sum(scaled, shares)
    np.testing.assert_array_equal(np.asarray(total, np.float32), f32(256))


def test_a_lone_model_comes_back_bit_for_bit():
    model = oracles.odd_model(3)
    total = aggregation.weighted_sum(stack([model]), f32(1))
    for got, want in zip(jax.tree.leaves(total), jax.tree.leaves(model), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.parametrize("count", [4, 40])
def test_a_lone_real_model_among_padding_comes_back_bit_for_bit(count):
    model = oracles.odd_model(3)
    shares = np.zeros(count, np.float32)
    shares[1] = 1
    others = [oracles.odd_model(seed) for seed in range(count)]
    others[1] = model
    total = aggregation.weighted_sum(stack(others), shares)
    for got, want in zip(jax.tree.leaves(total), jax.tree.leaves(model), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [3, 40])
def test_padding_is_not_read(junk, count):
    models = np.ones((count, 2), np.float32)
    models[2:] = junk
    shares = np.zeros(count, np.float32)
    shares[:2] = 0.5
    total = aggregation.weighted_sum({"w": models}, shares)
    np.testing.assert_array_equal(total["w"], f32(1, 1))


matrices = st.lists(
    st.lists(floats(-(2.0**40), 2.0**40), min_size=4, max_size=4),
    min_size=ROWS,
    max_size=ROWS,
).map(lambda values: np.array(values, np.float32))


@settings
@hypothesis.given(reports(), matrices)
def test_the_next_model_lies_in_the_convex_hull_of_the_updates(report, models):
    total = np.asarray(aggregation.weighted_sum(models, shares_of(report)))
    real = models[report["mask"]]
    slack = 2e-6 * np.abs(real).max(axis=0)
    assert np.all(total >= real.min(axis=0) - slack)
    assert np.all(total <= real.max(axis=0) + slack)


@settings
@hypothesis.given(reports(), matrices, st.permutations(range(ROWS)))
def test_the_order_of_updates_changes_no_sum(report, models, order):
    shares = shares_of(report)
    total = np.asarray(aggregation.weighted_sum(models, shares))
    shuffled = aggregation.weighted_sum(models[list(order)], shares[list(order)])
    slack = 2e-6 * np.abs(models).max()
    np.testing.assert_allclose(shuffled, total, rtol=0, atol=slack)


def test_a_leaf_with_another_leading_axis_is_named():
    params = {
        "params": {"conv1": {"kernel": np.ones((3, 2), np.float32)}},
        "batch_stats": {"mean": np.ones((2, 2), np.float32)},
    }
    with pytest.raises(ValueError, match=r"params\W+conv1\W+kernel") as error:
        aggregation.weighted_sum(params, f32(0.5, 0.5))
    assert "batch_stats" not in str(error.value)


def test_a_leaf_without_a_leading_axis_is_named():
    with pytest.raises(ValueError, match=r"temperature"):
        aggregation.weighted_sum({"temperature": np.float32(1)}, f32(0.5, 0.5))


# Compilation.


def test_the_second_call_of_coefficients_compiles_nothing():
    first = (f32(1, 2, 3), f32(1, 1, 1), f32(1, 1, 1), i32(0, 0, 0), everyone(3))
    second = (f32(9, 8, 7), f32(0, 2, 1), f32(1, 0.5, 1), i32(3, 0, 1), ~first[-1])
    aggregation.coefficients(*first, max_share=0.9)
    with compilation.nothing_compiles():
        aggregation.coefficients(*second, max_share=0.9)


def test_the_second_call_of_weighted_sum_compiles_nothing():
    first = stack([oracles.odd_model(0), oracles.odd_model(1)])
    second = stack([oracles.odd_model(2), oracles.odd_model(3)])
    aggregation.weighted_sum(first, f32(0.5, 0.5))
    with compilation.nothing_compiles():
        aggregation.weighted_sum(second, f32(1, 0))


def test_the_check_for_compilations_sees_one():
    with (
        pytest.raises(ContractError, match="compiled"),
        compilation.nothing_compiles(),
    ):
        jax.jit(lambda x: x + 1)(f32(1))
