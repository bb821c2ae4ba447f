"""Guards: clamped losses, capped shares, and limits of distance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asyn2f import strategies, trace
from asyn2f.kernels.aggregation import coefficients
from asyn2f.kernels.guards import Guards, clamp_losses, distance, findings, norm_limit
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.training.computation import functions_of
from tests.support.executions import (
    assert_same_bits,
    events_for,
    experiment_of,
    order_for,
)
from tests.support.updates import replaced

# Of float32 arithmetic: a share is the quotient of a few products and one sum.
SHARE_ROUNDING = 2e-6
PADDED = 32  # rows, so that one program serves every number of updates

every_strategy = pytest.mark.parametrize("name", sorted(strategies.BUILDERS))
losses_ = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-30, 1e18).map(lambda x: float(np.float32(x)))),
    min_size=1,
    max_size=9,
)


def padded(values, fill=np.nan):
    return np.array([*values, *[fill] * (PADDED - len(values))], np.float32)


def real(count):
    return np.arange(PADDED) < count


# ------------------------------------------------------------- losses


@given(losses_, st.sampled_from([1.0, 1.5, 2.0, 10.0]))
def test_small_losses_are_raised_to_the_bound_and_no_further(losses, factor):
    clamped = np.asarray(clamp_losses(padded(losses), real(len(losses)), factor))
    said = np.array(losses, np.float32)
    tiny = float(np.finfo(np.float32).tiny)  # XLA takes what is smaller for 0
    least = float(np.median(said.astype(np.float64))) / factor
    expected = np.maximum(said.astype(np.float64), least)
    np.testing.assert_allclose(clamped[: len(said)], expected, rtol=1e-6, atol=2 * tiny)
    above = (said > least * (1 + 1e-6)) & (said > tiny)
    np.testing.assert_array_equal(clamped[: len(said)][above], said[above])
    assert np.isnan(clamped[len(said) :]).all(), "padding comes back as it was"


@given(losses_, st.randoms(use_true_random=False))
def test_the_order_of_the_updates_does_not_matter(losses, random):
    places = list(range(len(losses)))
    random.shuffle(places)
    shuffled = [losses[place] for place in places]
    mask = real(len(losses))
    one = np.asarray(clamp_losses(padded(losses), mask, 2.0))
    other = np.asarray(clamp_losses(padded(shuffled), mask, 2.0))
    np.testing.assert_array_equal(one[places], other[: len(losses)])


@given(losses_, st.floats(1.0, 1e12), st.sampled_from([1.0, 2.0, 10.0]))
def test_a_large_loss_is_never_changed_and_earns_no_share(losses, times, factor):
    """Larger than all others, it stays to the bit, however large: its update has the
    smallest share of updates that are otherwise alike."""
    losses = [*losses, float(np.float32(max(losses) * times))]
    count = len(losses)
    clamped = np.asarray(clamp_losses(padded(losses), real(count), factor))
    assert clamped[count - 1] == np.float32(losses[-1])
    alike = {name: padded([1.0] * count) for name in ("num_examples", "quality")}
    alike["staleness"] = padded([0.0] * count)
    shares = np.asarray(coefficients(loss=clamped, mask=real(count), **alike))[:count]
    assert shares[-1] <= shares.min() * (1 + SHARE_ROUNDING)


# ------------------------------------------------------------- shares (S-04)


LIES = {
    "loss 0": {"loss": 0.0},
    "tiny loss": {"loss": 1e-30},
    "size 10^12": {"num_examples": 1e12},
    "quality above 1": {"quality": 1e6},
    "all of them": {"loss": 0.0, "num_examples": 1e12, "quality": 1e6},
}


def draw_updates(count, random):
    """Honest ones, as in the study that the guards were laid out by."""
    return {
        "num_examples": random.uniform(1000, 5000, count),
        "loss": random.uniform(0.3, 0.8, count),
        "quality": random.uniform(0.5, 1.0, count),
        "staleness": random.integers(0, 5, count).astype(float),
    }


def guarded_shares(report, cap=0.5, factor=2.0):
    count = len(report["loss"])
    columns = {name: padded(values, 1.0) for name, values in report.items()}
    mask = real(count)
    columns["loss"] = clamp_losses(columns["loss"], mask, factor)
    return np.asarray(coefficients(**columns, mask=mask, max_share=cap))[:count]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("count", [2, 5, 10, 20])
def test_a_byzantine_share_stays_below_the_cap(count, lie):
    """Also for the claims that registration forbids: examples and quality."""
    random = np.random.default_rng(count)
    for _ in range(50):
        report = draw_updates(count, random)
        for name, value in LIES[lie].items():
            report[name][0] = value
        shares = guarded_shares(report)
        assert shares[0] <= 0.5 * (1 + 1e-6)
        assert abs(shares.sum() - 1) < 1e-5
        strict = guarded_shares(report, cap=2 / count)
        assert strict[0] <= 2 / count * (1 + 1e-6)


def test_without_guards_one_update_owns_the_model():
    report = draw_updates(5, np.random.default_rng(0))
    report["loss"][0] = 0.0
    assert guarded_shares(report, cap=1.0, factor=1e12)[0] > 0.999


def test_a_negative_loss_never_gets_that_far():
    """Registration and intake refuse it: see test_hostile; were it let in, the clamp
    would lift it."""
    report = draw_updates(5, np.random.default_rng(0))
    report["loss"][0] = -0.5
    assert guarded_shares(report, cap=1.0)[0] < 0.9


@given(st.integers(2, PADDED), st.integers(0, 2**32 - 1))
@example(count=2, seed=0)
def test_with_no_guard_triggered_the_shares_are_the_formulas(count, seed):
    """To the last bit those without guards, and to float32's rounding the formula; no
    loss triggers one that is above half of the median."""
    random = np.random.default_rng(seed)
    report = draw_updates(count, random)
    report["loss"] = 0.5 * 10 ** random.uniform(0, 6, count)
    report["loss"][: count // 2 + 1] = random.uniform(0.45, 0.55, count // 2 + 1)
    exact = {n: padded(v, 1.0)[:count].astype(np.float64) for n, v in report.items()}
    raw = exact["quality"] * exact["num_examples"]
    raw /= (exact["loss"] + 1e-7) * (1 + exact["staleness"])
    formula = raw / raw.sum()
    if formula.max() >= 0.9:
        return
    mask = real(count)
    columns = {name: padded(values, 1.0) for name, values in report.items()}
    plain = np.asarray(coefficients(**columns, mask=mask))[:count]
    np.testing.assert_array_equal(guarded_shares(report, cap=0.9), plain)
    np.testing.assert_allclose(plain, formula, rtol=SHARE_ROUNDING)


# ------------------------------------------------------------- the whole aggregation


def experiment_in(mode, name, **changes):
    return experiment_of(name, guards__mode=mode, **changes)


def functions_for(experiment):
    """Not jitted: whole programs of every strategy would take long to compile."""
    return functions_of(experiment.computation, experiment.hyperparams)


def some_updates(experiment, losses):
    """Updates of models near the first one, one per loss."""
    functions = functions_for(experiment)
    state = functions.init_server()
    model = state.model
    updates = []
    for worker, loss in enumerate(losses):
        held = functions.trainer.start(model, worker, 100 + worker, 1.0)
        update = functions.trainer.report(held)
        near = jax.tree.map(lambda x, k=worker: x * (1 + 0.01 * k), update.params)
        updates.append(replaced(update, params=near, loss=jnp.float32(loss)))
    return state, updates


@every_strategy
def test_enforcing_changes_no_bit_where_nothing_is_found(name):
    results = []
    losses = [0.5, 0.45, 0.55]
    for mode in ("off", "enforce"):
        experiment = experiment_in(mode, name)
        most = experiment.strategy.timing.most_updates(experiment.workers)
        state, updates = some_updates(experiment, losses[:most])
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)
        mask = jnp.ones(len(updates), bool)
        aggregate = functions_for(experiment).advance_server
        results.append(aggregate(state, rows, mask))
    for other in results[1:]:
        for a, b in zip(*map(jax.tree.leaves, (results[0], other)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_observing_changes_no_bit_and_enforcing_does():
    losses = [0.5, 1e-6, 0.6, 0.7]
    made = {}
    for mode in ("off", "observe", "enforce"):
        experiment = experiment_in(mode, "asyn2f")
        state, updates = some_updates(experiment, losses)
        state, metrics = experiment.aggregate(state, updates)
        shares = np.asarray(metrics["coefficients"]).tolist()
        found = findings(experiment.guards, losses, shares)
        made[mode] = params_sha256(state.model.params), shares, found
    assert made["off"][:2] == made["observe"][:2]
    assert made["off"][2] == []
    assert made["observe"][2][0] == made["observe"][2][2] == ""
    assert "loss 1e-06 would be 0.275; share" in made["observe"][2][1]
    assert made["enforce"][0] != made["off"][0]
    assert "loss 1e-06 taken as 0.275" in made["enforce"][2][1]
    assert max(made["enforce"][1]) <= 0.5 * (1 + 1e-6)


def test_a_strategy_without_coefficients_has_its_losses_clamped_and_no_cap():
    experiment = experiment_in("enforce", "fedavg")
    assert experiment.guards.max_share == 1.0
    state, updates = some_updates(experiment, [0.5, 0.0, 0.5])
    state, _ = experiment.aggregate(state, updates)
    # The mean of 0.5, 0.25 and 0.5: the loss of 0 was clamped.
    assert math.isclose(float(state.model.loss), 1.25 / 3, rel_tol=1e-6)


def test_the_strategys_own_cap_stands_where_it_is_the_tighter_one():
    own = {"strategy__asyn2f__max_share": 0.3}
    state, updates = None, None
    shares = {}
    for mode in ("off", "enforce"):
        experiment = experiment_in(mode, "asyn2f", **own)
        state, updates = some_updates(experiment, [0.5, 0.4, 0.5, 0.6])
        _, metrics = experiment.aggregate(state, updates)
        shares[mode] = np.asarray(metrics["coefficients"])
    np.testing.assert_array_equal(shares["off"], shares["enforce"])


@pytest.mark.parametrize("guards_", [Guards(), Guards(mode="observe")])
def test_there_are_no_findings_without_an_action_or_with_guards_off(guards_):
    assert findings(guards_, [0.5, 0.4, 0.6], [0.3, 0.3, 0.4]) == []
    assert findings(guards_, [0.0], [1.0]) == []
    assert findings(guards_, [], []) == []


def test_a_simulated_run_records_the_actions_of_its_guards():
    experiment = experiment_in("enforce", "asyn2f", guards__min_loss_ratio=1.0)
    order = order_for(experiment, versions=4)
    result = execute_serially(experiment, order)
    events = events_for(experiment, order, result)
    made = [event for event in events if isinstance(event, trace.Aggregated)]
    assert all("loss" in line for event in made for line in event.guards if line)
    assert any(event.guards for event in made)
    assert [trace.from_line(trace.to_line(event)) for event in made] == made
    again = execute_serially(experiment, order_of(events))
    assert_same_bits(
        again._replace(numbers=result.numbers, num_events=result.num_events), result
    )


# ------------------------------------------------------------- distances


@given(st.lists(st.floats(0.1, 10.0), min_size=5, max_size=20), st.floats(0.0, 99.0))
def test_the_limit_is_the_median_of_what_was_accepted(accepted, size):
    assert norm_limit(accepted, size, 10.0) == 10.0 * np.median(accepted)
    assert norm_limit(accepted[:4], size, 10.0) == (10.0 * size or math.inf)


def test_distances_are_those_of_all_arrays_and_infinite_beyond_float32():
    model = {"params": {"w": jnp.array([1.0, 2.0])}, "stats": jnp.array([3.0])}
    pushed = {"params": {"w": jnp.array([4.0, 6.0])}, "stats": jnp.array([15.0])}
    assert float(distance(pushed, model, is_difference=False)) == 13.0
    far = float(distance(pushed, model, is_difference=True))
    assert math.isclose(far, math.sqrt(16 + 36 + 144), rel_tol=1e-6)
    huge = jax.tree.map(lambda x: x * jnp.float32(1e30), pushed)
    assert float(distance(huge, model, is_difference=False)) == math.inf
