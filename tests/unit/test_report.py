"""The report: written from whatever a run has left, and true to it."""

import base64
import gzip
import json
import math
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.offline
import pytest
from tensorboardX.proto import event_pb2

from asyn2f import trace
from asyn2f.report import segments, workers
from asyn2f.report.load import Run, load_run
from asyn2f.report.metrics import MetricsWriter, read_metrics
from asyn2f.report.run_page import write_report
from tests.support.patience import PATIENCE_S, Crowd
from tests.support.synthetic_run import made_up
from tests.support.updates import update_info


def unpacked(script: str) -> str:
    """What the page decompresses."""
    return gzip.decompress(base64.b64decode(script)).decode()


class Page(HTMLParser):
    """A report, read as a browser reads it: its cards, its scripts, its open tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cards: list[str] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[tuple[str, str]] = []
        self.feed(path.read_text())
        assert self._open == []
        self.figures = json.loads(unpacked(self.scripts[1]))["figures"]

    def handle_starttag(self, tag, attrs):
        if tag == "meta":
            return
        self._open.append((tag, dict(attrs).get("class", "")))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        tag, name = self._open[-1] if self._open else ("", "")
        if tag == "script":
            self.scripts[-1] += data
        else:
            self.text += data
        if name in ("value", "note"):
            self.cards.append(data)


@pytest.fixture(autouse=True)
def _no_library(monkeypatch):
    """Five megabytes of plotly.js less in every page."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


