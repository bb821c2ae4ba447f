"""How long a cycle is: epochs, steps, or as many steps as a worker does in a time."""

import itertools
from random import Random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asyn2f import programs
from asyn2f.config import build
from asyn2f.errors import ConfigError
from asyn2f.programs import Adopt, Merge, Push, Seen, Train
from asyn2f.sim import order as o
from asyn2f.timing import Timing, check_cycle
from tests.support.experiments import config_with
from tests.support.schedules import run
from tests.unit.test_programs import (
    adopting,
    asynchronous,
    push_steps,
    settings,
    synchronous,
    work,
)

BUILDERS = [asynchronous, synchronous, adopting]


def in_steps(build, steps, **changes):
    return build(epochs_per_push=0, steps_per_push=steps, **changes)


def in_seconds(build, seconds, **changes):
    return build(epochs_per_push=0, seconds_per_push=seconds, **changes)


def steps_of_pushes(order, worker):
    """The steps between the pushes of a worker."""
    steps = [0]
    for kind, value in zip(
        order.kind[order.worker == worker],
        order.value[order.worker == worker],
        strict=True,
    ):
        if kind == o.TRAIN:
            steps[-1] += int(value)
        elif kind == o.PUSH:
            steps.append(0)
    return steps[:-1]


# ------------------------------------------------------------- the program


@settings
@hypothesis.given(
    st.sampled_from(BUILDERS),
    st.integers(1, 9),
    st.integers(1, 5),
    st.lists(st.sampled_from([0, 0, 0, 1, 2]), max_size=300),
)
def test_pushes_are_that_many_steps_apart_whatever_an_epoch_is(
    build, steps, length, arrivals
):
    found = [0, *push_steps(work(in_steps(build, steps), length, arrivals))]
    assert all(after - before == steps for before, after in itertools.pairwise(found))


def test_epochs_release_a_push_that_is_held_back_in_steps_too():
    # Cycles of 3 steps, epochs of 4: after 9 steps two epochs are done.
    timing = in_steps(asynchronous, 3, push_at_metric=0.8, push_after_epochs=2)
    assert push_steps(work(timing, 4, []))[:2] == [9, 12]


def cycles_of(timing, measured, step_s=0.0):
    """The steps of each cycle, of a worker that measures these times of a step."""
    program = programs.worker_program(timing, steps_per_epoch=7, step_s=step_s)
    next(program)
    command, found = program.send(Seen(newest=0, step_s=measured[0])), [0]
    while len(found) <= len(measured):
        cycle = min(len(found) - 1, len(measured) - 1)
        steps = command.steps if isinstance(command, Train) else 0
        found[-1] += steps
        newest = len(found) - 1  # a version after each push
        if isinstance(command, Push):
            found.append(0)
            cycle, newest = min(cycle + 1, len(measured) - 1), newest + 1
        command = program.send(Seen(steps, newest, step_s=measured[cycle]))
    return found[:-1]


@pytest.mark.parametrize("build", BUILDERS)
def test_a_cycle_is_as_long_as_the_last_measured_step_allows(build):
    timing = in_seconds(build, 2.0)
    assert cycles_of(timing, [0.1, 0.4, 0.5, 9.0]) == [20, 5, 4, 1]


def test_without_a_measurement_the_time_of_the_start_is_taken():
    assert cycles_of(in_seconds(adopting, 2.0), [0.0, 0.0], step_s=0.25) == [8, 8]


def test_the_slot_of_a_merge_moves_with_the_cycle():
    timing = in_seconds(adopting, 1.0)
    timing = Timing(**(vars(timing) | {"while_training": "merge_once"}))
    program = programs.worker_program(timing, steps_per_epoch=3)
    next(program)
    assert program.send(Seen(newest=0, step_s=0.1)) == Adopt(0)
    assert program.send(Seen(newest=0, step_s=0.1)) == Train(5, known=None)
    assert program.send(Seen(5, newest=1, step_s=0.1)) == Merge(1)
    assert program.send(Seen(newest=1, step_s=0.1)) == Train(5, known=None)
    assert program.send(Seen(5, newest=1, step_s=0.1)) == Push()
    assert program.send(Seen(newest=1, step_s=0.25)) == Adopt(1)
    assert program.send(Seen(newest=1, step_s=0.25)) == Train(2, known=None)
    assert program.send(Seen(2, newest=2, step_s=0.25)) == Merge(2)


