"""The spread of the headline over workers, where each has a model or a test set of its
own."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from asyn2f.report import theme, units
from asyn2f.report.comparison import Row, Trial, by_strategy, estimate
from asyn2f.report.curves import MAX_POINTS
from asyn2f.report.load import Run
from asyn2f.report.page import Section
from asyn2f.report.summary import KeyFigure, best_score, scores
from asyn2f.types import P10, WORST, Metric

_DASHES = {"": "solid", P10: "dash", WORST: "dot"}
_NAMES = {"": "mean", P10: "10th percentile", WORST: "worst"}


def section(run: Run) -> Section | None:
    """The mean, the 10th percentile and the worst worker, by version; None where
    workers were not evaluated apart."""
    name = run.metric.name
    curves = {
        ending: [(s.version, s.value) for s in scores(run, name + ending)]
        for ending in _NAMES
    }
    if not curves[WORST]:
        return None
    figure = go.Figure()
    shown = []
    for ending, points in curves.items():
        values = [value for _, value in points]
        kept = theme.extremes(np.array(values), MAX_POINTS).tolist() if values else []
        shown += values
        figure.add_scatter(
            x=[points[index][0] for index in kept],
            y=[points[index][1] for index in kept],
            mode="lines",
            line={"color": theme.ACCENT, "width": 2, "dash": _DASHES[ending]},
            name=_NAMES[ending],
            hovertemplate=f"{_NAMES[ending]}, version %{{x}}: "
            f"{theme.hover('y', run.metric)}<extra></extra>",
        )
    figure.update_xaxes(title_text="version of the global model", rangemode="tozero")
    figure.update_yaxes(
        **theme.ticks(run.metric), range=theme.value_range(shown, run.metric)
    )
    figure.update_yaxes(title_text=f"test {name}")
    return Section(
        "spread",
        f"{units.capitalized(name)} over the workers",
        "Each version at every worker, with the worker's own part of the model and on "
        "its own test rows: the mean, the 10th percentile from the worst, and the "
        "worst worker.",
        theme.with_legend(figure, len(curves)).update_layout(height=400),
        "",
    )


def key_figures(run: Run) -> list[KeyFigure]:
    """A card on the workers at the best version; none where they were not evaluated
    apart."""
    best = best_score(run)
    at_best = {
        ending: score.value
        for ending in (WORST, P10)
        for score in scores(run, run.metric.name + ending)
        if best is not None and score.version == best.version
    }
    if len(at_best) < 2:
        return []
    worst, p10 = (units.as_score(at_best[x], run.metric) for x in (WORST, P10))
    note = f"10th percentile {p10}, at the best version"
    return [KeyFigure("Worst worker", worst, note)]


def in_words(trials: Sequence[Trial], rows: Sequence[Row], metric: Metric) -> str:
    """A sentence on the workers at the end of each method's trials, means over the
    seeds, or ""."""
    parts, groups = [], by_strategy(trials)
    for row in rows:
        own = groups[row.strategy]
        p10, worst = (estimate([getattr(t, x) for t in own]) for x in ("p10", "worst"))
        if math.isfinite(worst.mean):
            parts.append(f"{row.strategy} {p10.text(metric)} and {worst.text(metric)}")
    if not parts:
        return ""
    return (
        f"Over the workers, each with its own model or test rows, the {metric.name} at "
        "equal time is a mean; the 10th percentile and the worst worker: "
        f"{', '.join(parts)}."
    )
