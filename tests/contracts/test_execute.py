"""By what means an order is executed, and whether it fits."""

import json

import pytest

from asyn2f.errors import PlanError, TooLargeError
from asyn2f.sim import execute, vectorised
from asyn2f.sim.execute import Means, execution_of
from asyn2f.sim.from_trace import order_of
from asyn2f.sim.lanes import Limits
from asyn2f.sim.plan import (
    plan,
)
from asyn2f.sim.serial import execute_serially
from asyn2f.sim.vectorised import (
    Need,
    check_fits,
    need_of,
    prepare,
)
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    experiment_of,
    order_for,
)
from tests.support.handmade_trace import hand_made

MIB = 2**20


@pytest.fixture
def experiment():
    return experiment_of()


@pytest.fixture
def order(experiment):
    return order_for(experiment)


class Trials:
    """In place of what is measured: lanes are faster than that by these factors."""

    def __init__(self, monkeypatch, one: float, many: float) -> None:
        self.count = 0
        monkeypatch.setattr(execute, "_WORTHWHILE_S", 0.0)
        monkeypatch.setattr(execute, "_serial_step_s", self.serial_step_s)
        monkeypatch.setattr(execute, "_rate", self.rate)
        self._rates = {1: one, 4: many}

    def serial_step_s(self, experiment, order) -> float:
        self.count += 1
        return 1.0

    def rate(self, machine, enough) -> float:
        self.count += 1
        return self._rates[machine.plan.row.shape[2]]


# ------------------------------------------------------------- named


def test_serial_is_serial(experiment, order):
    execution = execution_of(experiment, order, "serial")
    assert execution.means == Means("serial", 1, 1)
    assert "as asked for" in execution.why
    assert_same_bits(execute_serially(experiment, order), execution.run())


def test_vectorised_has_the_lanes_asked_for(experiment, order):
    execution = execution_of(experiment, order, "vectorised", lanes=3)
    assert execution.means == Means("vectorised", 3, 1)
    assert "3 lanes on one device" in execution.why
    assert_close(execute_serially(experiment, order), execution.run())


def test_sharded_takes_every_device_there_is(experiment, order):
    execution = execution_of(experiment, order, "sharded")
    assert execution.means == Means("vectorised", 4, 1)
    assert "sharded, as asked for: 4 lanes on one device" in execution.why


def test_more_devices_than_there_are(experiment, order):
    with pytest.raises(ValueError, match="devices: found 2, allowed 1 to 1"):
        prepare(experiment, order, lanes=1, devices=2)


@pytest.mark.parametrize("executor", ["vectorised", "sharded"])
def test_a_forked_history_can_only_be_executed_serially(executor):
    experiment, order = experiment_of(workers=2), order_of(hand_made())
    with pytest.raises(PlanError, match="only --executor=serial"):
        execution_of(experiment, order, executor)


# ------------------------------------------------------------- by trial


def test_what_takes_no_time_is_executed_serially(experiment, order, tmp_path):
    execution = execution_of(experiment, order, memory=tmp_path / "trials.json")
    assert execution.means.executor == "serial"
    assert "less than compiling" in execution.why


@pytest.mark.parametrize(
    ("one", "many", "means"),
    [
        (0.5, 0.7, Means("serial", 1, 1)),
        (3.0, 2.0, Means("vectorised", 1, 1)),
        (3.0, 9.0, Means("vectorised", 4, 1)),
    ],
)
def test_the_fastest_in_a_trial_is_taken_and_remembered(
    experiment, order, tmp_path, monkeypatch, one, many, means
):
    memory, trials = tmp_path / "made" / "trials.json", Trials(monkeypatch, one, many)
    execution = execution_of(experiment, order, memory=memory)
    assert execution.means == means
    assert "in a trial (" in execution.why
    assert trials.count == 3
    again = execution_of(experiment, order, memory=memory)
    assert again.means == means
    assert "as remembered" in again.why
    assert trials.count == 3
    other = experiment_of(training__batch_size=32)
    execution_of(other, order_for(other), memory=memory)
    assert trials.count == 6


def test_without_a_memory_it_is_tried_each_time(experiment, order, monkeypatch):
    trials = Trials(monkeypatch, 3.0, 2.0)
    for _ in range(2):
        execution_of(experiment, order)
    assert trials.count == 6


@pytest.mark.parametrize(
    "damage",
    [
        "",
        '{"jax',
        "\xff\xfe",
        "[]",
        "3",
        {},
        [1.0],
        {"serial": "fast"},
        {"serial": 0},
        {"one lane on one device": 3.0},
    ],
)
def test_a_damaged_memory_is_as_none(experiment, order, tmp_path, monkeypatch, damage):
    """Texts are the whole file, the others what it says of the experiment."""
    memory, trials = tmp_path / "trials.json", Trials(monkeypatch, 3.0, 9.0)
    execution_of(experiment, order, memory=memory)
    if not isinstance(damage, str):
        (key,) = json.loads(memory.read_text())
        damage = json.dumps({key: damage})
    memory.write_text(damage, encoding="latin-1")
    execution = execution_of(experiment, order, memory=memory)
    assert execution.means == Means("vectorised", 4, 1)
    assert trials.count == 6
    execution_of(experiment, order, memory=memory)
    assert trials.count == 6  # what was tried has taken the place of the damage


@pytest.mark.parametrize("is_remembered", [False, True])
def test_what_lanes_cannot_do_is_done_serially(tmp_path, monkeypatch, is_remembered):
    experiment, memory = experiment_of(workers=2), tmp_path / "trials.json"
    Trials(monkeypatch, 3.0, 9.0)._rates[2] = 9.0
    if is_remembered:
        execution_of(experiment, order_for(experiment), memory=memory)
    execution = execution_of(experiment, order_of(hand_made()), memory=memory)
    assert execution.means.executor == "serial"
    assert "the history forks" in execution.why


def test_what_does_not_fit_is_done_serially(experiment, order, monkeypatch):
    Trials(monkeypatch, 3.0, 9.0)
    monkeypatch.setattr(vectorised, "free_bytes", lambda: 1000)
    execution = execution_of(experiment, order)
    assert execution.means.executor == "serial"
    assert "the execution needs" in execution.why


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
