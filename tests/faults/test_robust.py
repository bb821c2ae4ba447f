"""Robust aggregation: against numpy, by hand, and in every executor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f import strategies, trace
from asyn2f.kernels.aggregation import coordinate_median, trimmed_mean
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.strategies.samples import MASK, four_updates, model
from tests.contracts.test_runtime import LocalRun, small
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    events_for,
    experiment_of,
    in_lanes,
    order_for,
)

ROWS = 8  # so that one program serves all examples
TRIMS = (0.0, 0.1, 0.2, 0.25, 0.4)  # static: one compilation each

rows_ = st.lists(
    st.lists(
        st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=3, max_size=3
    ),
    min_size=1,
    max_size=ROWS,
)


def stacked(rows):
    """The rows as models of several dtypes, then NaN or nonsense, and the mask."""
    values = np.full((ROWS, 3), np.nan, np.float32)
    values[: len(rows)] = rows
    whole = np.full((ROWS, 3), -(2**31), np.int32)
    whole[: len(rows)] = np.clip(np.round(rows), -(2**20), 2**20)
    half = values.astype(jnp.bfloat16)
    tree = {"f": values, "i": whole, "h": half, "empty": np.zeros((ROWS, 0), "f4")}
    return tree, np.arange(ROWS) < len(rows)


def exact(tree, count, rule):
    """In float64, of the real rows."""
    return {
        name: rule(np.sort(leaf[:count].astype(np.float64), axis=0))
        for name, leaf in tree.items()
    }


def assert_agrees(found, expected, tree, count):
    """To the rounding of each leaf's dtype, of its largest real value."""
    for name, leaf in tree.items():
        assert found[name].dtype == leaf.dtype, name
        assert found[name].shape == leaf.shape[1:], name
        largest = np.max(np.abs(leaf[:count].astype(np.float64)), initial=1e-30)
        rounding = {"f": 5e-7, "i": 5e-7, "h": 2**-8, "empty": 0.0}[name] * largest
        rounding += 0.5 if name == "i" else 0.0
        got = np.asarray(found[name], np.float64)
        np.testing.assert_allclose(got, expected[name], rtol=0.0, atol=rounding)


@given(rows_)
def test_the_median_is_numpys(rows):
    tree, mask = stacked(rows)
    found = coordinate_median(tree, mask)
    expected = exact(tree, len(rows), lambda ascending: np.median(ascending, axis=0))
    assert_agrees(found, expected, tree, len(rows))
    if len(rows) % 2:  # then it is one of them, bit for bit
        np.testing.assert_array_equal(found["f"], expected["f"].astype(np.float32))
        np.testing.assert_array_equal(found["h"], expected["h"].astype(jnp.bfloat16))
        np.testing.assert_array_equal(found["i"], expected["i"])


