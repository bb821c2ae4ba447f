"""Curves of the headline, of one run and of a comparison of methods."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from asyn2f.report import page, theme, units
from asyn2f.report.comparison import Row, Trial, by_strategy, estimate
from asyn2f.report.load import Run
from asyn2f.report.metrics import number
from asyn2f.report.summary import Score, best_score, scores
from asyn2f.types import Metric

MAX_POINTS = 1_000
"""Points of a curve: of more, those that keep its extremes."""

_SYMBOLS = 5  # on a line

_Look = dict[str, Any]  # of a plotly trace


def headline(run: Run) -> go.Figure | None:
    """The headline over time, versions and bytes; None without an evaluation."""
    found, best = scores(run), best_score(run)
    if best is None:
        return None
    most = max((s.num_bytes for s in found if math.isfinite(s.num_bytes)), default=0.0)
    _, unit = units.scaled(most, most)
    axes = [
        ("seconds since the start", lambda s: s.time_s),
        ("version of the global model", lambda s: s.version),
        (
            f"{unit} transferred",
            lambda s: units.scaled(s.num_bytes, most)[0],
        ),
    ]
    axes = [axis for axis in axes if any(math.isfinite(axis[1](s)) for s in found)]
    if not axes:
        return None
    figure = make_subplots(1, len(axes), shared_yaxes=True, horizontal_spacing=0.03)
    for column, (title, of) in enumerate(axes, start=1):
        _add_curve(figure, column, of, found, best, run.metric)
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    shown = [score.value for score in found]
    target = number(run.config, "stop", "target")
    if math.isfinite(target):
        _add_target(figure, target, run.metric)
        shown.append(target)
    figure.update_yaxes(
        **theme.ticks(run.metric), range=theme.value_range(shown, run.metric)
    )
    figure.update_yaxes(title_text=f"test {run.metric.name}", col=1)
    narrow = page.stacked(len(axes), 270)
    return figure.update_layout(height=400, meta={"narrow": narrow})


def _add_curve(
    figure: go.Figure,
    column: int,
    of: Callable[[Score], float],
    found: Sequence[Score],
    best: Score,
    metric: Metric,
) -> None:
    """Adds the headline over the quantity `of` an evaluation, and marks the best."""
    points = [(of(score), score.value, score.version) for score in found]
    points = sorted(point for point in points if math.isfinite(point[0]))
    kept = theme.extremes(np.array([y for _, y, _ in points]), MAX_POINTS)
    x, y, version = zip(*[points[index] for index in kept], strict=True)
    figure.add_scatter(
        x=x,
        y=y,
        customdata=version,
        mode="lines" if len(points) > 60 else "lines+markers",
        line={"color": theme.ACCENT, "width": 2},
        marker={"size": 5},
        cliponaxis=False,
        hovertemplate="version %{customdata}: "
        f"{theme.hover('y', metric)}<extra></extra>",
        showlegend=False,
        row=1,
        col=column,
    )
    figure.add_scatter(
        x=[of(best)],
        y=[best.value],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 13,
            "color": theme.BEST,
            "line": {"width": 2.5},
        },
        cliponaxis=False,
        hovertemplate=f"best: {units.as_score(best.value, metric)}<extra></extra>",
        name=f"best, {units.as_score(best.value, metric)}",
        legendgroup="best",
        showlegend=column == 1,
        row=1,
        col=column,
    )


def _add_target(figure: go.Figure, target: float, metric: Metric) -> None:
    dashes = {"color": theme.GREY, "dash": "dash", "width": 1.5}
    figure.add_hline(y=target, line=dashes)
    figure.add_scatter(  # for the legend, which does not list lines across a figure
        x=[None],
        y=[None],
        mode="lines",
        line=dashes,
        name=f"target, {units.as_score(target, metric)}",
    )


# ------------------------------------------------------------- of a comparison


def of_methods(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    target: float,
    metric: Metric,
    places: dict[str, int],
) -> go.Figure:
    """The headline over time, updates and bytes: means of the seeds and intervals.

    Besides its colour, every method has a dash and a symbol.
    """
    own = by_strategy(trials)
    most = max(trial.num_bytes[-1] for trial in trials)
    scale, unit = units.scaled(most, most)
    axes = [
        ("seconds of virtual time", "time_s", 1.0),
        ("updates pushed", "updates", 1.0),
        (f"{unit} transferred", "num_bytes", scale / max(most, 1)),
    ]
    figure = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.03)
    for row in rows:
        part, place = own[row.strategy], places[row.strategy]
        said = f"{row.strategy}: {theme.hover('y', metric)}<extra></extra>"
        values = np.array([trial.values for trial in part])
        points = [estimate(column) for column in values.T.tolist()]
        mean = np.array([point.mean for point in points])
        half = np.nan_to_num([point.half for point in points])
        for column, (_, axis, factor) in enumerate(axes, start=1):
            x = np.mean([getattr(trial, axis) for trial in part], axis=0) * factor
            for look in (
                _band(x, *theme.within(mean - half, mean + half, metric), place),
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
    shown = theme.value_range(_worth_showing(trials, target, metric), metric)
    figure.update_yaxes(**theme.ticks(metric), range=shown)
    figure.update_yaxes(title_text=f"test {metric.name}", row=1, col=1)
    return figure.update_layout(height=460, meta={"narrow": page.stacked(3, 300)})


def _worth_showing(
    trials: Sequence[Trial], target: float, metric: Metric
) -> list[float]:
    """The final values, and some of the way to them: far from them there is only the
    way that all methods have in common."""
    ends = [target, *(trial.values[-1] for trial in trials)]
    known = [end for end in ends if math.isfinite(end)]
    if not known:
        return []
    if metric.is_fraction:
        reach = 0.25
    else:
        begins = [t.values[0] for t in trials if math.isfinite(t.values[0])]
        reach = 0.25 * max((abs(x - y) for x in begins for y in known), default=0.0)
    if metric.higher_is_better:
        return [min(known) - reach, *known]
    return [max(known) + reach, *known]


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, place: int) -> _Look:
    return {
        "x": np.concatenate([x, x[::-1]]),
        "y": np.concatenate([high, low[::-1]]),
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
    """Markers on some points of a line, at other places for each line."""
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
    """Line and symbol together, for the legend only."""
    nothing = np.array([math.nan])
    line = _line(nothing, nothing, place)
    return line | {
        "mode": "lines+markers",
        "marker": _marker(place),
        "showlegend": True,
    }


def _marker(place: int) -> dict[str, Any]:
    return {"color": theme.colour(place), "symbol": theme.symbol(place)}


def final_values(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    metric: Metric,
    places: dict[str, int],
) -> go.Figure:
    """The headline at the end: each seed, the mean and its interval."""
    own, figure = by_strategy(trials), go.Figure()
    shown = [trial.values[-1] for trial in trials]
    for row in rows[::-1]:
        colour, end = theme.colour(places[row.strategy]), row.at_time
        half = float(np.nan_to_num(end.half))
        low, high = theme.within(end.mean - half, end.mean + half, metric)
        shown += [low, high]
        figure.add_scatter(
            x=[trial.values[-1] for trial in own[row.strategy]],
            y=[row.strategy] * row.seeds,
            mode="markers",
            marker={"color": colour, "size": 7, "opacity": 0.45},
            cliponaxis=False,
            hovertemplate=f"{theme.hover('x', metric)}<extra></extra>",
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
            hovertemplate=f"{units.with_interval(*end, metric, ' %')}<extra></extra>",
        )
    figure.update_xaxes(
        **theme.ticks(metric),
        title_text=f"test {metric.name}",
        range=theme.value_range(shown, metric),
    )
    return figure.update_layout(height=120 + 34 * len(rows), showlegend=False)
