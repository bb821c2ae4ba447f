"""The picture of an asynchronous run: who trained, waited, merged and pushed when."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import segments, theme
from asyn2f.report.bars import HALF, add_bars
from asyn2f.report.load import Run, worker_of
from asyn2f.report.marks import add_marks, row_height
from asyn2f.report.plots import f32, times

MAX_PIECES = 24_000
"""Stretches of training or waiting in the figure: more would make the page heavy. Half
of them are for the windows, which show them as they were."""

MAX_PIECES_FROM_AFAR = 8_000
"""The same in a view of the whole run: more would make it slow."""

MAX_VERSIONS = 4_000
"""Ticks in the server's row: of more, those in the windows, and so many of all."""

MAX_ROWS = 100
"""Workers in the figure: of more, so many are drawn, at even distances."""

_WINDOW_CYCLES = 7.0  # a window shows at most so many cycles of a typical worker,
_WINDOW_MARKS = 26.0  # and at most so many of its merges and pushes


class Window(NamedTuple):
    """A stretch of time worth looking at."""

    label: str
    start_s: float
    end_s: float


class Timeline(NamedTuple):
    """The figure, where to look, and how coarse it is."""

    figure: go.Figure
    windows: tuple[Window, ...]  # the first is the one shown at the beginning
    slot_s: float  # 0 = every stretch is drawn as it was
    num_rows: int  # workers that are drawn ...
    num_workers: int  # ... of so many
    has_all_marks: bool  # else those in the windows


def timeline(run: Run) -> Timeline | None:
    """One row per worker, and one for the server's versions; None without workers.

    Args:
      run: any run; a worker whose trace is missing has an empty row.
    """
    zero_s = run.start_s
    workers = _workers(run.events)
    if not workers:
        return None
    rows = _rows(workers)
    events = run.events
    if len(rows) < len(workers):
        events = [e for e in events if worker_of(e) is None or worker_of(e) in rows]
    windows = _windows(events, zero_s, max(run.since_s - zero_s, 0.0))
    spans = [(window.start_s, window.end_s) for window in windows[:-1]]
    pieces = segments.pieces_of(events, rows, zero_s)
    fine, slot_s = segments.with_detail(pieces, spans, len(rows), MAX_PIECES)
    coarse, _ = segments.fewer(pieces, len(rows), MAX_PIECES_FROM_AFAR)
    figure = go.Figure()
    _add_versions(figure, events, len(rows), zero_s, spans)
    add_bars(figure, fine, coarse, list(rows))
    has_all = add_marks(figure, events, rows, zero_s, spans)
    _lay_out(figure, list(rows), windows[0])
    return Timeline(figure, windows, slot_s, len(rows), len(workers), has_all)


def _workers(events: Sequence[trace.Event]) -> list[int]:
    named = (worker_of(event) for event in events)
    return sorted({worker for worker in named if worker is not None})


def _rows(workers: list[int]) -> dict[int, int]:
    """The row of each worker that is drawn."""
    count = min(len(workers), MAX_ROWS)
    places = np.linspace(0, len(workers) - 1, count).round().astype(int)
    return {workers[place]: row for row, place in enumerate(places)}


def _add_versions(
    figure: go.Figure,
    events: Sequence[trace.Event],
    num_rows: int,
    zero_s: float,
    windows: Sequence[tuple[float, float]],
) -> None:
    """Ticks in the server's row, and hairlines down to the workers."""
    times_s, versions = segments.published(events, zero_s)
    if not len(times_s):
        return
    shown = np.zeros(len(times_s), bool)
    shown[:: -(-len(shown) // MAX_VERSIONS)] = True
    shown |= segments.within(times_s, windows)
    times_s, versions = times_s[shown], versions[shown]
    for top, bottom, width, opacity, meta in (
        (-1 + HALF, num_rows - 0.5, 1, 0.5, {"stride": 3, "crowd": 120}),
        (-1 - HALF, -1 + HALF, 2, 1.0, {"stride": 3}),
    ):
        x, y = _ticks(times_s, np.full(len(times_s), top), bottom - top)
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": theme.GREY, "width": width},
            opacity=opacity,
            hoverinfo="skip",
            meta=meta,
            showlegend=False,
        )
    figure.add_scatter(
        x=times(times_s),
        y=f32(np.full(len(times_s), -1.0)),
        mode="lines",
        line={"width": 0},
        customdata=f32(versions[:, None]),
        meta={"stride": 1},
        hovertemplate="version %{customdata[0]} published<br>%{x:.2f} s<extra></extra>",
        showlegend=False,
    )


def _windows(
    events: Sequence[trace.Event], zero_s: float, since_s: float
) -> tuple[Window, ...]:
    end_s = max(events[-1].time_s - zero_s, 1e-6)
    pushes = [event for event in events if isinstance(event, trace.Pushed)]
    merges = [event for event in events if isinstance(event, trace.Merged)]
    length_s = min(
        _WINDOW_CYCLES * segments.interval_s(pushes),
        _WINDOW_MARKS * segments.interval_s([*pushes, *merges]),
    )
    whole = Window("Whole run", since_s, end_s)
    if not 0 < length_s < end_s - since_s:
        return (whole,)
    marks = np.array([event.time_s - zero_s for event in merges or pushes])
    busiest_s = segments.busiest_window(marks, length_s, end_s)
    return (
        Window("Busiest", busiest_s, busiest_s + length_s),
        Window("Beginning", since_s, since_s + length_s),
        Window("End", end_s - length_s, end_s),
        whole,
    )


def _lay_out(figure: go.Figure, workers: list[int], window: Window) -> None:
    row_px = row_height(len(workers))
    every = math.ceil(14.0 / row_px)
    # Counted from the server's row, whose name has its own place.
    shown = [(r, w) for r, w in enumerate(workers) if (r + 1) % every == 0]
    names = [
        f'<span style="color:{theme.colour(worker)}">●</span> worker {worker}'
        for _, worker in shown
    ]
    top = {"x": 0.0, "xanchor": "left", "yanchor": "bottom", "yref": "container"}
    height = 134 + row_px * (len(workers) + 1)
    figure.update_layout(
        height=height,
        margin={"t": 66, "b": 56},
        dragmode="pan",
        hoverdistance=30,
        legend=top
        | {
            "y": 1 - 30 / height,
            "title": {"text": "training, staleness of its base: "},
        },
        legend2=top | {"y": 1 - 56 / height, "orientation": "h"},
        xaxis={
            "range": [window.start_s, window.end_s],
            "title": {"text": "seconds since the start"},
            "showgrid": False,
        },
        yaxis={
            "range": [len(workers) - 0.4, -1.5],
            "tickvals": [-1, *(row for row, _ in shown)],
            "ticktext": ["<b>server</b>", *names],
            "showgrid": False,
            "fixedrange": True,
        },
    )


def _ticks(
    time_s: np.ndarray, top: np.ndarray, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Upright lines, [3 n], with a gap after each."""
    gap = np.full(len(time_s), math.nan)
    x = np.stack([time_s, time_s, gap], axis=1)
    y = np.stack([top, top + length, gap], axis=1)
    return times(x.ravel()), f32(y.ravel())
