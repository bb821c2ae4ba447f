"""The figures of a run that count and compare; `timeline` draws its course."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import plots, theme
from asyn2f.report.load import Run

MIN_COLUMNS, MAX_COLUMNS = 24, 80
"""Columns of the picture of coefficients, in a long run: finer ones look like noise."""

MAX_WORKERS = 60
"""Workers that get a colour in a picture; of more, the others are shown as one."""

MAX_CLASSES = 24
"""Classes that get a colour of their own in the picture of the split."""

MAX_COLUMNS_OF_SPLIT = 400
"""Workers in the picture of the split: of more, so many at even distances."""


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
    return plots.with_legend(figure, len(shares)).update_layout(height=400), group


def split(run: Run) -> go.Figure | None:
    """How many examples of each class each worker has; None where it is not known.

    Of more classes than colours, each worker's are shown as shares of all colours, the
    largest class at the bottom.
    """
    if run.split is None:
        return None
    workers = plots.evenly(range(len(run.split)), MAX_COLUMNS_OF_SPLIT)
    figure = go.Figure()
    counts = run.split[workers]
    is_named = counts.shape[1] <= MAX_CLASSES
    if not is_named:
        counts = -np.sort(-counts, axis=1)[:, :MAX_CLASSES]
    for place in np.flatnonzero(counts.any(axis=0)):
        kind = f"class {place}" if is_named else f"its class of rank {place + 1}"
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
    return plots.with_legend(figure, named).update_layout(height=340)


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
    figure = plots.with_legend(figure, len(np.unique(workers)))
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


_OTHERS = 2**53  # in place of a worker's number; after all of those


def _named(workers: Iterable[int]) -> dict[int, int]:
    """Each worker by itself; of more than `MAX_WORKERS`, all but those with the most
    updates as `_OTHERS`."""
    often = Counter(workers).most_common()
    shown = dict.fromkeys((worker for worker, _ in often[:MAX_WORKERS]))
    return {worker: worker if worker in shown else _OTHERS for worker, _ in often}


def _name(worker: int) -> str:
    return "all others" if worker == _OTHERS else f"worker {worker}"


def _colour(worker: int) -> str:
    return theme.GREY if worker == _OTHERS else theme.colour(worker)


def _pattern(place: int) -> dict[str, str]:
    """For the eleventh and later areas, whose colours repeat."""
    shape = "" if place == _OTHERS else theme.pattern(place)
    return {"shape": shape, "fillmode": "overlay"} if shape else {}


def _mean_or_none(values: Iterable[float]) -> float | None:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
