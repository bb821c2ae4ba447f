"""What cannot have happened is found, and what can is let pass."""

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f import trace
from asyn2f.causality import CausalityError, check
from asyn2f.lineage import surviving
from asyn2f.runtime.store import MemoryStore
from tests.hand_made_trace import hand_made, random_trace
from tests.test_runtime import SETTINGS, LocalRun, small

Adopted, Trained, Merged, Pushed = (
    trace.Adopted,
    trace.Trained,
    trace.Merged,
    trace.Pushed,
)
Aggregated, Settled, Published = trace.Aggregated, trace.Settled, trace.Published


class At(NamedTuple):
    """The event of this kind at this time, of this worker if there are several."""

    kind: type
    time_s: float
    worker: int | None = None

    def of(self, events: list[Any]) -> Any:
        (found,) = (
            event
            for event in events
            if type(event) is self.kind
            and event.time_s == self.time_s
            and self.worker in (None, getattr(event, "worker", None))
        )
        return found


def by_time(events):
    return sorted(events, key=lambda event: event.time_s)


def changed(where: At, **fields: Any) -> list[Any]:
    """The hand-made trace with another event in place of that one."""
    events = hand_made()
    old = where.of(events)
    return by_time(old._replace(**fields) if e is old else e for e in events)


def without(where: At) -> list[Any]:
    events = hand_made()
    old = where.of(events)
    return [event for event in events if event is not old]


def having(*more: Any) -> list[Any]:
    return by_time([*hand_made(), *more])


class Broken(NamedTuple):
    """A trace, the events that cannot both be true, and words of the rule."""

    events: list[Any]
    cause: At | None
    effect: At
    words: str


RESUMED = At(trace.Resumed, 4.1)
MADE_1, MADE_2, MADE_2_AGAIN, MADE_3 = (At(Aggregated, t) for t in (2.0, 3.2, 5.2, 6.1))
TWICE = [[0, "a", 1], [0, "a", 1]]
USED_BY_1 = {"updates": [[0, "a", 1], [1, "c", 0]], "base_versions": [0, 1]}
USED_BY_2 = {"updates": [[1, "c", 0], [0, "a", 3]]}
NEW_LIFE = trace.Recorded(2.45, "worker-0", "", 0, {})
BACK = Merged(5.95, 0, 1, 2, 16, 0.0, 0.3, incarnation=2)
WRONG_BASE = {"base_versions": [0, 2], "staleness": [2, 0]}

