"""Who trained when, from which version: a run as arrays, ready to be drawn."""

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
    waits = [
        (rows[e.worker], e.start_s - zero_s, e.time_s - zero_s, e.newest, WAITING)
        for e in events
        if isinstance(e, trace.Blocked)
    ]
    columns = list(zip(*waits, strict=True)) or [()] * 5
    waited = Pieces(*map(np.array, columns, (int, float, float, int, int)))
    return Pieces(*map(np.concatenate, zip(cut, waited, strict=True)))


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
    if len(pieces.row) <= max(most, 1):
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


def with_detail(
    pieces: Pieces, windows: Sequence[tuple[float, float]], num_rows: int, most: int
) -> tuple[Pieces, float]:
    """About `most` pieces: in the windows as they are, elsewhere as from afar.

    Args:
      pieces: of all workers.
      windows: from when until when, in seconds; half of the pieces are for them.
      num_rows: of how many workers.
      most: how many there may be.

    Returns:
      The pieces, and the length of a slot of `fewer` outside of the windows.
    """
    if len(pieces.row) <= most:
        return pieces, 0.0
    middle_s = (pieces.start_s + pieces.end_s) / 2
    outside = np.ones(len(middle_s), bool)
    parts = []
    for start_s, end_s in windows:
        inside = outside & (middle_s >= start_s) & (middle_s < end_s)
        outside &= ~inside
        own = _chosen(pieces, inside)
        parts.append(fewer(own, num_rows, most // (2 * len(windows)))[0])
    rest, slot_s = fewer(_chosen(pieces, outside), num_rows, most // 2)
    for start_s, end_s in windows:  # a slot may reach over what is drawn as it is
        before = rest.start_s + rest.end_s < start_s + end_s
        rest = rest._replace(
            start_s=np.where(before, rest.start_s, np.maximum(rest.start_s, end_s)),
            end_s=np.where(before, np.minimum(rest.end_s, start_s), rest.end_s),
        )
    parts.append(_chosen(rest, rest.end_s > rest.start_s))
    return Pieces(*map(np.concatenate, zip(*parts, strict=True))), slot_s


def _chosen(pieces: Pieces, mask: np.ndarray) -> Pieces:
    return Pieces(*(column[mask] for column in pieces))


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
) -> Pieces:
    found = list(stretches)
    row = np.array([stretch.row for stretch in found], int)
    start_s = np.array([stretch.start_s for stretch in found], float)
    end_s = np.array([stretch.end_s for stretch in found], float)
    base = np.array([stretch.base for stretch in found], int)
    first = np.searchsorted(times_s, start_s, side="right")
    last = np.searchsorted(times_s, end_s, side="left")
    counts = np.maximum(last - first, 0) + 1
    of = np.repeat(np.arange(len(row)), counts)  # the stretch of each piece
    nth = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = first[of] + nth  # versions that were out when the piece began
    before, after = np.append(-np.inf, times_s), np.append(times_s, np.inf)
    newest = np.where(out > 0, np.append(0, versions)[out], base[of])
    return Pieces(
        row=row[of],
        start_s=np.where(nth == 0, start_s[of], before[out]),
        end_s=np.where(nth == counts[of] - 1, end_s[of], after[out]),
        base=base[of],
        staleness=np.maximum(newest - base[of], 0),
    )


def within(time_s: np.ndarray, windows: Sequence[tuple[float, float]]) -> np.ndarray:
    """Which of these times lie in one of the windows, bool [n]."""
    found = np.zeros(len(time_s), bool)
    for start_s, end_s in windows:
        found |= (time_s >= start_s) & (time_s <= end_s)
    return found


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
