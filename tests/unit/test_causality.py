"""What cannot have happened is found, and what can is let pass."""

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f import trace
from asyn2f.store.base import MemoryStore
from asyn2f.trace import Adopted, Aggregated, Merged, Published, Pushed, UpdateSettled
from asyn2f.trace.causality import CausalityError, check
from asyn2f.trace.history import surviving
from tests.contracts.test_runtime import SETTINGS, LocalRun, small
from tests.support.handmade_trace import hand_made, having, random_trace
from tests.support.invalid_traces import BROKEN, MADE_1, MADE_2, MADE_2_AGAIN
from tests.support.updates import update_info


def test_a_trace_of_what_can_happen_passes():
    check(hand_made())


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_happen_is_found_and_both_events_are_named(name):
    events, cause, effect, words = BROKEN[name]
    with pytest.raises(CausalityError) as caught:
        check(events)
    error = caught.value
    assert words in str(error)
    assert error.effect == effect.of(events)
    assert error.cause == (cause.of(events) if cause else None)
    for event in (error.cause, error.effect):
        if event is not None:
            assert type(event).__name__ in str(error)
            assert f"{event.time_s:.6f} s" in str(error)


def test_a_negative_staleness_is_found():
    # Worker 0 pushes what it has made on the lost version 2; version 2 is made of it.
    push = Pushed(4.42, 0, "a", 3, update_info(2, 1, 12))
    events = [event for event in having(push) if event.time_s < 5.25]
    old = MADE_2_AGAIN.of(events)
    keys, bases = [[0, "a", 3], [1, "c", 0]], [2, 1]
    new = old._replace(updates=keys, base_versions=bases, staleness=[-1, 0])
    with pytest.raises(CausalityError, match="staleness") as caught:
        check(new if event is old else event for event in events)
    assert (caught.value.cause, caught.value.effect) == (push, new)


# ------------------------------------------------------------- what is allowed


def test_a_lost_versions_update_may_be_used_again():
    keys = [MADE_2.of(hand_made()).updates, MADE_2_AGAIN.of(hand_made()).updates]
    assert [0, "a", 2] in keys[0]
    assert [0, "a", 2] in keys[1]
    check(hand_made())


def test_a_refusal_dies_with_its_server():
    check(having(UpdateSettled(3.9, 0, "a", 2, "rejected", -1, "could not be saved")))


def test_a_worker_may_withdraw_what_the_server_has_committed():
    check(
        having(UpdateSettled(6.75, 0, "a", 3, "withdrawn", -1, "its worker has ended"))
    )


def test_a_last_version_that_could_not_be_saved_is_given_up_with_its_updates():
    events = [
        event._replace(outcome="rejected", version=-1)
        if isinstance(event, UpdateSettled) and event.version == 3
        else event
        for event in hand_made()
    ]
    check(events)
    assert [event.version for event in surviving(events)] == [1, 2]


def test_a_trace_may_begin_with_a_resume():
    later = [event for event in hand_made() if 4.0 <= event.time_s < 5.1]
    check(event for event in later if getattr(event, "worker", 1) == 1)


def test_in_a_simulated_run_all_begin_with_one_event():
    heads = (trace.ProcessStarted,)
    first = [e for e in hand_made() if e.time_s < 3.0 and not isinstance(e, heads)]
    simulation = trace.ProcessStarted(0.0, "simulation", "run-1", 1, {})
    check([simulation, *first])
    broken = [e for e in first if e != MADE_1.of(first)]
    with pytest.raises(CausalityError):
        check([simulation, *broken])


def test_every_beginning_of_a_trace_passes():
    events = hand_made()
    for length in range(len(events)):
        check(events[:length])


def test_surviving_leaves_out_what_a_crash_has_taken():
    nodes = [(event.incarnation, event.version) for event in surviving(hand_made())]
    assert nodes == [(1, 1), (2, 2), (2, 3)]


