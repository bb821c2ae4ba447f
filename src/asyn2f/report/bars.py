"""The bars of the timeline: training in the colour of its staleness, and waiting."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from asyn2f.report import theme
from asyn2f.report.plots import f32, times
from asyn2f.report.segments import WAITING, Pieces

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

    The script draws them: the traces added here are empty, and say in `meta` which
    pieces are theirs; the pieces themselves are columns in the figure's `meta`.

    Args:
      figure: gets the bars, and beneath the mouse what they mean.
      fine: the pieces.
      coarse: fewer ones, for a view of the whole run.
      workers: the worker of each row.
    """
    for index in np.unique(_bins(fine)).tolist():
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
    columns = {"fine": _columns(fine), "coarse": _columns(coarse)}
    figure.update_layout(meta={**columns, "workers": workers, "half": HALF})


def _bins(pieces: Pieces) -> np.ndarray:
    """The bin of each piece, i64 [n]; `WAITING` for those that wait."""
    least = [least for least, *_ in theme.STALENESS]
    return np.searchsorted(least, pieces.staleness, side="right") - 1


def _columns(pieces: Pieces) -> dict[str, np.ndarray]:
    """What the script needs of them: f32 or f64 [n] each, by start."""
    order = np.argsort(pieces.start_s, kind="stable")
    return {
        "row": f32(pieces.row[order]),
        "start": times(pieces.start_s[order]),
        "end": times(pieces.end_s[order]),
        "base": f32(pieces.base[order]),
        "behind": f32(pieces.staleness[order]),
        "bin": f32(_bins(pieces)[order]),
    }
