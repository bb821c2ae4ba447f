"""The bars of the timeline: training in the colour of its staleness, and waiting."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from asyn2f.report import theme
from asyn2f.report.plots import f32
from asyn2f.report.stretches import WAITING, Pieces

HALF = 0.34
"""Half the height of a bar, as a part of its row."""

_HATCHED = {
    "shape": "/",
    "size": 6,
    "solidity": 0.25,
    "fgcolor": theme.GREY,
    "bgcolor": "rgba(148,163,184,0.18)",
}


def add_bars(
    figure: go.Figure, fine: Pieces, coarse: Pieces, workers: list[int]
) -> None:
    """Adds one filled shape per bin of staleness, however many pieces it has.

    Args:
      figure: gets the bars, and beneath the mouse what they mean.
      fine: the pieces.
      coarse: fewer ones, for a view of the whole run; travels in `meta`.
      workers: the worker of each row.
    """
    bins, coarse_bins = _bins(fine), _bins(coarse)
    for index in np.unique(bins):
        look: dict[str, Any] = {"fillpattern": _HATCHED, "name": "waiting"}
        if index != WAITING:
            _, label, colour = theme.STALENESS[index]
            look = {"fillcolor": colour, "name": label}
        figure.add_scatter(
            **_outlines(fine, bins == index),
            meta={"stride": 6, "coarse": _outlines(coarse, coarse_bins == index)},
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
            **_middles(fine, waits, workers),
            meta={"stride": 1, "coarse": _middles(coarse, waits, workers)},
            mode="lines",
            line={"width": 0},
            hovertemplate=f"worker %{{customdata[0]}} {text}, "
            "for %{customdata[3]:.3g} s<extra></extra>",
            showlegend=False,
        )


def _bins(pieces: Pieces) -> np.ndarray:
    """The bin of each piece, i64 [n]; `WAITING` for those that wait."""
    least = [least for least, *_ in theme.STALENESS]
    return np.searchsorted(least, pieces.staleness, side="right") - 1


def _outlines(pieces: Pieces, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Closed outlines, f32 [6 n], with a gap after each."""
    row, start_s, end_s = (column[chosen] for column in pieces[:3])
    gap = np.full(len(row), math.nan)
    low, high = row + HALF, row - HALF
    x = np.stack([start_s, end_s, end_s, start_s, start_s, gap], axis=1)
    y = np.stack([low, low, high, high, low, gap], axis=1)
    return {"x": f32(x.ravel()), "y": f32(y.ravel())}


def _middles(
    pieces: Pieces, waits: bool, workers: Sequence[int]
) -> dict[str, np.ndarray]:
    """Points to be found by the mouse, and what to say of them, f32 [n, 4]."""
    chosen = (pieces.staleness == WAITING) == waits
    row, start_s, end_s, base, behind = (column[chosen] for column in pieces)
    said = (np.array(workers, int)[row], base, behind, end_s - start_s)
    return {
        "x": f32((start_s + end_s) / 2),
        "y": f32(row),
        "customdata": f32(np.stack(said, axis=1)),
    }