def test_the_head_shows_the_numbers_of_the_files(tmp_path):
    made_up(tmp_path, versions=140)
    writer = trace.TraceWriter(tmp_path / "trace", "worker-0")
    writer.write(trace.Merged(1_760_000_001.0, 0, 1, 0, 30, 0.0, 0.5))
    writer.close()
    page = Page(write_report(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    best, last = summary["best_value"], summary["final_scores"]["accuracy"]
    assert best > last + 0.001
    merges = [e for e in load_run(tmp_path).events if isinstance(e, trace.Merged)]
    for shown in (
        f"{100 * best:.2f} %",
        f"at version {summary['best_version']}, last {100 * last:.2f} %",
        "140",
        f"{140 / summary['wall_s']:.2f} per second",
        "280",
        f"{summary['updates']['superseded']} superseded, 0 rejected",
        f"{len(merges) - 1}",
        "and 1 between epochs",
        "448 MB up, 1.13 GB down",
        "5e0d5e0d5e0d",
    ):
        assert shown in page.cards


@pytest.mark.parametrize("synchronous", [False, True])
def test_all_figures_are_drawn(tmp_path, synchronous):
    page = Page(write_report(made_up(tmp_path, synchronous=synchronous)))
    drawn = {"headline", "timeline", "coefficients", "losses", "staleness"}
    assert page.figures.keys() == drawn | (set() if synchronous else {"merges"})
    assert [path.name for path in tmp_path.glob("*report*")] == ["report.html"]
    for figure in page.figures.values():
        go.Figure(figure)  # plotly finds it valid


def test_a_seed_of_64_bits_is_shown_digit_by_digit(tmp_path):
    made_up(tmp_path, versions=3)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for seed in (0, 3, 2**64 - 1):
        text = json.dumps(summary | {"seed": seed})
        (tmp_path / "summary.json").write_text(text)
        assert f"seed {seed}" in Page(write_report(tmp_path)).cards


def _without(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                path.unlink()

    return damage


def _cut(folder: Path) -> None:
    for path in [*folder.glob("*.json*"), *folder.glob("trace/*")]:
        path.write_bytes(path.read_bytes()[:-25])


def _resumed(folder: Path) -> None:
    for path in folder.glob("trace/*"):
        path.write_bytes(path.read_bytes()[:-25] + path.read_bytes())
    rows = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(rows + rows)


def _hostile(folder: Path) -> None:
    evil = '"></script><script>alert(1)</script>'
    for name in ("summary.json", "config.json", "trace/server.jsonl"):
        text = (folder / name).read_text()
        text = text.replace('"digits"', json.dumps(evil))
        (folder / name).write_text(text.replace('"finished"', json.dumps(evil)))


def _unknown(folder: Path) -> None:
    """Numbers that are none: NaN as Python writes it, null, text, negative counts."""
    for path in [*folder.glob("*.json*"), *folder.glob("trace/*")]:
        for name, value in (
            ("loss", "NaN"),
            ("accuracy", "null"),
            ("share", "NaN"),
            ("staleness", "[-1, null]"),
            ("bytes_up", '"many"'),
            ("wall_s", "null"),
        ):
            pattern = rf'"{name}": (\[[^\]]*\]|[^,}}]*)'
            path.write_text(re.sub(pattern, f'"{name}": {value}', path.read_text()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without("summary.json"), "summary.json is missing"),
        (_without("config.json"), "config.json is missing"),
        (_without("metrics.jsonl"), "metrics.jsonl has no rows"),
        (_without("trace/worker-[13]*"), "The trace of workers 1, 3 is missing"),
        (_without("trace/server*"), "The server's trace has no aggregations"),
        (_without("trace/*"), "trace/ has no events"),
        (_without("*.json*"), "metrics.jsonl has no rows"),
        (_without("summary.json", "metrics.jsonl", "trace/*"), "trace/ has no events"),
        (_cut, "summary.json is not valid JSON"),
        (_resumed, "1 line is invalid and left out"),
        (_hostile, "alert(1)"),
        (_unknown, "lines are invalid and left out"),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path, damage, said):
    damage(made_up(tmp_path, versions=20))
    page = Page(write_report(tmp_path))
    assert said in page.text
    assert len(page.scripts) == 3
    for figure in page.figures.values():
        go.Figure(figure)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has none of config\.json"):
        write_report(tmp_path)


def test_long_runs_are_drawn_quickly(tmp_path):
    made_up(tmp_path, workers=20, versions=500)
    began_s = time.perf_counter()
    with Crowd() as crowd:
        write_report(tmp_path)
    assert time.perf_counter() - began_s < 10 * crowd.factor
    assert len(load_run(tmp_path).events) > 20_000


def test_the_page_brings_its_library(tmp_path, monkeypatch):
    monkeypatch.undo()
    path = write_report(made_up(tmp_path, versions=3))
    library, _, script = Page(path).scripts
    assert unpacked(library) == plotly.offline.get_plotlyjs()
    assert 'DecompressionStream("gzip")' in script
    assert 'src="' not in path.read_text()


def test_pieces_hold_all_training_and_waiting(tmp_path):
    run = load_run(made_up(tmp_path, synchronous=True))
    pieces = segments.bars_of(run.events, dict(enumerate(range(5))), run.start_s)
    spans = [
        event.time_s - event.start_s
        for event in run.events
        if isinstance(event, trace.Trained | trace.Blocked)
    ]
    assert sum(pieces.end_s - pieces.start_s) == pytest.approx(sum(spans), rel=1e-6)
    few, slot_s = segments.thinned(pieces, num_rows=5, max_bars=100)
    assert slot_s > 0
    assert len(few.row) < 250


def test_staleness_grows_within_a_stretch_as_versions_come_out():
    events = [
        trace.Published(1.0, 0, 1, 1),
        trace.Published(3.0, 1, 1, 1),
        trace.Published(4.0, 2, 1, 1),
        trace.Trained(6.0, 7, 2.0, 4, 4, 0, 0.5, 0.5),
    ]
    pieces = segments.bars_of(events, {7: 0}, 0.0)
    assert pieces.start_s.tolist() == [2.0, 3.0, 4.0]
    assert pieces.end_s.tolist() == [3.0, 4.0, 6.0]
    assert pieces.staleness.tolist() == [0, 1, 2]


def test_a_worker_is_tallied():
    events = [
        trace.WorkerJoined(0.0, 1, "a", 64),
        trace.Blocked(1.0, 1, 0.0, 0),
        trace.Trained(3.0, 1, 1.0, 8, 8, 0, 0.5, 0.5),
        trace.Merged(3.0, 1, 1, 0, 8, 0.8, 0.25),
        trace.Trained(4.0, 1, 3.0, 2, 10, 1, 0.5, 0.5),
        trace.Pushed(4.0, 1, "a", 1, update_info(1, 0, 10)),
        trace.UpdateSettled(4.5, 1, "a", 1, "committed", 4, ""),
        trace.Aggregated(4.5, 4, 0, [[1, "a", 1]], [1], [2], [1.0], 0.1),
        trace.UpdateSettled(5.0, 1, "a", 1, "committed", 4, ""),
    ]
    config = {"training": {"batch_size": 7}}  # 64 examples in batches of 7: 10 steps
    (found,) = workers.tally(Run(events, [], None, config, ()))
    assert found == workers.WorkerTally(
        worker=1,
        num_examples=64.0,
        steps=10,
        epochs=1.0,
        pushed=1,
        committed=1,
        superseded=0,
        rejected=0,
        merges=1,
        share=0.25,
        trained_s=3.0,
        waited_s=1.0,
        present_s=5.0,
        staleness=2.0,
    )


def test_clocks_that_begin_anew_are_carried_on(tmp_path):
    writer = MetricsWriter(tmp_path)
    for time_s, up in ((0.0, 0), (5.0, 10), (0.0, 0), (2.0, 4)):
        writer.write({"kind": "version", "time_s": time_s, "bytes_up": up})
    writer.close()
    rows = load_run(tmp_path).metrics
    assert [row["time_s"] for row in rows] == [0.0, 5.0, 5.0, 7.0]
    assert [row["bytes_up"] for row in rows] == [0, 10, 10, 14]


def test_metrics_survive_a_cut_and_take_anything(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(
        {
            "kind": "score",
            "version": 1,
            "scores": {"accuracy": math.nan},
            "path": Path(),
        }
    )
    writer.write({"version": np.int32(2), "shares": np.array([0.5, math.inf])})
    writer.close()
    writer.write({"version": 3})  # after the end: dropped
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "sc')
    writer = MetricsWriter(tmp_path)
    writer.write({"kind": "version", "version": 4})
    writer.close()
    assert read_metrics(tmp_path) == [
        {"kind": "score", "version": 1, "scores": {"accuracy": None}, "path": "."},
        {"version": 2, "shares": [0.5, None]},
        {"kind": "version", "version": 4},
    ]


def test_scalars_go_to_tensorboard_under_their_version(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(
        {"kind": "score", "version": 7, "scores": {"accuracy": 0.5, "loss": math.nan}}
    )
    writer.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:  # length, checksum, event, checksum
        (size,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(v.tag, v.simple_value, event.step) for v in event.summary.value]
        data = data[16 + size :]
    assert found == [("score/accuracy", 0.5, 7)]


@pytest.mark.processes
@pytest.mark.parametrize("flags", [[], ["--run=nowhere"], ["--nonsense=1"]])
def test_the_program_says_in_one_line_what_is_wrong(flags):
    program = [sys.executable, "-m", "launch.report", *flags]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
