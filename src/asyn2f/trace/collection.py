"""Traces of processes on other machines, brought into the folder of their run."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asyn2f import errors, rundir, trace
from asyn2f.trace import segments

_ACTORS = re.compile(r"worker-(0|[1-9]\d{0,8})|evaluator")


class Collected(NamedTuple):
    """What was taken from one file."""

    source: Path
    target: Path | None  # None: nothing of this run is in it
    lives: int
    events: int
    others: tuple[str, ...]  # runs of which other lives in it are


def collect(folder: Path, sources: Sequence[Path]) -> Iterator[Collected]:
    """Copies what the processes of a run wrote elsewhere into its folder.

    Of each file the lives that the run's server let in are taken, by the name of the
    run in `Registered`: a folder may have been used for several runs. What has been
    collected before is replaced if there is more of it now.

    Args:
      folder: of the run, with its server's trace.
      sources: folders of other processes, or their traces.

    Raises:
      RunDirError: a folder is not what it should be, or cannot be read or written.
      ValueError: a line is none of a trace.
    """
    run = rundir.read_json(folder / rundir.RUN)["run"]
    here = folder / rundir.TRACE
    if not here.is_dir():
        raise errors.RunDirError(f"{folder} holds no trace: give the server's folder")
    for source in sources:
        there = source / rundir.TRACE if (source / rundir.TRACE).is_dir() else source
        if there.resolve() == here.resolve():
            raise errors.RunDirError(f"{source} is the run's own folder")
        files = segments.files_of(there) if there.is_dir() else {}
        if not files:
            raise errors.RunDirError(
                f"{source} holds no trace; give what a worker or an evaluator was "
                f"given as --workdir, with its folder {rundir.TRACE!r}"
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
    """The file that begins with this event, or the first that is not there."""
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
        return  # all of it is there
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.writelines(trace.to_line(event) + "\n" for event in events)
        beside.replace(target)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise errors.RunDirError(f"cannot write {target}: {error}") from error
