"""What figures have in common: few enough points, ranges, panels in a column."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

_LEGEND_UP_TO = 24  # entries; more would push the figure away
_BETWEEN_PX = 84  # an axis, its title and a gap


def extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Indices, i64 [<= most], of a line that looks the same: first, last and, of each
    of equally long parts, the smallest and the largest value.

    Args:
      values: f64 [n], in the order of the line; none is NaN.
      most: how many points there may be, at least 4.

    >>> extremes(np.array([0.0, 1.0, 9.0, 2.0, 3.0, 2.5, -7.0, 1.0]), most=6).tolist()
    [0, 2, 4, 6, 7]
    """
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (most - 2) // 2 + 1).astype(int)
    parts = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    found = [
        index
        for part in parts
        for index in (part[values[part].argmin()], part[values[part].argmax()])
    ]
    return np.unique([0, *found, len(values) - 1])


def share_range(values: np.ndarray) -> tuple[float, float]:
    """The range of an axis that shows these shares: some air, but not beyond 0 and 1.

    NaN is left out.

    >>> share_range(np.array([0.5, 0.9])), share_range(np.array([0.2, 1.0]))[1]
    ((0.48, 0.92), 1.0)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(np.min(known)), float(np.max(known))
    air = max(0.05 * (high - low), 0.01)
    return max(round(low - air, 6), 0.0), min(round(high + air, 6), 1.0)


def stacked(count: int, height: int) -> dict[str, Any]:
    """Changes to a layout with panels side by side that put them in a column.

    Args:
      count: panels, which have the axes x, x2, ... and y, y2, ...
      height: pixels of a panel with its axis.

    >>> stacked(2, 300)["xaxis2"]["domain"]
    [0.0, 1.0]
    """
    changes: dict[str, Any] = {"height": count * height}
    gap = _BETWEEN_PX / (count * height)
    each = (1 - (count - 1) * gap) / count
    for place in range(count):
        number = str(place + 1) if place else ""
        top = 1 - place * (each + gap)
        changes[f"xaxis{number}"] = {"domain": [0.0, 1.0]}
        changes[f"yaxis{number}"] = {
            "domain": [max(top - each, 0.0), top],
            "showticklabels": True,
        }
    return changes


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, at even distances.

    >>> evenly([0, 1, 2, 3, 4, 5, 6], most=3)
    [0, 3, 6]
    """
    count = min(len(items), most)
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[place] for place in places]


def f32(values: object) -> np.ndarray:
    """Four bytes a number: half the size of the page, and finer than a pixel."""
    return np.asarray(values, dtype=np.float32)


def times(seconds: object) -> np.ndarray:
    """Four bytes a time where that is finer than a millisecond, else eight.

    >>> times([0.5, 4_000.0]).dtype.name, times([0.5, 600_000.0]).dtype.name
    ('float32', 'float64')
    """
    exact = np.asarray(seconds, dtype=np.float64)
    return exact if np.nanmax(exact, initial=0.0) > 8_000 else f32(exact)


def with_legend(figure: go.Figure, entries: float) -> go.Figure:
    return figure.update_layout(
        showlegend=entries <= _LEGEND_UP_TO, legend_traceorder="normal"
    )
