"""Events as lines of JSON, checked field by field when they are read."""

import json
import math
from collections.abc import Callable
from typing import Any, get_type_hints

from asyn2f.errors import TraceFormatError
from asyn2f.trace.events import FORMAT, Aggregated, Event, Pushed
from asyn2f.types import Float, Int, Scores, UpdateInfo

_KINDS: dict[str, Callable[..., Event]] = {
    kind.__name__: kind for kind in Event.__args__
}


def to_line(event: Event) -> str:
    """The event as one line of JSON.

    >>> from asyn2f.trace import Published
    >>> to_line(Published(time_s=1.5, version=7, num_bytes=4, receivers=2))
    '{"kind": "Published", "time_s": 1.5, "version": 7, "num_bytes": 4, "receivers": 2}'
    """
    fields = event._asdict()
    if isinstance(event, Pushed):
        fields |= fields.pop("info")._asdict()
    return json.dumps({"kind": type(event).__name__, **fields})


def from_line(line: str) -> Event:
    """The event that `to_line` wrote; every field has its declared type.

    Raises:
      TraceFormatError: it begins a trace of another format.
      ValueError: not such a line.
    """
    try:
        fields = json.loads(line)
        name = fields.pop("kind")
        if name in _HEADS:
            _check_format(name, fields)
        for field, has_type in _FIELDS[name].items():
            if field in fields and not has_type(fields[field]):
                raise ValueError(f"{name}.{field} is {fields[field]!r:.40}")
        if name == "Pushed":
            found = [field for field in UpdateInfo._fields if field in fields]
            fields["info"] = UpdateInfo(**{field: fields.pop(field) for field in found})
        event = _KINDS[name](**fields)
        if isinstance(event, Aggregated):
            _check_parallel(event)
        return event
    except TraceFormatError:
        raise
    except _INVALID as error:
        raise ValueError(f"not a trace event: {line[:120]!r} ({error})") from error


_INVALID = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(RecursionError, OverflowError),  # nested, or an integer of hundreds of digits
)
_HEADS = ("ProcessStarted", "Recorded")  # `Recorded`: its name up to format 2


def _check_format(name: str, fields: dict[str, Any]) -> None:
    """Raises TraceFormatError unless this line begins a trace of `FORMAT`."""
    found = fields.get("format", 1)
    if name == "ProcessStarted" and found == FORMAT:
        return
    by = fields.get("environment", {})
    version, source = by.get("asyn2f", "unknown"), by.get("source", "unknown")
    raise TraceFormatError(
        f"the trace has format {found!r}, written by asyn2f {version} (source "
        f"{source}), and this version reads format {FORMAT} only: use that version"
    )


def _check_parallel(event: Aggregated) -> None:
    count = len(event.updates)
    lengths = [len(event.base_versions), len(event.staleness), len(event.coefficients)]
    if lengths != [count] * 3 or len(event.guards) not in (0, count):
        raise ValueError("its lists differ in length")


# ------------------------------------------------------------- types of fields


def _is_count(value: Any) -> bool:
    """Whether it is an integer that arrays and browsers represent exactly."""
    return type(value) is int and -(2**53) < value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_count(value)


def _is_time(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_key(value: Any) -> bool:
    """Whether it is the id of an update: worker, session, number."""
    if type(value) is not list or len(value) != 3:
        return False
    worker, session, seq = value
    return _is_count(worker) and _is_text(session) and _is_count(seq)


def _each(has_type: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(has_type, value))


_HAS_TYPE: dict[Any, Callable[[Any], bool]] = {
    int: _is_count,
    float: _is_number,
    str: _is_text,
    dict[str, Any]: lambda value: type(value) is dict,
    Scores: lambda value: type(value) is dict and all(map(_is_number, value.values())),
    list[int]: _each(_is_count),
    list[float]: _each(_is_number),
    list[str]: _each(_is_text),
    list[list[Any]]: _each(_is_key),
}
_FIELDS = {
    name: {
        field: _is_time if field in ("time_s", "start_s") else _HAS_TYPE[hint]
        for field, hint in get_type_hints(kind).items()
        if hint != UpdateInfo[int, float]
    }
    for name, kind in _KINDS.items()
}
"""The type check of each field of a line, by kind of event."""
_OF_INFO = {Int: _is_count, Float: _is_number}
_FIELDS["Pushed"] |= {
    field: _OF_INFO[hint] for field, hint in get_type_hints(UpdateInfo).items()
}
