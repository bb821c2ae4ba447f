"""However long a run, however many workers: the report stays small and true."""

import itertools
import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f import trace
from asyn2f.report import curves, figures, metrics, page, segments, theme, workers
from asyn2f.report import load as run_module
from asyn2f.report import timeline as timeline_module
from asyn2f.report.load import Run, load_run
from asyn2f.report.run_page import to_html, write_report
from asyn2f.report.segments import Bars
from asyn2f.tasks.classification import ACCURACY
from tests.support.synthetic_run import made_up
from tests.support.updates import update_info
from tests.unit.test_report import Page, _no_library  # noqa: F401, a fixture for all

floats = st.floats(-1e6, 1e6, allow_nan=False)


# ------------------------------------------------------------- few enough points


@given(st.lists(floats, min_size=1, max_size=300), st.integers(4, 60))
def test_a_line_keeps_its_ends_and_its_extremes(values, most):
    values = np.array(values)
    kept = theme.extremes(values, most)
    assert len(kept) <= max(most, 4)
    assert (np.diff(kept) > 0).all()
    assert {0, len(values) - 1} <= set(kept.tolist())
    assert values[kept].min() == values.min()
    assert values[kept].max() == values.max()


def test_a_single_spike_stays_in_the_curve_of_a_long_run():
    scores = [{"kind": "score", "version": v, "time_s": v, "scores": {"accuracy": 0.9}}
            for v in range(20_000)]  # fmt: skip
    scores[12_345]["scores"]["accuracy"] = 0.1
    drawn = curves.headline(Run([], scores, None, None, (), metric=ACCURACY)).data[0]
    assert len(drawn.x) <= curves.MAX_POINTS
    assert (12_345, 0.1) in zip(drawn.x, drawn.y, strict=True)


def test_a_spike_of_one_workers_loss_stays():
    events = [
        trace.Pushed(float(t), 0, "a", t, update_info(loss=9.0 if t == 777 else 0.5))
        for t in range(5_000)
    ]
    (drawn,) = figures.losses(Run(events, [], None, None, ())).data
    assert max(drawn.y) == 9.0
    assert len(drawn.y) <= curves.MAX_POINTS


# ------------------------------------------------------------- the timeline


def bars_of(count: int, length_s: float = 1.0) -> Bars:
    """One row without gaps, of as many bars from as many versions."""
    start_s = length_s * np.arange(count)
    zeros = np.zeros(count, int)
    return Bars(zeros, start_s, start_s + length_s, np.arange(count), zeros)


def test_a_long_run_is_thinned_without_overlaps_and_with_hardly_a_gap():
    few, slot_s = segments.thinned(bars_of(10_000), num_rows=1, max_bars=1_000)
    assert len(few.row) <= 1_001
    assert slot_s == pytest.approx(10.0)
    order = np.argsort(few.start_s)
    gaps = few.start_s[order][1:] - few.end_s[order][:-1]
    assert np.abs(gaps).max() < 1e-6
    assert few.end_s.max() == pytest.approx(10_000, abs=slot_s)


def test_a_bar_longer_than_a_slot_is_drawn_as_it_was():
    bars = bars_of(10_000)
    end_s = np.where(bars.base == 9_999, 12_345.0, bars.end_s)
    few, slot_s = segments.thinned(bars._replace(end_s=end_s), 1, 1_000)
    assert few.end_s.max() == 12_345.0
    assert slot_s < 12_345.0 - 9_999.0


def test_short_runs_are_drawn_whole():
    bars = bars_of(100)
    few, slot_s = segments.thinned(bars, num_rows=1, max_bars=100)
    assert few is bars
    assert slot_s == 0.0


def test_late_in_a_long_run_times_are_still_fine():
    """In 32 bits a week has steps of 0.06 s."""
    late = theme.times([604_800.0, 604_800.01])
    assert late[1] - late[0] == pytest.approx(0.01, abs=1e-6)


