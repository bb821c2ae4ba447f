"""The part of the report that shows what guards and checks found."""

import json
import random
from collections import Counter

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f import trace
from asyn2f.kernels.guards import KINDS, Guards, findings, too_far
from asyn2f.report import guards
from asyn2f.report.load import Run, load_run
from asyn2f.report.run_page import write_report
from tests.support.synthetic_run import made_up
from tests.unit.test_report import Page, _no_library  # noqa: F401, a fixture for all

EVIL = '</script><script>alert(1)</script><a href="javascript:alert(2)">'


def run_of(*events, mode="enforce"):
    return Run([*events], [], None, {"guards": {"mode": mode}}, ())


def rejected(worker, seq, reason, time_s=1.0):
    return trace.UpdateSettled(time_s, worker, "a", seq, "rejected", -1, reason)


def version_of(keys, lines, version=1):
    shares = [1 / len(keys)] * len(keys)
    zeros = [0] * len(keys)
    return trace.Aggregated(2.0, version, 1, keys, zeros, zeros, shares, 0.1, lines)


def with_mode(folder, mode):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"guards": {"mode": mode}}))
    return folder


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
def test_a_run_of_honest_workers_shows_it_only_where_guards_are_on(tmp_path, mode):
    page = Page(write_report(with_mode(made_up(tmp_path, versions=20), mode)))
    assert ("Guard findings" in page.text) == (mode != "off")
    assert ("The guards found nothing." in page.text) == (mode != "off")
    assert "guards" not in page.figures


def test_an_old_run_knows_no_guards(tmp_path):
    page = Page(write_report(made_up(tmp_path, versions=5)))
    assert "guards" not in page.text


def test_the_page_says_whose_updates_were_found_and_why(tmp_path):
    folder = with_mode(made_up(tmp_path, versions=20), "enforce")
    writer = trace.TraceWriter(folder / "trace", "server-later")
    last_s = load_run(folder).events[-1].time_s
    for seq in range(3):
        reason = too_far(1000.0 + seq, 2.5)
        writer.write(rejected(1, 900 + seq, reason, last_s + seq))
    keys = [[0, "a", 903], [2, "a", 903], [4, "a", 903]]
    lines = findings(Guards(mode="enforce"), [0.5, 0.0, 0.4], [0.2, 0.5, 0.3])
    writer.write(version_of(keys, lines, 21)._replace(time_s=last_s))
    writer.close()
    page = Page(write_report(folder))
    assert "3 times: 1e+03 from the global model, allowed 2.5" in page.text
    assert "loss 0 taken as 0.2" in page.text
    assert "share held at 0.5" in page.text
    figure = go.Figure(page.figures["guards"])
    shown = {part.name: [who for who, _ in part.customdata] for part in figure.data}
    for kind, who in zip(KINDS, ([1, 1, 1], [2], [2]), strict=True):
        assert shown[kind] == who
    assert {0, 4} <= set(shown["nothing found"])


def test_what_guards_only_observe_is_counted_and_said_to_be_observed():
    far = "would be rejected: " + too_far(9.0, 2.0)
    event = version_of([[0, "a", 1], [1, "a", 1]], [far, "loss 0 would be 0.1"])
    section = guards.section(run_of(event, mode="observe"))
    assert "only observed" in section.how_to_read
    kinds = [one.kinds for one in guards.findings_of(run_of(event))]
    assert kinds == [("rejected",), ("loss raised",)]


def test_a_check_that_is_always_on_is_shown_with_guards_off():
    event = rejected(3, 1, "params/w is not finite: has training diverged?")
    section = guards.section(run_of(event, mode="off"))
    assert "is not finite" in section.above
    assert "guards were off" in section.how_to_read


def test_what_came_after_the_end_was_found_by_nobody():
    assert guards.section(run_of(rejected(1, 1, trace.TOO_LATE), mode="off")) is None
    (found,) = guards.findings_of(run_of(rejected(1, 1, "of run a, this is b")))
    assert found.kinds == ("rejected",)


def test_what_two_processes_wrote_down_counts_once():
    """A server writes an outcome; so may the trace that it wrote in an earlier life."""
    events = [rejected(1, 7, too_far(9.0, 2.0)), rejected(1, 7, too_far(9.0, 2.0))]
    assert len(guards.findings_of(run_of(*events))) == 1


LINES = {
    "": (),
    "loss 0 taken as 0.1": ("loss raised",),
    "share held at 0.5": ("share held",),
    "loss 0 taken as 0.1; share held at 0.5": ("loss raised", "share held"),
    "loss 1e-06 would be 0.275; share 0.9 would be 0.5": ("loss raised", "share held"),
    "would be rejected: inf from the global model, allowed 2": ("rejected",),
}


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(sorted(LINES)))))
def test_the_table_adds_up(updates):
    events = [
        version_of([[worker, "a", seq]], [line] if line else [])
        for seq, (worker, line) in enumerate(updates)
    ]
    found = guards.findings_of(run_of(*events))
    wanted = Counter((w, kind) for w, line in updates for kind in LINES[line])
    assert Counter((one.worker, kind) for one in found for kind in one.kinds) == wanted
    assert len(found) == len(updates)
    section = guards.section(run_of(*events))
    assert (section.figure is None) == (not any(line for _, line in updates))


def test_of_many_workers_those_are_shown_of_whom_most_was_found():
    print("seed 0")
    often = [random.Random(0).randrange(1, 9) for _ in range(100)]
    events = [
        rejected(worker, seq, too_far(9.0, 2.0))
        for worker, count in enumerate(often)
        for seq in range(count)
    ]
    section = guards.section(run_of(*events))
    assert "40 of 100 workers are shown" in section.how_to_read
    rows = section.above.split('<tr class="one">')[1:]
    shown = [int(row.split("</span>")[1].split("<")[0]) for row in rows]
    hidden = set(range(100)) - set(shown)
    assert len(shown) == guards.MAX_ROWS
    assert min(often[w] for w in shown) >= max(often[w] for w in hidden)


def test_a_long_run_is_drawn_with_a_bounded_number_of_marks():
    line = "share held at 0.5"
    events = [version_of([[0, "a", seq]], [line], seq) for seq in range(9000)]
    drawn = guards.section(run_of(*events)).figure
    assert max(len(part.x) for part in drawn.data) <= guards.MAX_MARKS


def test_no_reason_becomes_a_part_of_the_page():
    for event in (rejected(1, 1, EVIL), version_of([[1, "a", 1]], ["loss " + EVIL])):
        section = guards.section(run_of(event))
        assert "<script" not in section.above
        texts = [str(part.customdata) for part in section.figure.data]
        assert not any("<" in text for text in texts)


@pytest.mark.parametrize("lines", ['"no list"', "[1, 2]", '["a line too few"]', "null"])
def test_lines_that_are_none_are_left_out(tmp_path, lines):
    made_up(tmp_path, versions=20)
    path = tmp_path / "trace" / "server.jsonl"
    path.write_text(path.read_text().replace('"guards": []', f'"guards": {lines}', 1))
    page = Page(write_report(with_mode(tmp_path, "enforce")))
    assert "1 line is invalid and left out." in page.text
