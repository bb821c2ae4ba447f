"""Orders to execute, and comparisons of two executions."""

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from random import Random
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from asyn2f import trace
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.calls import Limits
from asyn2f.sim.executors.machine import Machine
from asyn2f.sim.executors.plan import Plan
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.executors.vectorised import execute_in_lanes, mesh_of
from asyn2f.sim.order import Order, Result
from asyn2f.sim.profiles import profiles_of
from asyn2f.sim.schedule import schedule
from asyn2f.sim.to_trace import events_of
from asyn2f.timing import Stop
from asyn2f.training.batches import steps_per_epoch
from asyn2f.training.evaluation import KeptOf
from asyn2f.training.experiment import Experiment
from asyn2f.types import Scores, ServerState
from tests.support.experiments import experiment_with
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
ROUNDING = 1e-5  # relative to the largest value of an array
# Unequal: label-skewed shards, speeds, latencies, an outage.
UNEQUAL = (
    {"step_s": 0.5, "jitter": 0.3, "upload_s": 0.4},
    {"step_s": 0.9, "download_s": 1.3},
    {"step_s": 1.7, "outages": [[3.0, 9.0]]},
    {"step_s": 0.7, "join_s": 2.0},
)
ROWS = {"equal": [{}], "unequal": UNEQUAL}


@functools.cache
def experiment_of(strategy: str = "asyn2f", **changes: Any) -> Experiment:
    """A small experiment, made and compiled once."""
    small = {
        "workers": 4,
        "task__hidden": (8,),
        "task__partition": "dirichlet",
        "task__alpha": 2.0,
        "training__batch_size": 64,
        "timing__epochs_per_push": 1,
        "timing__deadline_s": 0.0,
        "strategy__name": strategy,
    }
    return experiment_with(**(small | changes))


def epochs_of(experiment: Experiment) -> list[int]:
    """Steps per epoch of every worker."""
    batch_size = experiment.training.batch_size
    return [steps_per_epoch(len(rows), batch_size) for rows in experiment.task.shards]


def order_for(
    experiment: Experiment,
    rows: Collection[Mapping[str, Any]] = UNEQUAL,
    *,
    seed: int = 0,
    versions: int = 8,
    **more: Any,
) -> Order:
    """The order of a run of the experiment's workers with these profiles."""
    more = {
        "num_bytes": experiment.template.num_bytes,
        "heartbeat_timeout_s": 2.0,
    } | more
    return schedule(
        more.pop("timing", experiment.strategy.timing),
        profiles_of([dict(row) for row in rows], experiment.workers),
        Stop(max_versions=versions, max_time_s=more.pop("max_time_s", 0.0)),
        seed,
        steps_per_epoch=epochs_of(experiment),
        **more,
    )


def rows_by_chance(random: Random, workers: int) -> list[dict[str, Any]]:
    """Random profiles of workers whose step takes about a second."""
    rows = []
    for _ in range(workers):
        row: dict[str, Any] = {"step_s": random.choice([1.0, random.uniform(0.3, 2.0)])}
        for name, most in [("jitter", 0.5), ("upload_s", 4.0), ("download_s", 4.0)]:
            if random.random() < 0.5:
                row[name] = random.uniform(0.0, most)
        if random.random() < 0.3:
            row |= {"outage_every_s": 20.0, "outage_s": random.uniform(1.0, 9.0)}
        if random.random() < 0.2:
            row["join_s"] = random.uniform(0.0, 20.0)
        rows.append(row)
    return rows


def machine_for(
    experiment: Experiment,
    order: Order,
    lanes: int,
    limits: Limits | None = None,
    *,
    devices: int = 1,
    max_steps: int = 16,
    watched: Collection[int] = (),
) -> Machine:
    """`prepare`, with calls of any shape; for other orders too, see `given`."""
    limits = limits or Limits(waves=16, ticks=32, versions=8)
    max_steps = min(max_steps, limits.ticks)
    planned = plan(order, devices, lanes, max_steps, limits.versions, watched)
    planned = _roomy(planned, experiment.workers)
    return Machine(experiment, mesh_of(devices), planned, limits)


def given(
    machine: Machine, order: Order, max_steps: int = 16, watched: Collection[int] = ()
) -> Machine:
    """A machine that has another order to execute, and compiles nothing for it."""
    before, machine = machine.plan, copy.copy(machine)
    _, devices, lanes = before.row.shape
    versions = machine.limits.versions
    planned = plan(order, devices, lanes, max_steps, versions, watched)
    machine.plan = _roomy(planned, before.max_members)
    for name in ("rows", "version_slots", "update_slots", "max_members"):
        assert getattr(machine.plan, name) == getattr(before, name)
    return machine


