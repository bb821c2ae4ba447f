"""Plans: every step once and in order, and every slot read holds the right model.

The plan is executed here on names instead of models.
"""

from random import Random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asyn2f.errors import PlanError
from asyn2f.sim import order as o
from asyn2f.sim.executors.plan import Plan
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.stretches import ADOPT, KEEP, MERGE, START
from asyn2f.sim.order import Order
from asyn2f.sim.profiles import draw_profiles
from asyn2f.sim.schedule import schedule
from asyn2f.sim.settings import SimSettings
from asyn2f.timing import Stop
from tests.support.schedules import events_in, made_up, run
from tests.unit.test_programs import adopting, asynchronous, synchronous

cases = st.randoms(use_true_random=False).map(made_up)


def wanted(order: Order, forgets: bool = False) -> dict[int, list[tuple]]:
    """What each worker has to do, with the events of the order that say so. `forgets`:
    nothing of it outlives an adoption after a push."""
    todo: dict[int, list[tuple]] = {}
    begun = set()
    for event, did in enumerate(events_in(order)):
        mine = todo.setdefault(did.worker, [])
        if did.kind == o.BEGIN:
            begun.add(did.worker)
        elif did.kind in (o.ADOPT, o.MERGE):
            take = MERGE if did.kind == o.MERGE else ADOPT
            is_anew = forgets and take == ADOPT and mine and mine[-1][0] == "push"
            take = START if did.worker in begun or is_anew else take
            begun.discard(did.worker)
            mine.append((take, did.value, event))
        elif did.kind == o.TRAIN:
            mine.append(("train", did.value, event))
        elif did.kind == o.PUSH:
            mine.append(("push", did.value, event))
    return {worker: mine for worker, mine in todo.items() if mine}


def done(order: Order, planned: Plan) -> dict[int, list[tuple]]:
    """What each worker does, if the plan is executed; checks what is in the slots."""
    did: dict[int, list[tuple]] = {}
    steps: dict[int, int] = {}  # of each worker
    stretch: dict[int, int] = {}  # steps in the stretch that is not over
    owner: dict[tuple[int, int], int] = {}  # of each row, by device
    versions = {0: 0}  # by slot
    updates: dict[tuple[int, int], int] = {}  # by device and slot
    pushed = {event: did.value for event, did in enumerate(events_in(order))}
    _, devices, lanes = planned.row.shape
    for wave, length in enumerate(planned.steps.tolist()):
        riders = {}
        for device in range(devices):
            for lane in range(lanes):
                at = wave, device, lane
                if planned.row[at] >= 0:
                    riders[at] = int(planned.worker[at])
                    assert riders[at] % devices == device
        assert riders or planned.watched
        assert len(set(riders.values())) == len(riders), "a worker rides twice"
        for at, worker in riders.items():
            mine = did.setdefault(worker, [])
            take = int(planned.take[at])
            row = at[1], int(planned.row[at])
            if take == START:
                owner[row] = worker
            assert owner[row] == worker, "its state has been replaced"
            assert row[1] < planned.rows
            if take != KEEP:
                assert not stretch.get(worker), "taken in, in mid-stretch"
                assert 0 <= planned.slot[at] < planned.version_slots
                node = versions[int(planned.slot[at])]
                mine.append((take, node, int(planned.merge_event[at])))
            assert planned.first[at] == steps.get(worker, 0)
            steps[worker] = steps.get(worker, 0) + length
            stretch[worker] = stretch.get(worker, 0) + length
            if planned.train_event[at] >= 0:
                ridden = stretch.pop(worker)
                mine.append(("train", ridden, int(planned.train_event[at])))
            if (event := int(planned.push_event[at])) >= 0:
                assert not stretch.get(worker), "pushed in mid-stretch"
                mine.append(("push", pushed[event], event))
                if (slot := int(planned.push_slot[at])) >= 0:
                    assert slot < planned.update_slots
                    updates[at[1], slot] = pushed[event]
        for made in range(*planned.made_starts[wave : wave + 2].tolist()):
            node = int(planned.made_node[made])
            assert node == made + 1
            span = slice(*order.member_starts[node : node + 2].tolist())
            places = zip(
                planned.member_device[span].tolist(),
                planned.member_slot[span].tolist(),
                strict=True,
            )
            assert [updates[place] for place in places] == order.members_of(
                node
            ).tolist()
            assert len(order.members_of(node)) <= planned.max_members
            if (slot := int(planned.made_slot[made])) >= 0:
                assert slot < planned.version_slots
                versions[slot] = node
    assert not any(stretch.values()), "a stretch is not over"
    assert len(planned.made_node) == len(order.version) - 1
    return did


