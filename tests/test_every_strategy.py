"""What holds of every strategy there is: one run, by whatever means, the same numbers.

The run of each strategy is small, of workers nobody of whom is like another, and has
in it whatever the strategy's timing can lead to.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from asyn2f import strategies
from asyn2f.experiment import Experiment
from asyn2f.sim import order as o
from asyn2f.sim.lanes import Limits
from asyn2f.sim.machine import Machine
from asyn2f.sim.numbers import Result
from asyn2f.sim.order import Order
from asyn2f.sim.serial import Follower, execute_serially
from tests.executions import (
    Seen,
    experiment_of,
    machine_for,
    order_for,
)

ROOT = Path(__file__).parent.parent
DEVICES = 3  # of the process that `executed_in_shards` starts
UNEQUAL = (
    {"step_s": 0.3, "jitter": 0.3, "upload_s": 2.0},
    {"step_s": 0.9, "download_s": 1.3, "upload_s": 0.1},
    {"step_s": 1.7, "outages": [[3.0, 9.0]]},
    {"step_s": 0.4, "join_s": 2.0},
    {"step_s": 3.1, "jitter": 0.2, "upload_s": 0.5},
)
DEADLINES_S = {"each": 0.0, "some": 1.5, "all": 19.0}
LIMITS = Limits(waves=16, ticks=32, versions=8)

every_strategy = pytest.mark.parametrize("name", sorted(strategies.BUILDERS))


# ------------------------------------------------------------- a run of each


@functools.cache
def experiment_with_all(name: str, **changes: str) -> Experiment:
    timing = strategies.BUILDERS[name]().timing
    return experiment_of(
        name,
        workers=len(UNEQUAL),
        training__batch_size=128,
        timing__epochs_per_push=2,
        timing__min_updates=3 if timing.pending == "all" else 2,
        timing__deadline_s=DEADLINES_S[timing.quorum],
        **{f"strategy__{name}__{key}": value for key, value in changes.items()},
    )


def order_with_all(experiment: Experiment, seed: int = 0) -> Order:
    depends = experiment.strategy.timing.depends_on_values
    signal_of = Follower(experiment).signal if depends else None
    return order_for(experiment, UNEQUAL, seed=seed, versions=10, signal_of=signal_of)


class Run(NamedTuple):
    experiment: Experiment
    order: Order
    result: Result  # of the serial execution
    seen: Seen  # all versions of it


@functools.cache
def run_of(name: str, **changes: str) -> Run:
    experiment = experiment_with_all(name, **changes)
    order, seen = order_with_all(experiment), Seen()
    result = execute_serially(experiment, order, range(1, 99), seen)
    return Run(experiment, order, result, seen)


@functools.cache
def machine_of(name: str, lanes: int) -> Machine:
    experiment, order, *_ = run_of(name)
    return machine_for(experiment, order, lanes, LIMITS)


# ------------------------------------------------------------- what happens in it


def features_of(order: Order, cycles: list[int]) -> set[str]:
    """What happened, of that which a timing allows or forbids; by each worker's events
    and by what versions were made of."""
    found = _of_versions(order)
    for worker, cycle in enumerate(cycles):
        rows = (order.worker == worker) & ~np.isin(order.kind, _OF_SERVER)
        acts = zip(order.kind[rows].tolist(), order.value[rows].tolist(), strict=True)
        found |= _of_worker(acts, cycle)
    return found


_OF_SERVER = (o.LEAVE, o.RETURN, o.SUPERSEDE, o.REJECT, o.LOSE)


def _of_worker(acts: Iterator[tuple[int, int]], cycle: int) -> set[str]:
    found: set[str] = set()
    base, done, merges, cycles = -1, 0, 0, 0  # of the version; in the cycle; cycles
    before = o.BEGIN
    for kind, value in acts:
        if kind == o.ADOPT:
            if cycles:
                found.add("adopts again" if value == base else "adopts a newer one")
            if before == o.TRAIN:
                found.add("drops what it has not sent")
            assert done in (0, cycle), "adoptions are between cycles"
        elif kind == o.MERGE:
            merges += 1
            assert value > base
            if 0 < done < cycle:
                found.add("merges in mid-cycle")
            if merges > 1:
                found.add("merges twice in a cycle")
        elif kind == o.TRAIN:
            if done == cycle:
                found.add("trains on from what it has not sent")
                done = merges = 0
            done += value
            assert done <= cycle
            if done == cycle:
                cycles += 1
        elif kind == o.PUSH:
            assert done == cycle, "pushes are at the end of cycles"
            found.add("pushes")
            if not merges:
                found.add("pushes what it has merged nothing into")
        elif kind == o.WAITED:
            assert before == o.PUSH
            found.add("waits")
        if kind in (o.ADOPT, o.MERGE):
            base = value
        if kind in (o.ADOPT, o.PUSH):
            done = merges = 0
        before = kind
    return found


def _of_versions(order: Order) -> set[str]:
    found: set[str] = set()
    owner = order.worker[order.kind == o.PUSH]
    sizes = np.diff(order.member_starts)[1:]
    found.add("versions of one size" if len(set(sizes)) == 1 else "of several sizes")
    for node in range(1, len(order.version)):
        members = order.members_of(node)
        if len(set(owner[members])) < len(members):
            found.add("a worker stands in a version twice")
        if (np.diff(members) < 0).any():
            found.add("updates overtake each other")
    names = {o.SUPERSEDE: "an update is replaced", o.REJECT: "an update is refused"}
    return found | {name for kind, name in names.items() if kind in order.kind}
