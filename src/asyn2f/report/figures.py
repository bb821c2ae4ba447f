"""The figures of a run that count and compare; `timeline` draws its course."""

import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from asyn2f import trace
from asyn2f.report import theme, units
from asyn2f.report.run import Run, number
from asyn2f.report.tally import best_score, scores

MIN_COLUMNS, MAX_COLUMNS = 24, 80
"""Columns of the picture of coefficients, in a long run: finer ones look like noise."""

MAX_POINTS = 500
"""Points of one worker's loss: more would only thicken the line."""

MAX_CLASSES = 24
"""Classes that get a colour of their own in the picture of the split."""

_LEGEND_UP_TO = 16  # entries; above that a legend would push the figure away


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
    target = number(run.config, "stop", "target_accuracy")
    for column, (title, of) in enumerate(axes, start=1):
        points = [(of(score), score.accuracy, score.version) for score in found]
        points = sorted(point for point in points if math.isfinite(point[0]))
        figure.add_scatter(
            x=[x for x, *_ in points],
            y=[y for _, y, _ in points],
            customdata=[version for *_, version in points],
            mode="lines" if len(points) > 60 else "lines+markers",
            line={"color": theme.ACCENT, "width": 2},
            marker={"size": 5},
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
            hovertemplate=f"best: {units.as_percent(best.accuracy)}<extra></extra>",
            name=f"best, {units.as_percent(best.accuracy)}",
            showlegend=column == 1,
            row=1,
            col=column,
        )
        figure.update_xaxes(title_text=title, rangemode="tozero", row=1, col=column)
    if target > 0:
        dashes = {"color": theme.GREY, "dash": "dash", "width": 1.5}
        figure.add_hline(y=target, line=dashes)
        figure.add_scatter(  # for the legend, which lines across a figure do not enter
            x=[None],
            y=[None],
            mode="lines",
            line=dashes,
            name=f"target, {units.as_percent(target)}",
        )
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="test accuracy", col=1)
    return figure.update_layout(height=400)


def losses(run: Run) -> go.Figure | None:
    """Training loss of every worker over time; None where no loss is known."""
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for kind in (trace.Pushed, trace.Trained):
        for event in run.events:
            if isinstance(event, kind) and math.isfinite(event.loss):
                points[event.worker].append((event.time_s - run.start_s, event.loss))
        if points:
            break
    if not points:
        return None
    figure = go.Figure()
    for worker, own in sorted(points.items()):
        x, y = _thinned_line(np.array(own))
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": theme.worker_colour(worker), "width": 1.5},
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
    return _with_legend(figure, len(points)).update_layout(height=400)


def coefficients(run: Run) -> tuple[go.Figure, int] | None:
    """The share of each worker in each version, and how many versions a column means.

    None without an aggregation. A version made twice, before and after a crash, shows
    as it was made last.
    """
    made = {
        event.version: event
        for event in run.events
        if isinstance(event, trace.Aggregated) and event.updates
    }
    if not made:
        return None
    versions = sorted(made)
    group = _versions_per_column(list(made.values()))
    num_columns = math.ceil(len(versions) / group)
    shares: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(num_columns))
    for index, version in enumerate(versions):
        column = index // group
        of_column = min(group, len(versions) - column * group)
        for key, share in zip(
            made[version].updates, made[version].coefficients, strict=True
        ):
            shares[key[0]][column] += share / of_column
    edges = np.array([*versions[::group], versions[-1] + 1]) - 0.5
    figure = go.Figure()
    for worker in sorted(shares):
        figure.add_scatter(
            x=edges,
            y=np.append(shares[worker], shares[worker][-1]),
            mode="lines",
            line={"width": 0, "shape": "hv", "color": theme.worker_colour(worker)},
            fillcolor=theme.worker_colour(worker),
            stackgroup="shares",
            hoveron="points+fills",
            hovertemplate=f"worker {worker}: %{{y:.0%}}<extra></extra>",
            name=f"worker {worker}",
        )
    figure.update_xaxes(
        title_text="version of the global model", range=[edges[0], edges[-1]]
    )
    figure.update_yaxes(title_text="share of the new version", tickformat=".0%")
    top = max(1.0, float(np.sum(list(shares.values()), axis=0).max()))
    figure.update_yaxes(range=[0, top])
    return _with_legend(figure, len(shares)).update_layout(height=400), group


