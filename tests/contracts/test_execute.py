"""The choice of an executor, its errors, and the memory it needs."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asyn2f
from asyn2f.config import build
from asyn2f.errors import ExecutionError, PlanError, TooLargeError
from asyn2f.sim import order as o
from asyn2f.sim.executors import execute, vectorised
from asyn2f.sim.executors.calls import Limits
from asyn2f.sim.executors.execute import Means, choose, execution_of
from asyn2f.sim.executors.memory import Need, check_fits, need_of
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.executors.vectorised import prepare
from asyn2f.sim.from_trace import order_of
from asyn2f.training.experiment import make_experiment
from asyn2f.training.settings import Training
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    experiment_of,
    order_for,
)
from tests.support.experiments import config_with
from tests.support.handmade_trace import hand_made

MIB = 2**20


@pytest.fixture
def experiment():
    return experiment_of()


@pytest.fixture
def order(experiment):
    return order_for(experiment)


# ------------------------------------------------------------- named


def test_serial(experiment, order):
    execution = execution_of(experiment, order, "serial")
    assert execution.means == Means("serial", 1, 1)
    assert execution.why == "serial: as configured"
    assert_same_bits(execute_serially(experiment, order), execution.run())


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize(
    ("strategy", "changes"),
    [("fedbuff", {}), ("fedbuff", {"timing__steps_per_push": 3}), ("fedavg", {})],
    ids=["epochs", "steps", "rounds"],
)
def test_states_that_nothing_outlives_share_few_rows(strategy, changes, lanes):
    """A row for each lane, and the bits of a row for each worker."""
    if changes:
        changes = changes | {"timing__epochs_per_push": 0}
    experiment = experiment_of(strategy, workers=40, **changes)
    order = order_for(experiment, [{"step_s": 0.1 + 0.01 * k} for k in range(40)])
    machine = prepare(experiment, order, lanes, devices=1)
    assert machine.plan.rows < 40
    assert machine.plan.rows >= lanes
    found = vectorised.execute_in_lanes(machine, order)
    kept = experiment._replace(
        training=replace(experiment.training, optimizer_at_adopt="keep")
    )
    assert prepare(kept, order, lanes, devices=1).plan.rows == 40
    assert_close(execute_serially(experiment, order), found)


def test_vectorised_has_the_configured_lanes(experiment, order):
    execution = execution_of(experiment, order, "vectorised", lanes=3)
    assert execution.means == Means("vectorised", 3, 1)
    assert "3 lanes on one device" in execution.why
    assert_close(execute_serially(experiment, order), execution.run())


def test_sharded_takes_every_device(experiment, order):
    execution = execution_of(experiment, order, "sharded")
    assert execution.means == Means("vectorised", 4, 1)
    assert execution.why == "sharded: 4 lanes on one device, as configured"


def test_more_devices_than_there_are(experiment, order):
    with pytest.raises(ValueError, match="devices: found 2, allowed 1 to 1"):
        prepare(experiment, order, lanes=1, devices=2)


@pytest.mark.parametrize("executor", ["vectorised", "sharded"])
def test_a_forked_history_can_only_be_executed_serially(executor):
    experiment, order = experiment_of(workers=2), order_of(hand_made())
    with pytest.raises(PlanError, match="only --executor=serial"):
        execution_of(experiment, order, executor)


# ------------------------------------------------------------- by the rule


class Shape(NamedTuple):
    """All that the rule looks at."""

    params: int
    batch_size: int
    workers: int
    steps: int


@pytest.mark.parametrize(
    ("shape", "devices", "backend", "chosen"),
    [
        # A dispatch per step, and next to no arithmetic: as BUILD_NOTES measured.
        (Shape(2_410, 16, 100, 19_000), 2, "cpu", ("serial", 1)),
        (Shape(2_410, 16, 100, 20_000), 2, "cpu", ("sharded", 13)),
        (Shape(2_410, 16, 20, 20_000), 2, "cpu", ("sharded", 10)),
        (Shape(2_410, 16, 15, 20_000), 2, "cpu", ("sharded", 1)),
        (Shape(2_410, 16, 15, 20_000), 1, "cpu", ("sharded", 15)),
        (Shape(2_410, 16, 1000, 20_000), 1, "gpu", ("sharded", 125)),
        # A convolutional network: c = 2.6, one lane on a CPU.
        (Shape(102_106, 16, 100, 7_000), 2, "cpu", ("serial", 1)),
        (Shape(102_106, 16, 100, 8_000), 2, "cpu", ("sharded", 1)),
        (Shape(102_106, 16, 100, 8_000), 1, "gpu", ("sharded", 100)),
        (Shape(1_626_442, 10, 20, 1_200), 2, "cpu", ("sharded", 1)),
    ],
)
def test_the_choice_is_a_function_of_shapes_and_backend(
    monkeypatch, shape, devices, backend, chosen
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    experiment = SimpleNamespace(
        training=Training(batch_size=shape.batch_size),
        whole_template=SimpleNamespace(num_bytes=4 * shape.params),
        workers=shape.workers,
    )
    order = SimpleNamespace(num_steps=shape.steps)
    executor, lanes, why = choose(experiment, order, devices)
    assert (executor, lanes) == chosen
    assert f"{shape.steps:,} local steps" in why


def test_where_others_share_its_program_a_shorter_run_is_worth_compiling(experiment):
    for steps in (100, 2_000):
        order = SimpleNamespace(num_steps=steps)
        alone, *_ = choose(experiment, order, 1)
        shared, *_ = choose(experiment, order, 1, is_one_of_many=True)
        assert (alone, shared) == ("serial", "serial" if steps == 100 else "sharded")


def test_orders_of_other_seeds_share_a_compiled_program():
    """Their slots are rounded up to what hardly any order needs."""
    shapes = set()
    for seed in range(4):
        experiment = experiment_of(seed=seed)
        for versions in (6, 30):
            order = order_for(experiment, seed=seed, versions=versions)
            plan = prepare(experiment, order, lanes=3, devices=1).plan
            shapes.add((plan.version_slots, plan.update_slots, plan.max_members))
    assert len(shapes) == 1


@pytest.fixture
def all_in_lanes(monkeypatch):
    monkeypatch.setattr(execute, "_WORTH_COMPILING", 0)


def test_a_short_run_is_executed_serially(experiment, order):
    execution = execution_of(experiment, order)
    assert execution.means == Means("serial", 1, 1)
    assert "too few to compile lanes for" in execution.why


@pytest.mark.usefixtures("all_in_lanes")
def test_the_choice_is_the_same_each_time_and_gives_the_same_bits(experiment, order):
    one, other = (execution_of(experiment, order) for _ in range(2))
    assert one.means == other.means == Means("vectorised", 1, 1)
    assert_same_bits(one.run(), other.run())


@pytest.mark.usefixtures("all_in_lanes")
def test_lanes_that_are_given_are_kept(experiment, order):
    assert execution_of(experiment, order, lanes=3).means == Means("vectorised", 3, 1)


@pytest.mark.usefixtures("all_in_lanes")
def test_an_order_that_lanes_cannot_execute_is_executed_serially():
    execution = execution_of(experiment_of(workers=2), order_of(hand_made()))
    assert execution.means.executor == "serial"
    assert "the history forks" in execution.why


@pytest.mark.usefixtures("all_in_lanes")
def test_what_does_not_fit_is_executed_serially(experiment, order, monkeypatch):
    monkeypatch.setattr(vectorised, "free_bytes", lambda: 1000)
    execution = execution_of(experiment, order)
    assert execution.means.executor == "serial"
    assert "the execution needs" in execution.why


# ------------------------------------------------------------- errors, and debug


def broken(experiment, stage):
    """The experiment with a mistake in one function of its strategy or loss."""
    task, strategy = experiment.task, experiment.strategy
    right = task.loss

    def loss(params, carry, batch, key):
        return right(params, carry, batch | {"label": batch["label"][:-1]}, key)

    def aggregate(state, updates, mask):
        loss = jnp.ones(7) @ updates.info.loss
        info = updates.info._replace(loss=loss)
        return strategy.aggregate(state, updates._replace(info=info), mask)

    def merge(local, previous, model):
        params = jax.tree.map(lambda x: x + jnp.ones(3), local.params)
        return params, {"share": jnp.float32(0.5)}

    if stage == "train":
        task = task._replace(loss=loss)
    else:
        broken = {"aggregate": aggregate, "merge": merge}[stage]
        strategy = strategy._replace(name="mine", **{stage: broken})
    return make_experiment(task, strategy, experiment.training, experiment.stop, 0)


@pytest.mark.parametrize(
    ("stage", "executor"),
    [
        ("train", "serial"),
        ("train", "debug"),  # the first event: every step takes long
        ("merge", "serial"),
        ("aggregate", "serial"),
    ],
)
def test_an_error_names_stage_strategy_version_worker_and_event(
    experiment, order, stage, executor
):
    wrong = broken(experiment, stage)
    kind = {"train": o.TRAIN, "merge": o.MERGE, "aggregate": o.AGGREGATE}[stage]
    event = int(np.flatnonzero(order.kind == kind)[0])
    worker, node = int(order.worker[event]), int(order.value[event])
    with pytest.raises(ExecutionError) as caught:
        execution_of(wrong, order, executor).run()
    error = caught.value
    assert (error.stage, error.event) == (stage, event)
    assert error.worker == (None if stage == "aggregate" else worker)
    assert error.version == (0 if stage == "train" else node)
    assert error.strategy == wrong.strategy.name
    assert isinstance(error.__cause__, TypeError | ValueError)
    assert str(error).startswith(f"{stage} failed (strategy {error.strategy}, version ")
    place = r"test_execute\.py, line \d+: "  # of the function that has failed
    kind = type(error.__cause__).__name__
    assert re.search(rf"event {event}\): ({place})?{kind}: ", str(error))


def test_an_error_in_lanes_names_what_names_more(experiment, order):
    with pytest.raises(ExecutionError) as caught:
        execution_of(broken(experiment, "train"), order, "vectorised").run()
    assert (caught.value.version, caught.value.worker) == (None, None)
    assert ", sim.executor=serial names worker and version): " in str(caught.value)


def test_debug_computes_the_same_without_compiling(experiment, order):
    first = int(np.flatnonzero(order.kind == o.AGGREGATE)[0])
    seen, short = [], o.cut(order, first + 1, "enough")

    def watch(node, time_s, state, kept_of):
        seen.append(jax.config.jax_disable_jit)
        return False

    execution = execution_of(experiment, short, "debug", watched=[1])
    assert execution.means == Means("debug", 1, 1)
    result = execution.run(watch)
    assert seen == [True]
    assert not jax.config.jax_disable_jit
    assert_close(execute_serially(experiment, short), result)


def test_a_library_call_names_the_stage(experiment):
    config = config_with(
        workers=2,
        training__batch_size=1024,  # one step in an epoch
        timing__epochs_per_push=1,
        stop__max_versions=2,
        sim__executor="debug",
    )
    wrong = broken(build.build_experiment(config), "aggregate")
    wrong = wrong._replace(strategy=wrong.strategy._replace(name="asyn2f"))
    with pytest.raises(ExecutionError, match="aggregate failed"):
        asyn2f.simulate(config, wrong)


# ------------------------------------------------------------- memory


def test_what_does_not_fit_is_refused_with_numbers_and_advice():
    need = Need(10 * MIB, 20 * MIB, 30 * MIB, 40 * MIB, 2000 * MIB)
    check_fits(need, None)
    check_fits(need, 2400 * MIB)
    with pytest.raises(TooLargeError) as caught:
        check_fits(need, 2000 * MIB)
    assert str(caught.value) == (
        "the execution needs 2,100 MiB on each device (workers 10 MiB, updates 20 MiB, "
        "versions 30 MiB, lanes 40 MiB, data 2,000 MiB), but 2,000 MiB are free: take "
        "fewer lanes (--config.sim.lanes), more devices "
        "(--config.sim.executor=sharded) or fewer workers"
    )


def test_a_machine_that_does_not_fit_is_not_made(experiment, order, monkeypatch):
    monkeypatch.setattr(vectorised, "free_bytes", lambda: 1000)
    with pytest.raises(TooLargeError, match="take fewer lanes"):
        prepare(experiment, order, lanes=2, devices=1)


def test_the_need_grows_with_lanes_and_with_what_is_kept(experiment, order):
    limits = Limits(waves=4, ticks=16, versions=4)
    few, many = (need_of(experiment, plan(order, 1, lanes), limits) for lanes in (1, 4))
    model = experiment.template.num_bytes
    assert many.lanes - few.lanes >= 3 * 4 * model  # states and updates, 4 arrays
    assert few.workers >= 4 * 2 * model  # parameters and momentum
    assert few.updates >= model
    assert few.versions >= 3 * model
    data = sum(array.nbytes for array in experiment.task.train.values())
    assert few.data == data + 4 * 16 * experiment.training.batch_size
