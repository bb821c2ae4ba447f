"""Local shares and merges: by hand, by the oracle, by their properties."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.kernels import aggregation, merging
from tests.support import compilation, oracles

CONVENTIONS = ["appendix", "reference_code"]
SIZE = 5  # one size for all properties: one compilation for each dtype

settings = hypothesis.settings(deadline=None, print_blob=True, max_examples=100)


def f32(*values):
    return np.array(values, np.float32)


def scalar(value):
    return np.array(value, np.float32)


def share_of(beta=0.4, convention="appendix", **changes):
    """The share for the numbers of the worked example, some of them changed."""
    values = {
        "local_examples": 175.0,
        "local_quality": 0.8,
        "local_loss": 0.15,
        "global_examples": 400.0,
        "global_quality": 0.65,
        "global_loss": 0.45,
    }
    values.update(changes)
    arrays = {name: scalar(value) for name, value in values.items()}
    return float(
        merging.local_share(**arrays, beta=scalar(beta), convention=convention)
    )


# The share by hand. The worked example:
#   D = Q_k s_k / (Q_k s_k + Q S) = 0.8 * 175 / (0.8 * 175 + 0.65 * 400)
#     = 140 / (140 + 260) = 0.35
#   R = L / (L_k + L) = 0.45 / (0.15 + 0.45) = 0.75


def test_the_share_in_the_appendix_convention_worked_by_hand():
    # alpha = beta D + (1 - beta) R = 0.4 * 0.35 + 0.6 * 0.75 = 0.14 + 0.45 = 0.59
    assert share_of(beta=0.4) == pytest.approx(0.59, abs=1e-6)


def test_the_share_in_the_convention_of_the_reference_code_worked_by_hand():
    # alpha = (1 - beta) D + beta R = 0.6 * 0.35 + 0.4 * 0.75 = 0.21 + 0.30 = 0.51
    share = share_of(beta=0.4, convention="reference_code")
    assert share == pytest.approx(0.51, abs=1e-6)


def test_beta_of_the_reference_code_is_one_minus_beta_of_the_appendix():
    theirs = share_of(beta=0.6, convention="reference_code")
    assert theirs == pytest.approx(share_of(beta=0.4), abs=1e-6)


def test_beta_one_leaves_the_data_part_alone():
    assert share_of(beta=1.0) == pytest.approx(0.35, abs=1e-6)


def test_beta_zero_leaves_the_loss_part_alone():
    assert share_of(beta=0.0) == pytest.approx(0.75, abs=1e-6)


def test_the_convention_of_the_appendix_is_the_default():
    values = {
        "local_examples": scalar(175),
        "local_quality": scalar(0.8),
        "local_loss": scalar(0.15),
        "global_examples": scalar(400),
        "global_quality": scalar(0.65),
        "global_loss": scalar(0.45),
        "beta": scalar(0.4),
    }
    share = merging.local_share(**values)
    assert float(share) == float(merging.local_share(**values, convention="appendix"))


def test_a_poor_local_model_keeps_less():
    # R = 0.45 / (1.35 + 0.45) = 0.25
    share = share_of(beta=0.0, local_loss=1.35)
    assert share == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("quality", [0.125, 0.5, 0.85, 1.0])
def test_equal_qualities_cancel_in_the_data_part(quality):
    # D = Q s / (Q s + Q S) = s / (s + S) = 175 / 575
    share = share_of(beta=1.0, local_quality=quality, global_quality=quality)
    assert share == pytest.approx(175 / 575, abs=1e-6)


def test_unequal_qualities_do_not_cancel_in_the_data_part():
    # D = 0.5 * 175 / (0.5 * 175 + 1.0 * 400) = 87.5 / 487.5
    share = share_of(beta=1.0, local_quality=0.5, global_quality=1.0)
    assert share == pytest.approx(87.5 / 487.5, abs=1e-6)
    assert abs(share - 175 / 575) > 0.1


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_two_losses_of_zero_count_as_equal(convention):
    # R = 1/2, D = 0.35: alpha = 0.5 * 0.35 + 0.5 * 0.5 = 0.425 in both conventions
    share = share_of(0.5, convention, local_loss=0.0, global_loss=0.0)
    assert share == pytest.approx(0.425, abs=1e-6)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_loss_of_zero_makes_no_nan(convention):
    # R = 0.45 / (0 + 0.45) = 1 and R = 0 / (0.15 + 0) = 0
    best = share_of(0.5, convention, local_loss=0.0)
    worst = share_of(0.5, convention, global_loss=0.0)
    assert best == pytest.approx(0.5 * 0.35 + 0.5, abs=1e-6)
    assert worst == pytest.approx(0.5 * 0.35, abs=1e-6)


def test_version_zero_stands_for_no_data_and_no_loss():
    # S = 0, L = 0, Q = 1: D = 140 / 140 = 1, R = 0 / 0.15 = 0, alpha = beta = 0.4
    share = share_of(0.4, global_examples=0.0, global_quality=1.0, global_loss=0.0)
    assert share == pytest.approx(0.4, abs=1e-6)


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="appendix") as error:
        share_of(convention="appendx")
    assert "appendx" in str(error.value)


# The share by its laws.

examples = st.floats(1, 2**16, width=32)
qualities = st.floats(0.125, 1, width=32)
losses = st.floats(2**-10, 8, width=32)
betas = st.floats(0, 1, width=32)


@st.composite
def share_inputs(draw):
    return {
        "local_examples": draw(examples),
        "local_quality": draw(qualities),
        "local_loss": draw(losses),
        "global_examples": draw(examples),
        "global_quality": draw(qualities),
        "global_loss": draw(losses),
        "beta": draw(betas),
        "convention": draw(st.sampled_from(CONVENTIONS)),
    }


@settings
@hypothesis.given(share_inputs())
def test_the_share_agrees_with_the_oracle(inputs):
    expected = oracles.share(**{**inputs, "beta": float(np.float32(inputs["beta"]))})
    assert share_of(**inputs) == pytest.approx(expected, abs=1e-6)


@settings
@hypothesis.given(share_inputs())
def test_the_share_lies_strictly_between_zero_and_one(inputs):
    assert 0 < share_of(**inputs) < 1


# The merge by hand.


def test_a_merge_worked_by_hand():
    # W- = (0, 0, 0), W = (0.5, 1, -1), G = (2.5, -1, -1.5), alpha = 0.59
    # d_1 = (0.5 - 0)(2.5 - 0.5)  = +1.0 > 0: G_1                 =  2.5
    # d_2 = (1 - 0)(-1 - 1)       = -2.0:     0.41 * -1 + 0.59    =  0.18
    # d_3 = (-1 - 0)(-1.5 - -1)   = +0.5 > 0: G_3                 = -1.5
    merged = merging.directional_merge(
        f32(0, 0, 0), f32(0.5, 1, -1), f32(2.5, -1, -1.5), scalar(0.59)
    )
    np.testing.assert_allclose(merged, [2.5, 0.18, -1.5], atol=1e-6)


def test_a_step_that_went_nowhere_is_interpolated():
    # d = (1 - 1)(3 - 1) = 0, not above 0: 0.75 * 3 + 0.25 * 1 = 2.5
    merged = merging.directional_merge(f32(1), f32(1), f32(3), scalar(0.25))
    np.testing.assert_array_equal(merged, f32(2.5))


def test_a_global_value_that_is_already_reached_is_kept():
    # d = (1 - 0)(1 - 1) = 0: 0.75 * 1 + 0.25 * 1 = 1
    merged = merging.directional_merge(f32(0), f32(1), f32(1), scalar(0.25))
    np.testing.assert_array_equal(merged, f32(1))


def test_a_product_of_tiny_steps_keeps_its_sign():
    # d = (1e-30 - 0)(3e-30 - 1e-30) = 2e-60 > 0, which float32 cannot hold.
    merged = merging.directional_merge(
        f32(0, 0), f32(1e-30, 1e-30), f32(3e-30, -3e-30), scalar(0.5)
    )
    np.testing.assert_allclose(merged, [3e-30, -1e-30], rtol=1e-6)


def test_share_one_keeps_the_local_value_where_the_directions_disagree():
    merged = merging.directional_merge(f32(0, 0), f32(1, 1), f32(3, -3), scalar(1))
    np.testing.assert_array_equal(merged, f32(3, 1))


def test_share_zero_takes_the_global_model_whole():
    merged = merging.directional_merge(f32(0, 0), f32(1, 1), f32(3, -3), scalar(0))
    np.testing.assert_array_equal(merged, f32(3, -3))


def test_batch_statistics_are_merged_like_parameters():
    # d > 0 in the first element; in the second 0.5 * -3 + 0.5 * 1 = -1.
    previous = {"params": {"w": f32(0, 0)}, "batch_stats": {"mean": f32(0, 0)}}
    current = {"params": {"w": f32(1, 1)}, "batch_stats": {"mean": f32(1, 1)}}
    target = {"params": {"w": f32(3, -3)}, "batch_stats": {"mean": f32(3, -3)}}
    merged = merging.directional_merge(previous, current, target, scalar(0.5))
    np.testing.assert_array_equal(merged["params"]["w"], f32(3, -1))
    np.testing.assert_array_equal(merged["batch_stats"]["mean"], f32(3, -1))


def test_integers_are_rounded_not_cut_off():
    # W- = (9, -9), W = (4, -6), G = (5, -9)
    # d_1 = (4 - 9)(5 - 4) < 0:     0.25 * 5 + 0.75 * 4   =  4.25 ->  4
    # d_2 = (-6 + 9)(-9 + 6) < 0:   0.25 * -9 + 0.75 * -6 = -6.75 -> -7
    merged = merging.directional_merge(
        np.array([9, -9], np.int32),
        np.array([4, -6], np.int32),
        np.array([5, -9], np.int32),
        scalar(0.75),
    )
    np.testing.assert_array_equal(merged, np.array([4, -7], np.int32))


def test_one_aggregation_and_one_merge_worked_by_hand_from_end_to_end():
    # Server: two updates, W_1 = (1, 2), W_2 = (3, -2).
    #   a_1 = 0.8 * 100 / (0.4 * (1 + 1)) = 100
    #   a_2 = 0.5 * 300 / (0.5 * (1 + 0)) = 300          alpha = 0.25, 0.75
    #   G = 0.25 (1, 2) + 0.75 (3, -2) = (2.5, -1.0)
    #   S = 100 + 300 = 400, L = (0.4 + 0.5) / 2 = 0.45, Q = (0.8 + 0.5) / 2 = 0.65
    # Worker 3: s = 175, Q_3 = 0.8, L_3 = 0.15, W- = (0, 0), W = (0.5, 1).
    #   D = 140 / 400 = 0.35, R = 0.45 / 0.6 = 0.75
    #   alpha = 0.4 * 0.35 + 0.6 * 0.75 = 0.59
    #   d = (0.5 * 2, 1 * -2) = (1, -2)
    #   merged = (2.5, 0.41 * -1 + 0.59 * 1) = (2.5, 0.18)
    shares = aggregation.coefficients(
        f32(100, 300),
        f32(0.4, 0.5),
        f32(0.8, 0.5),
        np.array([1, 0], np.int32),
        np.array([True, True]),
    )
    global_params = aggregation.weighted_sum({"w": f32([1, 2], [3, -2])}, shares)
    share = share_of(0.4)
    merged = merging.directional_merge(
        {"w": f32(0, 0)}, {"w": f32(0.5, 1)}, global_params, scalar(share)
    )
    np.testing.assert_allclose(shares, [0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(merged["w"], [2.5, 0.18], atol=1e-6)


# The merge by its laws.


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_merge_agrees_with_the_oracle_on_every_kind_of_leaf(share):
    previous, current, target = (oracles.odd_model(seed) for seed in (5, 6, 7))
    merged = merging.directional_merge(previous, current, target, scalar(share))
    expected = oracles.merge(previous, current, target, float(np.float32(share)))
    oracles.assert_agrees(merged, expected, [current, target])


def test_the_merge_keeps_the_structure_of_the_tree():
    previous, current, target = (oracles.odd_model(seed) for seed in (5, 6, 7))
    merged = merging.directional_merge(previous, current, target, scalar(0.5))
    assert jax.tree.structure(merged) == jax.tree.structure(current)


# Any float32, -0.0 too, but for those whose differences float32 cannot hold: XLA on a
# CPU takes subnormal numbers for 0, and twice the largest number is infinite.
numbers = st.floats(-(2.0**126), 2.0**126, width=32).map(
    lambda value: value if abs(value) >= 2.0**-100 else 0.0 * value
)


def to_bfloat16(values):
    """float32 with the low 16 bits cut off, for hypothesis knows no bfloat16."""
    high = values.view(np.uint32) & np.uint32(0xFFFF0000)
    return high.view(np.float32).astype(jnp.bfloat16)


def elements(dtype):
    arrays = hypothesis.extra.numpy.arrays
    if dtype == np.float32:
        return arrays(dtype, SIZE, elements=numbers)
    if dtype == jnp.bfloat16:
        return elements(np.float32).map(to_bfloat16)
    if dtype == np.float16:
        finite = {"allow_nan": False, "allow_infinity": False}
        return arrays(dtype, SIZE, elements=finite)
    return arrays(dtype, SIZE)


DTYPES = [np.float32, jnp.bfloat16, np.float16, np.int8, np.int16]

triples = st.sampled_from(DTYPES).flatmap(
    lambda dtype: st.tuples(elements(dtype), elements(dtype), elements(dtype))
)
shares = st.floats(0, 1, width=32, allow_subnormal=False).map(scalar)


@settings
@hypothesis.given(triples, shares)
def test_every_merged_element_lies_between_its_two_sources(triple, share):
    previous, current, target = triple
    merged = np.asarray(merging.directional_merge(previous, current, target, share))
    assert merged.dtype == current.dtype
    merged, current, target = (
        values.astype(np.float64) for values in (merged, current, target)
    )
    assert np.all(merged >= np.minimum(current, target))
    assert np.all(merged <= np.maximum(current, target))


@settings
@hypothesis.given(triples, shares)
def test_merging_a_model_with_itself_changes_no_bit(triple, share):
    previous, current, _ = triple
    merged = merging.directional_merge(previous, current, current, share)
    assert np.asarray(merged).tobytes() == current.tobytes()


@settings
@hypothesis.given(triples, shares)
def test_a_step_towards_the_global_value_takes_it_whole(triple, share):
    previous, current, target = triple
    merged = np.asarray(merging.directional_merge(previous, current, target, share))
    before, after, goal = (values.astype(np.float64) for values in triple)
    towards = ((after > before) & (goal > after)) | ((after < before) & (goal < after))
    np.testing.assert_array_equal(merged[towards], target[towards])


@settings
@hypothesis.given(triples, shares)
def test_a_step_that_went_nowhere_interpolates(triple, share):
    _, current, target = triple
    merged = merging.directional_merge(current, current, target, share)
    expected = oracles.merge(current, current, target, float(share))
    oracles.assert_agrees(merged, expected, [current, target])


# Compilation.


def test_the_second_call_of_the_share_compiles_nothing():
    share_of(0.4)
    with compilation.nothing_compiles():
        share_of(0.7, local_loss=0.0, global_examples=12.0)


def test_the_second_call_of_the_merge_compiles_nothing():
    models = [oracles.odd_model(seed) for seed in range(6)]
    merging.directional_merge(*models[:3], scalar(0.5))
    with compilation.nothing_compiles():
        merging.directional_merge(*models[3:], scalar(0.25))
