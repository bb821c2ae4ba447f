"""The course of a run as data: bars and windows of the timeline, and a Chrome trace."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyn2f import trace

_WINDOW_CYCLES = 7.0  # a window shows at most this many cycles of a typical worker,
_WINDOW_MARKS = 26.0  # and at most this many of its merges and pushes

WAITING = -1
"""In place of a staleness: the worker waits."""


class Bars(NamedTuple):
    """Training from one base version under one newest version, and waiting."""

    row: np.ndarray  # i64 [n]: the worker's row in the figure
    start_s: np.ndarray  # f64 [n]: since the start of the run
    end_s: np.ndarray  # f64 [n]
    base: np.ndarray  # i64 [n]; while waiting, the newest version
    staleness: np.ndarray  # i64 [n]: newest version - base version, or `WAITING`


def bars_of(events: Sequence[trace.Event], rows: dict[int, int], zero_s: float) -> Bars:
    """The training of a run, split wherever a version was published, and its waiting.

    Args:
      events: of the run, by time.
      rows: the row of each worker.
      zero_s: the time that counts as zero.
    """
    times_s, versions = published(events, zero_s)
    trained = _split(list(_trained(events, rows, zero_s)), times_s, versions)
    waits = [
        (rows[e.worker], e.start_s - zero_s, e.time_s - zero_s, e.newest, WAITING)
        for e in events
        if isinstance(e, trace.Blocked)
    ]
    columns = list(zip(*waits, strict=True)) or [()] * 5
    waited = Bars(*map(np.array, columns, (int, float, float, int, int)))
    return Bars(*map(np.concatenate, zip(trained, waited, strict=True)))


def thinned(bars: Bars, num_rows: int, max_bars: int) -> tuple[Bars, float]:
    """About `max_bars` bars that give the same picture from afar, and its resolution.

    If there are more, time is divided into slots, and each slot of a row shows its
    longest bar. A bar longer than a slot is unchanged.

    Args:
      bars: of all workers.
      num_rows: number of workers.
      max_bars: allowed.

    Returns:
      The bars, and the length of a slot in seconds; 0 = they are unchanged.
    """
    if len(bars.row) <= max(max_bars, 1):
        return bars, 0.0
    span_s = float(bars.end_s.max() - bars.start_s.min())
    slot_s = span_s * num_rows / max_bars
    length_s = bars.end_s - bars.start_s
    slot = np.floor((bars.start_s + bars.end_s) / 2 / slot_s).astype(int)
    longest_first = np.argsort(-length_s, kind="stable")
    cell = (bars.row * (slot.max() + 1) + slot)[longest_first]
    chosen = np.sort(longest_first[np.unique(cell, return_index=True)[1]])
    kept = Bars(*(column[chosen] for column in bars))
    grown = length_s[chosen] < slot_s
    kept = kept._replace(
        start_s=np.where(grown, slot[chosen] * slot_s, kept.start_s),
        end_s=np.where(grown, (slot[chosen] + 1) * slot_s, kept.end_s),
    )
    return kept, slot_s


def published(
    events: Sequence[trace.Event], zero_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Times of publication, f64 [n], and versions, i64 [n]; by time."""
    out: list[trace.Published | trace.Aggregated]
    out = [event for event in events if isinstance(event, trace.Published)]
    if not out:  # the server's file may be torn before its first publication
        out = [event for event in events if isinstance(event, trace.Aggregated)]
    times = np.array([event.time_s - zero_s for event in out], float)
    return times, np.array([event.version for event in out], int)


class _Trained(NamedTuple):
    row: int
    start_s: float
    end_s: float
    base: int


def _trained(
    events: Sequence[trace.Event], rows: dict[int, int], zero_s: float
) -> Iterator[_Trained]:
    """Uninterrupted training from one base; adjacent events are joined."""
    last: dict[int, _Trained] = {}
    for event in events:
        if not isinstance(event, trace.Trained):
            continue
        row, start_s = rows[event.worker], event.start_s - zero_s
        new = _Trained(row, start_s, event.time_s - zero_s, event.base_version)
        old = last.get(row)
        max_gap_s = 0.02 * (new.end_s - new.start_s)
        if old and old.base == new.base and new.start_s - old.end_s <= max_gap_s:
            last[row] = old._replace(end_s=new.end_s)
            continue
        if old:
            yield old
        last[row] = new
    yield from last.values()


def _split(trained: list[_Trained], times_s: np.ndarray, versions: np.ndarray) -> Bars:
    """Splits training at each publication, where its staleness grows."""
    row = np.array([each.row for each in trained], int)
    start_s = np.array([each.start_s for each in trained], float)
    end_s = np.array([each.end_s for each in trained], float)
    base = np.array([each.base for each in trained], int)
    first = np.searchsorted(times_s, start_s, side="right")
    last = np.searchsorted(times_s, end_s, side="left")
    counts = np.maximum(last - first, 0) + 1
    of = np.repeat(np.arange(len(row)), counts)  # the training that a bar is part of
    nth = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = first[of] + nth  # versions published before the bar began
    before, after = np.append(-np.inf, times_s), np.append(times_s, np.inf)
    newest = np.where(out > 0, np.append(0, versions)[out], base[of])
    return Bars(
        row=row[of],
        start_s=np.where(nth == 0, start_s[of], before[out]),
        end_s=np.where(nth == counts[of] - 1, end_s[of], after[out]),
        base=base[of],
        staleness=np.maximum(newest - base[of], 0),
    )


