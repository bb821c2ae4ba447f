"""Metrics of a run: rows of scalars, in `metrics.jsonl` and in TensorBoard."""

import itertools
import json
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from asyn2f import rundir as folders

Row = dict[str, Any]


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and mirrors their scalars to TensorBoard.

    Every row is one write of one line: a kill can tear the last line, which readers
    ignore, and loses nothing before it. While the disk is full, rows are dropped and
    the run continues. Threads may share a writer. After `close`, rows are dropped.
    """

    def __init__(self, workdir: Path) -> None:
        """Opens the files, which may hold rows written before a resume.

        Args:
          workdir: the run's folder; created if missing.
        """
        folders.make_folder(workdir)
        self._file = folders.append_to(workdir / folders.METRICS)
        self._is_cut = _is_cut(self._file)  # the next row begins a new line
        self._folder = str(workdir / folders.TENSORBOARD)
        self._board = _new_board(self._folder)
        self._lock = threading.Lock()

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row. NaN becomes null, a value of an unknown type its text."""
        plain = _plain(row)
        line = json.dumps(plain, allow_nan=False) + "\n"
        with self._lock:
            if self._file.closed:
                return
            try:
                text = b"\n" * self._is_cut + line.encode()
                self._is_cut = self._file.write(text) < len(text)
                self._mirror(plain)
            except OSError as error:
                if not self._is_cut:
                    logging.warning("cannot write metrics: %s", error)
                self._is_cut = True

    def _mirror(self, row: dict[str, Any]) -> None:
        version: Any = row.get("version")
        if not _is_number(version):
            return
        if not _is_alive(self._board):
            self._board = _new_board(self._folder)
        kind, now = row.get("kind", "row"), time.time()
        for name, value in (row | row.get("scores", {})).items():
            if name != "version" and _is_number(value):
                self._board.add_scalar(
                    f"{kind}/{name}", value, global_step=int(version), walltime=now
                )

    def close(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.close()
                if _is_alive(self._board):
                    self._board.close()


def _new_board(folder: str) -> SummaryWriter:
    return SummaryWriter(logdir=folder, flush_secs=5, max_queue=100)


def _is_alive(board: SummaryWriter) -> bool:
    """Whether its thread is alive. A full disk ends that thread, and then filling its
    queue or closing it would block for ever."""
    return bool(board.file_writer.event_writer._worker.is_alive())


def _is_cut(file: Any) -> bool:
    """Whether the last line lacks its newline."""
    if file.seek(0, 2) == 0:
        return False
    file.seek(-1, 2)
    return file.read(1) != b"\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """The value in types of JSON; scalars of NumPy and JAX become plain numbers."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


# ------------------------------------------------------------- reading


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run in the order written, without torn lines; [] without a file."""
    return [row for row in each_row(workdir / folders.METRICS) if row is not None]


def each_row(path: Path) -> Iterator[dict[str, Any] | None]:
    """The rows of a file, and None for each invalid line; nothing without a file."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def read_curve(path: Path, most: int, name: str) -> tuple[list[Row], int]:
    """The rows of a run with continuous clocks, and the number of invalid lines.

    Of a longer file, each of `most / 4` equally long parts keeps its last row of each
    kind and the lowest and highest scores of that `name`.
    """
    rows = _ValidRows(each_row(path))
    length = _num_lines(path)
    if length <= most:
        return list(_continuous(rows)), rows.invalid
    size = -(-length // (most // 4))
    continuous, kept = _continuous(rows), list[Row]()
    while part := list(itertools.islice(continuous, size)):
        kept += _extremes(part, name)
    return kept, rows.invalid


def _num_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


class _ValidRows:
    """Iterates over valid rows and counts the others."""

    def __init__(self, rows: Iterable[Row | None]) -> None:
        self._rows = rows
        self.invalid = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            if row is None:
                self.invalid += 1
            else:
                yield row


def _extremes(rows: list[Row], name: str) -> list[Row]:
    """The last row of each kind, and the lowest and highest scores of the headline."""
    last = {str(row.get("kind")): place for place, row in enumerate(rows)}
    scores = [(number(row, "scores", name), place) for place, row in enumerate(rows)]
    known = [(value, place) for value, place in scores if value == value]
    places = {*last.values()}
    if known:
        places |= {min(known)[1], max(known, key=lambda score: score[0])[1]}
    return [rows[place] for place in sorted(places)]


def number(row: dict[str, Any] | None, *path: str) -> float:
    """The number at `path` of a nested record; NaN if there is none.

    >>> number({"stop": {"target": 0.9}}, "stop", "target")
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


def _continuous(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with clocks and counters that restarted made continuous.

    One process writes the rows of kind "version" in order: if such a row precedes its
    predecessor in time, the run was resumed, and what has decreased restarted.
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
