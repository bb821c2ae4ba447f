"""Bottlenecks of a run, computed by hand."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from asyn2f import trace
from asyn2f.report.bottlenecks import bottlenecks, section
from asyn2f.report.load import Run
from asyn2f.report.run_page import to_html
from tests.support.handmade_trace import hand_made
from tests.support.updates import update_info


def run_of(events) -> Run:
    return Run(sorted(events, key=lambda e: e.time_s), [], None, None, ())


def trained(worker, start_s, end_s):
    return trace.Trained(end_s, worker, start_s, 1, 1, 0, 0.5, 0.5)


def pushed(worker, time_s, seq):
    return trace.Pushed(time_s, worker, f"s{worker}", seq, update_info())


def version(number, keys, made_s, saved_s, given_s, received_s):
    count = len(keys)
    yield trace.Aggregated(
        made_s, number, 1, keys, [0] * count, [0] * count, [1 / count] * count, 0.1
    )
    yield trace.Saved(saved_s, number, 1)
    yield trace.Published(given_s, number, 1000, len(received_s))
    for worker, time_s in enumerate(received_s):
        yield trace.Received(time_s, worker, number)


def by_hand(save_s=0.2, message_s=0.1) -> list[trace.Event]:
    """Two workers train one second for a push and wait half of one; two updates a
    version, a version every 1.5 s; saving takes 0.2 s, a message 0.1 s."""
    events: list[trace.Event] = []
    for number in range(4):
        start_s = 1.5 * number
        keys = [[worker, f"s{worker}", number] for worker in (0, 1)]
        for worker in (0, 1):
            end_s = start_s + 1.0
            events += [trained(worker, start_s, end_s), pushed(worker, end_s, number)]
            events.append(trace.Blocked(start_s + 1.5, worker, end_s, number + 1))
        saved_s = start_s + 1.15 + save_s
        published_s = saved_s + 0.05
        times_s = (start_s + 1.15, saved_s, published_s)
        events += version(number + 1, keys, *times_s, [published_s + message_s] * 2)
    return events


@pytest.mark.parametrize(
    ("changes", "tightest", "per_s"),
    [
        ({}, "compute", 1.0),
        ({"save_s": 1.25}, "store", 0.8),
        ({"message_s": 0.5}, "network", 0.5),  # four messages of half a second
    ],
)
def test_the_tightest_bound_is_named(changes, tightest, per_s):
    events = by_hand(**changes)
    first = bottlenecks(run_of(events)).bounds[0]
    assert (first.name, first.per_s) == (tightest, pytest.approx(per_s))
    sentence = f"{tightest.capitalize()} is the tightest bound: it allows {per_s:g} "
    assert section(run_of(events)).how_to_read.startswith(sentence)


def test_bounds_and_segments_are_those_worked_out_by_hand():
    found = bottlenecks(run_of(by_hand()))
    assert found.reached_per_s == pytest.approx(1 / 1.5)
    bounds = {bound.name: bound.per_s for bound in found.bounds}
    # A push a second from each of two workers, two in a version.
    assert bounds["compute"] == pytest.approx(1.0)
    assert bounds["store"] == pytest.approx(5.0)
    # Two updates up and two copies down, 0.1 s each.
    assert bounds["network"] == pytest.approx(2.5)
    assert [bound.name for bound in found.bounds] == ["compute", "network", "store"]
    means = [float(segment.seconds.mean()) for segment in found.segments]
    assert means == pytest.approx([0.15, 0.2, 0.05, 0.1])
    said = section(run_of(by_hand())).how_to_read
    assert (
        "Compute is the tightest bound: it allows 1 versions/s, of which 0.667 (67 %)"
        in said
    )


def test_announced_early_the_store_is_not_in_the_way():
    events = [
        event._replace(time_s=event.time_s + 10)
        if isinstance(event, trace.Saved)
        else event
        for event in by_hand()
    ]
    means = [float(s.seconds.mean()) for s in bottlenecks(run_of(events)).segments]
    assert means == pytest.approx([0.15, 0.0, 0.25, 0.1])


@pytest.mark.parametrize(
    "left_out", [trace.Saved, trace.Received, trace.Published, trace.Pushed]
)
def test_what_the_trace_does_not_tell_is_not_there(left_out):
    events = [event for event in by_hand() if not isinstance(event, left_out)]
    found = bottlenecks(run_of(events))
    names = {bound.name for bound in found.bounds}
    missing = {
        trace.Saved: {"store"},
        trace.Received: {"network"},
        trace.Published: {"network"},
        trace.Pushed: {"compute"},
    }[left_out]
    assert names == {"compute", "store", "network"} - missing
    assert bool(found.segments) == (left_out is trace.Saved)
    assert "Bottlenecks" in to_html(run_of(events))
    above = section(run_of(events)).above
    assert above.count("not recorded") == len(missing)


def test_of_a_run_of_one_version_nothing_is_said():
    events = [e for e in by_hand() if getattr(e, "version", 1) == 1]
    assert bottlenecks(run_of(events)) is None
    assert section(run_of(events)) is None
    assert bottlenecks(run_of([])) is None


@hypothesis.given(
    st.lists(st.floats(-5, 5), min_size=len(by_hand()), max_size=len(by_hand())),
)
def test_whatever_clocks_say_stretches_are_parts_of_the_way(shifts):
    """Clocks that differ make no stretch negative, and no bound less than nothing."""
    events = [
        event._replace(time_s=event.time_s + shift)
        for event, shift in zip(by_hand(), shifts, strict=True)
    ]
    found = bottlenecks(run_of(events))
    if found is None:
        return
    assert found.reached_per_s > 0
    assert all(bound.per_s > 0 for bound in found.bounds)
    for segment in found.segments:
        assert (segment.seconds >= 0).all()
    assert to_html(run_of(events))


def test_they_add_up_to_the_way_of_each_update():
    found = bottlenecks(run_of(by_hand()))
    whole = np.sum([segment.seconds for segment in found.segments], axis=0)
    assert whole == pytest.approx([0.5] * 8)


def test_a_trace_with_a_crash_in_it_is_accounted_for():
    found = bottlenecks(run_of(hand_made()))
    assert math.isfinite(found.reached_per_s)
    assert section(run_of(hand_made())) is not None
