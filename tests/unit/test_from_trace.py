"""From a trace to an order: of simulated, recorded and incomplete runs."""

from random import Random

import numpy as np
import pytest

from asyn2f import trace
from asyn2f.errors import OrderError
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.sim.order import Order
from asyn2f.trace.ordering import by_cause, shifted
from tests.support.executions import (
    assert_close,
    events_for,
    experiment_of,
    in_lanes,
    order_for,
)
from tests.support.handmade_trace import At, files_of, hand_made, random_trace, without

COMPUTED = (o.ADOPT, o.TRAIN, o.MERGE, o.PUSH, o.AGGREGATE)  # something, by executors
SETTLED = (o.SUPERSEDE, o.REJECT)


def acts(order: Order, *kinds: int) -> list[tuple]:
    """Time, kind, worker and value of the events of these kinds."""
    columns = (order.time_s, order.kind, order.worker, order.value)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [row for row in rows if row[1] in kinds]


def acts_by_worker(order: Order) -> dict[int, list[tuple]]:
    """What each worker did, in its order; updates by their worker's count of them."""
    found: dict[int, list[tuple]] = {}
    for _, kind, worker, value in acts(order, *COMPUTED, o.BEGIN):
        if worker >= 0:
            deeds = found.setdefault(worker, [])
            deeds.append((kind, 0 if kind == o.PUSH else value))
    return found


def sha256_of(experiment, order: Order) -> str:
    result = execute_serially(experiment, order)
    return params_sha256(result.state.model.params)


# ------------------------------------------------------------- simulated


@pytest.fixture(params=["asyn2f", "fedavg"])
def simulated(request):
    """An experiment, its order, what came of it, and its trace."""
    experiment = experiment_of(request.param)
    order = order_for(experiment)
    result = execute_serially(experiment, order)
    return experiment, order, result, events_for(experiment, order, result)


def test_the_trace_of_a_simulated_run_has_its_order(simulated):
    _, order, _, events = simulated
    again = order_of(events)
    for kinds in (COMPUTED, SETTLED):
        assert acts(again, *kinds) == acts(order, *kinds)
    for name in ("version", "parent", "member_starts", "members", "receivers"):
        np.testing.assert_array_equal(getattr(again, name), getattr(order, name))
    assert again.num_updates == order.num_updates
    assert (again.start_s, again.end_s) == (order.start_s, order.end_s)
    assert again.reason == order.reason == "max_versions = 8 reached"


def test_and_it_is_executed_to_the_same_bits(simulated):
    experiment, _, result, events = simulated
    again = execute_serially(experiment, order_of(events))
    digests = [params_sha256(r.state.model.params) for r in (result, again)]
    assert digests[0] == digests[1]
    for name in ("coefficients", "staleness", "model_loss", "learning_rate"):
        np.testing.assert_array_equal(
            getattr(again.numbers, name), getattr(result.numbers, name)
        )


def test_and_so_it_is_from_its_file(simulated, tmp_path):
    experiment, _, result, events = simulated
    lines = "".join(trace.to_line(event) + "\n" for event in events)
    (tmp_path / "simulation.jsonl").write_text(lines)
    order = order_of(trace.read(tmp_path))
    expected = params_sha256(result.state.model.params)
    assert sha256_of(experiment, order) == expected


def test_superseded_and_rejected_updates_are_in_the_order():
    experiment = experiment_of("fedavg", timing__deadline_s=12.0)
    order = order_for(experiment)
    assert o.REJECT in order.kind
    events = events_for(experiment, order, execute_serially(experiment, order))
    assert acts(order_of(events), *SETTLED) == acts(order, *SETTLED)


# ------------------------------------------------------------- recorded


def skewed(events, seed: int, most_s: float = 3600.0):
    """The events as `trace.read` gives them where clocks are that far apart."""
    random = Random(seed)
    files = files_of(events)
    moved = []
    for lives in files:
        by_s = random.uniform(-most_s, most_s)
        moved.append([[shifted(event, by_s) for event in life] for life in lives])
    return by_cause(moved)