def _roomy(planned: Plan, max_members: int) -> Plan:
    """With as many slots as any plan of these tests needs, so that programs fit all;
    and with a row for every worker in a version, as in `Experiment.aggregate`."""
    return planned._replace(
        rows=max(40, planned.rows),
        version_slots=max(40, planned.version_slots),
        update_slots=max(40, planned.update_slots),
        max_members=max_members,
    )


@functools.cache
def order_and_result(
    strategy: str = "asyn2f", rows: str = "unequal", **changes: Any
) -> tuple[Experiment, Order, Result]:
    """An order of an experiment, executed serially."""
    experiment = experiment_of(strategy, **changes)
    order = order_for(experiment, ROWS[rows])
    return experiment, order, execute_serially(experiment, order)


@functools.cache
def machine_of(
    lanes: int, strategy: str = "asyn2f", rows: str = "unequal", **changes: Any
) -> Machine:
    """Compiled once for all tests."""
    experiment, order, _ = order_and_result(strategy, rows, **changes)
    return machine_for(experiment, order, lanes)


def in_lanes(
    experiment: Experiment, order: Order, lanes: int, *limits: Limits, **more: int
) -> Result:
    machine = machine_for(experiment, order, lanes, *limits, **more)
    return execute_in_lanes(machine, order)


class Seen:
    """A watch that records states, and ends the execution at a node."""

    def __init__(self, until: int = -1) -> None:
        self.nodes: list[int] = []
        self.times_s: list[float] = []
        self.states: list[ServerState] = []
        self._until = until

    def __call__(
        self, node: int, time_s: float, state: ServerState, kept_of: KeptOf
    ) -> bool:
        self.nodes.append(node)
        self.times_s.append(time_s)
        self.states.append(jax.device_get(state))
        return node == self._until

    @property
    def sha256s(self) -> list[str]:
        return [params_sha256(state.model.params) for state in self.states]


# ------------------------------------------------------------- two executions


def assert_same_bits(one: Result, other: Result) -> None:
    """Everything is equal: parameters, server state, and all numbers."""
    digests = [params_sha256(result.state.model.params) for result in (one, other)]
    assert digests[0] == digests[1]
    leaves = [jax.tree.leaves(jax.device_get(r.state)) for r in (one, other)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    for name, a, b in zip(one.numbers._fields, one.numbers, other.numbers, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert one.num_events == other.num_events


def assert_close(one: Result, other: Result, tolerance: float = ROUNDING) -> None:
    """They differ by rounding only, and in the same places there is nothing."""
    assert int(one.state.model.version) == int(other.state.model.version)
    trees = [jax.device_get(result.state.model.params) for result in (one, other)]
    # Of the whole model: what a normalisation cancels is nothing but rounding.
    assert_array_close(*(ravel_pytree(tree)[0] for tree in trees), tolerance, "params")
    for name, a, b in zip(one.numbers._fields, one.numbers, other.numbers, strict=True):
        assert_array_close(a, b, tolerance, name)


def assert_array_close(one, other, tolerance: float, name: str = "") -> None:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    largest = float(np.max(np.abs(one), initial=0.0, where=np.isfinite(one)))
    np.testing.assert_allclose(
        other, one, rtol=0.0, atol=tolerance * (largest or 1.0), err_msg=name
    )


# ------------------------------------------------------------- as a trace


def events_for(
    experiment: Experiment,
    order: Order,
    result: Result,
    scores: Mapping[int, Scores] | None = None,
    **head: Any,
) -> list[trace.Event]:
    """The trace of a simulated run."""
    return list(
        events_of(
            order,
            result.numbers,
            scores or {},
            run=head.get("run", "run-1"),
            environment=head.get("environment", {}),
            num_examples=[len(rows) for rows in experiment.task.shards],
            qualities=experiment.task.qualities,
            steps_per_epoch=epochs_of(experiment),
            num_bytes=experiment.template.num_bytes,
            guards=experiment.guards,
        )
    )


def words_of(module: str, *arguments: str) -> list[str]:
    """What a module prints in a process of its own, in which JAX has devices of its
    own. Raises AssertionError if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()
