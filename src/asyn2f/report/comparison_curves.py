"""The curves of a comparison, and where they end."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from asyn2f.report import plots, theme, units
from asyn2f.report.comparison import Row, Trial, by_strategy, estimate

_Look = dict[str, Any]  # of a trace

_SYMBOLS = 5  # on a line


def curves(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    target: float,
    places: dict[str, int],
) -> go.Figure:
    """Accuracy over time, updates and bytes: means of the seeds and their intervals.

    Every method has a dash and a symbol besides its colour.
    """
    own = by_strategy(trials)
    most = max(trial.num_bytes[-1] for trial in trials)
    scale, unit = units.scaled(most, most)
    axes = [
        ("seconds of virtual time", "time_s", 1.0),
        ("updates pushed", "updates", 1.0),
        (f"{unit} moved, up and down", "num_bytes", scale / max(most, 1)),
    ]
    figure = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.03)
    for row in rows:
        part, place = own[row.strategy], places[row.strategy]
        said = f"{row.strategy}: %{{y:.2%}}<extra></extra>"
        values = np.array([trial.accuracy for trial in part])
        points = [estimate(column) for column in values.T.tolist()]
        mean = np.array([point.mean for point in points])
        half = np.nan_to_num([point.half for point in points])
        for column, (_, axis, factor) in enumerate(axes, start=1):
            x = np.mean([getattr(trial, axis) for trial in part], axis=0) * factor
            for look in (
                _band(x, mean, half, place),
                _line(x, mean, place) | {"hovertemplate": said, "name": row.strategy},
                _symbols(x, mean, place),
            ):
                figure.add_scatter(
                    **look,
                    legendgroup=row.strategy,
                    showlegend=False,
                    row=1,
                    col=column,
                )
        key = {"name": row.strategy, "legendgroup": row.strategy}
        figure.add_scatter(**_key(place), **key, row=1, col=1)
    for column, (title, *_) in enumerate(axes, start=1):
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    dashes = {"color": theme.GREY, "dash": "dash", "width": 1.2}
    figure.add_hline(y=target, line=dashes)
    # What lies far below the methods' level is their common climb.
    ends = [trial.accuracy[-1] for trial in trials]
    low = np.fmin.reduce([*ends, target]) - 0.25
    shown = plots.share_range(np.array([low, *ends, target]))
    figure.update_yaxes(tickformat=".0%", range=shown)
    figure.update_yaxes(title_text="test accuracy", row=1, col=1)
    return figure.update_layout(height=460, meta={"narrow": plots.stacked(3, 300)})


def _band(x: np.ndarray, mean: np.ndarray, half: np.ndarray, place: int) -> _Look:
    return {
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([mean + half, (mean - half)[::-1]]).clip(0, 1),
        "fill": "toself",
        "fillcolor": theme.colour(place),
        "opacity": 0.1,
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _line(x: Any, y: Any, place: int) -> _Look:
    line = {"color": theme.colour(place), "width": 2, "dash": theme.dash(place)}
    return {"x": x, "y": y, "mode": "lines", "line": line}


def _symbols(x: np.ndarray, y: np.ndarray, place: int) -> _Look:
    """Some of the line's points, other ones for each line: a second way to tell it."""
    at = (np.arange(_SYMBOLS) + (0.5 + place % 10) / 10) * (len(x) - 1) / _SYMBOLS
    shown = np.unique(at.round().astype(int))
    return {
        "x": x[shown],
        "y": y[shown],
        "mode": "markers",
        "marker": _marker(place) | {"size": 8},
        "hoverinfo": "skip",
    }


def _key(place: int) -> _Look:
    """Line and symbol together, for the legend alone."""
    nothing = np.array([math.nan])
    line = _line(nothing, nothing, place)
    return line | {
        "mode": "lines+markers",
        "marker": _marker(place),
        "showlegend": True,
    }


def _marker(place: int) -> dict[str, Any]:
    return {"color": theme.colour(place), "symbol": theme.symbol(place)}


def ends(
    trials: Sequence[Trial], rows: Sequence[Row], places: dict[str, int]
) -> go.Figure:
    """Accuracy when the time is over: each seed, the mean and its interval."""
    own, figure = by_strategy(trials), go.Figure()
    shown = [trial.accuracy[-1] for trial in trials]
    for row in rows[::-1]:
        colour, end = theme.colour(places[row.strategy]), row.at_time
        half = float(np.nan_to_num(end.half))
        low, high = max(end.mean - half, 0.0), min(end.mean + half, 1.0)
        shown += [low, high]
        figure.add_scatter(
            x=[trial.accuracy[-1] for trial in own[row.strategy]],
            y=[row.strategy] * row.seeds,
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.45},
            cliponaxis=False,
            hovertemplate="%{x:.2%}<extra></extra>",
        )
        figure.add_scatter(
            x=[end.mean],
            y=[row.strategy],
            error_x={
                "array": [high - end.mean],
                "arrayminus": [end.mean - low],
                "thickness": 2,
                "width": 5,
            },
            mode="markers",
            marker=_marker(places[row.strategy]) | {"size": 12},
            cliponaxis=False,
            hovertemplate=f"{end} %<extra></extra>",
        )
    figure.update_xaxes(
        tickformat=".0%",
        title_text="test accuracy",
        range=plots.share_range(np.array(shown)),
    )
    return figure.update_layout(height=120 + 34 * len(rows), showlegend=False)
