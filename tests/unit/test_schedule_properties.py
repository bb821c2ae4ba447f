"""Properties of random schedules."""

import math
from itertools import pairwise, zip_longest
from random import Random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asyn2f.sim import order as o
from asyn2f.sim.order import Order, cut, until
from asyn2f.sim.virtual_worker import Presence
from asyn2f.trace import causality
from tests.support.schedules import (
    EPS_S,
    Case,
    Link,
    absences,
    bases_of,
    events_in,
    fates_of,
    made_up,
    same,
    trace_of,
    upload_s,
)

cases = st.randoms(use_true_random=False).map(made_up)
fifty = hypothesis.settings(max_examples=50)


def check_order(case: Case, order: Order) -> None:
    """All properties below, of one schedule."""
    check_events(case, order)
    for worker in range(case.profiles.workers):
        check_worker(case, order, worker)
        check_absences(case, order, worker)
    check_updates(case, order)
    causality.check(trace_of(case, order))


def check_events(case: Case, order: Order) -> None:
    """In order of time, within the run, consecutive versions; receivers are live."""
    assert (np.diff(order.time_s) >= 0.0).all()
    assert order.time_s.max(initial=0.0) <= order.end_s
    if case.stop.max_time_s:
        assert order.end_s <= order.start_s + case.stop.max_time_s
    versions = list(range(len(order.version)))
    assert order.version.tolist() == versions
    assert order.parent.tolist() == [version - 1 for version in versions]
    made = events_in(order, o.AGGREGATE)
    assert [did.value for did in made] == versions[1:]
    live: set[int] = set()
    for did in events_in(order, o.BEGIN, o.RETURN, o.LEAVE, o.AGGREGATE):
        if did.kind == o.AGGREGATE:
            assert order.receivers[did.value] == len(live)
        else:
            assert (did.worker in live) == (did.kind == o.LEAVE)
            live ^= {did.worker}


def check_worker(case: Case, order: Order, worker: int) -> None:
    """Steps take their time; versions are taken in as soon as they can be."""
    profiles, timing = case.profiles, case.timing
    merges, cycle = timing.while_training == "merge", case.cycles[worker]
    slot = -1
    if timing.while_training == "merge_once":
        slot = max(1, round(cycle * timing.merge_slot)) % cycle
    link = Link(case, order, worker)
    if not link.is_certain:
        return
    presence = Presence(profiles, worker, case.seed)
    kinds = o.ADOPT, o.MERGE, o.TRAIN, o.PUSH, o.WAITED
    acts = events_in(order, *kinds, worker=worker)
    now = max(float(profiles.join_s[worker]), order.start_s)
    base, step, pushed = -1, 0, 0
    for did, following in zip_longest(acts, acts[1:]):
        if did.kind == o.TRAIN:
            worked_s = presence.worked(now, did.time_s)
            if not profiles.jitter[worker]:
                assert worked_s == pytest.approx(did.value * profiles.step_s[worker])
            assert 1 <= did.value <= cycle - step % cycle
            step += did.value
            # Of no boundary but the last can it be said that a version was there.
            before_s = worked_s * (did.value - 1) / did.value
            boundary_s = presence.after(now, before_s - EPS_S)
            if merges and did.value > 1:
                assert link.newest(boundary_s - EPS_S) <= base
            if step % cycle and step % cycle != slot:  # interrupted by a version
                assert merges
                assert following is None or following.kind in (o.ADOPT, o.MERGE)
        elif did.kind == o.PUSH:
            assert step > pushed
            assert step % cycle == 0
            assert case.signal_of or step == pushed + cycle
            assert not merges or link.newest(did.time_s - EPS_S) <= base
            pushed = step
        elif did.kind == o.WAITED:
            assert timing.after_push == "wait"
            assert link.newest(did.time_s - EPS_S) <= base
            assert following is not None
            assert following.kind == o.ADOPT
        else:
            assert merges or did.kind == o.ADOPT or step % cycle == slot
            is_again = did.kind == o.ADOPT and timing.after_push == "adopt"
            assert base < did.value + is_again
            assert did.value in link.carried
            assert link.newest(did.time_s - EPS_S) <= did.value
            assert did.value <= link.newest(did.time_s + EPS_S)
            base = did.value
        if did.kind not in (o.TRAIN, o.WAITED) and base >= 0 and did is not acts[0]:
            assert did.time_s == now
        now = did.time_s
    if not acts and order.end_s <= profiles.leave_s[worker]:
        assert link.newest(order.end_s - EPS_S) <= base


