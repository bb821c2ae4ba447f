"""The timeline: which worker trained, waited, merged and pushed when."""

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import segments, theme
from asyn2f.report.load import Run, worker_of
from asyn2f.report.segments import WAITING, Bars, Window
from asyn2f.report.theme import evenly, f32, times

MAX_BARS = 20_000  # of training or waiting
MAX_VERSIONS = 4_000  # ticks in the server's row
MAX_MARKS = 5_000  # of one kind
MAX_ROWS = 100  # workers
"""Limits of the figure. A longer run is drawn more coarsely."""

_CROWD = 130  # marks of a kind in a row of the view: more are hidden until one zooms in
_HALF = 0.34  # half the height of a bar, in rows
_DARK, _LIGHT = "#1E293B", "#FFFFFF"
_HATCHED = {
    "shape": "/",
    "size": 6,
    "solidity": 0.25,
    "fgcolor": theme.GREY,
    "bgcolor": "rgba(148,163,184,0.18)",
}


class Timeline(NamedTuple):
    """The figure and its resolution."""

    figure: go.Figure
    windows: tuple[Window, ...]  # the first is shown initially
    slot_s: float  # shortest bar of a long run; 0 = every bar is drawn as recorded
    num_rows: int  # workers drawn ...
    num_workers: int  # ... out of how many
    has_all_marks: bool


def timeline(run: Run) -> Timeline | None:
    """One row per worker, and one for the server's versions; None without workers.

    Args:
      run: any run; a worker whose trace is missing has an empty row.
    """
    workers = sorted({w for w in map(worker_of, run.events) if w is not None})
    if not workers:
        return None
    rows = {worker: row for row, worker in enumerate(evenly(workers, MAX_ROWS))}
    events = run.events
    if len(rows) < len(workers):
        events = [e for e in events if worker_of(e) is None or worker_of(e) in rows]
    bars = segments.bars_of(events, rows, run.start_s)
    bars, slot_s = segments.thinned(bars, len(rows), MAX_BARS)
    windows = segments.windows_of(
        events, run.start_s, max(run.since_s - run.start_s, 0.0)
    )
    if slot_s:
        windows = windows[-1:]  # no part is drawn in more detail than the whole
    figure = go.Figure()
    _add_versions(figure, events, len(rows), run.start_s)
    _add_bars(figure, bars, list(rows))
    kinds = [_add_marks(figure, look, events, rows, run.start_s) for look in _LOOKS]
    _lay_out(figure, list(rows), windows[0])
    return Timeline(figure, windows, slot_s, len(rows), len(workers), all(kinds))


# ------------------------------------------------------------- bars


def _add_bars(figure: go.Figure, bars: Bars, workers: list[int]) -> None:
    """Adds one filled shape per bin of staleness, and hover texts.

    The traces are empty: the page's script draws the bars from the columns in the
    figure's `meta`, which are a fraction of the size of their outlines.
    """
    least = [least for least, *_ in theme.STALENESS]
    bins = np.searchsorted(least, bars.staleness, side="right") - 1
    for index in np.unique(bins).tolist():
        look: dict[str, Any] = {"fillpattern": _HATCHED, "name": "waiting"}
        if index != WAITING:
            _, label, colour = theme.STALENESS[index]
            look = {"fillcolor": colour, "name": label}
        figure.add_scatter(
            x=[None],
            y=[None],
            meta={"bin": index},
            mode="lines",
            fill="toself",
            line={"width": 0},
            hoverinfo="skip",
            legend="legend2" if index == WAITING else "legend",
            **look,
        )
    for waits, text in (
        (False, "trains from version %{customdata[1]}<br>staleness %{customdata[2]}"),
        (True, "waits<br>newest version %{customdata[1]}"),
    ):
        figure.add_scatter(
            x=[None],
            y=[None],
            meta={"waits": waits},
            mode="lines",
            line={"width": 0},
            hovertemplate=f"worker %{{customdata[0]}} {text}, "
            "for %{customdata[3]:.3g} s<extra></extra>",
            showlegend=False,
        )
    columns = {
        "row": f32(bars.row),
        "start": times(bars.start_s),
        "end": times(bars.end_s),
        "base": f32(bars.base),
        "staleness": f32(bars.staleness),
        "bin": f32(bins),
    }
    figure.update_layout(meta={"bars": columns, "workers": workers, "half": _HALF})


# ------------------------------------------------------------- marks


