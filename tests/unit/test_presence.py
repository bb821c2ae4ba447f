"""Outages: durations of work with them, and when the drawn ones are."""

from itertools import pairwise
from random import Random

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asyn2f.sim.profiles import profiles_of
from asyn2f.sim.virtual_worker import Presence


def given_outages(*spans):
    return Presence(profiles_of([{"outages": spans}], workers=1), worker=0, seed=0)


def drawn_outages(seed, worker=0, **row):
    row = {"outage_every_s": 3.0, "outage_s": 1.0} | row
    return Presence(profiles_of([row], workers=worker + 1), worker, seed)


@st.composite
def presences(draw):
    if draw(st.booleans()):
        return drawn_outages(draw(st.integers(0, 99)))
    lengths = st.lists(st.floats(0.01, 5.0), min_size=2, max_size=8)
    ends = np.cumsum(draw(lengths)).tolist()
    return given_outages(*zip(ends[::2], ends[1::2], strict=False))


moments = st.floats(0.0, 50.0)


def test_work_takes_as_long_as_it_takes_without_outages():
    presence = Presence(profiles_of([{}], workers=1), worker=0, seed=0)
    assert presence.next_outage(3.0) == (np.inf, np.inf)
    assert presence.after(2.0, 3.0) == 5.0
    assert presence.worked(2.0, 5.0) == 3.0


@pytest.mark.parametrize(
    ("start_s", "work_s", "end_s"),
    [
        (0.0, 2.0, 2.0),  # before the first outage, from 3 to 5 s
        (0.0, 3.0, 3.0),  # done as it begins
        (0.0, 4.0, 6.0),
        (3.0, 1.0, 6.0),
        (4.0, 1.0, 6.0),  # begun in it
        (5.0, 1.0, 6.0),
        (0.0, 5.5, 11.5),  # through both: the second is from 7 to 11 s
        (2.0, 3.0, 7.0),
        (20.0, 1.0, 21.0),
    ],
)
def test_work_stands_still_during_an_outage(start_s, work_s, end_s):
    presence = given_outages((3.0, 5.0), (7.0, 11.0))
    assert presence.after(start_s, work_s) == end_s
    assert presence.worked(start_s, end_s) == work_s


def test_what_takes_no_time_is_done_at_once_but_not_in_an_outage():
    presence = given_outages((3.0, 5.0))
    assert presence.after(2.0, 0.0) == 2.0
    assert presence.after(4.0, 0.0) == 5.0


def test_the_next_outage_may_be_the_present_one():
    presence = given_outages((3.0, 5.0), (7.0, 8.0))
    assert [presence.next_outage(now) for now in (0.0, 3.0, 4.9, 5.0, 8.0)] == [
        (3.0, 5.0),
        (3.0, 5.0),
        (3.0, 5.0),
        (7.0, 8.0),
        (np.inf, np.inf),
    ]


@hypothesis.given(presences(), moments, moments)
def test_after_the_time_that_it_takes_so_much_has_been_worked(presence, start, work):
    end_s = presence.after(start, work)
    assert end_s >= start + work - 1e-9
    assert presence.worked(start, end_s) == pytest.approx(work, abs=1e-9)


def is_far_from_outages(presence, now):
    """Where rounding cannot put a moment to the other side of an outage."""
    return presence.next_outage(now - 1e-6)[0] > now + 1e-6


@hypothesis.given(presences(), moments, moments)
def test_what_was_worked_until_then_takes_until_then(presence, start_s, length_s):
    end_s = start_s + length_s
    hypothesis.assume(is_far_from_outages(presence, end_s))
    work_s = presence.worked(start_s, end_s)
    assert presence.after(start_s, work_s) == pytest.approx(end_s, abs=1e-6)


@hypothesis.given(presences(), st.lists(moments, min_size=3, max_size=3))
def test_what_is_worked_adds_up(presence, times_s):
    first, second, third = sorted(times_s)
    whole_s = presence.worked(first, third)
    parts_s = presence.worked(first, second) + presence.worked(second, third)
    assert whole_s == pytest.approx(parts_s, abs=1e-9)
    assert -1e-9 <= whole_s <= third - first + 1e-9
    assert presence.worked(first, first) == 0.0


@hypothesis.given(presences(), moments, moments, moments)
def test_work_can_be_done_in_parts(presence, start_s, one_s, other_s):
    parts_s = presence.after(presence.after(start_s, one_s), other_s)
    at_once_s = presence.after(start_s, one_s + other_s)
    for end_s in (parts_s, at_once_s):
        hypothesis.assume(is_far_from_outages(presence, end_s))
    assert at_once_s == pytest.approx(parts_s, abs=1e-6)


@hypothesis.given(st.integers(0, 99), st.randoms(use_true_random=False))
def test_drawn_outages_do_not_depend_on_the_calls(seed, random):
    times_s = [float(k) for k in range(0, 60, 3)]
    in_order = drawn_outages(seed)
    expected = {now: in_order.next_outage(now) for now in times_s}
    random.shuffle(times_s)
    presence = drawn_outages(seed)
    assert {now: presence.next_outage(now) for now in times_s} == expected


def spans_of(presence, until_s):
    spans, now = [], 0.0
    while now < until_s:
        spans.append(presence.next_outage(now))
        now = spans[-1][1]
    return spans


def test_drawn_outages_are_the_seeds_and_the_workers():
    assert spans_of(drawn_outages(1), 50.0) == spans_of(drawn_outages(1), 50.0)
    assert spans_of(drawn_outages(1), 50.0) != spans_of(drawn_outages(2), 50.0)
    other = drawn_outages(1, worker=1)
    assert spans_of(drawn_outages(1), 50.0) != spans_of(other, 50.0)


def test_drawn_outages_come_as_often_and_last_as_long_as_they_should():
    spans = spans_of(drawn_outages(0, join_s=5.0), 20_000.0)
    assert spans[0][0] >= 5.0
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    lengths = [end_s - begin_s for begin_s, end_s in spans]
    between = [after[0] - before[1] for before, after in pairwise(spans)]
    assert np.mean(lengths) == pytest.approx(1.0, rel=0.1)
    assert np.mean(between) == pytest.approx(3.0, rel=0.1)


def test_given_outages_leave_no_room_for_drawn_ones():
    row = {"outages": [[1.0, 2.0]], "outage_every_s": 3.0, "outage_s": 1.0}
    presence = Presence(profiles_of([row], workers=1), worker=0, seed=0)
    assert spans_of(presence, 100.0) == [(1.0, 2.0), (np.inf, np.inf)]


def test_drawn_outages_of_no_length_change_nothing():
    presence = drawn_outages(0, outage_s=0.0)
    random = Random(0)
    for _ in range(20):
        start_s, work_s = random.uniform(0.0, 50.0), random.uniform(0.0, 50.0)
        end_s = presence.after(start_s, work_s)
        assert end_s == pytest.approx(start_s + work_s)
