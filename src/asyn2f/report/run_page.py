"""The report of a run: one self-contained page, and a file for ui.perfetto.dev."""

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from asyn2f import rundir, trace
from asyn2f.report import (
    bottlenecks,
    curves,
    figures,
    guards,
    segments,
    spread,
    summary,
    units,
    workers,
)
from asyn2f.report.load import Run, is_simulated, load_run
from asyn2f.report.page import Section, to_page
from asyn2f.report.timeline import Timeline, timeline
from asyn2f.report.workers import WorkerTally


def write_report(workdir: Path) -> Path:
    """Writes report.html and timeline.perfetto.json, each whole or not at all.

    Args:
      workdir: a run's folder; the report names what is missing in it.

    Returns:
      The path of the report.

    Raises:
      ValueError: there is no such folder, or no run in it.
      TraceFormatError: the trace was written in another format.
    """
    workdir = Path(workdir)
    # In a run that diverges, numbers may overflow.
    with np.errstate(all="ignore"), _without_garbage_collection():
        run = load_run(workdir)
        text = to_html(run)
        _replace(workdir / rundir.REPORT, lambda p: p.write_text(text, "utf-8"))
        _replace(
            workdir / rundir.TIMELINE,
            lambda part: segments.write_chrome_trace(part, run.events, run.start_s),
        )
    return workdir / rundir.REPORT


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Half a million events without cycles would be traversed again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def to_html(run: Run) -> str:
    """The report of a run as one page of HTML."""
    tallies = workers.tally(run)
    return to_page(
        f"{_title(run)} · {_name(run)}",
        head=_head(run, tallies) + _cards(run),
        sections=[section for section in _sections(run) if section is not None],
        tail=_workers(tallies) + _settings(run),
    )


def _sections(run: Run) -> Iterator[Section | None]:
    yield Section(
        "headline",
        f"Test {run.metric.name}",
        "The same evaluations over time, versions and bytes transferred.",
        curves.headline(run),
        "No version was evaluated: there was no evaluator, or its scores are missing.",
    )
    yield spread.section(run)
    yield _timeline(run)
    yield bottlenecks.section(run)
    yield _coefficients(run)
    yield guards.section(run)
    yield Section(
        "losses",
        "Training loss",
        "The mean loss of each worker in the epoch before each of its updates, or in "
        "the cycle where those are counted in steps. Workers have the same colour in "
        "all figures.",
        figures.losses(run),
        "No worker has reported a loss.",
    )
    yield Section(
        "split",
        "Data of the workers",
        "Training examples per worker"
        + ("; a colour is a class." if _has_classes(run) else "."),
        figures.split(run),
        "This run has no record of its split.",
    )
    yield Section(
        "staleness",
        "Staleness of the updates",
        "Versions published between an update's base and the version that contains it; "
        "0 is fresh.",
        figures.staleness(run),
        "The trace has no aggregation.",
        half=True,
    )
    count = sum(isinstance(event, trace.Merged) for event in run.events)
    yield Section(
        "merges",
        "Merges within the epoch",
        f"{count:,} versions were merged into models in training; the line is the "
        "share of the local model that was kept.",
        figures.merges(run),
        "No worker merged a version: each trained without interruption, or waited.",
        half=True,
    )


def _has_classes(run: Run) -> bool:
    return run.split is None or run.split.shape[1] > 1


def _timeline(run: Run) -> Section:
    drawn = timeline(run)
    return Section(
        "timeline",
        "Timeline",
        "A bar is a worker in training, coloured by staleness: the number of versions "
        "published since its base. Diamonds are versions merged into a model in "
        "training; hatched bars are workers waiting. Marks appear as you zoom in."
        + (_resolution(drawn) if drawn else ""),
        drawn.figure if drawn else None,
        "No worker has left a trace.",
        above=_buttons(drawn) if drawn else "",
    )


def _resolution(drawn: Timeline) -> str:
    """What the figure leaves out, in sentences."""
    text = ""
    if drawn.num_rows < drawn.num_workers:
        text += f" {drawn.num_rows} of {drawn.num_workers:,} workers are shown."
    if drawn.slot_s:
        shortest = units.as_duration(drawn.slot_s)
        text += f" Bars shorter than {shortest} are joined with their neighbours."
    if not drawn.has_all_marks:
        text += " Only some of the marks are shown."
    if text:
        text += f" For every event, open {rundir.TIMELINE} in ui.perfetto.dev."
    return text


