"""Optimizers inside and outside, and cycles in steps: all executors agree, real runs
replay bit for bit, and a server resumes with the state of its optimizer."""

import functools
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from asyn2f import trace
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.executors.vectorised import execute_in_lanes
from asyn2f.sim.from_trace import differences, order_of, recording_of
from asyn2f.strategies import with_server_optimizer
from asyn2f.timing import Stop
from asyn2f.trace import causality
from asyn2f.training.experiment import Experiment, make_experiment
from tests.contracts.test_runtime import LocalRun
from tests.faults.test_resume import bits, versions_around_a_death
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    events_for,
    experiment_of,
    given,
    machine_for,
    order_for,
)
from tests.support.patience import PATIENCE_S
from tests.unit.test_cycles import steps_of_pushes

OUTSIDE = {
    "fedavg": optax.sgd(0.7, momentum=0.9, nesterov=True),
    "asyn2f": None,
    "fedbuff": optax.adam(0.01),
}
INSIDE = {
    "fedavg": functools.partial(optax.adamw, weight_decay=0.1),
    "asyn2f": optax.lion,
    "fedbuff": None,
}
TRAINING = {
    "fedavg": {"learning_rate": 3e-3, "optimizer_at_adopt": "keep"},
    "asyn2f": {"learning_rate": 1e-3, "schedule": "synchronous"},
    "fedbuff": {"clip_norm": 0.5, "schedule": "cosine", "schedule_length": 50},
}
CYCLES = {
    "fedavg": {"steps_per_push": 5},
    "asyn2f": {"seconds_per_push": 3.0},
    "fedbuff": {"seconds_per_push": 2.0, "min_updates": 3},
}
every_combination = pytest.mark.parametrize("name", sorted(INSIDE))


@functools.cache
def experiment_for(name: str, **timing: float) -> Experiment:
    """DiLoCo; Asyn2F with Lion and balanced workers; FedBuff with Adam outside."""
    made = experiment_of(name)
    strategy, outside = made.strategy, OUTSIDE[name]
    timing = {"epochs_per_push": 0} | CYCLES[name] | timing
    strategy = strategy._replace(timing=replace(strategy.timing, **timing))
    if outside is not None:
        strategy = with_server_optimizer(strategy, outside)
    training = replace(made.training, learning_rate_min=1e-4, **TRAINING[name])
    return make_experiment(
        made.task,
        strategy,
        training,
        Stop(max_versions=6),
        seed=0,
        optimizer=INSIDE[name],
    )


@functools.cache
def run_of(name: str):
    experiment = experiment_for(name)
    order = order_for(experiment)
    return experiment, order, execute_serially(experiment, order)


def recorded(events, folder):
    lines = "".join(trace.to_line(event) + "\n" for event in events)
    (folder / "simulation.jsonl").write_text(lines)
    return trace.read(folder)


# ------------------------------------------------------------- the same numbers


@every_combination
def test_many_lanes(name):
    experiment, order, serial = run_of(name)
    machine = machine_for(experiment, order, 3)
    assert_close(serial, execute_in_lanes(machine, order))
    shorter = given(machine, order, max_steps=1)  # cut into other waves
    assert_close(serial, execute_in_lanes(shorter, order))


@every_combination
def test_its_trace_is_executed_to_the_same_bits(name, tmp_path):
    experiment, order, result = run_of(name)
    found = recorded(events_for(experiment, order, result), tmp_path)
    causality.check(found)
    recording = recording_of(found)
    again = execute_serially(experiment, recording.order)
    for one, other in zip(bits(result.state), bits(again.state), strict=True):
        assert one == other
    assert list(differences(recording, again.numbers, tolerance=0.0)) == []


@every_combination
def test_executing_twice_gives_the_same_bits(name):
    experiment, order, result = run_of(name)
    assert_same_bits(result, execute_serially(experiment, order))


@every_combination
def test_a_push_reports_the_mean_loss_of_its_cycle(name):
    """Not that of an epoch, which may be as long as many cycles."""
    experiment, order, result = run_of(name)
    per_step = replace(experiment.strategy.timing, steps_per_push=1, seconds_per_push=0)
    strategy = experiment.strategy._replace(timing=per_step)
    alone = make_experiment(
        experiment.task,
        strategy,
        experiment.training,
        experiment.stop,
        seed=0,
        optimizer=INSIDE[name],
    )
    # The first cycle of a worker that nothing was merged into.
    for worker in range(experiment.workers):
        rows = np.flatnonzero((order.worker == worker) & (order.kind != o.WAITED))
        kinds = order.kind[rows].tolist()
        first = kinds.index(o.PUSH)
        if o.MERGE in kinds[:first]:
            continue
        model = alone.init_server().model
        shard = len(alone.task.shards[worker])
        quality = float(np.float32(alone.task.qualities[worker]))
        state = alone.trainer.start(model, worker, shard, quality)
        data, losses = _shard_of(alone, worker), []
        for _ in range(steps_of_pushes(order, worker)[0]):
            state, metrics = alone.trainer.advance(state, data)
            losses.append(float(metrics["loss"]))
        reported = float(result.numbers.loss[rows[first]])
        assert reported == pytest.approx(np.mean(losses), rel=1e-5)
        return
    raise AssertionError("no worker had a cycle without a merge")


def _shard_of(experiment, worker):
    from asyn2f.training.batches import shard_of

    return shard_of(experiment.task, worker)


# ------------------------------------------------------------- processes

MEASURED = RuntimeSettings(  # no limit: workers measure their steps
    heartbeat_interval_s=0.2,
    heartbeat_timeout_s=5.0,
    join_timeout_s=PATIENCE_S,
    worker_speeds=(0.0, 40.0),
)


@pytest.mark.parametrize("name", ["fedavg", "asyn2f"])
def test_a_real_run_replays_bit_for_bit(name, tmp_path):
    """Also where workers have measured how many steps they do in a time."""
    timing = {"seconds_per_push": 0.25} if name == "asyn2f" else {}
    experiment = experiment_for(name, **timing)
    run = LocalRun(tmp_path, experiment, "memory", MEASURED)
    for number in range(experiment.workers):
        run.start_worker(number)
    summary = run.finish()
    assert (summary["status"], summary["versions"]) == ("finished", 6)
    events = trace.read(tmp_path / "trace")
    causality.check(events)
    order = order_of(events)
    replayed = execute_serially(experiment, order)
    assert params_sha256(replayed.state.model.params) == summary["params_sha256"]
    limited = steps_of_pushes(order, 1)
    if name == "asyn2f":
        assert set(limited) == {10}  # 0.25 s at 40 steps a second
        assert min(steps_of_pushes(order, 0)) >= 1
    else:
        assert set(limited) == {5}


# ------------------------------------------------------------- resume


@pytest.mark.usefixtures("patient_stores")
@pytest.mark.parametrize("name", ["fedavg", "fedbuff"])
def test_a_server_that_died_goes_on_with_the_state_of_its_optimizer(name, tmp_path):
    made = versions_around_a_death(experiment_for(name), tmp_path / "models")
    assert any(leaf.any() for leaf in jax.tree.leaves(made[2].memory))