BROKEN = {
    # a: no version before it is made
    "a version that nobody made is adopted": Broken(
        changed(At(Adopted, 6.4), version=9), None, At(Adopted, 6.4), "no server gave"
    ),
    "a version is merged that only another incarnation made": Broken(
        changed(At(Merged, 4.5), version=3, incarnation=1),
        None,
        At(Merged, 4.5),
        "no server gave",
    ),
    "a version is merged before an incarnation gave it out again": Broken(
        changed(At(Merged, 2.5), incarnation=2),
        At(Published, 4.2),
        At(Merged, 2.5),
        "before it was given out",
    ),
    "a version is merged before it is published": Broken(
        changed(At(Published, 2.2), time_s=2.45),
        At(Published, 2.45),
        At(Merged, 2.4),
        "before it was given out",
    ),
    "version 0 is adopted before it is published": Broken(
        changed(At(Adopted, 0.5), time_s=0.35),
        At(Published, 0.4),
        At(Adopted, 0.35),
        "before it was given out",
    ),
    "a version is published before it is made": Broken(
        changed(At(Published, 2.2), time_s=1.9),
        MADE_1,
        At(Published, 1.9),
        "does not have yet",
    ),
    "a version is published that nobody made": Broken(
        changed(At(Published, 5.4), version=7),
        None,
        At(Published, 5.4),
        "does not have yet",
    ),
    "a server resumes from a version that nobody made": Broken(
        changed(RESUMED, version=7), MADE_2, RESUMED, "never made"
    ),
    "a server resumes from a version of its own": Broken(
        changed(RESUMED, made_in=2), At(trace.Recorded, 4.0), RESUMED, "never made"
    ),
    "a server resumes from a version before it is made": Broken(
        changed(RESUMED, time_s=1.3), MADE_1, At(trace.Resumed, 1.3), "before it was"
    ),
    # b: updates are pushed, and used once
    "an update is used that nobody pushed": Broken(
        without(At(Pushed, 1.4)), None, MADE_1, "was never pushed"
    ),
    "an update is used before it is pushed": Broken(
        changed(MADE_1, time_s=1.55),
        At(Pushed, 1.6),
        At(Aggregated, 1.55),
        "before it was pushed",
    ),
    "an update stands twice in a version": Broken(
        changed(MADE_1, updates=TWICE), MADE_1, MADE_1, "used twice"
    ),
    "an update stands in two versions of an incarnation": Broken(
        changed(MADE_3, **USED_BY_2), MADE_2_AGAIN, MADE_3, "used twice"
    ),
    "an update stands in the versions of two incarnations": Broken(
        changed(MADE_2_AGAIN, staleness=[1, 0], **USED_BY_1),
        MADE_1,
        MADE_2_AGAIN,
        "used twice",
    ),
    # c: versions are consecutive
    "the first version is not 1": Broken(
        changed(MADE_1, version=2),
        At(trace.Recorded, 0.0),
        MADE_1,
        "version 1 follows",
    ),
    "a version is left out": Broken(
        changed(MADE_3, version=4), MADE_2_AGAIN, MADE_3, "version 3 follows"
    ),
    "a version is made twice by one incarnation": Broken(
        changed(MADE_2, version=1), MADE_1, MADE_2, "version 2 follows"
    ),
    "an incarnation does not begin where it resumed": Broken(
        changed(MADE_2_AGAIN, version=3), RESUMED, MADE_2_AGAIN, "version 2 follows"
    ),
    # d: a worker's life
    "a worker trains before it has a model": Broken(
        without(At(Adopted, 0.5)),
        At(trace.Recorded, 0.1),
        At(Trained, 1.0),
        "begins by adopting",
    ),
    "a worker that begins anew has lost its model": Broken(
        having(NEW_LIFE),
        At(trace.Recorded, 2.45),
        At(Merged, 2.5),
        "begins by adopting",
    ),
    "a stretch has no step": Broken(
        changed(At(Trained, 1.0), steps=0), None, At(Trained, 1.0), "one step at least"
    ),
    "a stretch ends at a step it cannot reach": Broken(
        changed(At(Trained, 1.4), step=5),
        At(Pushed, 1.0),
        At(Trained, 1.4),
        "counted on, from 2",
    ),
    "a worker adopts at another step": Broken(
        changed(At(Adopted, 6.4), step=3),
        At(trace.Waited, 6.0),
        At(Adopted, 6.4),
        "has done 4 steps",
    ),
    "a worker merges at another step": Broken(
        changed(At(Merged, 2.4), step=2),
        At(Trained, 2.3),
        At(Merged, 2.4),
        "has done 3 steps",
    ),
    "a worker pushes at another step": Broken(
        changed(At(Pushed, 1.4), step=2),
        At(Trained, 1.4),
        At(Pushed, 1.4),
        "has done 4 steps",
    ),
    "a worker trains on another base": Broken(
        changed(At(Trained, 3.5), base_version=0),
        At(Merged, 2.5),
        At(Trained, 3.5),
        "base is version 1",
    ),
    "a worker pushes with another base": Broken(
        changed(At(Pushed, 2.8), base_version=0),
        At(Merged, 2.5),
        At(Pushed, 2.8),
        "base is version 1",
    ),
    "a worker merges into another base": Broken(
        changed(At(Merged, 2.5), from_version=1),
        At(Adopted, 0.5),
        At(Merged, 2.5),
        "base is version 0",
    ),
    "a worker's cycle began with another version": Broken(
        changed(At(Pushed, 2.8), start_version=1),
        At(Pushed, 1.4),
        At(Pushed, 2.8),
        "began with version 0",
    ),
    "a number is given to two updates": Broken(
        changed(At(Pushed, 1.4), seq=0),
        At(Pushed, 1.0),
        At(Pushed, 1.4),
        "numbered upwards",
    ),
    "a stretch ends before it begins": Broken(
        changed(At(Trained, 1.0), start_s=1.2),
        None,
        At(Trained, 1.0),
        "ends before it begins",
    ),
    "a stretch begins before the event before it": Broken(
        changed(At(Trained, 1.4), start_s=0.9),
        At(Pushed, 1.0),
        At(Trained, 1.4),
        "one thing after the other",
    ),
    "a wait begins before the event before it": Broken(
        changed(At(trace.Waited, 6.0), start_s=5.7),
        At(Pushed, 5.8),
        At(trace.Waited, 6.0),
        "one thing after the other",
    ),
    # e: what a version says of its updates
    "a version says another base than the push": Broken(
        changed(MADE_3, **WRONG_BASE), At(Pushed, 5.8), MADE_3, "has base version 1"
    ),
    "a staleness is not what the base says": Broken(
        changed(MADE_3, staleness=[0, 0]), At(Pushed, 5.8), MADE_3, "the staleness of"
    ),
    "the lists are not parallel": Broken(
        changed(MADE_3, staleness=[1]), None, MADE_3, "in parallel"
    ),
    "coefficients sum to more than 1": Broken(
        changed(MADE_3, coefficients=[0.6, 0.6]), None, MADE_3, "sum to 1"
    ),
    "a coefficient is negative": Broken(
        changed(MADE_3, coefficients=[1.5, -0.5]), None, MADE_3, ">= 0"
    ),
    "a coefficient is no number": Broken(
        changed(MADE_3, coefficients=[1.0, math.nan]), None, MADE_3, "sum to 1"
    ),
    "a version is made of nothing": Broken(
        changed(MADE_3, updates=[], base_versions=[], staleness=[], coefficients=[]),
        None,
        MADE_3,
        "sum to 1",
    ),
    # f: newest wins
    "a worker goes back to an older version": Broken(
        having(BACK), At(Merged, 5.6), At(Merged, 5.95), "goes back"
    ),
    "a worker goes back to an older incarnation": Broken(
        changed(At(Merged, 5.6), incarnation=1),
        At(Merged, 4.5),
        At(Merged, 5.6),
        "goes back",
    ),
    # g: verdicts
    "an update is committed in a version that does not hold it": Broken(
        changed(At(Settled, 2.1, 0), version=2),
        MADE_2,
        At(Settled, 2.1, 0),
        "does not hold it",
    ),
    "an update is committed in a version that nobody made": Broken(
        changed(At(Settled, 6.2, 0), version=9),
        None,
        At(Settled, 6.2, 0),
        "does not hold it",
    ),
    "an update is rejected that stands in a version": Broken(
        changed(At(Settled, 2.1, 0), verdict="rejected"),
        MADE_1,
        At(Settled, 2.1, 0),
        "is rejected that stands",
    ),
    "an update that was superseded is used": Broken(
        changed(At(Settled, 1.5), seq=1),
        At(Settled, 1.5),
        MADE_1,
        "was not to be used",
    ),
}


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
    push = Pushed(4.42, 0, "a", 3, 2, 1, 12, 30.0, 0.5, 1.0, 0.9)
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
    check(having(Settled(3.9, 0, "a", 2, "rejected", -1, "could not be saved")))