class Window(NamedTuple):
    """A part of the run to look at."""

    label: str
    start_s: float
    end_s: float


def windows_of(
    events: Sequence[trace.Event], zero_s: float, since_s: float
) -> tuple[Window, ...]:
    """The windows of the timeline, the first one to be shown initially."""
    end_s = max(events[-1].time_s - zero_s, 1e-6)
    pushes = [event for event in events if isinstance(event, trace.Pushed)]
    merges = [event for event in events if isinstance(event, trace.Merged)]
    length_s = min(
        _WINDOW_CYCLES * interval_s(pushes),
        _WINDOW_MARKS * interval_s([*pushes, *merges]),
    )
    whole = Window("Whole run", since_s, end_s)
    if not 0 < length_s < end_s - since_s:
        return (whole,)
    marks = np.array([event.time_s - zero_s for event in merges or pushes])
    busiest_s = busiest_window(marks, length_s, end_s)
    return (
        Window("Busiest", busiest_s, busiest_s + length_s),
        Window("Beginning", since_s, since_s + length_s),
        Window("End", end_s - length_s, end_s),
        whole,
    )


def busiest_window(time_s: np.ndarray, length_s: float, end_s: float) -> float:
    """The start of the window of this length that holds most of these times."""
    if not len(time_s) or length_s >= end_s:
        return 0.0
    time_s = np.sort(time_s)
    inside = np.searchsorted(time_s, time_s + length_s) - np.arange(len(time_s))
    start_s = float(time_s[int(np.argmax(inside))]) - 0.02 * length_s
    return min(max(start_s, 0.0), end_s - length_s)


def interval_s(marks: Sequence[trace.Pushed | trace.Merged]) -> float:
    """Seconds between the events of a typical worker; infinite if none has two."""
    times: dict[int, list[float]] = {}
    for event in marks:
        times.setdefault(event.worker, []).append(event.time_s)
    means = [
        (max(own) - min(own)) / (len(own) - 1) for own in times.values() if own[1:]
    ]
    return float(np.median(means)) if means else math.inf


# ------------------------------------------------------------- Chrome trace

# By kind of event: its name, and the fields that are shown as its arguments.
_LOOKS: dict[type, tuple[str, tuple[str, ...]]] = {
    trace.Trained: ("train", ("steps", "base_version", "loss")),
    trace.Blocked: ("wait", ("newest",)),
    trace.Received: ("receive", ("version",)),
    trace.Adopted: ("adopt", ("version",)),
    trace.StateKept: ("keep own state", ("step",)),
    trace.Merged: ("merge", ("version", "from_version", "share")),
    trace.Pushed: ("push", ("seq", "info.base_version", "info.loss")),
    trace.WorkerJoined: ("join", ("session",)),
    trace.WorkerLeft: ("leave", ("reason",)),
    trace.Aggregated: ("aggregate", ("version", "updates", "staleness")),
    trace.Saved: ("save", ("version",)),
    trace.Published: ("publish", ("version", "receivers")),
    trace.WorkerScored: ("score", ("version", "rows", "scores")),
    trace.Evaluated: ("evaluate", ("version", "scores")),
}
_SERVER = 0  # thread id; worker k has k + 1


def write_chrome_trace(
    path: Path, events: Sequence[trace.Event], zero_s: float
) -> None:
    """Writes the events of a run for ui.perfetto.dev: a track per process.

    Args:
      path: of the file.
      events: of the run.
      zero_s: the time that counts as zero.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        separator = ""
        for line in _chrome_lines(events, zero_s):
            file.write(separator + line)
            separator = ",\n"
        file.write("\n]}\n")


def _chrome_lines(events: Iterable[trace.Event], zero_s: float) -> Iterator[str]:
    """One JSON object per event; by format string, as there may be half a million."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    readers = {
        kind: [(field.rpartition(".")[2], attrgetter(field)) for field in fields]
        for kind, (_, fields) in _LOOKS.items()
    }
    named: set[int] = set()
    for event in events:
        kind = type(event)
        if kind not in _LOOKS:
            continue
        worker = getattr(event, "worker", None)
        thread = _SERVER if worker is None else worker + 1
        if thread not in named:
            named.add(thread)
            track = {"ph": "M", "pid": 0, "tid": thread}
            name = "server" if worker is None else f"worker {worker}"
            yield encode(track | {"name": "thread_name", "args": {"name": name}})
            order = {"name": "thread_sort_index", "args": {"sort_index": thread}}
            yield encode(track | order)
        args = encode({name: _plain(read(event)) for name, read in readers[kind]})
        end_us = start_us = _us(event.time_s - zero_s)
        phase = '"ph":"i","s":"t"'
        if isinstance(event, trace.Trained | trace.Blocked):
            start_us = _us(event.start_s - zero_s)
            phase = f'"ph":"X","dur":{max(end_us - start_us, 0)}'
        yield (
            f'{{"name":"{_LOOKS[kind][0]}",{phase},"ts":{start_us},"pid":0,'
            f'"tid":{thread},"args":{args}}}'
        )


def _plain(value: Any) -> Any:
    """The value in JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _us(seconds: float) -> int:
    return round(1e6 * seconds)
