"""Diverging training: no executor makes a version that is not finite."""

import functools

import jax
import numpy as np
import pytest

from asyn2f.api.simulation import simulate
from asyn2f.cli.trials import TIMES, Job, run_trial
from asyn2f.serialization import all_finite
from asyn2f.sim import order as o
from asyn2f.sim.executors.serial import Follower, execute_serially
from asyn2f.sim.executors.vectorised import execute_in_lanes
from asyn2f.sim.order import empty_numbers, ended_by_divergence
from asyn2f.trace import causality
from tests.support.executions import (
    Seen,
    events_for,
    experiment_of,
    given,
    machine_for,
    order_for,
)
from tests.support.experiments import config_with

TOO_FAST = {"training__learning_rate": 300.0, "task__partition": "iid"}


@functools.cache
def diverging(strategy="asyn2f", **changes):
    """An experiment whose first versions are finite, and an order of it."""
    experiment = experiment_of(strategy, **(TOO_FAST | changes))
    return experiment, order_for(experiment, versions=12)


def first_bad(result):
    assert not result.numbers.finite.all()
    return int(np.argmin(result.numbers.finite))


def assert_found(order, result, seen):
    """The watch has seen the finite versions, with which the order ends."""
    bad = first_bad(result)
    assert 1 < bad < 12
    assert seen.nodes == list(range(1, bad))
    assert all(all_finite(state) for state in seen.states)
    ended = ended_by_divergence(order, result.numbers)
    assert len(ended.version) == bad
    assert o.AGGREGATE not in ended.kind[ended.time_s >= ended.end_s]
    time_s = order.time_s[(order.kind == o.AGGREGATE) & (order.value == bad)][0]
    assert ended.end_s == time_s
    assert (
        f"version {bad} is not finite, at {time_s - order.start_s:g} v" in ended.reason
    )


@pytest.mark.parametrize("changes", [{}, {"guards__mode": "enforce"}], ids=str)
def test_the_serial_executor_finds_the_first_version_that_is_not_finite(changes):
    experiment, order = diverging(**changes)
    seen = Seen()
    result = execute_serially(experiment, order, range(1, 13), seen)
    assert_found(order, result, seen)
    ended = ended_by_divergence(order, result.numbers)
    causality.check(events_for(experiment, ended, result))
    # Unwatched, it is found just as well.
    assert first_bad(execute_serially(experiment, order)) == first_bad(result)


@pytest.mark.parametrize("lanes", [1, 4])
def test_lanes_find_the_same_one(lanes):
    experiment, order = diverging()
    machine, seen = machine_for(experiment, order, lanes), Seen()
    expected = first_bad(execute_serially(experiment, order))
    unwatched = execute_in_lanes(machine, order)
    assert first_bad(unwatched) == expected
    watching = given(machine, order, watched=range(1, 13))
    result = execute_in_lanes(watching, order, seen)
    assert_found(order, result, seen)
    assert first_bad(result) == expected


def test_an_order_whose_versions_are_finite_is_left_as_it_is():
    _, order = diverging()
    assert ended_by_divergence(order, empty_numbers(order)) is None


def test_a_diverged_simulation_fails_and_scores_no_such_version():
    changes = {"task__hidden": (8,), "sim__executor": "serial"}
    config = config_with(workers=4, stop__max_versions=60, **(TOO_FAST | changes))
    found = simulate(config)
    bad = first_bad(found.result)
    assert f"version {bad} is not finite" in found.order.reason
    assert max(found.scores) == len(found.order.version) - 1 == bad - 1


def test_a_diverged_trial_has_no_accuracy_from_then_on():
    changes = {"task__hidden": (8,), "sim__executor": "serial"}
    changes |= {"stop__max_versions": 0, "stop__max_time_s": 20.0}
    config = config_with(workers=4, **(TOO_FAST | changes))
    trial = run_trial(Job(config, {}, "final", None, ""))
    assert len(trial.values) == TIMES + 1
    assert trial.values[0] > 0.0
    assert trial.values[-1] == 0.0
    assert trial.params_sha256 == ""


# ------------------------------------------------------------- the runtime's rule


def test_where_timing_follows_values_an_update_that_is_not_finite_is_refused():
    """At this rate one step is too many for worker 1, whose shard alone has a NaN."""
    experiment = experiment_of(
        workers=3, timing__push_at_metric=1e-6, timing__min_updates=2
    )
    poisoned = dict(experiment.task.train)
    name = next(n for n, x in poisoned.items() if x.dtype.kind == "f")
    poisoned[name] = poisoned[name].copy()
    poisoned[name][experiment.task.shards[1]] = np.nan
    task = experiment.task._replace(train=poisoned)
    experiment = experiment._replace(task=task)
    follower = Follower(experiment)
    order = order_for(
        experiment,
        [{"step_s": 1.0}, {"step_s": 0.7}, {"step_s": 1.3}],
        versions=4,
        timing=experiment.strategy.timing,
        signal_of=lambda log, worker: 1.0,  # NaN would hold worker 1's back
        accepts=follower.accepts,
    )
    pushed = order.value[(order.kind == o.PUSH) & (order.worker == 1)]
    refused = order.value[order.kind == o.REFUSE]
    assert len(refused)
    assert set(refused.tolist()) <= set(pushed.tolist())
    assert not set(order.members.tolist()) & set(pushed.tolist())
    result = execute_serially(experiment, order)
    assert result.numbers.finite.all()
    assert all(all_finite(leaf) for leaf in jax.tree.leaves(result.state))
    events = events_for(experiment, order, result)
    reasons = [
        event.reason for event in events if getattr(event, "outcome", "") == "rejected"
    ]
    assert any("not finite" in reason for reason in reasons)
