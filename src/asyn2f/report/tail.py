"""The events of a run, or the newest of them: whatever can be read, and no more."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.trace import segments

_HEAD_BYTES = 64 * 1024
_OF_HEADS = (trace.ProcessStarted, trace.WorkerJoined, trace.Published)


class Events(NamedTuple):
    """What could be read of a trace."""

    events: list[trace.Event]  # each after what it depends on
    cuts: dict[str, int]  # by file, lines that are no events
    since_s: float  # from when on all events are there; -inf = from the beginning


def read_events(folder: Path, most_bytes: int) -> Events:
    """All events by time, as `trace.read` gives them; invalid lines are skipped.

    A resumed process appends to its file, so that a line cut by a kill may stand in the
    middle; `trace.read` rightly refuses that, and a picture can do without the line.

    Of a trace with more than `most_bytes` the newest are read, as many of each file as
    its size is of all; and from the beginning of each file what says who took part and
    when the run began.
    """
    files = segments.files_of(folder)
    sizes = {name: sum(map(segments.size_of, paths)) for name, paths in files.items()}
    share = min(most_bytes / max(sum(sizes.values()), 1), 1.0)
    heads: dict[str, list[trace.Event]] = {}
    found: dict[str, list[trace.Event]] = {}
    cuts: dict[str, int] = {}
    since_s = -math.inf
    for name, paths in files.items():
        skipped = int(sizes[name] * (1 - share))
        is_tail = skipped > _HEAD_BYTES
        if is_tail:
            head = _sound(_beginning(paths[0]), {}, name)
            heads[name] = [event for event in head if isinstance(event, _OF_HEADS)]
        own = list(_sound(segments.lines_from(paths, skipped * is_tail), cuts, name))
        if is_tail and own:
            since_s = max(since_s, own[0].time_s)
        found[name] = own
    lives = [
        trace.lives_of(
            [
                *(event for event in heads.get(name, ()) if event.time_s < since_s),
                *(event for event in own if event.time_s >= since_s),
            ]
        )
        for name, own in found.items()
    ]
    return Events(trace.in_order(lives), cuts, since_s)


def _beginning(path: Path) -> Iterator[bytes]:
    size = 0
    for line in segments.lines_of(path):
        size += len(line) + 1
        if size > _HEAD_BYTES:
            return
        yield line


def _sound(
    lines: Iterator[bytes], cuts: dict[str, int], name: str
) -> Iterator[trace.Event]:
    """The events of these lines; invalid ones are counted in `cuts`."""
    for line in _until_damaged(lines):
        try:
            event = trace.from_line(line.decode(errors="replace"))
        except (ValueError, OverflowError):
            event = None
        if event is not None and _is_sound(event):
            yield event
        else:
            cuts[f"{name}.jsonl"] = cuts.get(f"{name}.jsonl", 0) + 1


def _until_damaged(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The lines of a packed file up to its damage, then one invalid line."""
    try:
        yield from lines
    except ValueError:
        yield b""


def _is_sound(event: trace.Event) -> bool:
    """Whether the fields are of the types that the figures count on."""
    for place, is_allowed in _CHECKED[type(event)]:
        if not is_allowed(event[place]):
            return False
    return not isinstance(event, trace.Aggregated) or _is_sound_aggregation(event)


def _is_sound_aggregation(event: trace.Aggregated) -> bool:
    lists = (event.updates, event.staleness, event.coefficients)
    if not all(isinstance(items, list) for items in lists):
        return False
    return (
        len({len(items) for items in lists}) == 1
        and all(isinstance(key, list) and len(key) == 3 for key in event.updates)
        and all(_is_count(key[0]) for key in event.updates)
        and all(isinstance(seq, int | str) for key in event.updates for seq in key[1:])
        and all(_is_count(behind) and behind >= 0 for behind in event.staleness)
        and all(_is_number(share) for share in event.coefficients)
        and isinstance(event.guards, list)
        and len(event.guards) in (0, len(event.updates))
        and all(map(_is_text, event.guards))
    )


def _is_count(value: Any) -> bool:
    """Whether it is an integer that arrays and browsers hold exactly."""
    return type(value) is int and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_count(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_CHECKS = {float: _is_number, int: _is_count, str: _is_text}
_CHECKED = {
    kind: [
        (place, _CHECKS[declared])
        for place, declared in enumerate(kind.__annotations__.values())
        if declared in _CHECKS
    ]
    for kind in trace.Event.__args__
}
"""Of each kind of event, the places of the fields that are checked, and the checks."""
