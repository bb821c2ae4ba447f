"""The figures of a run: losses, coefficients, data, staleness and merges."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import curves, theme
from asyn2f.report.load import Run

MIN_COLUMNS, MAX_COLUMNS = 24, 80
"""Columns of the figure of coefficients: finer ones look like noise."""

MAX_LOSS_POINTS = 20_000
"""Points of all workers' losses together."""

MAX_WORKERS = 60
"""Workers in a figure: of more, the others are left out, or shown as one."""

MAX_CLASSES = 24
"""Classes with a colour of their own in the figure of the split."""

MAX_COLUMNS_OF_SPLIT = 400
"""Workers in the figure of the split: of more, a subset at even distances."""


def losses(run: Run) -> go.Figure | None:
    """Training loss of every worker over time; None if no loss is known."""
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for kind in (trace.Pushed, trace.Trained):
        for event in run.events:
            if isinstance(event, kind):
                scalars = event.info if isinstance(event, trace.Pushed) else event
                if math.isfinite(scalars.loss):
                    time_s = event.time_s - run.start_s
                    points[event.worker].append((time_s, scalars.loss))
        if points:
            break
    if not points:
        return None
    figure = go.Figure()
    workers = theme.evenly(sorted(points), MAX_WORKERS)
    most = min(curves.MAX_POINTS, MAX_LOSS_POINTS // len(workers))
    for worker in workers:
        own = np.array(points[worker])
        x, y = own[theme.extremes(own[:, 1], most)].T
        figure.add_scatter(
            x=theme.f32(x),
            y=theme.f32(y),
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
        # On a linear axis all but the first seconds would lie at the bottom.
        low, high = (math.floor(math.log10(x)) for x in (min(known), max(known)))
        figure.update_yaxes(type="log")
        if high - low < 5:  # of more decades, plotly ticks each
            decades = range(low, high + 1)
            ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5)]
            names = [f"{tick:g}" for tick in ticks]
            figure.update_yaxes(tickvals=ticks, ticktext=names)
    else:
        figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="training loss")
    return theme.with_legend(figure, len(workers)).update_layout(height=400)


