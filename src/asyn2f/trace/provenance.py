"""The provenance of a version: every update in it, and how it was made.

print(describe(explain(trace.read(folder), version=12)))
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from asyn2f import trace
from asyn2f.trace.history import Key, surviving, zero_s
from asyn2f.types import UpdateInfo


class Contribution(NamedTuple):
    """One update in a version."""

    worker: int
    session: str
    seq: int
    info: UpdateInfo[int, float]
    staleness: int
    coefficient: float
    steps: int  # since its worker's previous push, or since the worker started
    merged: tuple[int, ...]  # versions merged into it, in this order
    pushed_s: float
    waited_s: float  # from the push until it was aggregated


class Provenance(NamedTuple):
    """A version and its updates, in order of arrival."""

    version: int
    incarnation: int  # of the server that made it; 0 = the initial model
    parent: int  # the version before; -1 for version 0
    time_s: float  # when it was made; NaN if unknown
    start_s: float  # `history.zero_s`, zero of the times shown
    num_bytes: int  # of a model, and of an update; 0 if unknown
    contributions: tuple[Contribution, ...]

    @property
    def update_bytes(self) -> int:
        """Bytes of all its updates together."""
        return self.num_bytes * len(self.contributions)

    @property
    def mean_staleness(self) -> float:
        """Mean over its updates; NaN without any."""
        values = [update.staleness for update in self.contributions]
        return sum(values) / len(values) if values else math.nan

    @property
    def max_staleness(self) -> int:
        """Of its stalest update; 0 without any."""
        return max((update.staleness for update in self.contributions), default=0)


class _Cycle:
    """What a worker has done since its last push, or since it started."""

    def __init__(self) -> None:
        self.steps = 0
        self.merged: list[int] = []


def explain(events: Iterable[trace.Event], version: int) -> Provenance:
    """The provenance of a version of the surviving history.

    Args:
      events: of all processes, as `trace.read` gives them.
      version: its number; 0 = the initial model.

    Raises:
      ValueError: the trace lacks this version, or a push that it contains.

    >>> explain([trace.Published(1.5, version=0, num_bytes=80, receivers=2)], 0).time_s
    1.5
    """
    events = list(events)
    made = {event.version: event for event in surviving(events)}
    published = [event for event in events if isinstance(event, trace.Published)]
    num_bytes = max((event.num_bytes for event in published), default=0)
    start_s = zero_s(events)
    if version == 0:
        given = [event.time_s for event in published if event.version == 0]
        time_s = min(given, default=math.nan)
        return Provenance(0, 0, -1, time_s, start_s, num_bytes, ())
    if version not in made:
        known = f" and {min(made)} to {max(made)}" if made else ""
        raise ValueError(f"version: found {version}, the trace has 0{known}")
    event = made[version]
    cycles = _cycles(events, {tuple(update) for update in event.updates})
    return Provenance(
        version=version,
        incarnation=event.incarnation,
        parent=version - 1,
        time_s=event.time_s,
        start_s=start_s,
        num_bytes=num_bytes,
        contributions=tuple(
            _contribution(event, index, cycles) for index in range(len(event.updates))
        ),
    )


def _cycles(
    events: Iterable[trace.Event], keys: set[Key]
) -> dict[Key, tuple[trace.Pushed, _Cycle]]:
    """The pushes of these updates, and the cycle before each."""
    found: dict[Key, tuple[trace.Pushed, _Cycle]] = {}
    cycles: dict[int, _Cycle] = {}
    for event in events:
        if isinstance(event, trace.Trained):
            cycles.setdefault(event.worker, _Cycle()).steps += event.steps
        elif isinstance(event, trace.Merged):
            cycles.setdefault(event.worker, _Cycle()).merged.append(event.version)
        elif isinstance(event, trace.Pushed):
            cycle = cycles.pop(event.worker, _Cycle())
            key = event.worker, event.session, event.seq
            if key in keys:
                found[key] = event, cycle
        elif isinstance(event, trace.ProcessStarted) and event.actor.startswith(
            "worker-"
        ):
            cycles.pop(int(event.actor.removeprefix("worker-")), None)
    return found


def _contribution(
    event: trace.Aggregated,
    index: int,
    cycles: dict[Key, tuple[trace.Pushed, _Cycle]],
) -> Contribution:
    worker, session, seq = event.updates[index]
    if (worker, session, seq) not in cycles:
        raise ValueError(
            f"version {event.version} contains update {seq} of worker {worker}, "
            f"session {session}, whose push is not in the trace"
        )
    pushed, cycle = cycles[worker, session, seq]
    return Contribution(
        worker=worker,
        session=session,
        seq=seq,
        info=pushed.info,
        staleness=event.staleness[index],
        coefficient=event.coefficients[index],
        steps=cycle.steps,
        merged=tuple(cycle.merged),
        pushed_s=pushed.time_s,
        waited_s=event.time_s - pushed.time_s,
    )


def describe(provenance: Provenance) -> str:
    """The provenance as text; times are seconds since the first version.

    >>> print(describe(Provenance(0, 0, -1, 1.5, 1.0, 80, ())))
    version 0 is the initial model, drawn from the seed; published at 0.500 s
    """
    at = ""
    if not math.isnan(provenance.time_s):
        at = f" at {provenance.time_s - provenance.start_s:.3f} s"
    if provenance.version == 0:
        given = f"; published{at}" if at else ""
        return f"version 0 is the initial model, drawn from the seed{given}"
    contributions = provenance.contributions
    known = provenance.num_bytes > 0
    size = f"{provenance.update_bytes:,} bytes" if known else "of unknown size"
    head = (
        f"version {provenance.version}, made{at} by incarnation "
        f"{provenance.incarnation}, follows version {provenance.parent}"
    )
    mean, highest = provenance.mean_staleness, provenance.max_staleness
    foot = (
        f"{len(contributions)} updates, {size}; "
        f"staleness {mean:.2f} on average, at most {highest}"
    )
    rows = [_row(update, provenance.start_s) for update in contributions]
    return "\n".join([head, *_aligned([_COLUMNS, *rows]), foot])


_COLUMNS = ["worker", "session", "seq", "base", "start", "stale", "coefficient"]
_COLUMNS += ["examples", "loss", "quality", "steps", "merged", "pushed_s", "waited_s"]


def _row(update: Contribution, start_s: float) -> list[str]:
    """The cells of `_COLUMNS`."""
    return [
        str(update.worker),
        update.session,
        str(update.seq),
        str(update.info.base_version),
        str(update.info.start_version),
        str(update.staleness),
        f"{update.coefficient:.4f}",
        f"{update.info.num_examples:g}",
        f"{update.info.loss:.4f}",
        f"{update.info.quality:.3f}",
        str(update.steps),
        ",".join(map(str, update.merged)) or "-",
        f"{update.pushed_s - start_s:.3f}",
        f"{update.waited_s:.3f}",
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """The rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