def check_plan(order: Order, devices: int, lanes: int, max_steps: int) -> None:
    planned = plan(order, devices, lanes, max_steps)
    assert planned.steps.max(initial=0) <= max_steps
    assert planned.row.shape == (len(planned.steps), devices, lanes)
    assert done(order, planned) == wanted(order)
    for name, kinds in [
        ("merge_event", (o.ADOPT, o.MERGE)),
        ("train_event", (o.TRAIN,)),
        ("push_event", (o.PUSH,)),
    ]:
        events = getattr(planned, name)
        due = np.flatnonzero(np.isin(order.kind, kinds))
        assert np.array_equal(np.sort(events[events >= 0]), due)
    idle = planned.row < 0
    assert (planned.slot[planned.take == KEEP] == -1).all()
    for name in ("merge_event", "train_event", "push_event", "push_slot"):
        assert (getattr(planned, name)[idle] == -1).all()
    assert 0.0 <= planned.fill <= 1.0


@hypothesis.given(cases, st.integers(1, 3), st.integers(1, 4))
def test_a_state_that_nothing_outlives_is_not_kept(case, devices, lanes):
    order = case.order()
    workers = int(order.worker.max(initial=0)) + 1
    planned = plan(order, devices, lanes, epochs=[1] * workers)
    assert done(order, planned) == wanted(order, forgets=True)
    assert planned.rows <= plan(order, devices, lanes).rows


@hypothesis.given(
    cases, st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 2, 3, 64])
)
def test_a_plan_does_what_the_order_says(case, devices, lanes, max_steps):
    check_plan(case.order(), devices, lanes, max_steps)


def test_five_hundred_plans_do_what_their_orders_say():
    for seed in range(500):
        random = Random(f"plans {seed}")
        order = made_up(random).order()
        shape = random.randint(1, 3), random.randint(1, 4), random.choice([1, 3, 64])
        try:
            check_plan(order, *shape)
        except Exception as error:
            error.add_note(f"Random('plans {seed}'), devices, lanes, steps = {shape}")
            raise


def steps_before(order: Order, planned: Plan, node: int) -> tuple[dict, dict]:
    """The local steps of each worker as a node is made: in the order, and planned."""
    (event,) = np.flatnonzero((order.kind == o.AGGREGATE) & (order.value == node))
    ordered, done = {}, {}
    for did in events_in(order)[:event]:
        if did.kind == o.TRAIN:
            ordered[did.worker] = ordered.get(did.worker, 0) + did.value
    wave = int(np.searchsorted(planned.made_starts, node - 1, side="right")) - 1
    for number, device, lane in np.argwhere(planned.row[: wave + 1] >= 0).tolist():
        worker = int(planned.worker[number, device, lane])
        done[worker] = done.get(worker, 0) + int(planned.steps[number])
    return ordered, {worker: steps for worker, steps in done.items() if steps}


def test_where_workers_keep_something_all_are_as_in_the_order_at_watched_nodes():
    for seed in range(200):
        random = Random(f"barriers {seed}")
        order = made_up(random).order()
        nodes = range(1, len(order.version))
        watched = {node for node in nodes if random.random() < 0.3}
        shape = random.randint(1, 3), random.randint(1, 4), random.choice([1, 3, 64])
        planned = plan(order, *shape, watched=watched, keeps=True)
        assert done(order, planned) == wanted(order)
        for node in watched:
            ordered, found = steps_before(order, planned, node)
            assert ordered == found, (seed, node)


