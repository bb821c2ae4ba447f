"""The report of a comparison: one self-contained page."""

import math
from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from asyn2f.report import curves, page, spread, theme, units
from asyn2f.report.comparison import Difference, Row, Trial, by_strategy, leaders
from asyn2f.report.comparison_table import HOW_BOLD, incomplete
from asyn2f.report.page import Section, to_page
from asyn2f.types import Metric

_MOST_STALE = 12  # versions; the last column holds all above


def to_html(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    found: Sequence[Difference],
    target: float,
    metric: Metric,
    dataset: str,
    setting: str,
) -> str:
    """The comparison as one page of HTML; `setting` describes workers and split."""
    # The look of a method in every figure is that of its place in the alphabet.
    names = sorted({trial.strategy for trial in trials})
    places = {name: place for place, name in enumerate(names)}
    return to_page(
        f"{len(rows)} methods on {dataset}",
        head=_head(rows, metric, dataset, setting, trials),
        sections=list(_sections(trials, rows, found, target, metric, places)),
        tail=_table(trials, rows, found, target, metric, places),
    )


def _head(
    rows: Sequence[Row],
    metric: Metric,
    dataset: str,
    setting: str,
    trials: Sequence[Trial],
) -> str:
    best = rows[0]
    seeds = f"{best.seeds} seed{'s'[: best.seeds != 1]}"
    value = units.with_interval(*best.at_time, metric, " %")
    lede = (
        f"{setting}, {seeds}, "
        f"{units.as_duration(trials[0].time_s[-1])} of virtual time each. "
        f"Best at equal time: {best.strategy}, {value}."
    )
    return (
        f'<header><div class="kicker">comparison</div><h1>{len(rows)} methods on '
        f'{escape(dataset)}</h1><p class="lede">{escape(lede)}</p></header>'
        '<div style="height:28px"></div>'
    )


def _sections(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    found: Sequence[Difference],
    target: float,
    metric: Metric,
    places: dict[str, int],
) -> Iterator[Section]:
    yield Section(
        "headline",
        f"Test {metric.name}",
        "Means over the seeds and their 95 % intervals, over virtual time, updates "
        "pushed and bytes transferred.",
        curves.of_methods(trials, rows, target, metric, places),
        "There are no trials.",
    )
    yield Section(
        "ends",
        "At equal time",
        f"{units.capitalized(metric.name)} of the newest version at the end of the "
        "run: each seed, the mean, and its 95 % interval.",
        curves.final_values(trials, rows, metric, places),
        "There are no trials.",
        half=True,
    )
    yield Section(
        "differences",
        "Significant differences",
        f"Row minus column in {units.points_of(metric)}, paired by seed; blue where "
        "the row is better, grey if not significant at 5 % in a paired t-test with "
        "Holm's correction.",
        _differences(rows, found, metric),
        "A comparison needs two methods and two seeds.",
        half=True,
        min_px=110 + 38 * len(rows),
    )
    yield Section(
        "staleness",
        "Staleness of the updates",
        "Versions published between an update's base and the version that contains it; "
        "0 is fresh.",
        _staleness(trials, rows),
        "No version was made.",
        min_px=620,
    )


def _differences(
    rows: Sequence[Row], found: Sequence[Difference], metric: Metric
) -> go.Figure | None:
    if not found:
        return None
    names = [row.strategy for row in rows]
    place = {name: index for index, name in enumerate(names)}
    gaps = np.full((len(names), len(names)), math.nan)
    scale = 100.0 if metric.is_fraction else 1.0
    sign = scale if metric.higher_is_better else -scale
    text = [["" for _ in names] for _ in names]
    for first, second, mean, p in found:
        for one, other, gap in ((first, second, mean), (second, first, -mean)):
            at = place[one], place[other]
            gaps[at] = sign * gap if p < 0.05 else 0.0
            text[at[0]][at[1]] = units.difference_text(gap, metric, digits=1)
    most = float(np.nanmax(np.abs(gaps)))
    most = max(most, 1.0) if metric.is_fraction else most or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=gaps,
            x=names,
            y=names,
            text=text,
            texttemplate="%{text}",
            zmin=-most,
            zmax=most,
            colorscale=[[0, "#D9583B"], [0.5, "#CBD5E1"], [1, "#2C7FB8"]],
            showscale=False,
            hoverongaps=False,
            xgap=2,
            ygap=2,
            textfont={"size": 11, "color": "#1e293b"},
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False)
    return figure.update_layout(height=120 + 34 * len(rows))