def coefficients(run: Run) -> tuple[go.Figure, int] | None:
    """The share of each worker in each version, and the number of versions per column.

    None without an aggregation. Of a version made again after a crash, the last one is
    shown.
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
    named = _named(key[0] for event in made.values() for key in event.updates)
    shares: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(num_columns))
    for index, version in enumerate(versions):
        column = index // group
        of_column = min(group, len(versions) - column * group)
        for key, share in zip(
            made[version].updates, made[version].coefficients, strict=True
        ):
            shares[named[key[0]]][column] += share / of_column
    edges = np.array([*versions[::group], versions[-1] + 1]) - 0.5
    figure = go.Figure()
    for worker in sorted(shares):
        figure.add_scatter(
            x=edges,
            y=np.append(shares[worker], shares[worker][-1]),
            mode="lines",
            line={"width": 0, "shape": "hv", "color": _colour(worker)},
            fillcolor=_colour(worker),
            fillpattern=_pattern(worker),
            stackgroup="shares",
            hoveron="points+fills",
            hovertemplate=f"{_name(worker)}: %{{y:.0%}}<extra></extra>",
            name=_name(worker),
        )
    figure.update_xaxes(
        title_text="version of the global model", range=[edges[0], edges[-1]]
    )
    figure.update_yaxes(title_text="share of the new version", tickformat=".0%")
    top = max(1.0, float(np.sum(list(shares.values()), axis=0).max()))
    figure.update_yaxes(range=[0, top])
    return theme.with_legend(figure, len(shares)).update_layout(height=400), group


def split(run: Run) -> go.Figure | None:
    """The number of examples per worker and class; None if unknown.

    If there are more classes than colours, a colour is a rank: each worker's largest
    class is at the bottom.
    """
    if run.split is None:
        return None
    workers = theme.evenly(range(len(run.split)), MAX_COLUMNS_OF_SPLIT)
    figure = go.Figure()
    counts = run.split[workers]
    is_named = counts.shape[1] <= MAX_CLASSES
    if not is_named:
        counts = -np.sort(-counts, axis=1)[:, :MAX_CLASSES]
    for place in np.flatnonzero(counts.any(axis=0)):
        kind = f"class {place}" if is_named else f"class of rank {place + 1}"
        kind = kind if run.split.shape[1] > 1 else "examples"
        figure.add_bar(
            x=workers,
            y=counts[:, place],
            marker={
                "color": theme.colour(int(place)),
                "pattern": _pattern(int(place)),
                "line": {"width": 0},
            },
            hovertemplate=f"worker %{{x}}, {kind}: %{{y:,}}<extra></extra>",
            name=kind,
        )
    figure.update_xaxes(title_text="worker", dtick=1 if len(workers) <= 30 else None)
    figure.update_yaxes(title_text="examples")
    figure.update_layout(barmode="stack", bargap=0.15 if len(workers) <= 60 else 0.0)
    named = int(np.count_nonzero(counts.any(axis=0))) if is_named else math.inf
    return theme.with_legend(figure, named).update_layout(height=340)


def _versions_per_column(made: list[trace.Aggregated]) -> int:
    """As many versions as give most workers an update or two per column."""
    num_updates = sum(len(event.updates) for event in made)
    num_workers = len({key[0] for event in made for key in event.updates})
    least = math.ceil(len(made) / MAX_COLUMNS)
    most = max(least, math.ceil(len(made) / MIN_COLUMNS))
    if num_updates > 0.8 * len(made) * num_workers:
        return least
    return min(max(least, round(2 * num_workers * len(made) / num_updates)), most)


def staleness(run: Run) -> go.Figure | None:
    """Staleness of each worker's updates; None without an aggregation."""
    pairs = [
        (key[0], max(behind, 0))
        for event in run.events
        if isinstance(event, trace.Aggregated)
        for key, behind in zip(event.updates, event.staleness, strict=True)
    ]
    if not pairs:
        return None
    named = _named(worker for worker, _ in pairs)
    pairs = [(named[worker], behind) for worker, behind in pairs]
    figure, width = go.Figure(), math.ceil((max(s for _, s in pairs) + 1) / 40)
    workers, behind = np.array(pairs).T
    x = np.arange(0, behind.max() + 1, width)
    for worker in np.unique(workers).tolist():
        counts = np.bincount(behind[workers == worker] // width, minlength=len(x))
        figure.add_bar(
            x=x + (width - 1) / 2,
            y=counts,
            width=0.9 * width,
            marker={
                "color": _colour(worker),
                "pattern": _pattern(worker),
                "line": {"width": 0},
            },
            name=_name(worker),
            hovertemplate=f"{_name(worker)}: %{{y}} updates<extra></extra>",
        )
    figure.update_xaxes(title_text="staleness, in versions")
    if len(x) <= 12:
        figure.update_xaxes(dtick=width)
    figure.update_yaxes(title_text="updates")
    figure = theme.with_legend(figure, len(np.unique(workers)))
    return figure.update_layout(height=380, barmode="stack")


def merges(run: Run) -> go.Figure | None:
    """Merges by position in the epoch; None without a merge."""
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
        title_text="progress of the epoch", tickformat=".0%", range=[-0.01, 1.01]
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


_OTHERS = 2**53  # in place of a worker's number, above all of them


def _named(workers: Iterable[int]) -> dict[int, int]:
    """Maps workers to themselves; of more than `MAX_WORKERS`, all but those with
    the most updates to `_OTHERS`."""
    often = Counter(workers).most_common()
    shown = dict.fromkeys((worker for worker, _ in often[:MAX_WORKERS]))
    return {worker: worker if worker in shown else _OTHERS for worker, _ in often}


def _name(worker: int) -> str:
    return "all others" if worker == _OTHERS else f"worker {worker}"


def _colour(worker: int) -> str:
    return theme.GREY if worker == _OTHERS else theme.colour(worker)


def _pattern(place: int) -> dict[str, str]:
    """From the eleventh area on, whose colours repeat."""
    shape = "" if place == _OTHERS else theme.pattern(place)
    return {"shape": shape, "fillmode": "overlay"} if shape else {}


def _mean_or_none(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
