"""The report of the hand-made run, computed by hand; of damaged and hostile runs."""

import json
import math

import pytest

from asyn2f import rundir, trace
from asyn2f.report import segments, summary, workers
from asyn2f.report.load import Run, load_run
from asyn2f.report.run_page import to_html, write_report
from tests.support.handmade_trace import hand_made
from tests.support.synthetic_run import made_up
from tests.support.updates import update_info
from tests.unit.test_report import Page, _no_library  # noqa: F401, a fixture for all

EVIL = '"></script><img src=x onerror=alert(1)><script>alert(1)</script>'


def run_of(events, **files):
    fields = {"metrics": [], "summary": None, "config": None, "notes": ()} | files
    return Run([*events], **fields, start_s=0.4)


# ------------------------------------------------------------- sums


def test_the_sums_of_a_hand_made_run_are_those_computed_by_hand():
    config = {"training": {"batch_size": 10}}  # epochs of 3 steps and of 1
    first, second = workers.tally(run_of(hand_made(), config=config))
    assert first[:10] == (0, 30.0, 16, 16 / 3, 4, 3, 1, 0, 4, pytest.approx(0.3))
    assert second[:10] == (1, 10.0, 9, 9.0, 5, 3, 0, 1, 1, pytest.approx(0.3))
    assert first.trained_s == pytest.approx(4.3)
    assert second.trained_s == pytest.approx(3.3)
    assert (first.waited_s, second.waited_s) == (0.0, pytest.approx(0.2))
    # From the first version, at 0.4 s, to the last that is heard of each.
    assert first.present_s == pytest.approx(6.2 - 0.4)
    assert second.present_s == pytest.approx(6.7 - 0.4)
    assert (first.staleness, second.staleness) == (0.0, 0.25)
    use = workers.time_use([first, second])
    assert use == pytest.approx((7.6 / 12.1, 0.2 / 12.1, 4.3 / 12.1))


def test_the_row_of_all_workers_sums_and_weighs():
    table = workers.table(workers.tally(run_of(hand_made())))
    total = table.partition('<tr class="total">')[2]
    cells = [cell.partition("</td>")[0] for cell in total.split("<td>")[1:]]
    assert cells[:10] == ["all", "40", "25", "–", "2.8", "6", "1", "1", "0.12", "5"]


def test_an_update_that_was_lost_with_its_version_is_not_committed():
    """Version 2 was made twice; [1, "b", 1] was in the first one only."""
    found = summary.outcomes(hand_made())
    assert (1, "b", 1) not in found
    assert found[0, "a", 2] == "committed"


def test_the_key_figures_without_a_summary_come_from_the_trace():
    cards = {card.label: card for card in summary.key_figures(run_of(hand_made()))}
    assert cards["Versions"][1:] == ("3", "0.469 per second")
    assert cards["Wall time"].value == "6.40 s"
    assert cards["Updates committed"][1:] == ("6", "1 superseded, 1 rejected")
    assert cards["Merges mid-epoch"][1:] == ("2", "and 3 between epochs")
    assert cards["Best score"].value == cards["Parameters"].value == "–"


def test_the_key_figures_prefer_the_summary():
    told = {"versions": 7, "wall_s": 70.0, "best_value": 0.5, "best_version": 6}
    told |= {"updates": {"committed": 14, "superseded": 3, "rejected": 2}, "seed": 5}
    told |= {"bytes_up": 1000, "bytes_down": 2000, "broadcast_bytes_down": 9000}
    found = summary.key_figures(run_of(hand_made(), summary=told))
    cards = {card.label: card for card in found}
    assert cards["Versions"][1:] == ("7", "0.100 per second")
    assert cards["Best score"][1:] == ("0.5000", "at version 6")
    assert cards["Updates committed"][1:] == ("14", "3 superseded, 2 rejected")
    broadcast = "1.00 kB up, 2.00 kB down (9.00 kB as a broadcast)"
    assert cards["Bytes moved"][1:] == ("3.00 kB", broadcast)


# ------------------------------------------------------------- segments


def test_training_and_waiting_become_bars():
    events = [
        trace.Published(0.0, 0, 1, 1),
        trace.Trained(1.0, 4, 0.0, 5, 5, 0, 0.5, 0.5),
        trace.Trained(2.0, 4, 1.01, 5, 10, 0, 0.5, 0.5),  # joined with the one before
        trace.Blocked(3.0, 4, 2.0, 0),
        trace.Published(3.0, 1, 1, 1),
        trace.Trained(4.0, 4, 3.0, 5, 15, 1, 0.5, 0.5),
        trace.Trained(6.0, 4, 5.0, 5, 20, 1, 0.5, 0.5),  # after a pause
    ]
    bars = segments.bars_of(events, {4: 2}, zero_s=0.0)
    assert set(bars.row.tolist()) == {2}
    spans = sorted(
        zip(bars.start_s, bars.end_s, bars.base, bars.staleness, strict=True)
    )
    assert spans == [
        (0.0, 2.0, 0, 0),
        (2.0, 3.0, 0, segments.WAITING),
        (3.0, 4.0, 1, 0),
        (5.0, 6.0, 1, 0),
    ]


