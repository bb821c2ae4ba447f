"""The report of a run: one page that needs nothing else, made of what is there."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from asyn2f import trace
from asyn2f.report import (
    bottlenecks,
    cards,
    curves,
    figures,
    guards,
    summary,
    tables,
    units,
)
from asyn2f.report.load import Run, is_simulated, load_run
from asyn2f.report.sections import Section, to_page
from asyn2f.report.summary import WorkerTally
from asyn2f.report.timeline import Timeline, timeline
from asyn2f.rundir import REPORT


def write_report(workdir: Path) -> Path:
    """The path of the report, `workdir`/report.html, written whole or not at all.

    Args:
      workdir: a run's folder; what it lacks the report lacks, and says so.

    Raises:
      ValueError: no such folder, or nothing of a run in it.
    """
    workdir = Path(workdir)
    # Of a run that diverges, numbers may overflow.
    with np.errstate(all="ignore"), _collecting_no_garbage():
        text = to_html(load_run(workdir))
    part = workdir / f".{REPORT}.{os.getpid()}"
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, workdir / REPORT)
    finally:
        part.unlink(missing_ok=True)
    return workdir / REPORT


@contextlib.contextmanager
def _collecting_no_garbage() -> Iterator[None]:
    """Half a million events in memory, among which there are no cycles, would be looked
    through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def to_html(run: Run) -> str:
    """The report of a run as one page of HTML."""
    workers = summary.tally(run)
    return to_page(
        f"{_title(run)} · {_name(run)}",
        head=_head(run, workers) + _cards(run),
        sections=list(_sections(run)),
        tail=_workers(workers) + _settings(run),
    )


def _sections(run: Run) -> Iterator[Section]:
    yield Section(
        "accuracy",
        "Test accuracy",
        "The same evaluations three times: against the clock, against the versions of "
        "the global model, and against the bytes that went over the wire.",
        curves.accuracy(run),
        "No version has been evaluated: no evaluator took part, or its scores are not "
        "in this folder.",
    )
    course = timeline(run)
    yield Section(
        "timeline",
        "Who did what, when",
        "A bar is a worker in training, its colour the number of versions that came "
        "out since the one it builds on; a diamond is a version merged into a model in "
        "training, hatching a worker that waits. Marks appear as you zoom in."
        + _coarse(course),
        course.figure if course else None,
        "No worker has left a trace.",
        above=_buttons(course) if course else "",
    )
    if bounds := bottlenecks.section(run):
        yield bounds
    shares = figures.coefficients(run)
    yield Section(
        "coefficients",
        "What the versions are made of",
        "Each column is a version, and each colour the share of one worker's updates "
        "in it." + (_grouped(shares[1]) if shares else ""),
        shares[0] if shares else None,
        "The trace has no aggregation.",
    )
    if found := guards.section(run):
        yield found
    yield Section(
        "losses",
        "Training loss",
        "The mean loss of each worker over the epoch before each of its updates; "
        "workers keep their colour on the whole page.",
        curves.losses(run),
        "No worker has reported a loss.",
    )
    yield Section(
        "split",
        "Who has which data",
        "The training examples of each worker; a colour is a class.",
        figures.split(run),
        "This run has not recorded its split.",
    )
    yield Section(
        "staleness",
        "Staleness of the updates",
        "How many versions came out between the one an update builds on and the one it "
        "went into; 0 is fresh.",
        figures.staleness(run),
        "The trace has no aggregation.",
        half=True,
    )
    merged = sum(isinstance(event, trace.Merged) for event in run.events)
    yield Section(
        "merges",
        "Where in the epoch workers merged",
        f"{merged:,} fresh versions were merged into models in training; the line is "
        "the share of the local model that they kept.",
        figures.merges(run),
        "No worker merged a version: each trained on undisturbed, or waited.",
        half=True,
    )


def _coarse(course: Timeline | None) -> str:
    if course is None:
        return ""
    some = ""
    if course.num_rows < course.num_workers:
        some = f" {course.num_rows} of {course.num_workers:,} workers are drawn."
    if not course.slot_s and course.has_all_marks:
        return some
    named = ", ".join(f"“{window.label}”" for window in course.windows[:-1])
    some += f" The run is long: it is drawn as it was in {named or 'no window'}."
    if course.slot_s:
        shortest = units.as_duration(course.slot_s)
        some += f" Elsewhere what is shorter than {shortest} is one bar with its "
        some += "neighbours."
    return some if course.has_all_marks else some + " Marks are left out elsewhere."


