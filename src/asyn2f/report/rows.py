"""The rows of metrics: carried on where a run was resumed, and few enough to draw."""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from asyn2f.report.metrics import each_row

Row = dict[str, Any]


def read_curve(path: Path, most: int) -> tuple[list[Row], int]:
    """The rows of a run with clocks carried on, and the number of invalid lines.

    Of a longer file, each of `most / 4` equally long parts keeps its last row of each
    kind and, of its scores, the worst and the best.
    """
    rows = _Counted(each_row(path))
    length = _num_lines(path)
    if length <= most:
        return list(_carried_on(rows)), rows.cut
    size = -(-length // (most // 4))
    carried, kept = _carried_on(rows), list[Row]()
    while part := list(itertools.islice(carried, size)):
        kept += _extremes(part)
    return kept, rows.cut


def _num_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


class _Counted:
    """The rows that are there; counts the others."""

    def __init__(self, rows: Iterable[Row | None]) -> None:
        self._rows = rows
        self.cut = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            if row is None:
                self.cut += 1
            else:
                yield row


def _extremes(rows: list[Row]) -> list[Row]:
    """The last row of each kind, and the scores of the lowest and highest accuracy."""
    last = {str(row.get("kind")): place for place, row in enumerate(rows)}
    scores = [(number(row, "accuracy"), place) for place, row in enumerate(rows)]
    known = [(accuracy, place) for accuracy, place in scores if accuracy == accuracy]
    places = {*last.values()}
    if known:
        places |= {min(known)[1], max(known, key=lambda score: score[0])[1]}
    return [rows[place] for place in sorted(places)]


def number(row: dict[str, Any] | None, *path: str) -> float:
    """The number at `path` of a nested record; NaN where there is none.

    >>> number({"stop": {"target_accuracy": 0.9}}, "stop", "target_accuracy")
    0.9
    >>> number({"loss": None}, "loss")
    nan
    """
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def _carried_on(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with clocks and counters that began anew carried on.

    One process writes the rows of kind "version" in order: where such a row lies before
    its predecessor in time, the run was resumed, and what fell then is counted on.
    """
    counters = ("time_s", "bytes_up", "bytes_down")
    offsets: dict[str, float] = dict.fromkeys(counters, 0.0)
    largest: dict[str, float] = dict.fromkeys(counters, 0.0)
    last_s = -math.inf
    for row in rows:
        found = {name: number(row, name) for name in counters}
        if row.get("kind") == "version" and not math.isnan(found["time_s"]):
            if found["time_s"] < last_s:
                for name in counters:
                    if found[name] + offsets[name] < largest[name]:
                        offsets[name] = largest[name]
            last_s = found["time_s"]
        moved = {
            name: row[name] + offsets[name] if offsets[name] else row[name]
            for name, value in found.items()
            if not math.isnan(value)
        }
        for name, value in moved.items():
            largest[name] = max(largest[name], value)
        yield {**row, **moved}
