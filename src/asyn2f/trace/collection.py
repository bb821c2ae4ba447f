"""Collects the traces of processes on other machines into the folder of their run."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asyn2f import errors, rundir, trace
from asyn2f.trace import segments

_ACTORS = re.compile(r"worker-(0|[1-9]\d{0,8})|evaluator")


class Collected(NamedTuple):
    """What was copied from one file."""

    source: Path
    target: Path | None  # None: it contains nothing of this run
    lives: int
    events: int
    others: tuple[str, ...]  # ids of other runs in it


def collect(folder: Path, sources: Sequence[Path]) -> Iterator[Collected]:
    """Copies the traces that processes of a run wrote elsewhere into its folder.

    From each file the lives that registered with the run are taken, by the run id in
    `Registered`: a folder may have been used for several runs. A trace collected before
    is replaced if it is longer now.

    Args:
      folder: of the run, with its server's trace.
      sources: folders of other processes, or their traces.

    Raises:
      RunDirError: a folder is not that of a run, or cannot be read or written.
      ValueError: a line is not a trace event.
    """
    run = rundir.read_json(folder / rundir.RUN)["run"]
    here = folder / rundir.TRACE
    if not here.is_dir():
        raise errors.RunDirError(f"{folder} has no trace: pass the server's folder")
    for source in sources:
        there = source / rundir.TRACE if (source / rundir.TRACE).is_dir() else source
        if there.resolve() == here.resolve():
            raise errors.RunDirError(f"{source} is the run's own folder")
        files = segments.files_of(there) if there.is_dir() else {}
        if not files:
            raise errors.RunDirError(
                f"{source} has no trace; pass the --workdir of a worker or evaluator, "
                f"with its folder {rundir.TRACE!r}"
            )
        for paths in files.values():
            yield _collected(run, paths, here)


def _collected(run: str, paths: list[Path], here: Path) -> Collected:
    path, lives = paths[-1], trace.lives_in(*paths)
    runs = [{e.run for e in x if isinstance(e, trace.Registered)} for x in lives]
    of_others = sorted(set().union(*runs) - {run})
    kept = [life for life, of in zip(lives, runs, strict=True) if run in of]
    events = [event for life in kept for event in life]
    if not kept:
        return Collected(path, None, 0, 0, tuple(of_others))
    head = events[0]
    actor = head.actor if isinstance(head, trace.ProcessStarted) else ""
    if not _ACTORS.fullmatch(actor):
        raise ValueError(f"{path} is the trace of {actor!r}, not of a worker")
    target = _target(here, actor, head)
    _write(target, events)
    return Collected(path, target, len(kept), len(events), tuple(of_others))


def _target(here: Path, actor: str, head: trace.Event) -> Path:
    """The file that begins with this event, or the first free name."""
    number, path = 1, here / f"{actor}.jsonl"
    while os.path.lexists(path):
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline() == trace.to_line(head) + "\n":
                break
        number += 1
        path = here / f"{actor}.{number}.jsonl"
    return path


def _write(target: Path, events: Sequence[trace.Event]) -> None:
    if target.exists() and sum(map(len, trace.lives_in(target))) >= len(events):
        return  # it is complete
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.writelines(trace.to_line(event) + "\n" for event in events)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise errors.RunDirError(f"cannot write {target}: {error}") from error
