"""What a version was made of, as the trace has it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f import trace
from asyn2f.report.load import load_run
from asyn2f.trace.history import surviving
from asyn2f.trace.provenance import describe, explain
from tests.support.handmade_trace import NUM_BYTES, hand_made, random_trace


def test_a_version_is_explained_update_by_update():
    found = explain(hand_made(), 3)
    assert (found.version, found.incarnation, found.parent) == (3, 2, 2)
    assert (found.time_s, found.start_s) == (6.1, 0.4)
    first, second = found.contributions
    assert (first.worker, first.session, first.seq) == (1, "c", 1)
    assert (*first.info[:2], first.staleness) == (1, 1, 1)
    assert (first.steps, first.merged) == (2, ())
    assert (second.worker, second.session, second.seq) == (0, "a", 3)
    assert (*second.info[:2], second.staleness) == (2, 1, 0)
    assert (second.coefficient, second.info.num_examples) == (0.75, 30.0)
    assert (second.info.loss, second.info.quality) == (0.25, 1.0)
    assert second.pushed_s == 5.9
    assert second.waited_s == pytest.approx(0.2)


def test_steps_and_merges_are_those_since_the_push_before():
    (_, last) = explain(hand_made(), 3).contributions
    # Since the push at 2.8 s: the lost version 2, version 1 again, the other version 2.
    assert last.merged == (2, 1, 2)
    assert last.steps == 8


def test_a_worker_that_begins_anew_brings_no_steps_along():
    (_, first_of_its_life) = explain(hand_made(), 2).contributions
    assert (first_of_its_life.session, first_of_its_life.steps) == ("c", 2)
    events = [e for e in hand_made() if not isinstance(e, trace.Pushed) or e.seq != 1]
    (_, same) = explain(events, 2).contributions  # it had trained when it died
    assert same.steps == 2


def test_a_version_made_twice_is_the_one_that_survived():
    found = explain(hand_made(), 2)
    assert (found.time_s, found.incarnation) == (5.2, 2)
    assert [update.session for update in found.contributions] == ["a", "c"]
    lost = explain([e for e in hand_made() if e.time_s < 4.0], 2)
    assert (lost.time_s, lost.incarnation) == (3.2, 1)


def test_the_totals_are_over_its_updates():
    found = explain(hand_made(), 3)
    assert found.num_bytes == NUM_BYTES
    assert found.update_bytes == 2 * NUM_BYTES
    assert (found.mean_staleness, found.max_staleness) == (0.5, 1)


def test_version_0_is_the_initial_model():
    found = explain(hand_made(), 0)
    assert (found.incarnation, found.parent, found.contributions) == (0, -1, ())
    assert found.time_s == 0.4
    assert (found.update_bytes, found.max_staleness) == (0, 0)
    assert math.isnan(found.mean_staleness)
    assert "initial model, drawn from the seed; published at 0.000 s" in describe(found)
    assert describe(explain([], 0)).endswith("drawn from the seed")


@pytest.mark.parametrize("version", [4, -1])
def test_a_version_that_is_not_there_is_refused_with_those_that_are(version):
    with pytest.raises(
        ValueError, match=rf"found {version}, the trace has 0 and 1 to 3"
    ):
        explain(hand_made(), version)


def test_of_an_empty_trace_only_version_0_can_be_explained():
    with pytest.raises(ValueError, match=r"found 1, the trace has 0$"):
        explain([], 1)


def test_an_update_without_its_push_is_named():
    events = [e for e in hand_made() if not isinstance(e, trace.Pushed) or e.seq != 3]
    with pytest.raises(ValueError, match="update 3 of worker 0, session a"):
        explain(events, 3)


def test_the_description_has_a_line_per_update_in_columns():
    lines = describe(explain(hand_made(), 3)).splitlines()
    assert lines[0] == "version 3, made at 5.700 s by incarnation 2, follows version 2"
    assert lines[1].split()[:3] == ["worker", "session", "seq"]
    assert lines[2].split() == [
        *("1", "c", "1", "1", "1", "1", "0.2500", "10", "0.5000", "1.000", "2", "-"),
        *("5.400", "0.300"),
    ]
    assert "2,1,2" in lines[3]
    assert lines[4] == "2 updates, 800 bytes; staleness 0.50 on average, at most 1"
    assert len({len(line) for line in lines[1:4]}) == 1
    assert len(lines) == 5


def test_it_counts_time_from_the_same_zero_as_the_report(tmp_path):
    """Workers and server begin 0.4 s before the first version is given out."""
    writer = trace.TraceWriter(tmp_path / "trace", "server")
    for event in hand_made():
        writer.write(event)
    writer.close()
    run = load_run(tmp_path)
    (first, *_) = [e for e in run.events if isinstance(e, trace.Aggregated)]
    shown = first.time_s - run.start_s
    assert f"made at {shown:.3f} s" in describe(explain(hand_made(), 1))
    assert run.start_s == 0.4


def test_unknown_sizes_are_said_to_be_unknown():
    events = [e for e in hand_made() if not isinstance(e, trace.Published)]
    found = explain(events, 1)
    assert found.num_bytes == 0
    assert "2 updates, of unknown size" in describe(found)


@given(st.integers(0, 2**32))
def test_every_surviving_version_can_be_explained(seed):
    events = random_trace(seed, 400)
    for made in surviving(events):
        found = explain(events, made.version)
        updates = found.contributions
        assert [[u.worker, u.session, u.seq] for u in updates] == made.updates
        assert all(
            u.info.start_version <= u.info.base_version or u.merged for u in updates
        )
        assert all(u.waited_s >= 0 for u in updates)
        assert len(describe(found).splitlines()) == len(updates) + 3
