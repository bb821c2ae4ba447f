"""A stored run replays to the same trace and parameters.

Other versions of JAX, and other processors, differ in the last bits of a float, so
these are compared up to a tolerance, where everything else is equal. If the numbers are
meant to change: `python -m tests.support.golden_run` writes the run anew.
"""

import json

import numpy as np
import pytest

from asyn2f import trace
from asyn2f.config import build
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.sim.schedule import schedule
from asyn2f.trace import causality
from tests.support import golden_run
from tests.support.executions import epochs_of, events_for

# A training metric is a share of examples that are right: one may tip over.
TOLERANCES = {"metric": 0.02, "accuracy": 0.01}


@pytest.fixture(scope="module")
def stored():
    return trace.read(golden_run.FOLDER / "trace")


@pytest.fixture(scope="module")
def experiment():
    return build.build_experiment(golden_run.config())


def test_the_stored_run_has_a_bit_of_everything(stored):
    causality.check(stored)
    kinds = {type(event) for event in stored}
    assert kinds >= {trace.Merged, trace.Adopted, trace.Pushed, trace.Aggregated}
    assert any(max(e.staleness) > 0 for e in stored if isinstance(e, trace.Aggregated))
    size = sum(path.stat().st_size for path in golden_run.FOLDER.rglob("*.json*"))
    assert size < 80_000


def test_its_config_is_scheduled_and_executed_to_the_same_events(stored, experiment):
    config = golden_run.config()
    order = schedule(
        experiment.strategy.timing,
        build.build_profiles(config),
        experiment.stop,
        experiment.seed,
        steps_per_epoch=epochs_of(experiment),
        num_bytes=experiment.template.num_bytes,
        aggregate_s=config["sim"]["aggregate_s"],
        heartbeat_timeout_s=config["runtime"]["heartbeat_timeout_s"],
    )
    head, result = stored[0], execute_serially(experiment, order)
    events = events_for(
        experiment, order, result, run=head.run, environment=head.environment
    )
    before = [event for event in stored if not isinstance(event, trace.Evaluated)]
    assert len(events) == len(before)
    for event, other in zip(events, before, strict=True):
        assert_same_event(event, other)


def test_its_trace_is_executed_to_the_same_parameters(stored, experiment):
    result = execute_serially(experiment, order_of(stored))
    found = golden_run.by_path(result.state.model.params)
    expected = golden_run.params()
    assert list(found) == list(expected)
    for name, values in expected.items():
        largest = np.max(np.abs(values))
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4 * largest)


def assert_same_event(event: trace.Event, other: trace.Event) -> None:
    assert type(event) is type(other)
    stored = json.loads(trace.to_line(other))
    for name, value in json.loads(trace.to_line(event)).items():
        before = stored[name]
        if isinstance(value, float) or name == "coefficients":
            tolerance = TOLERANCES.get(name, 1e-4)
            assert value == pytest.approx(before, rel=1e-4, abs=tolerance), event
        else:
            assert value == before, event