# ------------------------------------------------------------- axes and panels


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_an_axis_of_shares_holds_them_and_never_goes_beyond_all(values):
    low, high = theme.share_range(np.array(values))
    assert 0.0 <= low <= min(values)
    assert max(values) <= high <= 1.0
    assert low < high


def test_no_accuracy_is_drawn_beyond_one_hundred_percent():
    scores = [{"kind": "score", "version": v, "time_s": v, "scores": {"accuracy": a}}
              for v, a in enumerate([0.2, 1.0])]  # fmt: skip
    layout = curves.headline(Run([], scores, None, None, (), metric=ACCURACY)).layout
    assert layout.yaxis.range == (pytest.approx(0.16), 1.0)


@given(st.integers(1, 5), st.integers(200, 400))
def test_panels_in_a_column_do_not_touch(count, height):
    changes = page.stacked(count, height)
    numbers = [f"yaxis{n + 1 if n else ''}" for n in range(count)]
    domains = [changes[name]["domain"] for name in numbers]
    assert domains[0][1] == 1.0
    assert domains[-1][0] == pytest.approx(0.0, abs=1e-9)
    for (low, _), (_, next_high) in itertools.pairwise(domains):
        assert (low - next_high) * changes["height"] > 60  # pixels for an axis's title
    go.Figure(layout=changes)  # plotly knows these keys


# ------------------------------------------------------------- many workers


def crowd(workers: int, versions: int) -> Run:
    """Each version is made of all; the first worker's updates are the most."""
    events: list[trace.Event] = []
    for worker in range(workers):
        events.append(trace.WorkerJoined(0.0, worker, "a", 10))
        events.append(trace.Trained(1.0, worker, 0.0, 1, 1, 0, 0.5, 0.5))
        events.append(trace.Pushed(1.0, worker, "a", 1, update_info()))
    for version in range(1, versions + 1):
        keys = [[worker, "a", version] for worker in range(workers)]
        zeros = [0] * workers
        shares = [1 / workers] * workers
        events.append(
            trace.Aggregated(1.0 + version, version, 1, keys, zeros, zeros, shares, 0.1)
        )
    split = np.ones((workers, 10), int)
    return Run(events, [], None, None, (), split)


def test_of_a_thousand_workers_the_others_are_shown_as_one():
    run = crowd(1_000, 30)
    shares, _ = figures.coefficients(run)
    assert len(shares.data) == figures.MAX_WORKERS + 1
    assert shares.data[-1].name == "all others"
    total = np.sum([part.y for part in shares.data], axis=0)
    assert total == pytest.approx(1.0)
    behind = figures.staleness(run)
    assert len(behind.data) == figures.MAX_WORKERS + 1
    assert sum(sum(part.y) for part in behind.data) == 30_000
    assert len(figures.losses(run).data) == figures.MAX_WORKERS
    assert len(figures.split(run).data[0].x) == figures.MAX_COLUMNS_OF_SPLIT


def test_the_table_of_a_thousand_workers_sums_over_all():
    text = workers.table(workers.tally(crowd(1_000, 3)))
    assert text.count('<tr class="one">') == workers.MAX_ROWS
    assert "and 800 more" in text
    assert "<td>3,000</td>" in text.rpartition('<tr class="total">')[2]


def test_the_page_of_a_thousand_workers_is_small():
    assert len(to_html(crowd(1_000, 30))) < 400_000


# ------------------------------------------------------------- a long run


def test_a_long_run_has_a_page_as_small_as_a_short_one(tmp_path):
    """Bounded parts only: 2,500 versions are beyond all of the bounds."""
    folder = made_up(tmp_path, workers=8, versions=2_500)
    page = Page(write_report(folder))
    assert (folder / "report.html").stat().st_size < 800_000  # without its library
    course = page.figures["timeline"]
    bars = course["layout"]["meta"]["bars"]["start"]
    assert len(bars["bdata"]) * 3 / 4 / 4 <= timeline_module.MAX_BARS + 100
    for part in course["data"]:
        if part.get("marker"):
            assert len(part["x"]["bdata"]) * 3 // 4 // 4 <= timeline_module.MAX_MARKS
    assert "open timeline.perfetto.json in ui.perfetto.dev" in page.text