def assert_causal(order: Order) -> None:
    """Versions are made before they are taken in, updates pushed before they are
    used."""
    made, pushed = {0}, set()
    for _, kind, _, value in acts(order, *COMPUTED):
        if kind in (o.ADOPT, o.MERGE):
            assert value in made
        elif kind == o.PUSH:
            pushed.add(value)
        elif kind == o.AGGREGATE:
            assert set(order.members_of(value).tolist()) <= pushed
            assert int(order.parent[value]) in made
            made.add(value)


@pytest.mark.parametrize("seed", range(4))
def test_clocks_that_disagree_change_no_number(simulated, seed):
    experiment, order, _, events = simulated
    again = order_of(skewed(events, seed))
    assert_causal(again)
    assert acts_by_worker(again) == acts_by_worker(order_of(events))
    assert sha256_of(experiment, again) == sha256_of(experiment, order)


@pytest.mark.parametrize("seed", range(4))
def test_clocks_that_disagree_while_servers_crash(seed):
    """By chance, with lost versions, some of them used, and workers that begin anew."""
    experiment = experiment_of(workers=3, task__partition="iid")
    events = random_trace(seed, 300, crashes=0.03)
    order, again = order_of(events), order_of(skewed(events, seed))
    assert_causal(order)
    assert_causal(again)
    assert sorted(again.version.tolist()) == sorted(order.version.tolist())
    assert sha256_of(experiment, again) == sha256_of(experiment, order)


def test_a_version_that_a_crash_took_and_a_worker_used_is_a_branch():
    order = order_of(hand_made())
    assert order.version.tolist() == [0, 1, 2, 2, 3]
    assert order.parent.tolist() == [-1, 0, 1, 1, 3]
    # Updates in order of their pushes: a0 a1 b0 a2 b1 c0 c1 a3 c2.
    members = [order.members_of(node).tolist() for node in range(5)]
    assert members == [[], [1, 2], [3, 4], [3, 5], [6, 7]]
    takes = [(worker, kind, node) for _, kind, worker, node in acts(order, o.MERGE)]
    assert takes == [
        (w, o.MERGE, n) for w, n in [(1, 1), (0, 1), (0, 2), (0, 1), (0, 3)]
    ]
    assert [row[0] for row in acts(order, o.BEGIN)] == [0.1, 0.15, 4.3]
    assert [row[3] for row in acts(order, *SETTLED)] == [0, 8]
    assert order.reason == "version 3 reached"


def test_an_unused_version_that_a_crash_took_is_left_out():
    """So that lanes can execute it; worker 1 begins anew on the way."""
    events = without(At(trace.Merged, 3.6, 0))
    order, experiment = order_of(events), experiment_of(workers=2)
    assert order.version.tolist() == [0, 1, 2, 3]
    assert order.parent.tolist() == [-1, 0, 1, 2]
    serial = execute_serially(experiment, order)
    assert_close(serial, in_lanes(experiment, order, 1))


def test_a_trace_without_an_end_is_executed_as_far_as_it_goes():
    events = [event for event in hand_made() if event.time_s < 3.0]
    order = order_of(events)
    assert order.reason == "the trace ends"
    assert order.version.tolist() == [0, 1]
    assert order.end_s == 2.8
    assert len(order_of([]).kind) == 0


# ------------------------------------------------------------- incomplete


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (At(trace.Pushed, 1.4), "update 1 of worker 0 (session a)"),
        (At(trace.Pushed, 1.0), "update (0, 'a', 0)"),
        (At(trace.Aggregated, 2.0), "the making of version 1"),
        (At(trace.Aggregated, 3.2), "the making of version 2"),
        (At(trace.Adopted, 0.5), "worker 0"),
    ],
    ids=lambda value: getattr(value, "time_s", None) and f"at {value.time_s}",
)
def test_what_a_trace_lacks_is_named(lost, words):
    with pytest.raises(OrderError, match="the trace lacks ") as caught:
        order_of(without(lost))
    assert words in str(caught.value)


def test_a_version_that_only_the_next_version_needs_is_missed():
    """No worker takes in version 7; version 8 is made of it all the same."""
    experiment = experiment_of("fedavg")
    order = order_for(experiment)
    events = events_for(experiment, order, execute_serially(experiment, order))
    taken = (trace.Adopted, trace.Merged)
    events = [
        event
        for event in events
        if not (isinstance(event, (*taken, trace.Aggregated)) and event.version == 7)
    ]
    with pytest.raises(OrderError, match="the making of version 7"):
        order_of(events)
