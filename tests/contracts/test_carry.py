"""A worker's carry: in every executor, over versions, restarts and in replays."""

import logging
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from asyn2f import trace
from asyn2f.errors import PlanError
from asyn2f.runtime.worker import Worker
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.executors.execute import execution_of
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import differences, order_of, recording_of
from asyn2f.store.worker_state import WorkerStateFile
from asyn2f.tasks.base import Aux
from asyn2f.trace import causality
from tests.contracts.test_runtime import SAME, LocalRun
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    epochs_of,
    in_lanes,
    order_for,
    words_of,
)
from tests.support.patience import PATIENCE_S, wait_until
from tests.support.tasks import Walk, counted_loss, counting, experiment_of, returns

# ------------------------------------------------------------- executors


@pytest.fixture(scope="module")
def simulated():
    experiment = experiment_of(counting())
    order = order_for(experiment, [{"step_s": 0.5}, {"step_s": 0.9}, {"step_s": 1.7}])
    return experiment, order, execute_serially(experiment, order)


def test_a_carry_goes_on_over_versions(simulated):
    """Its count of steps never begins anew: at a worker's step n the metric of an epoch
    of E steps is the mean of the counts since its last multiple of E."""
    experiment, order, result = simulated
    (length,) = set(epochs_of(experiment))
    done = dict.fromkeys(range(3), 0)
    for event in np.flatnonzero(order.kind == o.TRAIN):
        worker = int(order.worker[event])
        done[worker] += int(order.value[event])
        first = (done[worker] - 1) // length * length
        expected = np.mean(range(first, done[worker]))
        assert result.numbers.metric[event] == expected
    assert max(done.values()) > 3 * length
    assert o.MERGE in order.kind


def test_a_carry_is_part_of_the_numbers(simulated):
    _, order, result = simulated

    def forgetful(params, walk, batch, key):
        loss, aux = counted_loss(params, walk, batch, key)
        return loss, aux._replace(carry=walk)

    other = experiment_of(counting()._replace(loss=forgetful))
    with pytest.raises(AssertionError):
        assert_same_bits(execute_serially(other, order), result)


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_carry_the_same(simulated, lanes):
    experiment, order, serial = simulated
    found = in_lanes(experiment, order, lanes)
    assert_close(serial, found)
    np.testing.assert_array_equal(found.numbers.metric, serial.numbers.metric)


def test_lanes_on_several_devices_carry_the_same():
    assert words_of("tests.support.sharded_carry") == ["3", "same"]


# ------------------------------------------------------------- processes


class OwnRun(LocalRun):
    """A run as threads, whose workers have a folder of their own."""

    def file_of(self, number: int) -> Path:
        return self.folder / "workers" / f"worker-{number}"

    def start_worker(self, number: int, terms: tuple[str, ...] = SAME) -> Worker:
        name, own = f"worker-{number}", WorkerStateFile(self.file_of(number))
        journal = self._journal(name)
        journal.write(trace.ProcessStarted(time.monotonic(), name, "run-1", 0, {}))
        worker = Worker(self.experiment, number, self.settings, journal, own)
        self._keep(name, lambda: worker.run(self._peer_transport(2), terms))
        return worker

    def all_events(self) -> list[trace.Event]:
        return trace.read(self.folder / "trace")

    def restart(self, number: int, worker: Worker) -> Worker:
        """Ends a worker that has pushed, and starts it again."""
        thread = next(t for t in self._threads[::-1] if t.name == f"worker-{number}")
        worker.stop("the test")
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        return self.start_worker(number)


def assert_replays(run: OwnRun, summary) -> None:
    events = run.all_events()
    causality.check(events)
    recording = recording_of(events)
    result = execute_serially(run.experiment, recording.order)
    assert params_sha256(result.state.model.params) == summary["params_sha256"]
    assert list(differences(recording, result.numbers, tolerance=0.0)) == []


@pytest.mark.parametrize("kind", ["memory", "zmq"])
def test_a_run_of_processes_replays_bit_for_bit(tmp_path, kind):
    run = OwnRun(tmp_path, experiment_of(counting()), kind)
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    assert summary["versions"] == 8
    for event in run.events(trace.Pushed):
        # One epoch of four steps: steps n - 4 to n - 1 before the push at step n.
        assert event.info.metric == event.info.step - 2.5
    assert_replays(run, summary)


