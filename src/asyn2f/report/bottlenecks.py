"""What bounds a run: compute, wire and store, what was reached, where the rest went.

A bound is how many versions a second there could be if nothing else took time. What is
between the nearest bound and what was reached went into waiting: an update's life says
where.
"""

from collections import defaultdict
from collections.abc import Mapping
from html import escape
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import theme, units
from asyn2f.report.load import Run
from asyn2f.report.sections import Section

_COLOURS = (theme.colour(0), theme.colour(1), theme.GREY, theme.colour(2))


class Bound(NamedTuple):
    """How many versions a second one resource allows, had it been the only limit."""

    name: str
    per_s: float
    said: str  # what it was found from


class Stretch(NamedTuple):
    """A part of the way of an update, from its push until others hold its version."""

    name: str
    seconds: np.ndarray  # f64 [updates], of each


class Limits(NamedTuple):
    """The account of a run; what the trace does not tell is not there."""

    reached_per_s: float  # versions
    bounds: tuple[Bound, ...]  # nearest first
    stretches: tuple[Stretch, ...]  # add up to the whole way, update by update
    replaced: float  # share of the updates that a newer one made needless


def limits(run: Run) -> Limits | None:
    """The account of a run; None where fewer than two versions were made."""
    made = {e.version: e for e in run.events if isinstance(e, trace.Aggregated)}
    times = sorted(event.time_s for event in made.values())
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    updates = float(np.mean([len(event.updates) for event in made.values()]))
    trained_s = _trained_s(run)
    bounds = [
        bound
        for bound in (
            _compute(run, updates, trained_s),
            _store(run, made),
            _wire(run, updates),
        )
        if bound is not None
    ]
    return Limits(
        reached_per_s=(len(times) - 1) / (times[-1] - times[0]),
        bounds=tuple(sorted(bounds, key=lambda bound: bound.per_s)),
        stretches=_stretches(run, made),
        replaced=_replaced(run),
    )


_Seconds = dict[int, float]


def _trained_s(run: Run) -> _Seconds:
    """Seconds of each worker in training."""
    trained: _Seconds = defaultdict(float)
    for event in run.events:
        if isinstance(event, trace.Trained):
            trained[event.worker] += max(event.time_s - event.start_s, 0.0)
    return trained


def _replaced(run: Run) -> float:
    outcomes = [e.outcome for e in run.events if isinstance(e, trace.UpdateSettled)]
    return outcomes.count("superseded") / len(outcomes) if outcomes else 0.0


def _compute(run: Run, updates: float, trained_s: _Seconds) -> Bound | None:
    """Each worker pushes as often as it did, in its time of training alone."""
    pushes: dict[int, int] = defaultdict(int)
    for event in run.events:
        if isinstance(event, trace.Pushed):
            pushes[event.worker] += 1
    rate = sum(n / trained_s[w] for w, n in pushes.items() if trained_s.get(w, 0) > 0)
    if not rate:
        return None
    speeds = (run.config or {}).get("worker_speeds") or (0.0,)
    paced = " at the pace of worker_speeds" if any(speeds) else ""
    said = f"{rate:.3g} updates a second from training alone{paced}, {updates:.3g} each"
    return Bound("compute", rate / updates, said)


def _store(run: Run, made: dict[int, trace.Aggregated]) -> Bound | None:
    """One version at a time is on its way to the store."""
    took = _seconds_after(made, run, trace.Saved)
    if not took:
        return None
    # The mean: now and then one waits for those before it, and they are one at a time.
    mean = float(np.mean(took))
    return Bound("store", 1 / mean, f"{1000 * mean:.3g} ms a version")


def _wire(run: Run, updates: float) -> Bound | None:
    """All of a version's messages, one after the other, as fast as the fastest."""
    published = {e.version: e for e in run.events if isinstance(e, trace.Published)}
    took = _seconds_after(published, run, trace.Received)
    if not took:
        return None
    receivers = float(np.mean([event.receivers for event in published.values()]))
    messages, fastest = updates + receivers, min(took)
    said = f"{messages:.3g} models a version, {1000 * fastest:.3g} ms each at best"
    return Bound("wire", 1 / (messages * fastest), said)


def _seconds_after(
    before: Mapping[int, trace.Aggregated | trace.Published],
    run: Run,
    kind: type[trace.Saved | trace.Received],
) -> list[float]:
    """How long after its version's event `before` each event of a kind came. What did
    not come after it is left out: clocks differ, and of a version that was made twice,
    after a crash, only the second is in `before`."""
    took = [
        event.time_s - before[event.version].time_s
        for event in run.events
        if isinstance(event, kind) and event.version in before
    ]
    return [seconds for seconds in took if seconds > 0]


