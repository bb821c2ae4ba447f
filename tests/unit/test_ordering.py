"""One order from several clocks: by what must have come first, whatever they say."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyn2f import trace
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import order_of
from asyn2f.trace.artifacts import RunArtifacts
from asyn2f.trace.causality import CausalityError, check
from asyn2f.trace.invariants import check as judge
from asyn2f.trace.ordering import by_cause, shifted
from tests.contracts.test_runtime import small
from tests.support.handmade_trace import files_of, hand_made, random_trace
from tests.support.updates import update_info
from tests.unit.test_causality import RecordedRun
from tests.unit.test_invariants import GOOD

seeds = st.integers(0, 2**32)


def moved(files, *by_s):
    """The files as clocks have it that are so far ahead."""
    pairs = zip(files, by_s, strict=True)
    return [[[shifted(e, s) for e in life] for life in lives] for lives, s in pairs]


def untimed(events):
    """Each process's events, without their times."""
    return [
        [
            [shifted(e, -e.time_s)._replace(**_START.get(type(e), {})) for e in life]
            for life in lives
        ]
        for lives in files_of(events)
    ]


_START = {kind: {"start_s": 0.0} for kind in (trace.Trained, trace.Blocked)}


def test_where_clocks_agree_the_times_decide():
    events = by_cause(files_of(hand_made()))
    assert [e.time_s for e in events] == [e.time_s for e in hand_made()]
    assert files_of(events) == files_of(hand_made())


@pytest.mark.parametrize("far_s", [2.0, -2.0, 3600.0, -3600.0])
@pytest.mark.parametrize("who", ["worker-0", "worker-1", "server", "evaluator"])
def test_a_clock_that_is_off_is_set_and_nothing_else_is_changed(who, far_s):
    files = files_of(GOOD.events)  # in the order of their names
    names = ["evaluator", "server", "worker-0", "worker-1"]
    events = by_cause(moved(files, *(far_s * (name == who) for name in names)))
    check(events)
    assert Counter(map(type, events)) == Counter(map(type, GOOD.events))
    judgement = judge(GOOD._replace(events=events))
    assert judgement.violations == []
    assert judgement.outcomes == judge(GOOD).outcomes
    if who.startswith("worker"):  # it is known to a second where its clock stands
        mine = names.index(who)
        pairs = zip(files[mine][-1], files_of(events)[mine][-1], strict=True)
        for before, after in pairs:
            assert after.time_s == pytest.approx(before.time_s, abs=1.0)


@given(seeds, st.sampled_from([0.05, 2.0, 3600.0]))
@settings(max_examples=60)
def test_whatever_the_clocks_say_the_order_is_one_that_can_have_been(seed, most_s):
    """With crashes, lost versions, and workers that begin anew."""
    events = random_trace(seed, 300, crashes=0.03)
    chance, files = random.Random(seed), files_of(events)
    skewed = moved(files, *(chance.uniform(-most_s, most_s) for _ in files))
    found = by_cause(skewed)
    check(found)
    assert untimed(found) == untimed(events)


@given(seeds)
@settings(max_examples=30)
def test_small_errors_of_clocks_move_nobody(seed):
    events = random_trace(seed, 200)
    chance, files = random.Random(seed), files_of(events)
    found = by_cause(moved(files, *(chance.uniform(-5e-5, 5e-5) for _ in files)))
    check(found)
    times = [event.time_s for event in events]
    for event in found:
        assert min(abs(event.time_s - t) for t in times) < 1e-4


def test_a_clock_that_is_set_in_mid_run_is_borne():
    """No single offset fits; the order is by cause all the same."""
    files = files_of(hand_made())
    bent = [
        [shifted(e, 7.0) if e.time_s > 2.6 else e for e in life] for life in files[1]
    ]
    events = by_cause([files[0], bent, files[2]])
    check(events)


def test_what_contradicts_itself_is_still_given_and_then_found():
    """Version 1 is made of an update that its worker pushed on version 1."""
    served = [
        trace.Published(1.0, 0, 400, 1),
        trace.Aggregated(2.0, 1, 1, [[0, "a", 0]], [0], [0], [1.0], 0.1),
        trace.Published(2.1, 1, 400, 1),
    ]
    worked = [
        trace.Adopted(1.1, 0, 0, 0),
        trace.Merged(1.4, 0, 1, 0, 0, 0.0, 0.5),
        trace.Pushed(1.5, 0, "a", 0, update_info(step=0)),
    ]
    events = by_cause([[served], [worked]])
    assert len(events) == 6
    with pytest.raises(CausalityError):
        check(events)


def test_a_server_that_was_replaced_comes_before_its_successor():
    """What it wrote, not knowing of it, decides nothing any more."""
    old = [
        trace.ProcessStarted(0.0, "server", "run-1", 1, {}),
        trace.Published(0.1, 0, 400, 1),
        trace.Aggregated(1.0, 1, 1, [[0, "a", 0]], [0], [0], [1.0], 0.1),
        trace.Saved(1.1, 1, 1),
        trace.Aggregated(9.0, 2, 1, [[0, "a", 1]], [0], [1], [1.0], 0.1),
        trace.UpdateSettled(9.1, 0, "a", 1, "rejected", -1, "could not be saved"),
    ]
    new = [
        trace.ProcessStarted(5.0, "server", "run-1", 2, {}),
        trace.Resumed(5.1, 2, 1, 1),
        trace.Published(5.2, 1, 400, 0),
        trace.Aggregated(6.0, 2, 2, [[0, "a", 1]], [0], [1], [1.0], 0.1),
        trace.Saved(6.1, 2, 2),
        trace.UpdateSettled(6.2, 0, "a", 1, "committed", 2, ""),
    ]
    worked = [
        trace.ProcessStarted(0.0, "worker-0", "", 0, {}),
        trace.Adopted(0.2, 0, 0, 0),
        trace.Pushed(0.3, 0, "a", 0, update_info(step=0)),
        trace.Pushed(0.4, 0, "a", 1, update_info(step=0)),
    ]
    for by_s in (0.0, 3600.0, -3600.0):
        events = by_cause(moved([[old], [new], [worked]], 0.0, by_s, 0.0))
        check(events)
        served, _ = files_of(events)
        assert [[*map(type, life)] for life in served[1:]] == [
            [*map(type, life)] for life in (old, new)
        ]


# ------------------------------------------------------------- real runs


def test_a_run_is_judged_and_executed_alike_whatever_its_clocks_say(tmp_path):
    made = small(stop__max_versions=6)
    run = RecordedRun(1, tmp_path, made)
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    files = {x: x.read_text().splitlines() for x in (tmp_path / "trace").iterdir()}
    for seed, far_s in enumerate((0.0, 2.0, 3600.0)):
        chance = random.Random(seed)
        for path, lines in files.items():
            by_s = chance.uniform(-far_s, far_s)
            events = [shifted(trace.from_line(line), by_s) for line in lines]
            path.write_text("".join(trace.to_line(e) + "\n" for e in events))
        events = trace.read(tmp_path / "trace")
        check(events)
        assert judge(RunArtifacts(events, {})).violations == []
        result = execute_serially(made, order_of(events))
        assert params_sha256(result.state.model.params) == summary["params_sha256"]
