"""Reading the traces of a run.

A trace is a folder of JSON-lines files, one per process, each beginning with a
`ProcessStarted` event. Together they record which process did what, in which order, on
which version: enough to draw a run, to verify it, and to execute it again.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from asyn2f import errors, rundir
from asyn2f.trace import ordering, segments
from asyn2f.trace.events import Event, ProcessStarted, Published, Stopped, WorkerJoined
from asyn2f.trace.lines import from_line

_HEAD_BYTES = 64 * 1024  # of a file that is not read whole
_OF_HEADS = (ProcessStarted, WorkerJoined, Published)


def read(folder: Path) -> list[Event]:
    """All events of a run, each after those it depends on, on the server's clock.

    Threads write their events with a delay: within one life of a process, which begins
    with `ProcessStarted`, events are sorted by time. Lives stay in order; events of
    several processes are ordered by cause (`ordering`).

    A torn last line of a file, left by a kill, is ignored.

    Raises:
      TraceFormatError: the trace was written in another format.
      ValueError: any other line is not an event; names its file and number.
    """
    return in_order(lives_in(*paths) for paths in segments.files_of(folder).values())


def of_run(folder: Path | str) -> list[Event]:
    """All events of the run in a folder, as returned by `read`.

    Raises:
      RunDirError: there is no trace, or it is empty.
      ValueError: see `read`.
    """
    path = rundir.as_folder(folder) / rundir.TRACE
    if not path.is_dir():
        raise errors.RunDirError(
            f"{str(folder)!r} is not a run: it has no folder {rundir.TRACE!r}; pass "
            "the run's --workdir"
        )
    events = read(path)
    if not events:
        raise errors.RunDirError(
            f"{str(path)!r} has no events: the run is empty, or its trace is elsewhere"
        )
    return events


class Readable(NamedTuple):
    """The readable part of a trace.

    Attributes:
      events: as returned by `read`.
      invalid: number of lines that are not events, by file name.
      since_s: time from which on all events are present; -inf = from the beginning.
    """

    events: list[Event]
    invalid: Counter[str]
    since_s: float


def read_valid(folder: Path, max_bytes: float = math.inf) -> Readable:
    """The valid events of a run, of a long trace the newest ones.

    From a trace of more than `max_bytes`, each file's newest lines are read, in
    proportion to its size; and the events at its beginning that identify the
    participants and the start of the run.

    Raises:
      TraceFormatError: the trace was written in another format.
    """
    files = segments.files_of(folder)
    sizes = {name: sum(map(segments.size_of, paths)) for name, paths in files.items()}
    share = min(max_bytes / max(sum(sizes.values()), 1), 1.0)
    invalid: Counter[str] = Counter()
    heads: dict[str, list[Event]] = {}
    tails: dict[str, list[Event]] = {}
    since_s = -math.inf
    for name, paths in files.items():
        skipped = int(sizes[name] * (1 - share))
        if skipped <= _HEAD_BYTES:
            skipped = 0
        else:
            head = _valid(_first_lines(paths[0]), f"{name}.jsonl", Counter())
            heads[name] = [event for event in head if isinstance(event, _OF_HEADS)]
        lines = segments.lines_from(paths, skipped)
        tails[name] = list(_valid(lines, f"{name}.jsonl", invalid))
        if skipped and tails[name]:
            since_s = max(since_s, tails[name][0].time_s)
    lives = [
        lives_of(
            [
                *(event for event in heads.get(name, ()) if event.time_s < since_s),
                *(event for event in tail if event.time_s >= since_s),
            ]
        )
        for name, tail in tails.items()
    ]
    return Readable(in_order(lives), invalid, since_s)


def check_format(folder: Path) -> None:
    """Raises TraceFormatError if a trace in this folder has another format."""
    for paths in segments.files_of(folder).values():
        for _ in _valid(segments.lines_of(paths[0]), str(paths[0]), Counter()):
            break


def in_order(files: Iterable[list[list[Event]]]) -> list[Event]:
    """The events of all processes in one order: see `read`."""
    return ordering.by_cause(_without_idle([*files]))


def lives_in(*paths: Path) -> list[list[Event]]:
    """The events of each life of the process that wrote these files, each life sorted
    by time. Raises as `read`."""
    return lives_of(_all(paths))


def lives_of(events: Iterable[Event]) -> list[list[Event]]:
    """Splits what one process wrote into its lives, each sorted by time."""
    lives: list[list[Event]] = [[]]
    for event in events:
        if isinstance(event, ProcessStarted):
            lives.append([])
        lives[-1].append(event)
    return [sorted(life, key=lambda event: event.time_s) for life in lives if life]


def _without_idle(files: list[list[list[Event]]]) -> list[list[list[Event]]]:
    """Leaves out lives of peers that never registered, if the peer has another life:
    such a process changed nothing, and the one before it may have lived on."""
    lives = [life for file in files for life in file]
    active = {_peer_of(life) for life in lives if not _is_idle(life)} - {""}
    return [
        [life for life in file if _peer_of(life) not in active or not _is_idle(life)]
        for file in files
    ]


def _is_idle(life: list[Event]) -> bool:
    return all(isinstance(event, ProcessStarted | Stopped) for event in life)


def _peer_of(life: list[Event]) -> str:
    """The peer that lived it; "" for a server."""
    match life[0]:
        case ProcessStarted(_, actor) if actor not in ("server", "simulation"):
            return actor
    return ""


# ------------------------------------------------------------- lines


def _all(paths: Iterable[Path]) -> Iterator[Event]:
    """The event of every line; only the very last line may be torn."""
    torn = ""
    for path in paths:
        for number, line in enumerate(segments.lines_of(path), start=1):
            if torn:
                raise ValueError(torn)
            try:
                yield from_line(line.decode())
            except errors.TraceFormatError as error:
                raise errors.TraceFormatError(f"{path}:{number}: {error}") from None
            except ValueError as error:
                torn = f"{path}:{number}: {error}"


def _valid(lines: Iterator[bytes], name: str, invalid: Counter[str]) -> Iterator[Event]:
    """The events among these lines; counts the others, and a damaged rest as one."""
    try:
        for line in lines:
            try:
                yield from_line(line.decode())
            except errors.TraceFormatError as error:
                raise errors.TraceFormatError(f"{name}: {error}") from None
            except ValueError:
                invalid[name] += 1
    except errors.TraceFormatError:
        raise
    except ValueError:  # the compressed file is damaged
        invalid[name] += 1


def _first_lines(path: Path) -> Iterator[bytes]:
    size = 0
    for line in segments.lines_of(path):
        size += len(line) + 1
        if size > _HEAD_BYTES:
            return
        yield line
