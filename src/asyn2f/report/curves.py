"""The curves of a run: accuracy and training loss."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from asyn2f import trace
from asyn2f.report import plots, theme, units
from asyn2f.report.load import Run
from asyn2f.report.rows import number
from asyn2f.report.summary import Score, best_score, scores

MAX_POINTS = 1_000
"""Points of a curve: of more, those that keep its extremes."""

MAX_LOSS_POINTS = 20_000
"""Points of all workers' losses together."""

MAX_WORKERS = 60
"""Workers whose loss is drawn: of more, so many at even distances."""


def accuracy(run: Run) -> go.Figure | None:
    """Test accuracy over time, versions and bytes; None without an evaluation."""
    found, best = scores(run), best_score(run)
    if best is None:
        return None
    most = max((s.num_bytes for s in found if math.isfinite(s.num_bytes)), default=0.0)
    _, unit = units.scaled(most, most)
    axes = [
        ("seconds since the start", lambda s: s.time_s),
        ("version of the global model", lambda s: s.version),
        (f"{unit} moved, up and down", lambda s: units.scaled(s.num_bytes, most)[0]),
    ]
    axes = [axis for axis in axes if any(math.isfinite(axis[1](s)) for s in found)]
    if not axes:
        return None
    figure = make_subplots(1, len(axes), shared_yaxes=True, horizontal_spacing=0.03)
    for column, (title, of) in enumerate(axes, start=1):
        _add_curve(figure, column, of, found, best)
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    shown = [score.accuracy for score in found]
    target = number(run.config, "stop", "target_accuracy")
    if target > 0:
        _add_target(figure, target)
        shown.append(target)
    figure.update_yaxes(tickformat=".0%", range=plots.share_range(np.array(shown)))
    figure.update_yaxes(title_text="test accuracy", col=1)
    narrow = plots.stacked(len(axes), 270)
    return figure.update_layout(height=400, meta={"narrow": narrow})


def _add_curve(
    figure: go.Figure,
    column: int,
    of: Callable[[Score], float],
    found: Sequence[Score],
    best: Score,
) -> None:
    """Accuracy over what `of` says of an evaluation, and the best one."""
    points = [(of(score), score.accuracy, score.version) for score in found]
    points = sorted(point for point in points if math.isfinite(point[0]))
    kept = plots.extremes(np.array([y for _, y, _ in points]), MAX_POINTS)
    x, y, version = zip(*[points[index] for index in kept], strict=True)
    figure.add_scatter(
        x=x,
        y=y,
        customdata=version,
        mode="lines" if len(points) > 60 else "lines+markers",
        line={"color": theme.ACCENT, "width": 2},
        marker={"size": 5},
        cliponaxis=False,
        hovertemplate="version %{customdata}: %{y:.2%}<extra></extra>",
        showlegend=False,
        row=1,
        col=column,
    )
    figure.add_scatter(
        x=[of(best)],
        y=[best.accuracy],
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 13,
            "color": theme.BEST,
            "line": {"width": 2.5},
        },
        cliponaxis=False,
        hovertemplate=f"best: {units.as_percent(best.accuracy)}<extra></extra>",
        name=f"best, {units.as_percent(best.accuracy)}",
        legendgroup="best",
        showlegend=column == 1,
        row=1,
        col=column,
    )


def _add_target(figure: go.Figure, target: float) -> None:
    dashes = {"color": theme.GREY, "dash": "dash", "width": 1.5}
    figure.add_hline(y=target, line=dashes)
    figure.add_scatter(  # for the legend, which lines across a figure do not enter
        x=[None],
        y=[None],
        mode="lines",
        line=dashes,
        name=f"target, {units.as_percent(target)}",
    )


def losses(run: Run) -> go.Figure | None:
    """Training loss of every worker over time; None where no loss is known."""
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for kind in (trace.Pushed, trace.Trained):
        for event in run.events:
            if isinstance(event, kind):
                told = event.info if isinstance(event, trace.Pushed) else event
                if math.isfinite(told.loss):
                    time_s = event.time_s - run.start_s
                    points[event.worker].append((time_s, told.loss))
        if points:
            break
    if not points:
        return None
    figure = go.Figure()
    workers = plots.evenly(sorted(points), MAX_WORKERS)
    most = min(MAX_POINTS, MAX_LOSS_POINTS // len(workers))
    for worker in workers:
        own = np.array(points[worker])
        x, y = own[plots.extremes(own[:, 1], most)].T
        figure.add_scatter(
            x=plots.f32(x),
            y=plots.f32(y),
            mode="lines",
            line={
                "color": theme.colour(worker),
                "dash": theme.dash(worker),
                "width": 1.5,
            },
            name=f"worker {worker}",
            hovertemplate=f"worker {worker}: %{{y:.4f}}<extra></extra>",
        )
    figure.update_xaxes(title_text="seconds since the start", rangemode="tozero")
    known = [loss for own in points.values() for _, loss in own]
    if min(known) > 0 and max(known) > 8 * min(known):
        # Else all but the first seconds would lie along the bottom.
        low, high = (math.floor(math.log10(x)) for x in (min(known), max(known)))
        figure.update_yaxes(type="log")
        if high - low < 5:  # more decades get plotly's own ticks, one each
            decades = range(low, high + 1)
            ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            names = [f"{tick:g}" for tick in ticks]
            figure.update_yaxes(tickvals=ticks, ticktext=names)
    else:
        figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="training loss")
    return plots.with_legend(figure, len(workers)).update_layout(height=400)
