"""Who trained when, from which version: a run as arrays, ready to be drawn."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from asyn2f import trace

WAITING = -1
"""In place of a staleness: the worker waits."""


class Pieces(NamedTuple):
    """Stretches of training, each from one base version under one newest version.

    And of waiting, which have `WAITING` in place of a staleness.
    """

    row: np.ndarray  # i64 [n]: the worker's row in the picture
    start_s: np.ndarray  # f64 [n]: seconds since the start of the run
    end_s: np.ndarray  # f64 [n]
    base: np.ndarray  # i64 [n]
    staleness: np.ndarray  # i64 [n]: newest version then - base version


class _Stretch(NamedTuple):
    row: int
    start_s: float
    end_s: float
    base: int


def pieces_of(
    events: Sequence[trace.Event], rows: dict[int, int], zero_s: float
) -> Pieces:
    """The training of a run, cut wherever a version was published, and its waiting.

    Args:
      events: of the run, by time.
      rows: the row of each worker.
      zero_s: the time that counts as zero.
    """
    times_s, versions = published(events, zero_s)
    cut = _cut_at_versions(_stretches(events, rows, zero_s), times_s, versions)
    waits = (
        (rows[e.worker], e.start_s - zero_s, e.time_s - zero_s, e.newest, WAITING)
        for e in events
        if isinstance(e, trace.Waited)
    )
    columns = list(zip(*cut, *waits, strict=True)) or [()] * 5
    return Pieces(*map(np.array, columns, (int, float, float, int, int)))


def fewer(pieces: Pieces, num_rows: int, most: int) -> tuple[Pieces, float]:
    """About `most` pieces that give the same picture from afar, and its grain.

    Where there are more, time is divided into slots, and each slot of a row shows the
    longest of the pieces in it. A piece longer than a slot stays as it is.

    Args:
      pieces: of all workers.
      num_rows: of how many workers.
      most: how many there may be.

    Returns:
      The pieces, and the length of a slot in seconds; 0 = they are the same.
    """
    if len(pieces.row) <= most:
        return pieces, 0.0
    span_s = float(pieces.end_s.max() - pieces.start_s.min())
    slot_s = span_s * num_rows / most
    length_s = pieces.end_s - pieces.start_s
    slot = np.floor((pieces.start_s + pieces.end_s) / 2 / slot_s).astype(int)
    longest_first = np.argsort(-length_s, kind="stable")
    cell = (pieces.row * (slot.max() + 1) + slot)[longest_first]
    chosen = np.sort(longest_first[np.unique(cell, return_index=True)[1]])
    kept = Pieces(*(column[chosen] for column in pieces))
    grown = length_s[chosen] < slot_s
    kept = kept._replace(
        start_s=np.where(grown, slot[chosen] * slot_s, kept.start_s),
        end_s=np.where(grown, (slot[chosen] + 1) * slot_s, kept.end_s),
    )
    return kept, slot_s


def published(
    events: Sequence[trace.Event], zero_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """When versions came out, f64 [n], and which, i64 [n]; by time."""
    out: list[trace.Published | trace.Aggregated]
    out = [event for event in events if isinstance(event, trace.Published)]
    if not out:  # the server's file may be cut before its first note
        out = [event for event in events if isinstance(event, trace.Aggregated)]
    times = np.array([event.time_s - zero_s for event in out], float)
    return times, np.array([event.version for event in out], int)


def _stretches(
    events: Sequence[trace.Event], rows: dict[int, int], zero_s: float
) -> Iterator[_Stretch]:
    """Training without a break from one base; what touches is one stretch."""
    last: dict[int, _Stretch] = {}
    for event in events:
        if not isinstance(event, trace.Trained):
            continue
        new = _Stretch(
            rows[event.worker],
            event.start_s - zero_s,
            event.time_s - zero_s,
            event.base_version,
        )
        old = last.get(new.row)
        touches_s = 0.02 * (new.end_s - new.start_s)
        if old and old.base == new.base and new.start_s - old.end_s <= touches_s:
            last[new.row] = old._replace(end_s=new.end_s)
            continue
        if old:
            yield old
        last[new.row] = new
    yield from last.values()


def _cut_at_versions(
    stretches: Iterable[_Stretch], times_s: np.ndarray, versions: np.ndarray
) -> Iterator[tuple[int, float, float, int, int]]:
    for row, start_s, end_s, base in stretches:
        first = int(np.searchsorted(times_s, start_s, side="right"))
        last = int(np.searchsorted(times_s, end_s, side="left"))
        cuts = [start_s, *times_s[first:last].tolist(), end_s]
        for i, (begin_s, stop_s) in enumerate(itertools.pairwise(cuts)):
            newest = int(versions[first + i - 1]) if first + i else base
            yield row, begin_s, stop_s, base, max(newest - base, 0)


def thinned(row: np.ndarray, time_s: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most about `most` marks, spread over rows and time."""
    if len(time_s) <= most:
        return np.arange(len(time_s))
    slot_s = float(np.ptp(time_s)) * len(np.unique(row)) / most or 1.0
    cell = np.stack([row, np.floor(time_s / slot_s).astype(int)], axis=1)
    return np.sort(np.unique(cell, axis=0, return_index=True)[1])


def busiest_window(time_s: np.ndarray, length_s: float, end_s: float) -> float:
    """Where the window of that length begins that holds most of these times."""
    if not len(time_s) or length_s >= end_s:
        return 0.0
    time_s = np.sort(time_s)
    inside = np.searchsorted(time_s, time_s + length_s) - np.arange(len(time_s))
    start_s = float(time_s[int(np.argmax(inside))]) - 0.02 * length_s
    return min(max(start_s, 0.0), end_s - length_s)


def interval_s(marks: Sequence[trace.Pushed | trace.Merged]) -> float:
    """Seconds from mark to mark of a typical worker; infinite where none has two."""
    times: dict[int, list[float]] = {}
    for event in marks:
        times.setdefault(event.worker, []).append(event.time_s)
    means = [
        (max(own) - min(own)) / (len(own) - 1) for own in times.values() if own[1:]
    ]
    return float(np.median(means)) if means else math.inf
