"""Executions that are watched, ended, or forked; and timing that follows values."""

import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from asyn2f.errors import PlanError
from asyn2f.sim import order as o
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import Follower, execute_serially
from asyn2f.sim.executors.vectorised import execute_in_lanes
from asyn2f.sim.from_trace import order_of
from tests.support.executions import (
    ROUNDING,
    ROWS,
    Seen,
    assert_array_close,
    assert_close,
    experiment_of,
    given,
    machine_of,
    order_and_result,
    order_for,
)
from tests.support.handmade_trace import hand_made

# ------------------------------------------------------------- being watched


@pytest.mark.parametrize("lanes", [1, 4])
def test_whoever_watches_sees_the_versions_asked_for(lanes):
    """Equal workers push at once, so that a wave of four makes two versions."""
    experiment, order, _ = order_and_result(rows="equal", task__partition="iid")
    watched, expected, seen = [1, 2, 3, 6, 7], Seen(), Seen()
    serial = execute_serially(experiment, order, watched, expected)
    machine = machine_of(lanes, rows="equal", task__partition="iid")
    result = execute_in_lanes(given(machine, order, watched=watched), order, seen)
    assert expected.nodes == seen.nodes == watched
    assert expected.times_s == seen.times_s
    assert [int(state.model.version) for state in seen.states] == watched
    for state, other in zip(expected.states, seen.states, strict=True):
        one, two = (ravel_pytree(s.model.params)[0] for s in (state, other))
        assert_array_close(one, two, ROUNDING)
    assert_close(serial, result)


@pytest.mark.parametrize("lanes", [0, 1, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_whoever_watches_can_end_it(lanes, rows):
    """And what there is until then is whole: `order.cut` cuts the order to it."""
    changes = {"task__partition": "iid"} if rows == "equal" else {}
    experiment, order, _ = order_and_result(rows=rows, **changes)
    seen = Seen(until=5)
    if lanes:
        machine = machine_of(lanes, rows=rows, **changes)
        result = execute_in_lanes(
            given(machine, order, watched=range(1, 9)), order, seen
        )
    else:
        result = execute_serially(experiment, order, range(1, 9), seen)
    assert seen.nodes == [1, 2, 3, 4, 5]
    assert int(result.state.model.version) == 5
    cut = o.cut(order, result.num_events, "enough")
    assert cut.end_s == seen.times_s[-1]
    assert cut.version.tolist() == list(range(6))
    numbers = result.numbers
    trained = (cut.kind == o.TRAIN).nonzero()[0]
    assert np.isfinite(numbers.loss[trained]).all()
    assert np.isfinite(numbers.coefficients[: len(cut.members)]).all()


def test_an_order_without_versions():
    experiment = experiment_of()
    order = order_for(experiment, max_time_s=4.0)
    serial = execute_serially(experiment, order)
    assert len(order.version) == 1
    assert order.num_steps > 0
    machine = given(machine_of(1), order)
    assert_close(serial, execute_in_lanes(machine, order))


# ------------------------------------------------------------- histories that fork


def test_a_forked_history_is_executed_serially():
    """Version 2 is made twice; worker 0 has merged the first one, and then the same
    update of it goes into both."""
    experiment, order, seen = experiment_of(workers=2), order_of(hand_made()), Seen()
    execute_serially(experiment, order, range(1, 5), seen)
    assert order.parent.tolist() == [-1, 0, 1, 1, 3]
    assert [int(state.model.version) for state in seen.states] == [1, 2, 2, 3]
    assert len(set(seen.sha256s)) == 4


def test_a_branch_is_as_if_the_other_did_not_exist():
    events = hand_made()
    experiment, forked, straight = experiment_of(workers=2), Seen(), Seen()
    execute_serially(experiment, order_of(events), range(1, 5), forked)
    # Of what is lost, only this merge has consequences, in version 3.
    alone = order_of(e for e in events if getattr(e, "version", 0) != 2 or e.time_s > 4)
    execute_serially(experiment, alone, range(1, 4), straight)
    assert alone.version.tolist() == [0, 1, 2, 3]
    assert forked.sha256s[2] == straight.sha256s[1]
    assert forked.sha256s[3] != straight.sha256s[2]


def test_a_forked_history_is_not_planned():
    with pytest.raises(PlanError, match="history forks; only --executor=serial"):
        plan(order_of(hand_made()), 1, 2)


# ------------------------------------------------------------- timing by values


def test_workers_are_followed_through_an_outage():
    """While worker 0 is away the others go on; then it takes in an old version, which
    was on its link."""
    experiment = experiment_of(
        timing__min_updates=1, timing__push_at_metric=0.2, task__partition="iid"
    )
    rows = [{"download_s": 8.0, "outages": [[30.0, 200.0]]}, *[{}] * 3]
    signal_of = Follower(experiment).signal
    order = order_for(
        experiment,
        [{"step_s": 1.0} | row for row in rows],
        versions=100,
        max_time_s=250.0,
        signal_of=signal_of,
    )
    back = (order.worker == 0) & (order.time_s >= 200.0)
    assert o.RETURN in order.kind[back]
    assert o.MERGE in order.kind[back]
    execute_serially(experiment, order)