def _stretches(run: Run, made: dict[int, trace.Aggregated]) -> tuple[Stretch, ...]:
    """Of committed updates whose whole way the trace tells."""
    pushed: dict[tuple, float] = {}
    saved: dict[int, float] = {}
    given: dict[int, float] = {}
    received: dict[int, list[float]] = {}
    for event in run.events:
        match event:
            case trace.Pushed():
                pushed[event.worker, event.session, event.seq] = event.time_s
            case trace.Saved():
                saved[event.version] = event.time_s
            case trace.Published():
                given.setdefault(event.version, event.time_s)
            case trace.Received():
                received.setdefault(event.version, []).append(event.time_s)
    ways = []
    for version, event in made.items():
        if version not in given or version not in received:
            continue
        computed, out = event.time_s, max(given[version], event.time_s)
        # Announced early, it did not wait for the store.
        stored = saved.get(version, computed)
        stored = stored if computed <= stored <= out else computed
        held = max(float(np.median(received[version])), out)
        for key in event.updates:
            begun = pushed.get(tuple(key))
            if begun is not None:
                # Clocks of two processes may differ by as much as a message takes.
                before = max(computed - begun, 0.0)
                ways.append((before, stored - computed, out - stored, held - out))
    if not ways:
        return ()
    names = (
        "on the way, and waiting for others",
        "in the store",
        "until it is announced",
        "back to the workers",
    )
    return tuple(map(Stretch, names, np.array(ways).T))


def section(run: Run) -> Section | None:
    """The part of the report."""
    found = limits(run)
    if found is None or not found.bounds:
        return None
    nearest = found.bounds[0]
    share = min(found.reached_per_s / nearest.per_s, 1.0)
    return Section(
        "limits",
        "What bounds this run",
        f"{nearest.name.capitalize()} is the nearest bound: "
        f"{nearest.per_s:.3g} versions a second were possible, "
        f"{found.reached_per_s:.3g} were reached ({units.as_percent(share, 0)}). "
        f"{units.as_percent(found.replaced, 0)} of the updates were replaced by newer "
        "ones before they were used. The bar is the way of the others, from a push "
        "until all hold the version it went into.",
        figure(found) if found.stretches else None,
        "The trace does not tell the way of an update.",
        above=table(found),
    )


def figure(found: Limits) -> go.Figure:
    """One bar of mean durations; the medians and tails beneath the mouse."""
    drawn = go.Figure()
    for stretch, colour in zip(found.stretches, _COLOURS, strict=True):
        ms = 1000 * stretch.seconds
        middle, tail = np.percentile(ms, [50, 95])
        drawn.add_bar(
            x=[float(ms.mean())],
            y=["mean"],
            orientation="h",
            name=stretch.name,
            marker={"color": colour},
            hovertemplate=f"{stretch.name}: mean %{{x:.3g}} ms, median {middle:.3g}, "
            f"95 % below {tail:.3g}<extra></extra>",
        )
    drawn.update_xaxes(title_text="milliseconds", rangemode="tozero")
    drawn.update_yaxes(showticklabels=False, showgrid=False)
    return drawn.update_layout(
        barmode="stack", height=190, bargap=0.3, legend={"traceorder": "normal"}
    )


def table(found: Limits) -> str:
    """A row per bound, nearest first, and how near it was."""
    rows = "".join(_row(bound, found.reached_per_s) for bound in found.bounds)
    told = {bound.name for bound in found.bounds}
    for name in ("compute", "wire", "store"):
        if name not in told:
            cell = '<td colspan="4" class="said">not recorded</td>'
            rows += f"<tr><td>{name}</td>{cell}</tr>"
    return (
        '<div class="scroll"><table><thead><tr><th>bound</th>'
        "<th>versions a second</th><th>reached</th><th></th>"
        f'<th class="said">from</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _row(bound: Bound, reached_per_s: float) -> str:
    share = min(reached_per_s / bound.per_s, 1.0)
    return (
        f"<tr><td>{bound.name}</td><td>{bound.per_s:.3g}</td>"
        f"<td>{units.as_percent(share, 0)}</td>"
        f'<td><span class="share"><i class="trained" style="width:{100 * share:.1f}%">'
        f'</i></span></td><td class="said">{escape(bound.said)}</td></tr>'
    )