def split(run: Run) -> go.Figure | None:
    """How many examples of each class each worker has; None where it is not known.

    Of more classes than colours, each worker's are shown as shares of all colours, the
    largest class at the bottom.
    """
    if run.split is None:
        return None
    workers, classes = run.split.shape
    figure = go.Figure()
    is_named = classes <= MAX_CLASSES
    counts = run.split if is_named else -np.sort(-run.split, axis=1)
    for place in np.flatnonzero(counts.any(axis=0)):
        kind = f"class {place}" if is_named else f"its class of rank {place + 1}"
        figure.add_bar(
            x=np.arange(workers),
            y=counts[:, place],
            marker={"color": theme.worker_colour(int(place)), "line": {"width": 0}},
            hovertemplate=f"worker %{{x}}, {kind}: %{{y:,}}<extra></extra>",
            name=kind,
        )
    figure.update_xaxes(title_text="worker", dtick=1 if workers <= 30 else None)
    figure.update_yaxes(title_text="examples")
    figure.update_layout(barmode="stack", bargap=0.15 if workers <= 60 else 0.0)
    named = int(np.count_nonzero(counts.any(axis=0))) if is_named else math.inf
    return _with_legend(figure, named).update_layout(height=340)


def _versions_per_column(made: list[trace.Aggregated]) -> int:
    """So many versions that most workers have an update or two in a column."""
    num_updates = sum(len(event.updates) for event in made)
    num_workers = len({key[0] for event in made for key in event.updates})
    least = math.ceil(len(made) / MAX_COLUMNS)
    most = max(least, math.ceil(len(made) / MIN_COLUMNS))
    if num_updates > 0.8 * len(made) * num_workers:
        return least
    return min(max(least, round(2 * num_workers * len(made) / num_updates)), most)


def staleness(run: Run) -> go.Figure | None:
    """How stale the updates of each worker were; None without an aggregation."""
    pairs = [
        (key[0], behind)
        for event in run.events
        if isinstance(event, trace.Aggregated)
        for key, behind in zip(event.updates, event.staleness, strict=True)
    ]
    if not pairs:
        return None
    figure, width = go.Figure(), math.ceil((max(s for _, s in pairs) + 1) / 40)
    workers, behind = np.array(pairs).T
    x = np.arange(0, behind.max() + 1, width)
    for worker in np.unique(workers).tolist():
        counts = np.bincount(behind[workers == worker] // width, minlength=len(x))
        figure.add_bar(
            x=x + (width - 1) / 2,
            y=counts,
            width=0.9 * width,
            marker={"color": theme.worker_colour(worker), "line": {"width": 0}},
            name=f"worker {worker}",
            hovertemplate=f"worker {worker}: %{{y}} updates<extra></extra>",
        )
    figure.update_xaxes(title_text="staleness, in versions")
    if len(x) <= 12:
        figure.update_xaxes(dtick=width)
    figure.update_yaxes(title_text="updates")
    figure = _with_legend(figure, len(np.unique(workers)))
    return figure.update_layout(height=380, barmode="stack")


def merges(run: Run) -> go.Figure | None:
    """Where in the epoch versions were merged; None without a merge."""
    found = [event for event in run.events if isinstance(event, trace.Merged)]
    known = [event for event in found if math.isfinite(event.epoch_fraction)]
    if not known:
        return None
    fraction = np.clip([event.epoch_fraction for event in known], 0.0, 1.0)
    share = np.array([event.share for event in known], float)
    num_bins = 20
    bins = np.minimum((fraction * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    kept = [_mean_or_none(share[bins == index]) for index in range(num_bins)]
    figure = go.Figure()
    figure.add_bar(
        x=(np.arange(num_bins) + 0.5) / num_bins,
        y=counts,
        width=0.9 / num_bins,
        marker={"color": theme.ACCENT, "line": {"width": 0}},
        name="merges",
        hovertemplate="%{y} merges<extra></extra>",
    )
    figure.add_scatter(
        x=(np.arange(num_bins) + 0.5) / num_bins,
        y=kept,
        mode="lines+markers",
        line={"color": theme.BEST, "width": 2},
        marker={"size": 6},
        name="mean share of the local model kept",
        yaxis="y2",
        hovertemplate="keeps %{y:.0%}<extra></extra>",
    )
    figure.update_xaxes(
        title_text="part of the epoch done", tickformat=".0%", range=[-0.01, 1.01]
    )
    figure.update_layout(
        height=380,
        yaxis={"title": {"text": "merges"}},
        yaxis2={
            "overlaying": "y",
            "side": "right",
            "range": [0, 1],
            "dtick": 0.25,
            "tickmode": "linear",
            "tickformat": ".0%",
            "showgrid": False,
            "tickfont": {"color": theme.BEST},
        },
    )
    return figure


def _with_legend(figure: go.Figure, entries: float) -> go.Figure:
    return figure.update_layout(
        showlegend=entries <= _LEGEND_UP_TO, legend_traceorder="normal"
    )


def _thinned_line(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line [n, 2] with at most `MAX_POINTS` points, each the mean of a few."""
    size = math.ceil(len(points) / MAX_POINTS)
    starts = np.arange(0, len(points), size)
    sums = np.add.reduceat(points, starts, axis=0)
    means = sums / np.diff(np.append(starts, len(points)))[:, None]
    return means[:, 0], means[:, 1]


def _mean_or_none(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