@settings
@hypothesis.given(st.integers(1, 1000), st.floats(1e-4, 10.0))
def test_as_many_steps_as_fill_the_time(steps, step_s):
    timing = in_seconds(adopting, steps * step_s)
    assert timing.cycle_steps(5, step_s) == steps


# ------------------------------------------------------------- which one holds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"timing__steps_per_push": 20},
            "timing.steps_per_push: found epochs_per_push = 5 and steps_per_push = 20, "
            "allowed: exactly one .* set the others to 0",
        ),
        (
            {"timing__seconds_per_push": 2.5},
            "seconds_per_push: found epochs_per_push = 5 and seconds_per_push = 2.5",
        ),
        (
            {"timing__epochs_per_push": 0},
            "timing.epochs_per_push: found nothing that ends a cycle",
        ),
        (
            {
                "timing__epochs_per_push": 0,
                "timing__seconds_per_push": 2.0,
                "timing__steps_per_push": 3,
            },
            "found steps_per_push = 3 and seconds_per_push = 2",
        ),
        ({"timing__steps_per_push": -1}, "steps_per_push: found -1"),
    ],
)
def test_exactly_one_of_the_three_holds(changes, words):
    with pytest.raises(ConfigError, match=words):
        build.check(config_with(**changes))


@pytest.mark.parametrize("name", ["steps_per_push", "seconds_per_push"])
def test_each_of_them_is_accepted_alone(name):
    changes = {"timing__epochs_per_push": 0, f"timing__{name}": 3}
    build.check(config_with(**changes))
    check_cycle(Timing(**vars(in_steps(adopting, 3))))


# ------------------------------------------------------------- under a virtual clock

SPEEDS = [{"step_s": step_s} for step_s in (0.25, 0.4, 0.6, 1.0)]  # 1 : 4


def test_workers_of_unequal_speed_finish_a_cycle_together():
    """Each does as many steps as fit into 5 s: 20, 12, 8 and 5."""
    order = run(in_seconds(adopting, 5.0), SPEEDS, steps=9, max_time_s=100.0)
    steps = [steps_of_pushes(order, worker) for worker in range(4)]
    assert [set(each) for each in steps] == [{20}, {12}, {8}, {5}]
    pushes = order.kind == o.PUSH
    first_s = [order.time_s[pushes & (order.worker == k)][0] for k in range(4)]
    assert max(first_s) <= 1.1 * min(first_s)  # 5.0, 4.8, 4.8, 5.0
    counts = np.bincount(order.worker[pushes])
    assert counts.max() - counts.min() <= 1


def largest_staleness(order):
    """Of the updates in versions: versions made between their adoption and theirs."""
    start, since, found = {}, {}, []
    version = 0
    for kind, worker, value in zip(order.kind, order.worker, order.value, strict=True):
        if kind == o.ADOPT:
            start[worker] = version
        elif kind == o.PUSH:
            since[int(value)] = start[worker]
        elif kind == o.AGGREGATE:
            members = order.members_of(int(value)).tolist()
            found += [version - since[member] for member in members]
            version += 1
    return max(found)


@pytest.mark.parametrize("seed", range(5))
def test_no_update_of_balanced_workers_is_as_stale_as_the_slowest_ones(seed):
    random = Random(seed)
    rows = [{"step_s": random.uniform(0.1, 0.2), "jitter": 0.05} for _ in range(5)]
    rows.append({"step_s": 0.4})
    buffered = {"min_updates": 3, "pending": "all"}
    limits = {"steps": 10, "max_time_s": 200.0, "seed": seed}
    balanced = run(in_seconds(adopting, 4.0, **buffered), rows, **limits)
    equal = run(in_steps(adopting, 20, **buffered), rows, **limits)
    assert largest_staleness(balanced) < largest_staleness(equal)


def test_a_round_waits_for_nobody_where_all_do_what_they_can():
    # FedAvg over 20 steps each takes 20 s, the slowest worker's time; balanced, 5 s.
    rounds = [
        run(timing, SPEEDS, steps=9, max_versions=5).end_s
        for timing in (in_steps(synchronous, 20), in_seconds(synchronous, 5.0))
    ]
    assert rounds == pytest.approx([100.0, 25.0])
