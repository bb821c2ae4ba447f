"""The table of the workers, in HTML."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from asyn2f.report import theme, units
from asyn2f.report.summary import WorkerTally

_COLUMNS: tuple[tuple[str, Callable[[WorkerTally], str]], ...] = (
    ("examples", lambda worker: units.as_number(worker.num_examples)),
    ("steps", lambda worker: units.as_number(worker.steps)),
    ("epochs", lambda worker: units.as_number(worker.epochs, digits=1)),
    ("committed", lambda worker: units.as_number(worker.committed)),
    ("superseded", lambda worker: units.as_number(worker.superseded)),
    ("rejected", lambda worker: units.as_number(worker.rejected)),
    ("mean staleness", lambda worker: units.as_number(worker.staleness, digits=2)),
    ("merges", lambda worker: units.as_number(worker.merges)),
    ("share kept", lambda worker: units.as_percent(worker.share, digits=0)),
    ("trained", lambda worker: _part(worker.trained_s, worker.present_s)),
    ("waited", lambda worker: _part(worker.waited_s, worker.present_s)),
    ("rest", lambda worker: _part(worker.rest_s, worker.present_s)),
)

MAX_ROWS = 200
"""Workers in the table: of more, the first ones; the sums are over all."""


def to_html(workers: Sequence[WorkerTally]) -> str:
    """A table with a row per worker and their sums; empty without workers."""
    if not workers:
        return ""
    head = "".join(f"<th>{name}</th>" for name, _ in _COLUMNS)
    rows = "".join(_row(worker) for worker in workers[:MAX_ROWS])
    if (hidden := len(workers) - MAX_ROWS) > 0:
        rows += f'<tr><td colspan="{len(_COLUMNS) + 2}">and {hidden:,} more</td></tr>'
    foot = _row(_all(workers), total=True) if len(workers) > 1 else ""
    return (
        f'<div class="scroll"><table><thead><tr><th>worker</th>{head}<th></th></tr>'
        f"</thead><tbody>{rows}{foot}</tbody></table></div>"
    )


def _row(worker: WorkerTally, *, total: bool = False) -> str:
    colour = theme.css_colour(worker.worker)
    name = f'<span class="dot" style="background:{colour}"></span>{worker.worker}'
    cells = "".join(f"<td>{value(worker)}</td>" for _, value in _COLUMNS)
    return (
        f'<tr class="{"total" if total else "one"}"><td>{"all" if total else name}</td>'
        f"{cells}<td>{_bar(worker)}</td></tr>"
    )


def _all(workers: Sequence[WorkerTally]) -> WorkerTally:
    """The sums, and the means weighted by what they are means of."""

    def mean(name: str, weight: str) -> float:
        pairs = [(getattr(w, name), getattr(w, weight)) for w in workers]
        pairs = [(value, n) for value, n in pairs if n > 0 and math.isfinite(value)]
        of = sum(n for _, n in pairs)
        return sum(value * n for value, n in pairs) / of if of else math.nan

    def known(name: str) -> list[float]:
        values = [getattr(worker, name) for worker in workers]
        return [value for value in values if math.isfinite(value)]

    sums: dict[str, Any] = {
        name: sum(known(name)) if known(name) else math.nan
        for name in WorkerTally._fields
        if name not in ("worker", "share", "staleness")
    }
    return WorkerTally(
        worker=0,
        share=mean("share", "merges"),
        staleness=mean("staleness", "committed"),
        **sums,
    )


def _bar(worker: WorkerTally) -> str:
    """A small bar: blue the part of its time that it trained, hatched the waiting."""
    if not worker.present_s > 0:
        return ""
    parts = (("trained", worker.trained_s), ("waited", worker.waited_s))
    inner = "".join(
        f'<i class="{name}" style="width:'
        f'{100 * min(part_s / worker.present_s, 1):.1f}%"></i>'
        for name, part_s in parts
    )
    return f'<span class="share">{inner}</span>'


def _part(part_s: float, whole_s: float) -> str:
    return units.as_percent(part_s / whole_s if whole_s > 0 else math.nan, digits=0)
