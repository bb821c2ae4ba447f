"""Numbers of a trace compared with those of its execution."""

import numpy as np
import pytest

from asyn2f import trace
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import agree, differences, recording_of
from tests.contracts.test_runtime import small
from tests.support.executions import events_for, experiment_of, order_for
from tests.support.updates import replaced
from tests.unit.test_causality import RecordedRun


@pytest.fixture(scope="module")
def executed():
    """A run's events, and the numbers of executing them again."""
    experiment = experiment_of("asyn2f")
    order = order_for(experiment)
    events = events_for(experiment, order, execute_serially(experiment, order))
    again = execute_serially(experiment, recording_of(events).order)
    return events, again.numbers


CHANGES = {
    trace.Trained: ("loss", "metric"),
    trace.Pushed: ("loss", "metric"),
    trace.Merged: ("share",),
    trace.Aggregated: ("learning_rate",),
}
CASES = [(kind, name) for kind, names in CHANGES.items() for name in names]


def altered(events, kind, name, change):
    """The second event of that kind, with another number."""
    (_, event, *_) = [each for each in events if isinstance(each, kind)]
    wrong = replaced(event, **{name: change(value_of(event, name))})
    return [wrong if each is event else each for each in events], wrong


def value_of(event, name):
    return getattr(event.info if isinstance(event, trace.Pushed) else event, name)


def test_a_trace_has_the_numbers_of_its_execution(executed):
    events, numbers = executed
    assert list(differences(recording_of(events), numbers, 0.0)) == []


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_another_number_is_found_to_the_last_bit(executed, kind, name):
    events, numbers = executed

    def next_up(value):
        return float(np.nextafter(np.float32(value), np.float32(np.inf)))

    wrong, event = altered(events, kind, name, next_up)
    (found,) = differences(recording_of(wrong), numbers, 0.0)
    assert f": {name} is {value_of(event, name)} in the trace" in found
    assert list(differences(recording_of(wrong), numbers, 1e-3)) == []
    far, _ = altered(events, kind, name, lambda value: value + 0.5)
    assert len(list(differences(recording_of(far), numbers, 1e-3))) == 1


def test_shares_that_were_exchanged_are_found(executed):
    events, numbers = executed
    wrong, _ = altered(events, trace.Aggregated, "coefficients", lambda x: x[::-1])
    (found,) = differences(recording_of(wrong), numbers, 0.0)
    assert "coefficients" in found


def test_what_is_not_computed_is_not_compared():
    assert agree(0.5, np.float32(np.nan), 0.0)
    assert not agree(None, np.float32(0.5), 1.0)
    assert not agree([0.5], np.float32([0.5, 0.5]), 1.0)


def test_so_has_the_trace_of_a_real_run(tmp_path):
    """Its workers' processes, and the executor, to the last bit."""
    run = RecordedRun(1, tmp_path, small())
    for number in range(3):
        run.start_worker(number)
    run.finish()
    recording = recording_of(trace.read(tmp_path / "trace"))
    result = execute_serially(run.experiment, recording.order)
    kinds = {type(event) for event in recording.computed}
    assert kinds == set(CHANGES)
    assert list(differences(recording, result.numbers, 0.0)) == []
