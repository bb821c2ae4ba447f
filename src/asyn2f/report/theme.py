"""The look of all figures: colours that colour-blind readers distinguish, light and
dark, and numbers no larger than needed."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import plotly.graph_objects as go

from asyn2f.types import Metric

_LEGEND_UP_TO = 24  # entries; more would push the figure away

T = TypeVar("T")


class Hue(NamedTuple):
    """One colour of the palette, on a light and on a dark page."""

    light: str
    dark: str


# Found by a search that maximises the smallest CIEDE2000 distance under normal vision
# and under simulated protanopia, deuteranopia and tritanopia, at a contrast of 3 : 1 at
# least with the panel behind; tests/unit/test_report_theme.py computes both again.
PALETTE = (
    Hue("#0496DD", "#B4E5F7"),
    Hue("#C88158", "#F5990F"),
    Hue("#068261", "#2EC095"),
    Hue("#C74AA5", "#F089E0"),
    Hue("#564198", "#A276FF"),
    Hue("#980A0A", "#F65238"),
    Hue("#4B677C", "#7093AE"),
    Hue("#878301", "#F3E767"),
    Hue("#181E33", "#FFFFFF"),
    Hue("#80593F", "#AC8C66"),
)
"""Worker, method or class number `i` has entry `i` modulo 10."""

INK = Hue("#1E2A3C", "#E2E8F0")  # text within a figure
FAINT, FULL = Hue("#EFF5FA", "#1C2838"), Hue("#7FBDE6", "#2A6FA3")  # ends of a scale

DARK = dict([*PALETTE, INK, FAINT, FULL])
"""From a colour on a light page to the same one on a dark page."""

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_PATTERNS = ("", "/", "x", ".", "\\", "+")
_SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "star", "x"),
    *("circle-open", "square-open", "diamond-open"),
)

PANEL = Hue("#FFFFFF", "#171F2D")
"""The background of figures."""

ACCENT = "#2187C9"  # these three have enough contrast on both panels
BEST = "#D55E00"
GREY = "#7485A0"

STALENESS = (
    (0, "0", "#2C7FB8"),
    (1, "1", "#7FB7DA"),
    (2, "2", "#F6D58B"),
    (3, "3 or 4", "#F0A04B"),
    (5, "5 to 8", "#D9583B"),
    (9, "9 or more", "#8E1B3A"),
)
"""Bins of staleness as (smallest value, label, colour), from cool to hot."""

TOP_PX = 48
"""Margin above a figure, for its legend."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


def colour(place: int) -> str:
    """The colour of a worker, method or class, the same in every figure; on a dark page
    the script replaces it by its entry in `DARK`.

    >>> colour(0), colour(10)
    ('#0496DD', '#0496DD')
    """
    return PALETTE[place % len(PALETTE)].light


def css_colour(place: int) -> str:
    """The same for HTML, as a variable of the style sheet.

    >>> css_colour(12)
    'var(--hue-2)'
    """
    return f"var(--hue-{place % len(PALETTE)})"