def check_absences(case: Case, order: Order, worker: int) -> None:
    """The server loses sight of a worker and sees it again when it must."""
    found = events_in(order, o.LEAVE, o.RETURN, worker=worker)
    expected = absences(case, worker, order.end_s)
    due = sum(time_s < order.end_s - EPS_S for time_s, _ in expected)
    assert due <= len(found) <= len(expected)
    for did, (time_s, kind) in zip(found, expected, strict=False):
        assert did.kind == kind
        assert did.time_s == pytest.approx(time_s, abs=EPS_S)


def check_updates(case: Case, order: Order) -> None:
    """Each push has one fate, or none yet; and each fate comes when it is due."""
    pushes = events_in(order, o.PUSH)
    assert [did.value for did in pushes] == list(range(order.num_updates))
    fates, arrivals_s = fates_of(order), []
    assert set(fates.values()) <= {1}
    for did in pushes:
        presence = Presence(case.profiles, did.worker, case.seed)
        arrivals_s.append(presence.after(did.time_s, upload_s(case, did.worker)))
    leave_s = case.profiles.leave_s.tolist()
    lost = [d.value for d in pushes if arrivals_s[d.value] > leave_s[d.worker]]
    assert [did.value for did in events_in(order, o.LOSE)] == lost
    for did in events_in(order, o.SUPERSEDE, o.REJECT):
        assert arrivals_s[did.value] <= did.time_s + EPS_S
    limit, bases = case.timing.max_staleness, bases_of(order)
    quorum = case.timing.quorum
    replaces = quorum == "all" or (quorum == "some" and case.timing.pending == "newest")
    for made in events_in(order, o.AGGREGATE):
        members = order.members_of(made.value).tolist()
        arrived_s = [arrivals_s[update] for update in members]
        assert arrived_s == sorted(arrived_s)
        assert arrived_s[-1] + case.aggregate_s <= made.time_s + EPS_S
        workers = {pushes[update].worker for update in members}
        assert 1 <= len(members) <= case.timing.most_updates(case.profiles.workers)
        assert len(workers) == len(members) or not replaces
        oldest = min(bases[update] for update in members)
        assert limit is None or made.value - 1 - oldest <= limit
    if not case.aggregate_s and replaces:
        there = [
            did.worker
            for did in pushes
            if not fates[did.value] and arrivals_s[did.value] < order.end_s - EPS_S
        ]
        assert len(there) == len(set(there)), "more than one pending update"


@fifty
@hypothesis.given(cases)
def test_any_schedule_can_have_happened(case):
    check_order(case, case.order())


@pytest.mark.parametrize(
    "seeds",
    [range(3000), pytest.param(range(3000, 10_000), marks=pytest.mark.slow)],
    ids=str,
)
def test_thousands_of_schedules_can_have_happened(seeds):
    for seed in seeds:
        case = made_up(Random(seed))
        try:
            check_order(case, case.order())
        except Exception as error:
            error.add_note(f"made_up(Random({seed})) = {case}")
            raise


@fifty
@hypothesis.given(cases)
def test_the_same_arguments_give_the_same_schedule(case):
    assert same(case.order(), case.order())


@fifty
@hypothesis.given(cases)
def test_a_longer_run_begins_like_a_shorter_one(case):
    order = case.order()
    longer = case.stop.max_time_s * 1.5
    more = case.order(stop=case.stop.__class__(max_time_s=longer))
    for name in ("time_s", "kind", "worker", "value", "version", "members"):
        shorter = getattr(order, name)
        assert np.array_equal(getattr(more, name)[: len(shorter)], shorter)


@fifty
@hypothesis.given(cases, st.floats(0.0, 1.0))
def test_a_cut_order_is_that_of_a_shorter_run(case, share):
    order = case.order()
    max_time_s = case.stop.max_time_s * share + EPS_S
    hypothesis.assume(order.start_s + max_time_s < order.end_s)
    shorter = case.order(stop=case.stop.__class__(max_time_s=max_time_s))
    assert same(
        cut(order, until(order, shorter.end_s), shorter.reason, shorter.end_s), shorter
    )


@fifty
@hypothesis.given(cases)
def test_a_trace_of_a_schedule_is_in_order_of_time(case):
    times_s = [event.time_s for event in trace_of(case, case.order())]
    assert all(before <= after for before, after in pairwise(times_s))


@fifty
@hypothesis.given(cases)
def test_the_steps_of_all_workers_are_the_steps_of_their_stretches(case):
    order = case.order()
    total = math.fsum(did.value for did in events_in(order, o.TRAIN))
    assert order.num_steps == total
