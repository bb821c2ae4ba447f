"""The marks on the timeline: what happens to a worker at one moment."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import segments, theme
from asyn2f.report.bars import HALF
from asyn2f.report.plots import f32, times

MAX_MARKS = 3_000
"""Merges, or pushes, in the figure: of more, those in its windows, and so many."""

CROWD = 130
"""So many marks of a kind in a row of the window, and the page leaves them out."""

_DARK, _LIGHT = "#1E293B", "#FFFFFF"


class _Look(NamedTuple):
    """How one kind of event is marked."""

    kind: type
    label: str
    symbol: str
    size: float  # pixels, where rows are high
    colour: str
    edge: str
    fields: tuple[str, ...]  # of the event, for the text under the mouse
    hover: str
    shift: float = 0.0  # rows downwards from the middle of the bar
    shown: bool = True


_LOOKS = (
    _Look(
        trace.Merged,
        label="merged a version",
        symbol="diamond",
        size=9,
        colour=_LIGHT,
        edge=_DARK,
        fields=("worker", "version", "from_version", "epoch_fraction", "share"),
        hover="worker %{customdata[0]} merges version %{customdata[1]} into its model"
        "<br>base before: %{customdata[2]}, at %{customdata[3]:.0%} of an epoch, "
        "keeps %{customdata[4]:.0%}",
    ),
    _Look(
        trace.Pushed,
        label="pushed an update",
        symbol="triangle-up",
        size=8,
        colour=_DARK,
        edge=_LIGHT,
        fields=("worker", "seq", "info.base_version", "info.loss"),
        hover="worker %{customdata[0]} pushes update %{customdata[1]}"
        "<br>base version %{customdata[2]}, loss %{customdata[3]:.4f}",
        shift=HALF,
    ),
    _Look(
        trace.WorkerLeft,
        label="left",
        symbol="x",
        size=9,
        colour=theme.BEST,
        edge=_LIGHT,
        fields=("worker",),
        hover="worker %{customdata[0]} left",
    ),
    _Look(
        trace.Received,
        label="downloaded a version",
        symbol="circle",
        size=5,
        colour=theme.GREY,
        edge=_LIGHT,
        fields=("worker", "version"),
        hover="version %{customdata[1]} has reached worker %{customdata[0]}",
        shift=-HALF,
        shown=False,
    ),
)


def row_height(num_workers: int) -> float:
    """Pixels of a worker's row: fewer, the more there are.

    >>> row_height(8), row_height(50)
    (34.0, 22.0)
    """
    return min(34.0, max(11.0, 1100.0 / num_workers))


def add_marks(
    figure: go.Figure,
    events: Sequence[trace.Event],
    rows: dict[int, int],
    zero_s: float,
    windows: Sequence[tuple[float, float]],
) -> bool:
    """Adds merges, pushes and departures; downloads too, which a click shows.

    Returns:
      Whether all of them are in the figure.
    """
    are_all = True
    scale = min(1.0, row_height(len(rows)) / 26.0)
    for look in _LOOKS:
        found: list[Any] = [event for event in events if isinstance(event, look.kind)]
        if not found:
            continue
        row = np.array([rows[event.worker] for event in found])
        time_s = np.array([event.time_s - zero_s for event in found])
        shown = np.arange(len(time_s))
        if len(shown) > MAX_MARKS:
            shown = np.flatnonzero(segments.within(time_s, windows))
            shown = shown[:: -(-len(shown) // MAX_MARKS) or 1]
            are_all = False
        read = [attrgetter(name) for name in look.fields]
        data = [[field(found[i]) for field in read] for i in shown]
        figure.add_scatter(
            x=times(time_s[shown]),
            y=f32(row[shown] + look.shift),
            mode="markers",
            marker={
                "symbol": look.symbol,
                "size": look.size * scale,
                "color": look.colour,
                "line": {"color": look.edge, "width": 1},
            },
            customdata=f32(data),
            meta={"stride": 1, "crowd": CROWD},
            hovertemplate=f"{look.hover}<extra></extra>",
            name=look.label,
            legend="legend2",
            visible=True if look.shown else "legendonly",
        )
    return are_all