def dash(place: int) -> str:
    """The dash of its line: colour and dash repeat together after fifty lines.

    >>> [dash(place) for place in (0, 1, 5, 10)]
    ['solid', 'dash', 'solid', 'dash']
    """
    return _DASHES[(place + place // len(PALETTE)) % len(_DASHES)]


def symbol(place: int) -> str:
    """The marker on its line, out of ten.

    >>> symbol(1)
    'square'
    """
    return _SYMBOLS[place % len(_SYMBOLS)]


def pattern(place: int) -> str:
    """The pattern of its area: "" for the first ten, then one for every ten.

    >>> pattern(3), pattern(13)
    ('', '/')
    """
    return _PATTERNS[place // len(PALETTE) % len(_PATTERNS)]


def css() -> str:
    """The palette as variables of the style sheet."""
    light, dark = (
        " ".join(f"--hue-{place}: {hue[side]};" for place, hue in enumerate(PALETTE))
        for side in (0, 1)
    )
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def template(*, dark: bool) -> go.layout.Template:
    """The look of all figures on a light or on a dark page."""
    text = "#CBD5E1" if dark else "#334155"
    grid = "#2A3546" if dark else "#E8ECF1"
    panel = "#1B2433" if dark else "#FFFFFF"
    axis = {
        "gridcolor": grid,
        "linecolor": grid,
        "zeroline": False,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": text},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis | {"ticklabelstandoff": 8},
            "legend": {
                "orientation": "h",
                "x": 0.0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
                "font": {"size": 12},
            },
            "hoverlabel": {
                "bgcolor": panel,
                "bordercolor": grid,
                "font": {"family": FONT, "size": 12, "color": text},
                "align": "left",
            },
            "annotationdefaults": {"font": {"color": text, "size": 12}},
            "margin": {"l": 56, "r": 20, "t": TOP_PX, "b": 52},
            "hovermode": "closest",
        }
    )


# ------------------------------------------------------------- numbers of figures


def extremes(values: np.ndarray, most: int) -> np.ndarray:
    """Indices, i64 [<= most], that preserve the look of a line: the first, the last
    and, of each of equally long parts, the smallest and the largest value.

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


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, at even distances.

    >>> evenly([0, 1, 2, 3, 4, 5, 6], most=3)
    [0, 3, 6]
    """
    count = min(len(items), most)
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[place] for place in places]


def f32(values: object) -> np.ndarray:
    """As float32: half the size of the page, and finer than a pixel."""
    return np.asarray(values, dtype=np.float32)


def times(seconds: object) -> np.ndarray:
    """As float32 if that is finer than a millisecond, else as float64.

    >>> times([0.5, 4_000.0]).dtype.name, times([0.5, 600_000.0]).dtype.name
    ('float32', 'float64')
    """
    exact = np.asarray(seconds, dtype=np.float64)
    return exact if np.nanmax(exact, initial=0.0) > 8_000 else f32(exact)


def with_legend(figure: go.Figure, entries: float) -> go.Figure:
    """The figure, with a legend unless it has too many entries."""
    return figure.update_layout(
        showlegend=entries <= _LEGEND_UP_TO, legend_traceorder="normal"
    )


# ------------------------------------------------------------- axes of the headline


def ticks(metric: Metric) -> dict[str, Any]:
    """The format of the ticks of an axis of the headline."""
    return {"tickformat": ".0%"} if metric.is_fraction else {}


def hover(axis: str, metric: Metric) -> str:
    """The value of a point, for a hovertemplate."""
    return f"%{{{axis}:{'.2%' if metric.is_fraction else '.5~g'}}}"


def within(low: Any, high: Any, metric: Metric) -> tuple[Any, Any]:
    """An interval, a fraction's within 0 and 1."""
    if not metric.is_fraction:
        return low, high
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def value_range(values: Sequence[float], metric: Metric) -> tuple[float, float]:
    """The range of an axis of the headline, with a margin; NaN is ignored."""
    shown = np.array([*values], np.float64)
    if metric.is_fraction:
        return share_range(shown)
    known = shown[np.isfinite(shown)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(np.min(known)), float(np.max(known))
    air = 0.05 * (high - low) or max(0.05 * abs(high), 1e-6)
    return low - air, high + air


def share_range(values: np.ndarray) -> tuple[float, float]:
    """The range of an axis for these shares: with a margin, within 0 and 1.

    NaN is ignored.

    >>> share_range(np.array([0.5, 0.9])), share_range(np.array([0.2, 1.0]))[1]
    ((0.48, 0.92), 1.0)
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    low, high = float(np.min(known)), float(np.max(known))
    air = max(0.05 * (high - low), 0.01)
    return max(round(low - air, 6), 0.0), min(round(high + air, 6), 1.0)
