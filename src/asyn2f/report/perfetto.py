"""The timeline as a Chrome trace, for ui.perfetto.dev: a track per process."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from asyn2f import trace

# By kind of event: its name, and the fields that are shown as its arguments.
_LOOKS: dict[type, tuple[str, tuple[str, ...]]] = {
    trace.Trained: ("train", ("steps", "base_version", "loss")),
    trace.Blocked: ("wait", ("newest",)),
    trace.Received: ("receive", ("version",)),
    trace.Adopted: ("adopt", ("version",)),
    trace.Merged: ("merge", ("version", "from_version", "share")),
    trace.Pushed: ("push", ("seq", "info.base_version", "info.loss")),
    trace.WorkerJoined: ("join", ("session",)),
    trace.WorkerLeft: ("leave", ("reason",)),
    trace.Aggregated: ("aggregate", ("version", "updates", "staleness")),
    trace.Saved: ("save", ("version",)),
    trace.Published: ("publish", ("version", "receivers")),
    trace.Evaluated: ("evaluate", ("version", "accuracy")),
}
_SERVER = 0  # thread id; worker k has k + 1


def write_timeline(path: Path, events: Sequence[trace.Event], zero_s: float) -> None:
    """Writes the events of a run in the Chrome trace format.

    Args:
      path: of the file.
      events: of the run.
      zero_s: the time that counts as zero.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        separator = ""
        for entry in _entries(events, zero_s):
            file.write(separator + json.dumps(entry, separators=(",", ":")))
            separator = ",\n"
        file.write("\n]}\n")


def _entries(events: Iterable[trace.Event], zero_s: float) -> Iterator[dict[str, Any]]:
    readers = {
        kind: [(field.rpartition(".")[2], attrgetter(field)) for field in fields]
        for kind, (_, fields) in _LOOKS.items()
    }
    named: set[int] = set()
    for event in events:
        kind = type(event)
        if kind not in _LOOKS:
            continue
        worker = getattr(event, "worker", None)
        thread = _SERVER if worker is None else worker + 1
        if thread not in named:
            named.add(thread)
            track = {"ph": "M", "pid": 0, "tid": thread}
            name = "server" if worker is None else f"worker {worker}"
            yield track | {"name": "thread_name", "args": {"name": name}}
            yield track | {"name": "thread_sort_index", "args": {"sort_index": thread}}
        args = {name: _plain(read(event)) for name, read in readers[kind]}
        entry = {"name": _LOOKS[kind][0], "pid": 0, "tid": thread, "args": args}
        time_us = _us(event.time_s - zero_s)
        if isinstance(event, trace.Trained | trace.Blocked):
            start_us = _us(event.start_s - zero_s)
            yield entry | {"ph": "X", "ts": start_us, "dur": max(time_us - start_us, 0)}
        else:
            yield entry | {"ph": "i", "s": "t", "ts": time_us}


def _plain(value: Any) -> Any:
    """The value in JSON, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _us(seconds: float) -> int:
    return round(1e6 * seconds)