class _Look(NamedTuple):
    """How one kind of event is marked."""

    kind: type
    label: str
    symbol: str
    size: float  # pixels, where rows are high
    colour: str
    edge: str
    fields: tuple[str, ...]  # of the event, for the hover text
    hover: str
    shift: float = 0.0  # rows downwards from the middle of the bar
    shown: bool = True


_LOOKS = (
    _Look(
        *(trace.Merged, "merged a version", "diamond", 9, _LIGHT, _DARK),
        ("worker", "version", "from_version", "epoch_fraction", "share"),
        "worker %{customdata[0]} merges version %{customdata[1]} into its model"
        "<br>previous base: %{customdata[2]}, at %{customdata[3]:.0%} of an epoch, "
        "keeps %{customdata[4]:.0%}",
    ),
    _Look(
        *(trace.Pushed, "pushed an update", "triangle-up", 8, _DARK, _LIGHT),
        ("worker", "seq", "info.base_version", "info.loss"),
        "worker %{customdata[0]} pushes update %{customdata[1]}"
        "<br>base version %{customdata[2]}, loss %{customdata[3]:.4f}",
        shift=_HALF,
    ),
    _Look(
        *(trace.WorkerLeft, "left", "x", 9, theme.BEST, _LIGHT),
        ("worker",),
        "worker %{customdata[0]} left",
    ),
    _Look(
        *(trace.Received, "received a version", "circle", 5, theme.GREY, _LIGHT),
        ("worker", "version"),
        "version %{customdata[1]} has reached worker %{customdata[0]}",
        shift=-_HALF,
        shown=False,
    ),
)


def _add_marks(
    figure: go.Figure,
    look: _Look,
    events: Sequence[trace.Event],
    rows: dict[int, int],
    zero_s: float,
) -> bool:
    """Adds the marks of one kind; returns whether all of them are drawn."""
    found: list[Any] = [event for event in events if isinstance(event, look.kind)]
    if not found:
        return True
    shown = evenly(found, MAX_MARKS)
    fields = [attrgetter(name) for name in look.fields]
    row = np.array([rows[event.worker] for event in shown])
    figure.add_scatter(
        x=times([event.time_s - zero_s for event in shown]),
        y=f32(row + look.shift),
        mode="markers",
        marker={
            "symbol": look.symbol,
            "size": look.size * min(1.0, row_height(len(rows)) / 26.0),
            "color": look.colour,
            "line": {"color": look.edge, "width": 1},
        },
        customdata=f32([[field(event) for field in fields] for event in shown]),
        meta={"crowd": _CROWD * len(np.unique(row))},
        hovertemplate=f"{look.hover}<extra></extra>",
        name=look.label,
        legend="legend2",
        visible=True if look.shown else "legendonly",
    )
    return len(shown) == len(found)


def _add_versions(
    figure: go.Figure, events: Sequence[trace.Event], num_rows: int, zero_s: float
) -> None:
    """Ticks in the server's row, and hairlines down to the workers."""
    times_s, versions = segments.published(events, zero_s)
    if not len(times_s):
        return
    shown = evenly(range(len(times_s)), MAX_VERSIONS)
    times_s, versions = times_s[shown], versions[shown]
    for top, bottom, width, opacity, meta in (
        (-1 + _HALF, num_rows - 0.5, 1, 0.5, {"crowd": 3 * _CROWD}),
        (-1 - _HALF, -1 + _HALF, 2, 1.0, {}),
    ):
        x, y = _ticks(times_s, top, bottom)
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
        hovertemplate="version %{customdata[0]} published<br>%{x:.2f} s<extra></extra>",
        showlegend=False,
    )


def _ticks(
    time_s: np.ndarray, top: float, bottom: float
) -> tuple[np.ndarray, np.ndarray]:
    """Vertical lines, [3 n], with a gap after each."""
    gap = np.full(len(time_s), math.nan)
    x = np.stack([time_s, time_s, gap], axis=1)
    ends = np.full(len(gap), top), np.full(len(gap), bottom)
    y = np.stack([*ends, gap], axis=1)
    return times(x.ravel()), f32(y.ravel())


# ------------------------------------------------------------- layout


def row_height(num_workers: int) -> float:
    """Pixels of a worker's row: the fewer, the more workers.

    >>> row_height(8), row_height(50)
    (34.0, 22.0)
    """
    return min(34.0, max(11.0, 1100.0 / num_workers))


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
    title = {"text": "training, staleness of its base: "}
    figure.update_layout(
        height=height,
        margin={"t": 66, "b": 56},
        dragmode="pan",
        hoverdistance=30,
        legend={**top, "y": 1 - 30 / height, "title": title},
        legend2={**top, "y": 1 - 56 / height, "orientation": "h"},
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
