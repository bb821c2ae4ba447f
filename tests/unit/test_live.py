"""The live view: right at every width and height, and quiet where no terminal is."""

import io
from datetime import datetime

import pytest
from rich.console import Console

from asyn2f.protocol.status import RunStatus, WorkerStatus
from asyn2f.report.live import LiveView, plain_line, render
from asyn2f.tasks.classification import ACCURACY
from asyn2f.types import Best


def status_of(workers: int = 3, **changes) -> RunStatus:
    """A run in its third minute, with so many workers."""
    states = ("training", "waiting", "silent", "gone")
    found = RunStatus(
        run="digits",
        strategy="asyn2f",
        state="running",
        elapsed_s=134.0,
        version=132,
        max_versions=500,
        progress=132 / 500,
        versions_per_s=1.02,
        metric=ACCURACY,
        scores={"accuracy": 0.9341, "loss": 0.2213},
        best=Best(128, "accuracy", 0.9362),
        committed=1264,
        superseded=12,
        rejected=3,
        bytes_up=512_300_000,
        bytes_down=1_224_000_000,
        workers=tuple(
            WorkerStatus(
                worker=worker,
                state=states[worker % 4],
                step=12_345 + worker,
                epoch=12.4 + worker,
                loss=0.3121,
                metric=0.91,
                base_version=132 - worker % 3,
                staleness=worker % 3,
                merges=31,
                merged_s_ago=-1.0 if worker == 1 else 0.4,
                updates=1_012,
                num_examples=12_000,
            )
            for worker in range(workers)
        ),
    )
    return found._replace(**changes)


def shown(status: RunStatus, width: int, height: int = 40) -> list[str]:
    """The lines of the view on a terminal of that size."""
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, record=True
    )
    console.print(render(status))
    return console.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut_at_usual_widths(width):
    lines = shown(status_of(8), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for part in (
        "version  132 of 500",
        "1.02 versions/s",
        "accuracy 93.41 %, best 93.62 % at 128   loss 0.2213",
        "1,264 committed, 12 superseded, 3 rejected   ↑ 512 MB  ↓ 1.22 GB",
        "00:02:14",
    ):
        assert part in text
    row = next(line for line in lines if line.split()[:1] == ["2"])
    cells = ["2", "!", "silent", "14.40", "0.3121", "v130", "2", "0.40", "s", "ago"]
    assert row.split()[:11] == [*cells, "1,012"]


def test_a_wide_terminal_shows_more():
    assert "examples" not in "\n".join(shown(status_of(), 80))
    assert "examples" in "\n".join(shown(status_of(), 120))


def test_of_a_worker_that_has_not_trained_no_loss_is_made_up():
    status = status_of(1)
    new = status.workers[0]._replace(step=0, epoch=0.0, loss=0.0, metric=0.0)
    (line,) = [x for x in shown(status._replace(workers=(new,)), 140) if "●" in x]
    assert "0.0000" not in line
    assert "0.00 %" not in line
    trained = "\n".join(shown(status, 140))
    assert "0.3121" in trained
    assert "91.00 %" in trained


def test_workers_without_room_are_counted():
    lines = shown(status_of(50), width=100, height=40)
    assert len(lines) == 39
    assert "… and 18 more: 5 training, 5 waiting, 4 silent, 4 gone" in lines[-1]
    assert lines[-2].split()[0] == "31"
    assert len(shown(status_of(33), width=100, height=40)) == 39
    assert "more" not in "\n".join(shown(status_of(33), width=100, height=40))


def test_a_tiny_terminal_is_no_error():
    assert shown(status_of(50), width=20, height=5)


def test_a_run_that_has_just_begun_is_shown():
    status = status_of(
        0,
        scores=None,
        best=None,
        max_versions=0,
        progress=0.0,
        version=0,
        versions_per_s=0.0,
    )
    text = "\n".join(shown(status, 80))
    assert "no workers yet" in text
    assert "nan" not in text + plain_line(status)
    assert "version 0 (0/s) | accuracy - | updates" in plain_line(status)
    assert plain_line(status).isascii()


def _lines(console_file: io.StringIO) -> list[str]:
    return console_file.getvalue().splitlines()


def test_a_log_gets_a_line_every_two_seconds_or_when_the_run_has_improved():
    file = io.StringIO()
    now = lambda: datetime(2026, 11, 29, 23, 10, 5, 999)
    with LiveView(Console(file=file, width=80), now) as view:
        view.update(status_of(elapsed_s=0.0, best=None))
        view.update(status_of(elapsed_s=0.5, best=None))
        view.update(status_of(elapsed_s=1.0, best=Best(1, "accuracy", 0.5)))
        view.update(status_of(elapsed_s=1.5, best=Best(1, "accuracy", 0.5)))
        view.update(status_of(elapsed_s=3.0, best=Best(1, "accuracy", 0.5)))
        view.message("[bold]as it is[/bold] " + 100 * "x")
        view.update(status_of(elapsed_s=3.9, best=Best(1, "accuracy", 0.5)))
    lines = _lines(file)
    date = "2026-11-29 23:10:05 "
    assert all(line.startswith(date) for line in lines)
    lines = [line.removeprefix(date) for line in lines]
    assert [line[:8] for line in lines if "|" in line] == [
        "00:00:00",
        "00:00:01",
        "00:00:03",
        "00:00:03",  # the last word, printed at the end
    ]
    assert "[bold]as it is[/bold] " + 100 * "x" in lines


def test_nothing_seen_is_nothing_printed():
    file = io.StringIO()
    with LiveView(Console(file=file)):
        pass
    assert _lines(file) == []


def test_a_terminal_is_redrawn_in_place():
    file = io.StringIO()
    console = Console(file=file, width=100, height=30, force_terminal=True)
    with LiveView(console) as view:
        view.update(status_of(version=1))
        view.message("server at tcp://127.0.0.1:5570")
        view.update(status_of(version=2))
    text = file.getvalue()
    assert "server at tcp://127.0.0.1:5570" in text
    assert "\x1b[1A" in text  # the cursor goes up
    assert "\x1b[?25h" in text  # and is shown again at the end
