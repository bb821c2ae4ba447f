"""All executors give one order's numbers, up to rounding; each repeats its own bits."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from asyn2f.sim import order as o
from asyn2f.sim.executors.calls import Limits
from asyn2f.sim.executors.machine import Machine
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.executors.vectorised import calls_of, execute_in_lanes, mesh_of
from tests.support.compilation import nothing_compiles
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    epochs_of,
    experiment_of,
    given,
    in_lanes,
    machine_for,
    machine_of,
    order_and_result,
    order_for,
    rows_by_chance,
    words_of,
)

VARIANTS = {
    "mlp": {
        "training__optimizer_at_merge": "reset",
        "training__schedule": "cosine",
        "training__schedule_length": 20,
        "task__quality": (1.0, 0.3),
    },
    "cnn": {
        "task__model": "cnn",
        "task__channels": (4, 4),
        "task__batch_norm": True,
        "training__schedule": "synchronous",
        "training__schedule_length": 5,
    },
}


# ------------------------------------------------------------- the same numbers


@functools.cache
def five_workers(strategy, lanes):
    """An experiment, and a machine for any order of it."""
    experiment = experiment_of(strategy, workers=5, timing__min_updates=2)
    return experiment, machine_for(experiment, order_for(experiment), lanes)


@hypothesis.given(
    random=st.randoms(use_true_random=False),
    means=st.sampled_from([("asyn2f", 3), ("fedavg", 3)]),
    max_steps=st.integers(1, 16),
)
@hypothesis.settings(max_examples=12, phases=[hypothesis.Phase.generate])
def test_any_run_by_any_means(random, means, max_steps):
    strategy, lanes = means
    experiment, many = five_workers(strategy, lanes)
    _, one = five_workers(strategy, 1)
    rows, seed = rows_by_chance(random, 5), random.randint(0, 9)
    order = order_for(experiment, rows, seed=seed, max_time_s=200.0)
    serial = execute_serially(experiment, order)
    result = execute_in_lanes(given(one, order, max_steps), order)
    assert_close(serial, result)
    assert_close(serial, execute_in_lanes(given(many, order, max_steps), order))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "cnn" else [])
        for name in VARIANTS
    ],
)
def test_every_setting_by_every_means(name):
    experiment, order, serial = order_and_result(**VARIANTS[name])
    assert o.MERGE in order.kind
    for lanes in (1, 3):
        assert_close(serial, in_lanes(experiment, order, lanes))


@pytest.mark.parametrize(
    ("strategy", "leave"), [("asyn2f", 0), ("asyn2f", 1), ("fedavg", 0), ("fedavg", 1)]
)
def test_versions_of_five_updates_and_of_fewer_by_one_lane(strategy, leave):
    """`Experiment.aggregate` pads to 5 rows, a plan to as many as it needs."""
    experiment = experiment_of(strategy, workers=5, timing__min_updates=5)
    rows = [{"step_s": 1.0 + 0.01 * worker} for worker in range(5)]
    for row in rows[:leave]:
        row["leave_s"] = 2.0
    order = order_for(experiment, rows, versions=4)
    assert np.diff(order.member_starts).max() == 5 - leave
    limits = Limits(waves=16, ticks=32, versions=8)
    machine = Machine(experiment, mesh_of(1), plan(order, 1, 1, 16), limits)
    serial = execute_serially(experiment, order)
    assert_close(serial, execute_in_lanes(machine, order))


def test_a_merge_right_before_a_push_by_every_means():
    """Version 1 (after 5 steps of worker 0, 5 s) reaches worker 1 in the last step of
    its cycle: in lanes that is a wave of no steps, and its update is the merged model.
    """
    experiment = experiment_of(workers=2, timing__min_updates=1, task__partition="iid")
    length = epochs_of(experiment)[0]
    rows = [{"step_s": 1.0}, {"step_s": 1.0 + 0.5 / length}]
    order = order_for(experiment, rows, versions=5)
    pairs = list(zip(order.kind, order.kind[1:], strict=False))
    assert (o.MERGE, o.PUSH) in pairs
    serial = execute_serially(experiment, order)
    machine = machine_for(experiment, order, 1)
    assert 0 in machine.plan.steps
    assert_close(serial, execute_in_lanes(machine, order))
    assert_close(serial, in_lanes(experiment, order, 2))
    merged = np.flatnonzero(order.kind == o.MERGE)
    last = [event for event in merged if order.kind[event + 1] == o.PUSH]
    update = int(order.value[last[0] + 1])
    place = int(np.flatnonzero(order.members == update)[0])
    assert serial.numbers.staleness[place] == 0


def test_a_serial_execution_gives_the_same_bits_each_time():
    experiment, order, serial = order_and_result()
    assert_same_bits(serial, execute_serially(experiment, order))


def test_more_versions_in_one_wave_than_a_call_has_room_for():
    """All push at once, and every push makes a version: 5, with room for 2."""
    experiment = experiment_of(workers=5, timing__min_updates=1, task__partition="iid")
    order = order_for(experiment, [{}])
    limits = Limits(waves=64, ticks=64, versions=2)
    serial = execute_serially(experiment, order)
    assert_close(serial, in_lanes(experiment, order, 5, limits))


def test_later_calls_compile_nothing():
    machine = machine_of(4)
    machine.reset()
    calls = calls_of(machine.plan, machine.limits, frozenset({1, 2, 3, 4}))
    coming = machine.execute(calls)
    next(coming)
    next(coming)
    with nothing_compiles():
        notes = [note for _, note in coming]
        jax.block_until_ready(notes)
    assert len(notes) > 2


def test_lanes_on_eight_devices():
    assert words_of("tests.support.eight_devices") == ["8", "same", "close"]


# ------------------------------------------------------------- what the numbers say


@pytest.mark.parametrize("lanes", [0, 4])
@pytest.mark.parametrize("strategy", ["asyn2f", "fedavg"])
def test_there_are_numbers_where_something_was_computed(strategy, lanes):
    _, order, serial = order_and_result(strategy)
    result = execute_in_lanes(machine_of(lanes, strategy), order) if lanes else serial
    numbers = result.numbers
    reported = np.isin(order.kind, [o.TRAIN, o.PUSH])
    for values in (numbers.loss, numbers.metric):
        np.testing.assert_array_equal(np.isfinite(values), reported)
    merged = order.kind == o.MERGE
    np.testing.assert_array_equal(np.isfinite(numbers.share), merged)
    assert ((numbers.share[merged] >= 0) & (numbers.share[merged] <= 1)).all()
    assert merged.any() == (strategy == "asyn2f")
    for values in (numbers.model_loss, numbers.learning_rate):
        assert np.isfinite(values).tolist() == [False] + [True] * 8


@pytest.mark.parametrize("lanes", [0, 4])
def test_coefficients_sum_to_1_and_staleness_counts_from_the_base(lanes):
    _, order, serial = order_and_result()
    result = execute_in_lanes(machine_of(lanes), order) if lanes else serial
    base, bases = {}, {}
    for kind, worker, value in zip(order.kind, order.worker, order.value, strict=True):
        if kind in (o.ADOPT, o.MERGE):
            base[worker] = value
        elif kind == o.PUSH:
            bases[value] = base[worker]
    for node in range(1, len(order.version)):
        span = slice(*order.member_starts[node : node + 2])
        assert sum(result.numbers.coefficients[span]) == pytest.approx(1.0, abs=1e-6)
        expected = [node - 1 - bases[update] for update in order.members[span]]
        assert result.numbers.staleness[span].tolist() == expected
    assert result.numbers.staleness.max() > 0


# ------------------------------------------------------------- what is coded

CODED = {
    "int8": {"wire__updates": "int8", "wire__versions": "int8"},
    "delta": {
        "wire__updates": "int8",
        "wire__delta": True,
        "wire__versions": "bfloat16",
    },
    "topk": {"wire__updates": "topk", "wire__topk_share": 0.2},
    "fragments": {"wire__updates": "fragments", "wire__fragments": 3},
}


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("delta", "asyn2f"),
        ("topk", "fedavg"),
        ("fragments", "fedavg"),
        pytest.param("fragments", "asyn2f", marks=pytest.mark.slow),
        pytest.param("int8", "asyn2f", marks=pytest.mark.slow),
        pytest.param("topk", "fedbuff", marks=pytest.mark.slow),
    ],
)
def test_what_is_coded_by_every_means(name, strategy):
    """Lanes round otherwise, and what is rounded to 127 steps then may go the other
    way: a few entries differ by a step."""
    changes = CODED[name] | {"timing__min_updates": 3}
    experiment, order, serial = order_and_result(strategy, **changes)
    assert_same_bits(serial, execute_serially(experiment, order))
    assert_close(serial, in_lanes(experiment, order, 3), tolerance=2e-2)
    plain = experiment_of(strategy, timing__min_updates=3)
    with pytest.raises(AssertionError):  # or else nothing has been coded
        assert_same_bits(serial, execute_serially(plain, order))