def test_a_plan_worked_out_by_hand():
    # As in the first test of test_schedule: version 1 is made of worker 0's first 2
    # steps; worker 1 has done 1 step when it merges it. So two lanes need waves of 1
    # (both start), 1 (worker 0 alone), 1 (both merge), 1 (worker 0 alone).
    rows = [{"step_s": 1.0}, {"step_s": 2.5}]
    order = run(asynchronous(), rows, steps=2, max_versions=2)
    planned = plan(order, devices=1, lanes=2)
    assert planned.steps.sum() >= 4
    assert done(order, planned)[1] == [(START, 0, 3), ("train", 1, 7), (MERGE, 1, 8)]
    assert (planned.max_members, planned.update_slots) == (1, 1)


def test_an_order_without_training_has_no_waves():
    order = run(adopting(min_workers=2), [{}], steps=1, max_time_s=1.0)
    planned = plan(order, devices=1, lanes=2)
    assert len(planned.steps) == len(planned.made_node) == 0
    assert 0.0 <= planned.fill <= 1.0


# ------------------------------------------------------------- what it costs


@pytest.fixture(scope="module")
def large():
    """1,000 workers, the slowest four times as slow as the fastest, with merges."""
    settings = SimSettings(step_s=(0.01,), step_spread=4.0)
    profiles = draw_profiles(1000, np.random.default_rng(0), settings)
    timing = asynchronous(min_updates=100, min_workers=1000)
    steps = np.random.default_rng(1).integers(20, 60, 1000).tolist()
    stop = Stop(max_versions=60)
    return schedule(timing, profiles, stop, seed=0, steps_per_epoch=steps)


@pytest.mark.parametrize("lanes", [16, 63])
def test_lanes_are_seldom_idle(large, lanes):
    assert plan(large, devices=1, lanes=lanes).fill >= 0.9


def test_few_versions_are_held_at_a_time(large):
    planned = plan(large, devices=1, lanes=63)
    assert planned.version_slots <= 10
    assert planned.update_slots <= 1000


def test_synchronous_rounds_need_two_versions_at_most():
    rows = [{"step_s": 0.1 * (1 + k)} for k in range(10)]
    order = run(synchronous(min_workers=10), rows, steps=3, max_versions=9)
    planned = plan(order, devices=1, lanes=4)
    assert planned.version_slots <= 2
    assert planned.update_slots == 10


# ------------------------------------------------------------- what cannot be planned


def three_versions() -> Order:
    return run(adopting(), [{"step_s": 1.0}] * 2, steps=1, max_versions=3)


def test_a_forked_history_is_refused():
    order = three_versions()
    forked = order._replace(parent=np.array([-1, 0, 1, 1], np.int32))
    with pytest.raises(PlanError, match="history forks; only --executor=serial"):
        plan(forked, devices=1, lanes=2)


def test_a_version_made_of_what_comes_of_it_is_refused():
    # Version 1 is made of update 0, whose worker would begin with version 1.
    order = run(adopting(), [{"step_s": 1.0}], steps=1, max_versions=2)
    value = order.value.copy()
    value[np.flatnonzero(order.kind == o.ADOPT)[0]] = 1
    with pytest.raises(PlanError, match="version 1 is made of later updates"):
        plan(order._replace(value=value), devices=1, lanes=2)


def test_a_version_made_of_what_is_never_pushed_is_refused():
    order = three_versions()
    keep = ~((order.kind == o.PUSH) & (order.value == order.members[0]))
    columns = {
        name: getattr(order, name)[keep]
        for name in ("time_s", "kind", "worker", "value")
    }
    with pytest.raises(PlanError, match="not causal: version 1"):
        plan(order._replace(**columns), devices=1, lanes=2)


def test_a_version_that_is_never_made_is_refused():
    order = three_versions()
    value = order.value.copy()
    value[np.flatnonzero(order.kind == o.ADOPT)[-1]] = 7
    with pytest.raises(PlanError, match="not causal: node 7 is never made"):
        plan(order._replace(value=value), devices=1, lanes=2)