@given(rows_, st.sampled_from(TRIMS))
def test_the_trimmed_mean_is_that_of_the_middle_rows(rows, trim):
    tree, mask = stacked(rows)
    count = len(rows)
    cut = min(int(np.ceil(round(trim * count, 6))), (count - 1) // 2)

    def middle(ascending):
        return ascending[cut : count - cut].mean(axis=0)

    expected = exact(tree, count, middle)
    assert_agrees(trimmed_mean(tree, mask, trim), expected, tree, count)


@given(rows_, st.sampled_from(["median", 0.2, 0.4]), st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows, rule, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    results = [
        coordinate_median(*stacked(x))
        if rule == "median"
        else trimmed_mean(*stacked(x), rule)
        for x in (rows, shuffled)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, other)


@given(rows_, st.integers(0, 2**32 - 1), st.sampled_from([1e3, 1e30, -3e38]))
def test_few_byzantine_rows_move_no_element_out_of_the_range_of_the_others(
    rows, seed, lie
):
    """Of m rows the median stands fewer than half, the trimmed mean a `trim`."""
    count = len(rows)
    random = np.random.default_rng(seed)
    for rule, liars in [("median", (count - 1) // 2), (0.4, int(0.4 * count))]:
        liars = min(liars, (count - 1) // 2)
        places = random.choice(count, liars, replace=False)
        values = np.array(rows, np.float32)
        honest = np.delete(values, places, axis=0)
        values[places] = lie
        padded = np.full((ROWS, 3), np.nan, np.float32)
        padded[:count] = values
        mask = np.arange(ROWS) < count
        if rule == "median":
            found = coordinate_median({"w": padded}, mask)["w"]
        else:
            found = trimmed_mean({"w": padded}, mask, rule)["w"]
        slack = 1e-6 * np.abs(honest).max()
        assert (found >= honest.min(axis=0) - slack).all()
        assert (found <= honest.max(axis=0) + slack).all()


def test_sums_that_float32_cannot_hold_are_means_that_it_can():
    huge = {"w": np.full((4, 2), 3e38, np.float32)}
    real = np.ones(4, bool)
    assert np.isfinite(coordinate_median(huge, real)["w"]).all()
    assert np.isfinite(trimmed_mean(huge, real, 0.25)["w"]).all()


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1.0, float("nan")])
def test_a_trim_that_leaves_nothing_is_refused(trim):
    with pytest.raises(ValueError, match="trim"):
        trimmed_mean({"w": jnp.zeros((2, 1))}, jnp.array([True, True]), trim)
    with pytest.raises(ValueError, match="trim"):
        strategies.asyn2f(aggregate="trimmed_mean", trim=trim)


# ------------------------------------------------------------- as a strategy

RULES = ("median", "trimmed_mean")
every_rule = pytest.mark.parametrize("rule", RULES)


def test_aggregations_worked_by_hand():
    """Three real rows; of four, 0.2 would leave out one at either end as well."""
    updates = four_updates()
    found = {}
    for rule in RULES:
        strategy = strategies.asyn2f(aggregate=rule)
        state, metrics = strategy.aggregate(strategy.init(model(99), 4), updates, MASK)
        np.testing.assert_array_equal(
            metrics["coefficients"], np.array([1 / 3, 1 / 3, 1 / 3, 0], np.float32)
        )
        found[rule] = state.model.params
        kernel = np.asarray(updates.params["params"]["kernel"])[:3]
        got = found[rule]["params"]["kernel"]
        np.testing.assert_array_equal(got, np.median(kernel, axis=0))
    # ceil(0.2 * 3) = 1 of three at either end: what is left is the median.
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_array_equal(one, other)


@every_rule
def test_every_executor_and_its_replay_compute_the_same(rule):
    experiment = experiment_of("asyn2f", strategy__asyn2f__aggregate=rule)
    order = order_for(experiment, versions=5)
    serial = execute_serially(experiment, order)
    again = execute_serially(
        experiment, order_of(events_for(experiment, order, serial))
    )
    assert params_sha256(again.state.model.params) == params_sha256(
        serial.state.model.params
    )
    lanes = in_lanes(experiment, order, 2)
    assert_close(serial, lanes)
    assert_same_bits(in_lanes(experiment, order, 2), lanes)


@every_rule
def test_a_real_run_replays_bit_for_bit(tmp_path, rule):
    changes = {"strategy__asyn2f__aggregate": rule, "stop__max_versions": 5}
    run = LocalRun(tmp_path, small(**changes))
    for number in range(run.experiment.workers):
        run.start_worker(number)
    summary = run.finish()
    assert (summary["status"], summary["versions"]) == ("finished", 5)
    order = order_of(run.events(trace.Event))
    again = execute_serially(run.experiment, order)
    assert params_sha256(again.state.model.params) == summary["params_sha256"]


@every_rule
def test_there_is_no_share_for_a_guard_to_cap(rule):
    experiment = experiment_of(
        "asyn2f", strategy__asyn2f__aggregate=rule, guards__mode="enforce"
    )
    assert experiment.guards.max_share == 1.0