def test_windows_lie_within_the_run_and_the_busiest_has_the_most_marks():
    crowd = [10.0 + 0.1 * k for k in range(30)]
    times_s = [*range(10), *crowd, *range(20, 60)]
    events = [trace.Pushed(t, 0, "a", k, update_info()) for k, t in enumerate(times_s)]
    busiest, beginning, end, whole = segments.windows_of(events, 0.0, 0.0)
    assert (whole.start_s, whole.end_s) == (0.0, 59.0)
    assert (beginning.start_s, end.end_s) == (0.0, 59.0)
    inside = [t for t in crowd if busiest.start_s <= t <= busiest.end_s]
    assert len(inside) == len(crowd)


# ------------------------------------------------------------- Perfetto


def test_the_chrome_trace_has_a_track_per_process_and_all_their_events(tmp_path):
    path = tmp_path / rundir.TIMELINE
    diverged = trace.Trained(7.0, 0, 6.0, 2, 18, 2, math.nan, 0.5)
    segments.write_chrome_trace(path, [*hand_made(), diverged], zero_s=0.4)
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found.keys() == {"displayTimeUnit", "traceEvents"}
    entries = found["traceEvents"]
    names = [e for e in entries if e["ph"] == "M" and e["name"] == "thread_name"]
    tracks = {e["tid"]: e["args"]["name"] for e in names}
    assert tracks == {0: "server", 1: "worker 0", 2: "worker 1"}
    for entry in entries:
        assert {"name", "ph", "pid", "tid", "args"} <= entry.keys()
        assert entry["ph"] in ("M", "X", "i")
        assert entry["ph"] == "M" or isinstance(entry["ts"], int)
    slices = [e for e in entries if e["ph"] == "X"]
    kinds = trace.Trained | trace.Blocked
    spans = [(e.start_s, e.time_s) for e in hand_made() if isinstance(e, kinds)]
    wanted = [(round(1e6 * (a - 0.4)), round(1e6 * (b - 0.4))) for a, b in spans]
    drawn = [(e["ts"], e["ts"] + e["dur"]) for e in slices]
    assert drawn == [*wanted, (5_600_000, 6_600_000)]
    assert slices[-1]["args"]["loss"] is None
    (first,) = [e for e in entries if e["name"] == "aggregate"][:1]
    assert first["args"] == {
        "version": 1,
        "updates": [[0, "a", 1], [1, "b", 0]],
        "staleness": [0, 0],
    }
    assert (first["ts"], first["tid"], first["ph"]) == (1_600_000, 0, "i")


def test_the_chrome_trace_of_no_events_is_valid(tmp_path):
    segments.write_chrome_trace(tmp_path / "empty", [], zero_s=0.0)
    assert json.loads((tmp_path / "empty").read_text())["traceEvents"] == []


# ------------------------------------------------------------- hostile, damaged


def test_no_text_of_a_run_becomes_an_element(tmp_path):
    made_up(tmp_path, versions=3)
    writer = trace.TraceWriter(tmp_path / "trace", "worker-0")
    last_s = load_run(tmp_path).events[-1].time_s
    head = trace.ProcessStarted(last_s, "server", EVIL, 1, {EVIL: EVIL})
    for event in (
        head,
        trace.WorkerLeft(last_s, 0, EVIL, EVIL),
        trace.UpdateSettled(last_s, 0, EVIL, 1, "rejected", -1, EVIL),
        trace.UpdateSettled(last_s, 0, EVIL, 2, EVIL, -1, EVIL),
        trace.Stopped(last_s, EVIL, EVIL),
    ):
        writer.write(event)
    writer.close()
    summary_file = tmp_path / "summary.json"
    told = json.loads(summary_file.read_text())
    told |= dict.fromkeys(("status", "strategy", "run", "params_sha256"), EVIL)
    summary_file.write_text(json.dumps(told))
    config = {"task": {"dataset": EVIL}, EVIL: EVIL, "guards": {"mode": EVIL}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = write_report(tmp_path)
    assert len(Page(path).scripts) == 3
    assert "<img" not in path.read_text()
    assert "<img" in Page(path).text


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("end", [b"", b"\n", b"\xff\xfe\x00{[\n"])
def test_whatever_is_left_of_the_files_there_is_a_page(tmp_path, kept, end):
    made_up(tmp_path, versions=8)
    for path in [*tmp_path.glob("*.json*"), *tmp_path.glob("trace/*")]:
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))] + end)
    page = Page(write_report(tmp_path))
    assert len(page.scripts) == 3
    assert "summary.json is not valid JSON" in page.text
    assert (tmp_path / rundir.TIMELINE).exists()


def test_values_of_other_types_are_unknown():
    """In files that are valid JSON, and nothing else."""
    files = {
        "summary": {"versions": "many", "wall_s": [], "updates": 3, "strategy": {}},
        "config": {"training": 7, "task": [], "guards": "off", "stop": None},
        "metrics": [
            {"kind": "score", "scores": {"score": "high"}, "time_s": {}},
            {"kind": []},
        ],
    }
    text = to_html(run_of(hand_made(), **files))
    assert "2 workers made 3 versions" in text
    assert "No version was evaluated" in text
