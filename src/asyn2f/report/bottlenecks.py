"""The bottleneck of a run: bounds of compute, network and store, and what was reached.

A bound is the number of versions per second if nothing else took time. The difference
between the tightest bound and the rate reached is waiting; the segments of the updates'
latency show where.
"""

from collections import defaultdict
from collections.abc import Mapping
from html import escape
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from asyn2f import trace
from asyn2f.report import page, theme, units
from asyn2f.report.load import Run
from asyn2f.report.page import Section

_COLOURS = (theme.colour(0), theme.colour(1), theme.GREY, theme.colour(2))


class Bound(NamedTuple):
    """The versions per second that one resource allows if it is the only limit."""

    name: str
    per_s: float
    basis: str  # what it is computed from


class Segment(NamedTuple):
    """A part of the latency of updates, from push to reception of the version."""

    name: str
    seconds: np.ndarray  # f64 [updates]


class Bottlenecks(NamedTuple):
    """Bounds and latencies of a run, as far as the trace contains them."""

    reached_per_s: float  # versions
    bounds: tuple[Bound, ...]  # tightest first
    segments: tuple[Segment, ...]  # sum to the whole latency, update by update
    superseded: float  # share of the updates


def bottlenecks(run: Run) -> Bottlenecks | None:
    """The bottlenecks of a run; None if fewer than two versions were made."""
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
            _network(run, updates),
        )
        if bound is not None
    ]
    return Bottlenecks(
        reached_per_s=(len(times) - 1) / (times[-1] - times[0]),
        bounds=tuple(sorted(bounds, key=lambda bound: bound.per_s)),
        segments=_segments(run, made),
        superseded=_superseded(run),
    )


_Seconds = dict[int, float]


def _trained_s(run: Run) -> _Seconds:
    """Seconds of training of each worker."""
    trained: _Seconds = defaultdict(float)
    for event in run.events:
        if isinstance(event, trace.Trained):
            trained[event.worker] += max(event.time_s - event.start_s, 0.0)
    return trained


def _superseded(run: Run) -> float:
    outcomes = [e.outcome for e in run.events if isinstance(e, trace.UpdateSettled)]
    return outcomes.count("superseded") / len(outcomes) if outcomes else 0.0


def _compute(run: Run, updates: float, trained_s: _Seconds) -> Bound | None:
    """Every worker pushes as often as it did, in its training time alone."""
    pushes: dict[int, int] = defaultdict(int)
    for event in run.events:
        if isinstance(event, trace.Pushed):
            pushes[event.worker] += 1
    rate = sum(n / trained_s[w] for w, n in pushes.items() if trained_s.get(w, 0) > 0)
    if not rate:
        return None
    speeds = (run.config or {}).get("worker_speeds") or (0.0,)
    paced = " at the pace of worker_speeds" if any(speeds) else ""
    basis = (
        f"{rate:.3g} updates/s from training alone{paced}, {updates:.3g} per version"
    )
    return Bound("compute", rate / updates, basis)


def _store(run: Run, made: dict[int, trace.Aggregated]) -> Bound | None:
    """One version is saved at a time."""
    took = _seconds_after(made, run, trace.Saved)
    if not took:
        return None
    # The mean, since a version may wait for those before it.
    mean = float(np.mean(took))
    return Bound("store", 1 / mean, f"{1000 * mean:.3g} ms per version")


def _network(run: Run, updates: float) -> Bound | None:
    """All messages of a version one after the other, each as fast as the fastest."""
    published = {e.version: e for e in run.events if isinstance(e, trace.Published)}
    took = _seconds_after(published, run, trace.Received)
    if not took:
        return None
    receivers = float(np.mean([event.receivers for event in published.values()]))
    messages, fastest = updates + receivers, min(took)
    basis = f"{messages:.3g} models per version, {1000 * fastest:.3g} ms each at best"
    return Bound("network", 1 / (messages * fastest), basis)


def _seconds_after(
    before: Mapping[int, trace.Aggregated | trace.Published],
    run: Run,
    kind: type[trace.Saved | trace.Received],
) -> list[float]:
    """The delay of each event of a kind after its version's event in `before`. Negative
    delays are ignored: clocks differ, and of a version made again after a crash only
    the second one is in `before`."""
    took = [
        event.time_s - before[event.version].time_s
        for event in run.events
        if isinstance(event, kind) and event.version in before
    ]
    return [seconds for seconds in took if seconds > 0]