def test_a_worker_may_withdraw_what_the_server_has_committed():
    check(having(Settled(6.75, 0, "a", 3, "withdrawn", -1, "its worker has ended")))


def test_a_last_version_that_could_not_be_saved_is_given_up_with_its_updates():
    events = [
        event._replace(verdict="rejected", version=-1)
        if isinstance(event, Settled) and event.version == 3
        else event
        for event in hand_made()
    ]
    check(events)
    assert [event.version for event in surviving(events)] == [1, 2]


def test_a_trace_may_begin_with_a_resume():
    later = [event for event in hand_made() if 4.0 <= event.time_s < 5.1]
    check(event for event in later if getattr(event, "worker", 1) == 1)


def test_in_a_simulated_run_all_begin_with_one_event():
    heads = (trace.Recorded,)
    first = [e for e in hand_made() if e.time_s < 3.0 and not isinstance(e, heads)]
    simulation = trace.Recorded(0.0, "simulation", "run-1", 1, {})
    check([simulation, *first])
    broken = [e for e in first if e != MADE_1.of(first)]
    with pytest.raises(CausalityError):
        check([simulation, *broken])


def test_every_beginning_of_a_trace_passes():
    events = hand_made()
    for length in range(len(events)):
        check(events[:length])


def is_of_worker_1(event):
    if isinstance(event, trace.Recorded):
        return event.actor == "worker-1"
    own = Adopted | Trained | Merged | Pushed | trace.Waited
    return isinstance(event, own) and event.worker == 1


