"""What holds of every strategy there is: one run, by whatever means, the same numbers.

The run of each strategy is small, of workers nobody of whom is like another, and has
in it whatever the strategy's timing can lead to.
"""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from asyn2f import causality, strategies, trace
from asyn2f.experiment import Experiment
from asyn2f.sim import order as o
from asyn2f.sim.lanes import Limits
from asyn2f.sim.machine import Machine
from asyn2f.sim.numbers import Result
from asyn2f.sim.order import Order
from asyn2f.sim.recorded import order_of
from asyn2f.sim.serial import Follower, execute_serially
from asyn2f.sim.vectorised import calls_of, execute_in_lanes
from asyn2f.timing import Timing
from asyn2f.trees import params_sha256
from tests.compilation import nothing_compiles
from tests.executions import (
    Seen,
    assert_close,
    assert_same_bits,
    epochs_of,
    events_for,
    experiment_of,
    given,
    in_lanes,
    machine_for,
    order_for,
)
from tests.test_runtime import LocalRun, small

ROOT = Path(__file__).parent.parent
DEVICES = 3  # of the process that `executed_in_shards` starts
UNEQUAL = (
    {"step_s": 0.3, "jitter": 0.3, "upload_s": 2.0},
    {"step_s": 0.9, "download_s": 1.3, "upload_s": 0.1},
    {"step_s": 1.7, "outages": [[3.0, 9.0]]},
    {"step_s": 0.4, "join_s": 2.0},
    {"step_s": 3.1, "jitter": 0.2, "upload_s": 0.5},
)
DEADLINES_S = {"each": 0.0, "some": 2.5, "all": 14.0}
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