def _segments(run: Run, made: dict[int, trace.Aggregated]) -> tuple[Segment, ...]:
    """The latency of committed updates whose events are all in the trace."""
    pushed: dict[tuple, float] = {}
    saved: dict[int, float] = {}
    published: dict[int, float] = {}
    received: dict[int, list[float]] = {}
    for event in run.events:
        match event:
            case trace.Pushed():
                pushed[event.worker, event.session, event.seq] = event.time_s
            case trace.Saved():
                saved[event.version] = event.time_s
            case trace.Published():
                published.setdefault(event.version, event.time_s)
            case trace.Received():
                received.setdefault(event.version, []).append(event.time_s)
    latencies = []
    for version, event in made.items():
        if version not in published or version not in received:
            continue
        computed, out = event.time_s, max(published[version], event.time_s)
        # Published before it was saved, it did not wait for the store.
        stored = saved.get(version, computed)
        stored = stored if computed <= stored <= out else computed
        held = max(float(np.median(received[version])), out)
        for key in event.updates:
            begun = pushed.get(tuple(key))
            if begun is not None:
                # Clocks of two processes may differ by the latency of a message.
                before = max(computed - begun, 0.0)
                latencies.append((before, stored - computed, out - stored, held - out))
    if not latencies:
        return ()
    names = (
        "upload and queueing",
        "checkpoint",
        "publication",
        "download",
    )
    return tuple(map(Segment, names, np.array(latencies).T))


def section(run: Run) -> Section | None:
    """The section of the report; None without bounds."""
    found = bottlenecks(run)
    if found is None or not found.bounds:
        return None
    tightest = found.bounds[0]
    share = min(found.reached_per_s / tightest.per_s, 1.0)
    return Section(
        "bottlenecks",
        "Bottlenecks",
        f"{tightest.name.capitalize()} is the tightest bound: it allows "
        f"{tightest.per_s:.3g} versions/s, of which {found.reached_per_s:.3g} "
        f"({units.as_percent(share, 0)}) were reached. "
        f"{units.as_percent(found.superseded, 0)} of the updates were superseded. The "
        "bar is the latency of the others, from the push until workers have received "
        "the version that contains it.",
        figure(found) if found.segments else None,
        "The trace lacks events of the latency of updates.",
        above=table(found),
    )


def figure(found: Bottlenecks) -> go.Figure:
    """A bar of mean durations; hovering shows median and 95th percentile."""
    drawn = go.Figure()
    for segment, colour in zip(found.segments, _COLOURS, strict=True):
        ms = 1000 * segment.seconds
        middle, tail = np.percentile(ms, [50, 95])
        drawn.add_bar(
            x=[float(ms.mean())],
            y=["mean"],
            orientation="h",
            name=segment.name,
            marker={"color": colour},
            hovertemplate=f"{segment.name}: mean %{{x:.3g}} ms, median {middle:.3g}, "
            f"95th percentile {tail:.3g}<extra></extra>",
        )
    drawn.update_xaxes(title_text="milliseconds", rangemode="tozero")
    drawn.update_yaxes(showticklabels=False, showgrid=False)
    return drawn.update_layout(
        barmode="stack", height=190, bargap=0.3, legend={"traceorder": "normal"}
    )


def table(found: Bottlenecks) -> str:
    """A row per bound, tightest first, with the share that was reached."""
    rows = "".join(_row(bound, found.reached_per_s) for bound in found.bounds)
    known = {bound.name for bound in found.bounds}
    for name in ("compute", "network", "store"):
        if name not in known:
            cell = '<td colspan="4" class="said">not recorded</td>'
            rows += f"<tr><td>{name}</td>{cell}</tr>"
    return page.table(["bound", "versions/s", "reached", "", "from"], rows, said=True)


def _row(bound: Bound, reached_per_s: float) -> str:
    share = min(reached_per_s / bound.per_s, 1.0)
    return (
        f"<tr><td>{bound.name}</td><td>{bound.per_s:.3g}</td>"
        f"<td>{units.as_percent(share, 0)}</td>"
        f"<td>{page.share_bar([('trained', share)])}</td>"
        f'<td class="said">{escape(bound.basis)}</td></tr>'
    )