def _staleness(trials: Sequence[Trial], rows: Sequence[Row]) -> go.Figure | None:
    """One row of cells per method, shaded by the share of updates."""
    own = by_strategy(trials)
    shares = np.zeros((len(rows), _MOST_STALE + 1))
    for line, row in enumerate(rows):
        for trial in own[row.strategy]:
            for behind, count in enumerate(trial.staleness):
                shares[line, min(behind, _MOST_STALE)] += count
    if not shares.sum():
        return None
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
    labels = [*map(str, range(_MOST_STALE)), f"{_MOST_STALE}+"]
    text = [[f"{100 * x:.0f}" if x >= 0.005 else "" for x in line] for line in shares]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=labels,
            y=[row.strategy for row in rows],
            text=text,
            texttemplate="%{text}",
            colorscale=[[0, theme.FAINT.light], [1, theme.FULL.light]],
            textfont={"color": theme.INK.light},
            zmin=0,
            zmax=1,
            showscale=False,
            xgap=2,
            ygap=2,
            hovertemplate="%{y}, staleness %{x}: %{z:.1%}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(
        title_text="staleness, in versions (cells: % of the method's updates)",
        type="category",
        showgrid=False,
    )
    return figure.update_layout(height=130 + 30 * len(rows))


def _table(
    trials: Sequence[Trial],
    rows: Sequence[Row],
    found: Sequence[Difference],
    target: float,
    metric: Metric,
    places: dict[str, int],
) -> str:
    bold = leaders(rows, found)
    heads = ["equal time", "equal updates", "equal bytes", "area", "reached"]
    heads += ["after", "after bytes", "as a broadcast", "versions", "mean staleness"]
    lines = []
    for row in rows:
        hue = theme.css_colour(places[row.strategy])
        dot = f'<span class="dot" style="background:{hue}"></span>'
        values = row.at_time, row.at_updates, row.at_bytes, row.area
        cells = [
            *(value.text(metric) for value in values),
            f"{row.reached} of {row.seeds}",
            units.as_duration(row.time_to_target_s),
            units.as_bytes(row.bytes_to_target),
            units.as_bytes(row.broadcast_to_target),
            units.as_number(row.versions),
            units.as_number(row.staleness, digits=2),
        ]
        first, *rest = (escape(cell) for cell in cells)
        first = f"<b>{first}</b>" if row.strategy in bold else first
        inner = "".join(f"<td>{cell}</td>" for cell in (first, *rest))
        lines.append(f"<tr><td>{dot}{escape(row.strategy)}</td>{inner}</tr>")
    chosen = "".join(
        f"<li>{escape(row.strategy)}: "
        + escape(", ".join(f"{key} = {value}" for key, value in row.settings.items()))
        + "</li>"
        for row in rows
        if row.settings
    )
    notes = filter(None, [incomplete(rows), spread.in_words(trials, rows, metric)])
    return (
        f"<section><h2>Numbers</h2><p>{escape(units.capitalized(metric.name))}"
        f"{' in percent' * metric.is_fraction} "
        f"({'higher' if metric.higher_is_better else 'lower'} is better), mean and "
        "95 % interval over the seeds; area is the mean over time; “reached” counts "
        f"the seeds that reached {units.target_text(target, metric)}, with their "
        "median time and bytes: those transferred, and those if every version were "
        "broadcast to all workers. "
        f"{HOW_BOLD}</p>"
        + page.table(["method", *heads], "".join(lines))
        + "".join(f"<p>{escape(note)}</p>" for note in notes)
        + (f"<p>Settings chosen:</p><ul>{chosen}</ul>" if chosen else "")
        + "</section>"
    )
