"""One look for everything: colours that the colour-blind tell apart, light and dark."""

import plotly.graph_objects as go

# Okabe and Ito, "Color universal design" (2008); their black and yellow, which vanish
# on one of the two backgrounds, gave way to violet and olive.
_HUES = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#7B68B5",
    "#9A9A3C",
)
ACCENT = "#2187C9"  # seen on white and on black alike
BEST = _HUES[5]
GREY = "#94A3B8"

STALENESS = (
    (0, "0", "#2C7FB8"),
    (1, "1", "#7FB7DA"),
    (2, "2", "#F6D58B"),
    (3, "3 or 4", "#F0A04B"),
    (5, "5 to 8", "#D9583B"),
    (9, "9 or more", "#8E1B3A"),
)
"""Bins of staleness as (smallest value, label, colour): from cool to hot."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


def worker_colour(worker: int) -> str:
    """The colour of a worker, the same in every figure and every report.

    Eight hues, then lighter, then darker ones: twenty-four workers before one repeats.

    >>> worker_colour(0), worker_colour(8) != worker_colour(0)
    ('#0072B2', True)
    """
    tier, hue = divmod(worker, len(_HUES))
    target, share = ((0, 0.0), (255, 0.45), (0, 0.35))[tier % 3]
    channels = (int(_HUES[hue][i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(c + share * (target - c)):02X}" for c in channels)


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
            "margin": {"l": 64, "r": 20, "t": 48, "b": 52},
            "hovermode": "closest",
        }
    )