def _buttons(drawn: Timeline) -> str:
    names = ["on", *[""] * (len(drawn.windows) - 1)]
    names[-1] += " whole"
    jumps = [
        f'<button class="{name}" data-from="{window.start_s:.9g}" '
        f'data-to="{window.end_s:.9g}">{escape(window.label)}</button>'
        for name, window in zip(names, drawn.windows, strict=True)
    ]
    moves = [
        f'<button data-{action}="{by}" title="{title}">{sign}</button>'
        for action, by, sign, title in (
            ("move", -1, "←", "earlier"),
            ("move", 1, "→", "later"),
            ("zoom", 0.5, "+", "zoom in"),
            ("zoom", 2, "−", "zoom out"),
        )
    ]
    return f'<div class="windows">{"".join(jumps + moves)}</div>'


def _coefficients(run: Run) -> Section:
    shares = figures.coefficients(run)
    figure, group = shares if shares else (None, 1)
    mean = f" A column is the mean of {group} versions." if group > 1 else ""
    return Section(
        "coefficients",
        "Composition of the versions",
        "Each column is a version, each colour the share of one worker's updates."
        + mean,
        figure,
        "The trace has no aggregation.",
    )


def _title(run: Run) -> str:
    """Strategy and task if the config names them, else the run's name."""
    task = (run.config or {}).get("task")
    task = task if isinstance(task, dict) else {}
    factory = str(task.get("factory") or "").rpartition("/")[2]
    dataset = factory or task.get("dataset")
    if dataset and summary.strategy(run) != units.NONE:
        return f"{summary.strategy(run)} on {dataset}"
    return _name(run) or "A run"


def _name(run: Run) -> str:
    heads = (
        event.run for event in run.events if isinstance(event, trace.ProcessStarted)
    )
    return str((run.summary or {}).get("run") or next(heads, ""))


def _head(run: Run, tallies: list[WorkerTally]) -> str:
    status = (run.summary or {}).get("status")
    pill = f'<span class="pill">{escape(str(status))}</span>' if status else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return (
        f'<header><div class="kicker">run {escape(_name(run))}{pill}</div>'
        f"<h1>{escape(_title(run))}</h1>"
        f'<p class="lede">{escape(_lede(run, tallies))}</p></header>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _lede(run: Run, tallies: list[WorkerTally]) -> str:
    """The run in two sentences."""
    versions, wall_s = summary.num_versions(run), summary.duration_s(run)
    made = f"{units.as_number(versions)} version{'s'[: versions != 1]}"
    count = len(tallies)
    who = f"{count} worker{'s'[: count != 1]}" if count else "The run"
    took = units.as_duration(wall_s) + (" of virtual time" * is_simulated(run.events))
    text = f"{who} made {made} of the global model in {took}."
    if use := workers.time_use(tallies):
        parts = [units.as_percent(part, 0) for part in use]
        text += (
            f" Workers spent {parts[0]} of their time training, {parts[1]} waiting, "
            f"and {parts[2]} starting, merging, encoding and sending."
        )
    return text


def _cards(run: Run) -> str:
    shown = "".join(
        f'<div class="card"><div class="label">{escape(figure.label)}</div>'
        f'<div class="value">{escape(figure.value)}</div>'
        f'<div class="note">{escape(figure.note)}</div></div>'
        for figure in summary.key_figures(run) + spread.key_figures(run)
    )
    return f'<div class="cards">{shown}</div>'


def _workers(tallies: list[WorkerTally]) -> str:
    rows = workers.table(tallies)
    return (
        "<section><h2>Workers</h2><p>Shares of the time between a worker's first and "
        "last event, without absences: blue is training, hatched is waiting, the rest "
        "is starting, merging, encoding and sending. A dash: its trace is missing.</p>"
        f"{rows or '<p class=empty>No worker has left a trace.</p>'}</section>"
    )


def _settings(run: Run) -> str:
    blocks: list[tuple[str, Any]] = []
    if run.config is not None:
        blocks.append(("Settings", run.config))
    blocks += [
        (
            f"Environment of the {event.actor} (incarnation {event.incarnation})",
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