def _grouped(group: int) -> str:
    return f" A column is the mean of {group} versions." if group > 1 else ""


def _buttons(course: Timeline) -> str:
    names = ["on", *[""] * (len(course.windows) - 1)]
    names[-1] += " whole"
    jumps = [
        f'<button class="{name}" data-from="{window.start_s:.9g}" '
        f'data-to="{window.end_s:.9g}">{escape(window.label)}</button>'
        for name, window in zip(names, course.windows, strict=True)
    ]
    moves = [
        f'<button data-{action}="{by}" title="{title}">{sign}</button>'
        for action, by, sign, title in (
            ("move", -1, "←", "earlier"),
            ("move", 1, "→", "later"),
            ("zoom", 0.5, "+", "closer"),
            ("zoom", 2, "−", "wider"),
        )
    ]
    return f'<div class="windows">{"".join(jumps + moves)}</div>'


def _title(run: Run) -> str:
    """What was run, as far as the config tells; else the run's name."""
    task = (run.config or {}).get("task")
    dataset = task.get("dataset") if isinstance(task, dict) else None
    if dataset and cards.strategy(run) != units.NONE:
        return f"{cards.strategy(run)} on {dataset}"
    return _name(run) or "A run"


def _name(run: Run) -> str:
    heads = (
        event.run for event in run.events if isinstance(event, trace.ProcessStarted)
    )
    return str((run.summary or {}).get("run") or next(heads, ""))


def _head(run: Run, workers: list[WorkerTally]) -> str:
    status = (run.summary or {}).get("status")
    pill = f'<span class="pill">{escape(str(status))}</span>' if status else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return (
        f'<header><div class="kicker">run {escape(_name(run))}{pill}</div>'
        f"<h1>{escape(_title(run))}</h1>"
        f'<p class="lede">{escape(_lede(run, workers))}</p></header>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _lede(run: Run, workers: list[WorkerTally]) -> str:
    """The run in two sentences."""
    versions, wall_s = cards.num_versions(run), cards.duration_s(run)
    made = f"{units.as_number(versions)} version{'s'[: versions != 1]}"
    crowd = f"{len(workers)} worker{'s'[: len(workers) != 1]}" if workers else "The run"
    took = units.as_duration(wall_s) + (" of virtual time" * is_simulated(run.events))
    text = f"{crowd} made {made} of the global model in {took}."
    if use := summary.time_use(workers):
        parts = [units.as_percent(part, 0) for part in use]
        text += (
            f" Workers trained for {parts[0]} of their time, waited for {parts[1]}, "
            f"and spent {parts[2]} on starting, merging, coding and sending."
        )
    return text


def _cards(run: Run) -> str:
    shown = "".join(
        f'<div class="card"><div class="label">{escape(figure.label)}</div>'
        f'<div class="value">{escape(figure.value)}</div>'
        f'<div class="note">{escape(figure.note)}</div></div>'
        for figure in cards.key_figures(run)
    )
    return f'<div class="cards">{shown}</div>'


def _workers(workers: list[WorkerTally]) -> str:
    rows = tables.to_html(workers)
    return (
        "<section><h2>The workers</h2><p>Shares of time count from the start of the "
        "run, or from when a worker joined, to its last event, without the time that "
        "it was away. Blue is training, hatching is waiting, the rest is starting, "
        "merging, coding and sending. A dash: its trace is not here.</p>"
        f"{rows or '<p class=empty>No worker has left a trace.</p>'}</section>"
    )


def _settings(run: Run) -> str:
    blocks: list[tuple[str, Any]] = []
    if run.config is not None:
        blocks.append(("Settings", run.config))
    blocks += [
        (
            f"Where {event.actor} ran (incarnation {event.incarnation})",
            event.environment,
        )
        for event in run.events
        if isinstance(event, trace.ProcessStarted) and event.actor == "server"
    ]
    if not blocks:
        return ""
    parts = "".join(
        f"<details><summary>{escape(title)}</summary><pre>"
        f"{escape(json.dumps(record, indent=2, ensure_ascii=False))}</pre></details>"
        for title, record in blocks
    )
    return f"<section>{parts}</section>"