def test_surviving_ends_where_the_newest_incarnation_stands():
    until = [event for event in hand_made() if event.time_s < 5.2]
    assert [e.version for e in surviving(until)] == [1]
    before = [event for event in hand_made() if event.time_s < 4.0]
    assert [e.version for e in surviving(before)] == [1, 2]


def test_a_server_that_begins_with_version_0_has_lost_all():
    again = [trace.ProcessStarted(7.0, "server", "", 3, {}), Published(7.1, 0, 400, 0)]
    assert surviving(having(*again)) == []


# ------------------------------------------------------------- of any length

seeds = st.integers(0, 2**32)


@given(seeds, st.integers(1, 600), st.sampled_from([0.0, 0.01, 0.05]))
def test_whatever_can_happen_passes(seed, length, crashes):
    events = random_trace(seed, length, crashes=crashes)
    check(events)
    check(events[: length // 2])


@given(seeds)
def test_the_surviving_versions_are_consecutive_and_their_incarnations_ascend(seed):
    chain = surviving(random_trace(seed, 500, crashes=0.03))
    assert [event.version for event in chain] == list(range(1, len(chain) + 1))
    incarnations = [event.incarnation for event in chain]
    assert incarnations == sorted(incarnations)
    keys = [tuple(key) for event in chain for key in event.updates]
    assert len(keys) == len(set(keys))


@given(seeds, st.data())
def test_no_version_can_be_taken_in_before_it_is_made(seed, data):
    events = random_trace(seed, 300)
    taken = [e for e in events if isinstance(e, Adopted | Merged)]
    made = [e for e in events if isinstance(e, Aggregated)]
    early = data.draw(st.sampled_from(taken))
    late = [e for e in made if e.time_s > early.time_s]
    if late:
        node = data.draw(st.sampled_from(late))
        wrong = early._replace(version=node.version, incarnation=node.incarnation)
        with pytest.raises(CausalityError) as caught:
            check(wrong if event is early else event for event in events)
        assert caught.value.effect == wrong


@given(seeds, st.data())
def test_no_used_update_can_do_without_its_push(seed, data):
    events = random_trace(seed, 300)
    used = [key for e in events if isinstance(e, Aggregated) for key in e.updates]
    if used:
        key = data.draw(st.sampled_from(used))
        with pytest.raises(CausalityError):
            check(
                event
                for event in events
                if not isinstance(event, Pushed)
                or [event.worker, event.session, event.seq] != key
            )


# ------------------------------------------------------------- real runs


class RecordedRun(LocalRun):
    """A run whose traces have their heads."""

    def __init__(self, life: int, *args: Any, **kwargs: Any) -> None:
        self._life = life
        super().__init__(*args, **kwargs)

    def _journal(self, name: str):
        journal = super()._journal(name)
        head = trace.ProcessStarted(time.monotonic(), name, "run-1", self._life, {})
        journal.write(head)
        return journal


@pytest.mark.parametrize("announce", ["after_save", "before_save"])
def test_a_recorded_run_that_is_resumed_passes(tmp_path, announce):
    store = MemoryStore()
    for life, versions in [(1, 4), (2, 8)]:
        made = small(stop__max_versions=versions)
        settings = replace(SETTINGS, publish=announce)
        run = RecordedRun(life, tmp_path, made, settings=settings, store=store)
        for number in range(3):
            run.start_worker(number)
        run.finish()
    events = trace.read(tmp_path / "trace")
    check(events)
    chain = surviving(events)
    assert [event.version for event in chain] == list(range(1, 9))
    assert [event.incarnation for event in chain] == [1] * 4 + [2] * 4


def test_a_recorded_run_of_rounds_passes(tmp_path):
    made = small(strategy__name="fedavg", stop__max_versions=3)
    run = RecordedRun(1, tmp_path, made)
    for number in range(3):
        run.start_worker(number)
    run.finish()
    assert run.events(trace.Blocked)
    check(trace.read(tmp_path / "trace"))
