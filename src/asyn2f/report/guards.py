"""Findings of the guards and checks: which worker's updates, when, and why."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.kernels.guards import KINDS, Kind, kinds_of
from asyn2f.report import page, theme, units
from asyn2f.report.load import Run
from asyn2f.report.page import Section
from asyn2f.report.theme import f32

MAX_ROWS = 40
"""Workers shown: of more, those with the most findings."""

MAX_MARKS = 1_000
"""Updates of one kind in the figure: of more, a subset at even distances."""

_MAX_REASONS = 3  # per worker
_NUMBER = re.compile(r"\b(?:inf|nan|\d[\w.+-]*)")
_COLOURS: dict[Kind | None, str] = {
    "rejected": theme.colour(5),
    "loss raised": theme.colour(1),
    "share held": theme.colour(0),
    None: "rgba(116,133,160,0.5)",
}
_HUES: dict[Kind | None, str] = {
    "rejected": theme.css_colour(5),
    "loss raised": theme.css_colour(1),
    "share held": theme.css_colour(0),
}
_HOW_TO_READ = {
    "off": "The guards were off; these updates were rejected by checks that are always "
    "on.",
    "observe": "The guards only observed: marks show what they would have done. Only "
    "updates that can never be used were rejected.",
    "enforce": "Updates too far from the global model are rejected, implausibly small "
    "losses are raised, and coefficients are capped.",
}


class GuardFinding(NamedTuple):
    """An update that was rejected or aggregated, and what was found about it."""

    worker: int
    time_s: float  # since the start
    kinds: tuple[Kind, ...]
    line: str  # "" = nothing


def findings_of(run: Run) -> list[GuardFinding]:
    """Every such update once, except those that arrived after the run's end."""
    found: dict[tuple, GuardFinding] = {}
    for event in run.events:
        time_s = event.time_s - run.start_s
        if isinstance(event, trace.UpdateSettled) and event.outcome == "rejected":
            if event.reason != trace.TOO_LATE:
                key = event.worker, event.session, event.seq
                found[key] = GuardFinding(
                    event.worker, time_s, ("rejected",), event.reason
                )
        elif isinstance(event, trace.Aggregated):
            lines = event.guards or [""] * len(event.updates)
            for (worker, *rest), line in zip(event.updates, lines, strict=True):
                found[worker, *rest] = GuardFinding(
                    worker, time_s, kinds_of(line), line
                )
    return list(found.values())


def section(run: Run) -> Section | None:
    """The section of the report; None if the guards are off and nothing was found."""
    settings = (run.config or {}).get("guards")
    mode = settings.get("mode") if isinstance(settings, dict) else "off"
    updates = findings_of(run)
    found = [one for one in updates if one.line]
    if not found and mode not in ("observe", "enforce"):
        return None
    by_worker: dict[int, list[GuardFinding]] = defaultdict(list)
    for one in updates:
        by_worker[one.worker].append(one)
    often = Counter(one.worker for one in found)
    rows = sorted(sorted(by_worker, key=lambda w: (-often[w], w))[:MAX_ROWS])
    hidden = len(by_worker) - len(rows)
    some = f" {MAX_ROWS} of {len(by_worker):,} workers are shown." if hidden else ""
    return Section(
        "guards",
        "Guard findings",
        _HOW_TO_READ.get(str(mode), _HOW_TO_READ["off"]) + some,
        figure([one for w in rows for one in by_worker[w]], rows) if found else None,
        "The guards found nothing.",
        above=table({w: by_worker[w] for w in rows}) if found else "",
    )


def figure(updates: Iterable[GuardFinding], workers: list[int]) -> go.Figure:
    """A row per worker and a mark per update; an update with two findings has both
    marks, the second within the first."""
    places = {worker: row for row, worker in enumerate(workers)}
    marks: dict[Kind | None, list[GuardFinding]] = {kind: [] for kind in (None, *KINDS)}
    for one in updates:
        for kind in one.kinds or (None,):
            marks[kind].append(one)
    drawn = go.Figure()
    looks = (("circle", 5), ("x", 11), ("diamond", 11), ("circle", 6))
    for (symbol, size), (kind, own) in zip(looks, marks.items(), strict=True):
        shown = own[:: -(-len(own) // MAX_MARKS) or 1]
        drawn.add_scatter(
            x=f32([one.time_s for one in shown]),
            y=f32([places[one.worker] for one in shown]),
            customdata=[[one.worker, escape(one.line)] for one in shown],
            mode="markers",
            marker={"color": _COLOURS[kind], "size": size, "symbol": symbol},
            name=kind or "nothing found",
            hovertemplate="worker %{customdata[0]}"
            + (": %{customdata[1]}" if kind else "")
            + "<extra></extra>",
            showlegend=bool(own),
        )
    names = [f"worker {worker}" for worker in workers]
    drawn.update_xaxes(title_text="seconds since the start", rangemode="tozero")
    drawn.update_yaxes(
        range=[len(workers) - 0.4, -0.6],
        tickvals=list(places.values()),
        ticktext=names,
        showgrid=False,
    )
    return drawn.update_layout(height=130 + 30 * len(workers))


def table(by_worker: dict[int, list[GuardFinding]]) -> str:
    """A row per worker: its updates, findings by kind, and reasons."""
    rows = "".join(_row(worker, own) for worker, own in by_worker.items())
    return page.table(["worker", "updates", *KINDS, "", "reasons"], rows, said=True)


def _row(worker: int, updates: list[GuardFinding]) -> str:
    counts = Counter(kind for one in updates for kind in one.kinds)
    cells = "".join(
        f"<td>{units.as_number(count)}</td>"
        for count in (len(updates), *(counts[kind] for kind in KINDS))
    )
    # An update counts once in the bar, for its gravest finding.
    gravest = Counter(min(one.kinds, key=KINDS.index) for one in updates if one.kinds)
    bar = page.share_bar((_HUES[kind], gravest[kind] / len(updates)) for kind in KINDS)
    said = "".join(f"<div>{escape(reason)}</div>" for reason in reasons(updates))
    dot = f'<span class="dot" style="background:{theme.css_colour(worker)}"></span>'
    return (
        f'<tr class="one"><td>{dot}{worker}</td>{cells}'
        f"<td>{bar}</td>"
        f'<td class="said">{said}</td></tr>'
    )


def reasons(updates: Iterable[GuardFinding]) -> list[str]:
    """The most frequent findings, each with the numbers of its last occurrence.

    >>> reasons([GuardFinding(0, t, ("loss raised",), f"loss 0 taken as 0.{t}")
    ...          for t in (4, 3)])
    ['2 times: loss 0 taken as 0.3']
    """
    parts = [part for one in updates for part in one.line.split("; ") if part]
    last = {_NUMBER.sub("#", part): part for part in parts}
    often = Counter(_NUMBER.sub("#", part) for part in parts)
    return [
        (f"{count:,} times: " if count > 1 else "") + last[text]
        for text, count in often.most_common(_MAX_REASONS)
    ]