def kept(run: OwnRun, worker: int) -> list[trace.StateKept]:
    return [e for e in run.events(trace.StateKept) if e.worker == worker]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    """A run whose worker 0 was started three times: the second time it found what it
    had kept, the third time a damaged file. And what was logged."""
    run = OwnRun(tmp_path_factory.mktemp("run"), experiment_of(counting(), versions=60))
    run.start_worker(1)
    run.start_worker(2)
    first = run.start_worker(0)
    wait_until(lambda: len(kept(run, 0)) >= 2)
    second = run.restart(0, first)
    lives = lambda: [e for e in run.events(trace.Adopted) if e.worker == 0]
    wait_until(lambda: any(e.restored for e in lives()))
    before = len(kept(run, 0))
    wait_until(lambda: len(kept(run, 0)) > before)
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    second.stop("the test")
    thread = next(t for t in run._threads[::-1] if t.name == "worker-0")
    thread.join(PATIENCE_S)
    content = run.file_of(0).read_bytes()
    run.file_of(0).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run.start_worker(0)
    summary = run.finish()
    logging.getLogger().removeHandler(handler)
    return run, summary, [record.getMessage() for record in records]


def lives_of(run: OwnRun, worker: int) -> list[list[trace.Event]]:
    """The worker's events, by process."""
    lives: list[list[trace.Event]] = []
    for event in run.all_events():
        if (
            isinstance(event, trace.ProcessStarted)
            and event.actor == f"worker-{worker}"
        ):
            lives.append([])
        elif getattr(event, "worker", None) == worker and lives:
            lives[-1].append(event)
    return lives


def test_a_restarted_worker_continues_with_the_carry_of_its_last_push(restarted):
    run, _, _ = restarted
    first, second, _ = lives_of(run, 0)
    adopted = [[e for e in x if isinstance(e, trace.Adopted)] for x in (first, second)]
    keeps = [e for e in first if isinstance(e, trace.StateKept)]
    assert [e.restored for e in adopted[0]] == [""] * len(adopted[0])
    assert adopted[1][0].restored == keeps[-1].digest
    pushed = next(e for e in second if isinstance(e, trace.Pushed))
    # Its own steps are counted anew, those in the carry go on.
    assert pushed.info.metric == keeps[-1].step + pushed.info.step - 2.5


def test_with_a_damaged_file_it_begins_anew_and_warns(restarted):
    run, _, logged = restarted
    *_, third = lives_of(run, 0)
    assert next(e for e in third if isinstance(e, trace.Adopted)).restored == ""
    assert any("worker-0 cannot be used, the worker begins anew" in x for x in logged)
    pushed = next((e for e in third if isinstance(e, trace.Pushed)), None)
    if pushed is not None:
        assert pushed.info.metric == pushed.info.step - 2.5


def test_a_run_with_restarts_replays_bit_for_bit(restarted):
    run, summary, _ = restarted
    assert_replays(run, summary)


def test_lanes_refuse_the_order_of_a_restart_and_auto_executes_it(restarted):
    run, _, _ = restarted
    order = order_of(run.all_events())
    assert o.RESTORE in order.kind
    with pytest.raises(PlanError, match=r"restarted worker .* --executor=serial"):
        plan(order, 1, 1)
    assert execution_of(run.experiment, order, "auto").means.executor == "serial"


def test_a_state_that_was_never_kept_is_found(restarted):
    run, _, _ = restarted
    events = [
        event._replace(restored="0" * 32)
        if isinstance(event, trace.Adopted) and event.restored
        else event
        for event in run.all_events()
    ]
    with pytest.raises(causality.CausalityError, match="a state that it never kept"):
        causality.check(events)
    with pytest.raises(ValueError, match="lacks the own state 0000"):
        order_of(events)


def test_a_task_without_a_carry_keeps_nothing(tmp_path):
    def loss(params, carry, batch, key):
        return params["params"] ** 2, Aux()

    task = returns()._replace(loss=loss, init_carry=lambda key, worker: ())
    run = OwnRun(tmp_path, experiment_of(task, versions=3))
    for number in range(3):
        run.start_worker(number)
    run.finish()
    assert run.events(trace.StateKept) == []
    assert not (tmp_path / "workers").exists()


def test_a_carry_is_that_of_its_worker(simulated):
    experiment, _, _ = simulated
    walks = [experiment.task.init_carry(jax.random.key(k), k) for k in (0, 1)]
    assert isinstance(walks[0], Walk)
    assert (walks[0].key != walks[1].key).any()