@pytest.mark.slow
def test_a_report_of_20_000_versions_is_no_larger_than_three_megabytes(
    tmp_path, monkeypatch
):
    monkeypatch.undo()  # with its library
    folder = made_up(tmp_path, workers=8, versions=20_000)
    assert len(load_run(folder).events) > 400_000
    assert write_report(folder).stat().st_size < 3_000_000


# ------------------------------------------------------------- a trace of gigabytes


def test_of_a_trace_that_is_too_long_the_newest_part_is_read(tmp_path):
    folder = made_up(tmp_path, workers=4, versions=1_500)
    whole = trace.read_valid(folder / "trace", 10**9)
    assert whole.since_s == -math.inf
    part = trace.read_valid(folder / "trace", 600_000)
    assert part.invalid == {}
    assert len(part.events) < 0.2 * len(whole.events)
    after = [event for event in whole.events if event.time_s >= part.since_s]
    assert [e for e in part.events if e.time_s >= part.since_s] == after
    before = [e for e in part.events if e.time_s < part.since_s]
    assert {type(e) for e in before} == {
        trace.ProcessStarted,
        trace.WorkerJoined,
        trace.Published,
    }


def test_times_and_shares_of_the_newest_part_are_those_of_that_part(
    tmp_path, monkeypatch
):
    folder = made_up(tmp_path, workers=4, versions=1_500)
    whole = load_run(folder)
    monkeypatch.setattr(run_module, "MAX_TRACE_BYTES", 600_000)
    part = load_run(folder)
    assert part.start_s == whole.start_s
    assert any("sums over workers begin after" in note for note in part.notes)
    use = workers.time_use(workers.tally(part))
    assert use == pytest.approx(workers.time_use(workers.tally(whole)), abs=0.01)
    window = timeline_module.timeline(part).windows[-1]
    assert window.start_s == pytest.approx(part.since_s - part.start_s)
    to_html(part)


def test_a_short_trace_is_read_whole_though_one_file_is_long(tmp_path):
    folder = made_up(tmp_path, workers=2, versions=30)
    found = trace.read_valid(folder / "trace", 1_000)
    assert len(found.events) == len(trace.read_valid(folder / "trace", 10**9).events)


def test_of_many_rows_the_curve_keeps_its_extremes_and_its_end(tmp_path):
    """Resumed in the middle: what began anew is carried on before rows are left out."""
    path = tmp_path / "metrics.jsonl"
    lines = []
    for version in range(1, 10_001):
        accuracy = {6_789: 0.05, 7_890: 0.99}.get(version, 0.9)
        clock = {"version": version, "time_s": version % 5_000, "bytes_up": version}
        lines.append({"kind": "version", **clock})
        lines.append({"kind": "score", **clock, "scores": {"accuracy": accuracy}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    whole, cut = metrics.read_curve(path, 10**6, "accuracy")
    assert (len(whole), cut) == (20_000, 1)
    kept, cut = metrics.read_curve(path, 1_000, "accuracy")
    assert cut == 1
    assert len(kept) <= 1_000
    assert kept[-2:] == whole[-2:]
    accuracies = [row["scores"]["accuracy"] for row in kept if row["kind"] == "score"]
    assert (min(accuracies), max(accuracies)) == (0.05, 0.99)
    assert [row["time_s"] for row in kept] == sorted(row["time_s"] for row in kept)
    assert all(row in whole for row in kept[::50])


def test_without_a_file_there_are_no_rows(tmp_path):
    assert metrics.read_curve(tmp_path / "metrics.jsonl", 100, "accuracy") == ([], 0)
