"""The live view of a run: a table on a terminal, occasional lines elsewhere."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from asyn2f.protocol.status import RunStatus, WorkerStatus
from asyn2f.report import units
from asyn2f.types import Metric

LINE_EVERY_S = 2.0
"""Seconds between two plain lines, unless the headline has improved."""

_WIDE, _WIDEST = (
    110,
    132,
)  # columns: enough for all; wider is hard to read
_STATES = {
    "training": ("●", "green"),
    "registered": ("○", ""),
    "waiting": ("◌", "yellow"),
    "silent": ("!", "bold red"),
    "gone": ("x", "dim"),
}


class View(NamedTuple):
    """The status of a run, fitted to the terminal."""

    status: RunStatus

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        options = options.update(max_width=min(options.max_width, _WIDEST))
        head = console.render_lines(_head(self.status), options)
        # One of the remaining rows is the table's head, one the cursor's.
        room = max((options.height or console.height) - len(head) - 2, 2)
        body = _table(self.status, room, wide=options.max_width >= _WIDE)
        for line in [*head, *console.render_lines(body, options)]:
            yield from line
            yield Segment.line()


def render(status: RunStatus) -> View:
    """The status as a rich renderable: a head, and a row per worker.

    It fits the width and height of the console; a last row counts the workers that do
    not fit.
    """
    return View(status)


def plain_line(status: RunStatus) -> str:
    """The status as one line of plain text, for logs.

    >>> from asyn2f.types import Best
    >>> metric = Metric("accuracy", is_fraction=True)
    >>> scores, best = {"accuracy": 0.9, "loss": 0.3}, Best(10, "accuracy", 0.91)
    >>> status = RunStatus("r", "asyn2f", "running", 75.0, 12, 100, 0.12, 0.5, metric,
    ...                    scores, best, 24, 1, 0, 4_000_000, 9_000_000, ())
    >>> plain_line(status)  # doctest: +NORMALIZE_WHITESPACE
    '00:01:15 running | version 12/100 (0.500/s) | accuracy 90.00 %,
     best 91.00 % at 10 | loss 0.3000 | updates 24 committed, 1 superseded, 0 rejected
     | up 4.00 MB, down 9.00 MB | no workers'
    """
    limit = f"/{status.max_versions}" if status.max_versions else ""
    parts = [
        f"{units.as_clock(status.elapsed_s)} {status.state}",
        f"version {status.version}{limit} ({_rate(status)}/s)",
        f"{status.metric.name} {_ascii(_headline(status))}{_best(status)}",
        *(f"{name} {text}" for name, text in _others(status)),
        f"updates {status.committed} committed, {status.superseded} superseded, "
        f"{status.rejected} rejected",
        f"up {units.as_bytes(status.bytes_up)}, "
        f"down {units.as_bytes(status.bytes_down)}",
        _states(status.workers) or "no workers",
    ]
    return " | ".join(parts)


class LiveView:
    """Shows the progress of a run; a context manager.

    On a terminal the view is redrawn in place. Elsewhere `plain_line` is printed with
    date and time, at most every `LINE_EVERY_S` seconds of the run, whenever the best
    headline improves, and for the last status.
    """

    def __init__(
        self,
        console: Console | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._now = now
        self._console = console or Console()
        self._status: RunStatus | None = None
        self._printed: RunStatus | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        elif self._status is not self._printed:
            self._print_line()

    def update(self, status: RunStatus) -> None:
        """Replaces the status shown."""
        self._status = status
        if self._live:
            self._live.update(render(status), refresh=True)
        elif self._is_worth_a_line(status):
            self._print_line()

    def message(self, text: str) -> None:
        """Prints a message above the view."""
        self._print(text)

    def _print(self, text: str) -> None:
        date = "" if self._live else f"{self._now().isoformat(' ', 'seconds')} "
        self._console.print(Text(date + text), soft_wrap=True)

    def _is_worth_a_line(self, status: RunStatus) -> bool:
        last = self._printed
        if last is None or status.elapsed_s - last.elapsed_s >= LINE_EVERY_S:
            return True
        return status.best is not None and status.best != last.best

    def _print_line(self) -> None:
        if self._status:
            self._print(plain_line(self._status))
            self._printed = self._status


def _head(status: RunStatus) -> Padding:
    """Four lines: name, progress, scores, and cost."""
    title = Table.grid(expand=True)
    title.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    title.add_column(justify="right", no_wrap=True)
    name = Text.assemble((status.strategy, "bold cyan"), "  ", (status.run, "bold"))
    title.add_row(
        name,
        Text.assemble((status.state, "green"), f"  {units.as_clock(status.elapsed_s)}"),
    )
    lines: list[RenderableType] = [title, _progress(status)]
    scores = Text(f"{status.metric.name} ", no_wrap=True, overflow="ellipsis")
    scores.append(_headline(status), "bold")
    scores.append(_best(status), "dim")
    for other, text in _others(status):
        scores.append(f"   {other} {text}")
    lines.append(scores)
    up, down = units.as_bytes(status.bytes_up), units.as_bytes(status.bytes_down)
    updates = (
        f"updates  {status.committed:,} committed, {status.superseded:,} superseded, "
        f"{status.rejected:,} rejected   ↑ {up}  ↓ {down}"
    )
    lines.append(Text(updates, no_wrap=True, overflow="ellipsis"))
    return Padding(Group(*lines), (0, 1, 1, 1))


def _progress(status: RunStatus) -> Table:
    limit = f" of {status.max_versions:,}" if status.max_versions else ""
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(
        Text.assemble("version  ", (f"{status.version:,}", "bold"), limit),
        ProgressBar(
            total=1.0,
            completed=status.progress,
            style="grey23",
            complete_style="cyan",
        ),
        Text(f"{_rate(status)} versions/s"),
    )
    return grid


def _table(status: RunStatus, room: int, *, wide: bool) -> Table | Text:
    """As many workers as fit, and a row that counts the others."""
    workers = status.workers
    if not workers:
        return Text("  no workers yet", "dim")
    shown = workers if len(workers) <= room else workers[: room - 1]
    table = Table(box=None, expand=True, pad_edge=True, header_style="dim")
    columns = ["worker", "state", "epoch", "loss", "base", "stale", "last merge"]
    columns += ["updates"]
    if wide:
        columns += [status.metric.name, "merges", "steps", "examples"]
    for name in columns:
        left = name == "state"
        table.add_column(
            name, justify="left" if left else "right", no_wrap=True, min_width=4
        )
    for worker in shown:
        table.add_row(*_cells(worker, status.metric, wide=wide))
    rest = workers[len(shown) :]
    if rest:
        # A row that spans all columns needs a table of its own.
        more = Table.grid(expand=True)
        more.add_row(table)
        more.add_row(Text(f"  … and {len(rest)} more: {_states(rest)}", "dim"))
        return more
    return table


def _cells(worker: WorkerStatus, of: Metric, *, wide: bool) -> list[Text]:
    sign, style = _STATES.get(worker.state, ("?", ""))
    away = worker.state == "gone"
    merged = units.NONE
    if worker.merged_s_ago >= 0:
        merged = f"{units.as_duration(worker.merged_s_ago)} ago"
    has_trained = worker.step > 0
    loss, metric = (worker.loss, worker.metric) if has_trained else (None, None)
    hot = "" if worker.staleness <= 0 else "yellow" if worker.staleness < 5 else "red"
    cells = [
        Text(str(worker.worker)),
        Text(f"{sign} {worker.state}", style),
        Text(units.as_number(worker.epoch, digits=2)),
        Text(units.as_number(loss, digits=4)),
        Text(f"v{worker.base_version}" if worker.base_version >= 0 else units.NONE),
        Text(str(worker.staleness), hot),
        Text(merged),
        Text(f"{worker.updates:,}"),
    ]
    if wide:
        cells += [
            Text(units.as_score(metric, of)),
            Text(f"{worker.merges:,}"),
            Text(f"{worker.step:,}"),
            Text(f"{worker.num_examples:,}"),
        ]
    if away:
        for cell in cells:
            cell.style = "dim"
    return cells


def _states(workers: tuple[WorkerStatus, ...]) -> str:
    """The number of workers in each state."""
    counts = Counter(worker.state for worker in workers)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def _best(status: RunStatus) -> str:
    if status.best is None:
        return ""
    best = units.as_score(status.best.value, status.metric)
    return f", best {best} at {status.best.version}"


def _headline(status: RunStatus) -> str:
    """The headline of the newest version evaluated."""
    return units.as_score((status.scores or {}).get(status.metric.name), status.metric)


def _others(status: RunStatus) -> list[tuple[str, str]]:
    """The loss, or else the first two numbers besides the headline."""
    scores = status.scores or {}
    names = [name for name in scores if name != status.metric.name]
    names = ["loss"] if "loss" in names else names[:2]
    return [(name, _plain(scores[name])) for name in names]


def _plain(value: float) -> str:
    return f"{value:.4f}" if units.is_known(value) else str(value)


def _rate(status: RunStatus) -> str:
    return _ascii(units.as_rate(status.versions_per_s))


def _ascii(text: str) -> str:
    """The text with a hyphen for a dash, for logs in ASCII."""
    return text.replace(units.NONE, "-")