def shifted(event, by_s):
    names = {"time_s", "start_s"} & {*event._fields}
    return event._replace(**{name: getattr(event, name) + by_s for name in names})


@pytest.mark.parametrize("by_s", [-0.5, 0.5])
def test_a_clock_that_is_off_is_found_unless_it_is_tolerated(by_s):
    events = by_time(
        shifted(event, by_s) if is_of_worker_1(event) else event
        for event in hand_made()
        if event.time_s < 4.0
    )
    with pytest.raises(CausalityError):
        check(events)
    check(events, tolerance_s=0.51)


def test_surviving_leaves_out_what_a_crash_has_taken():
    nodes = [(event.incarnation, event.version) for event in surviving(hand_made())]
    assert nodes == [(1, 1), (2, 2), (2, 3)]


def test_surviving_ends_where_the_newest_incarnation_stands():
    until = [event for event in hand_made() if event.time_s < 5.2]
    assert [e.version for e in surviving(until)] == [1]
    before = [event for event in hand_made() if event.time_s < 4.0]
    assert [e.version for e in surviving(before)] == [1, 2]


def test_a_server_that_begins_with_version_0_has_lost_all():
    again = [trace.Recorded(7.0, "server", "", 3, {}), Published(7.1, 0, 400, 0)]
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
        head = trace.Recorded(time.monotonic(), name, "run-1", self._life, {})
        journal.write(head)
        return journal


@pytest.mark.parametrize("announce", ["durable", "early"])
def test_a_recorded_run_that_is_resumed_passes(tmp_path, announce):
    store = MemoryStore()
    for life, versions in [(1, 4), (2, 8)]:
        made = small(stop__max_versions=versions)
        settings = replace(SETTINGS, announce=announce)
        run = RecordedRun(life, tmp_path, made, settings=settings, store=store)
        for number in range(3):
            run.start_worker(number)
        run.finish()
    events = trace.read(tmp_path / "trace")
    check(events, tolerance_s=0.001)
    chain = surviving(events)
    assert [event.version for event in chain] == list(range(1, 9))
    assert [event.incarnation for event in chain] == [1] * 4 + [2] * 4


def test_a_recorded_run_of_rounds_passes(tmp_path):
    made = small(strategy__name="fedavg", stop__max_versions=3)
    run = RecordedRun(1, tmp_path, made)
    for number in range(3):
        run.start_worker(number)
    run.finish()
    assert run.events(trace.Waited)
    check(trace.read(tmp_path / "trace"), tolerance_s=0.001)
