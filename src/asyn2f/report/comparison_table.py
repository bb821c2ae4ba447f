"""The table of a comparison, as Markdown."""

import math
from collections.abc import Sequence

from asyn2f.report import units
from asyn2f.report.comparison import Difference, Row, leaders
from asyn2f.types import Metric

HOW_BOLD = (
    "Bold: the best at equal time, and all methods that do not differ from it at 5 % "
    "in a paired t-test over the seeds with Holm's correction; none if no method "
    "differs."
)

FEW_SEEDS = (
    "A 95 % interval of two seeds is too wide to tell much: give three or more "
    "(--seeds=3)."
)


def legend(target: float, metric: Metric) -> str:
    """What the columns of the table mean, and how its rows are ordered."""
    return (
        "Rows: the best at equal time first. Values: means over the seeds, with 95 % "
        "intervals. Equal updates, equal bytes: at the number with which the shortest "
        "trial ends. Area: the mean over the time of the run. Reached: the seeds that "
        f"reached {units.target_text(target, metric)}, with the medians of their time "
        "and bytes; broadcast: if every version went to every worker. More: "
        "docs/results.md, Compare methods on your task."
    )


def to_markdown(
    rows: Sequence[Row], found: Sequence[Difference], target: float, metric: Metric
) -> str:
    """The table and the differences, as Markdown."""
    sign = ", %" if metric.is_fraction else ""
    lines = [
        f"| method | at equal time{sign} | equal updates{sign} | equal bytes{sign} "
        f"| area{sign} | {units.target_text(target, metric)} reached | after s "
        "| after MB | broadcast MB | versions | mean staleness |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    bold = leaders(rows, found)
    for row in rows:
        at_time = row.at_time.text(metric)
        others = (row.at_updates, row.at_bytes, row.area)
        cells = [
            row.strategy,
            f"**{at_time}**" if row.strategy in bold else at_time,
            *(each.text(metric) for each in others),
            f"{row.reached} of {row.seeds}",
            _or_dash(row.time_to_target_s, "{:.1f}"),
            _or_dash(row.bytes_to_target / 1e6, "{:.2f}"),
            _or_dash(row.broadcast_to_target / 1e6, "{:.2f}"),
            f"{row.versions:.0f}",
            f"{row.staleness:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", legend(target, metric)]
    if rows[0].seeds == 2:
        lines += ["", FEW_SEEDS]
    if not (metric.is_fraction and metric.higher_is_better):
        lines += ["", units.in_words(metric)]
    if found:
        lines += ["", HOW_BOLD]
    if lacking := incomplete(rows):
        lines += ["", lacking]
    if any(row.settings for row in rows):
        lines += ["", "Settings chosen:", ""]
        for row in rows:
            said = ", ".join(f"{key} = {value}" for key, value in row.settings.items())
            lines.append(f"* {row.strategy}: {said or 'as in the config'}")
    if found:
        lines += [
            "",
            f"Differences at equal time ({units.points_of(metric)}; paired t-test over "
            "seeds, p with Holm's correction):",
            "",
            "| | | difference | p |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {d.first} | {d.second} | {units.difference_text(d.mean, metric)} "
            f"| {d.p:.3f} |"
            for d in sorted(found, key=lambda d: d.p)
        ]
    return "\n".join(lines) + "\n"


def incomplete(rows: Sequence[Row]) -> str:
    """A sentence on methods with incomplete versions, or ""."""
    shares = [
        f"{row.strategy} {100 * row.incomplete:.3g} %" for row in rows if row.incomplete
    ]
    if not shares:
        return ""
    return (
        "Versions aggregated with missing updates (fewer than "
        "timing.min_updates, or a round that timing.deadline_s closed without a live "
        f"worker): {', '.join(shares)}."
    )


def _or_dash(value: float, form: str) -> str:
    return "–" if math.isnan(value) else form.format(value)
