"""The curve of a run: rows of scalars, in a file of lines and in TensorBoard."""

import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from asyn2f import rundir as folders


class MetricsWriter:
    """Appends rows to `metrics.jsonl` and mirrors their scalars to TensorBoard.

    Every row is one line and one write to the file: a kill can cut the last line short,
    which `read_metrics` leaves out, and loses nothing before it. While the disk is full
    rows are dropped, and the run goes on. Threads may share it.
    After `close`, rows are dropped, as they are by `trace.TraceWriter`.
    """

    def __init__(self, workdir: Path) -> None:
        """Opens the files, which may hold rows of an earlier life of the run.

        Args:
          workdir: the run's folder; made if it is not there.
        """
        folders.make_folder(workdir)
        self._file = folders.append_to(workdir / folders.METRICS)
        self._is_cut = _is_cut(self._file)  # the next row begins a line of its own
        self._folder = str(workdir / folders.TENSORBOARD)
        self._board = _new_board(self._folder)
        self._lock = threading.Lock()

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row. Nothing is refused: NaN becomes null, an unknown type text."""
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
        for name, value in row.items():
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


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a run, in the order written; none where there is no file.

    What a kill has cut short is left out.
    """
    return [row for row in each_row(workdir / folders.METRICS) if row is not None]


def each_row(path: Path) -> Iterator[dict[str, Any] | None]:
    """The rows of one file, and None for a line that is none; nothing without it."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def _new_board(folder: str) -> SummaryWriter:
    return SummaryWriter(logdir=folder, flush_secs=5, max_queue=100)


def _is_alive(board: SummaryWriter) -> bool:
    """Whether it still writes. It does so on a thread, which a full disk ends; whoever
    then goes on filling its queue, or closes it, waits for ever."""
    return bool(board.file_writer.event_writer._worker.is_alive())


def _is_cut(file: Any) -> bool:
    """Whether the last line has no end, so that the next would be glued to it."""
    if file.seek(0, 2) == 0:
        return False
    file.seek(-1, 2)
    return file.read(1) != b"\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """The value as JSON has it; scalars of NumPy and JAX become plain numbers."""
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
