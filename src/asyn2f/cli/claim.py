"""The folder of a run: claimed by one run at a time, replaced without loss, and tied to
the data that its run began with."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from asyn2f import rundir, trace
from asyn2f.errors import ConfigError, RunDirError
from asyn2f.privacy import NUMBERS
from asyn2f.tasks.base import Task, split_of
from asyn2f.training.agreement import data_digests

# Where an old run lies until the new one has started, and while it is being moved.
_ASIDE, _MOVING = ".replaced", ".replaced.moving"


@contextlib.contextmanager
def in_use(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Locks the folder: inside, no process of this machine replaces the run in it.

    Several processes may hold the lock (a launcher, its server, a server that takes the
    run over), unless one asks to be `alone`.

    Raises:
      RunDirError: the folder is claimed by another run, or in use.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)  # which unlocks


class Claim:
    """A folder claimed for a run, from `claimed`."""

    def __init__(self, folder: Path, handle: int) -> None:
        self._folder, self._handle = folder, handle
        self.holds_old = False  # a run that this one replaces

    def clear(self, *, overwrite: bool) -> None:
        """Moves an old run aside until `begin`; deletes summary and report of one that
        is resumed.

        Raises:
          RunDirError: the folder cannot be written.
        """
        with _as_run_dir_error(self._folder):
            if overwrite and any(map(self._holds, rundir.ENTRIES)):
                self.holds_old = True
                (self._folder / _MOVING).mkdir()
                _move(self._folder, self._folder / _MOVING)
                (self._folder / _MOVING).rename(self._folder / _ASIDE)
            for name in (rundir.SUMMARY, rundir.REPORT, rundir.TIMELINE):
                (self._folder / name).unlink(missing_ok=True)

    def _holds(self, name: str) -> bool:
        return (self._folder / name).exists()

    def share(self) -> None:
        """Lets other processes of the same run use the folder.

        Raises:
          RunDirError: another run has just claimed it.
        """
        _lock(self._handle, self._folder, fcntl.LOCK_SH)

    def begin(self) -> None:
        """Deletes the old run, as the new one has started."""
        if self.holds_old:
            self.holds_old = False
            shutil.rmtree(self._folder / _ASIDE, ignore_errors=True)

    def end(self) -> None:
        """Restores the old run, unless the new one has started."""
        if self.holds_old:
            _put_back(self._folder)


@contextlib.contextmanager
def claimed(
    folder: Path, *, resume: bool, overwrite: bool, takes_over: bool = False
) -> Iterator[Claim]:
    """Claims the folder for a new run, for one to resume, or for a new one in place of
    an old one.

    Nothing in it is changed before `Claim.clear`. A process that ends between that and
    `Claim.begin`, even by being killed, loses nothing: the old run is restored, at the
    latest by the next claim.

    Args:
      folder: created if missing, and removed again if nothing is written into it.
      resume: continue the run in it.
      overwrite: replace the run in it; other files in the folder stay.
      takes_over: allow resuming a run that another process still serves.

    Raises:
      RunDirError: a live run uses it; it holds a run and neither flag is given; there
        is nothing to resume; or it cannot be created or written.
      TraceFormatError: the run to resume was recorded in another format.
    """
    if resume and overwrite:
        raise RunDirError("--resume and --overwrite exclude each other; give one")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with _as_run_dir_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    claim = Claim(folder, handle)
    try:
        alone = not (resume and takes_over)
        _lock(handle, folder, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if alone:
            with _as_run_dir_error(folder):
                _settle(folder)
        _check(folder, resume=resume, overwrite=overwrite)
        yield claim
    finally:
        claim.end()
        os.close(handle)  # which unlocks
        with contextlib.suppress(OSError):  # until one that is not empty
            for each in made:
                each.rmdir()


def _check(folder: Path, *, resume: bool, overwrite: bool) -> None:
    holds_run = (folder / rundir.CONFIG).exists()
    if resume and not holds_run:
        raise RunDirError(
            f"--resume: {folder} holds no run (no {rundir.CONFIG}); leave --resume out"
        )
    if resume:
        trace.check_format(folder / rundir.TRACE)
    if holds_run and not resume and not overwrite:
        raise RunDirError(
            f"{folder} holds a run already; give --resume to continue it, "
            "--overwrite to delete it, or another --workdir"
        )
    if not holds_run and not overwrite and (left := _left_of_a_run(folder)):
        raise RunDirError(
            f"{folder} holds {', '.join(left)} of a run, and no {rundir.CONFIG}: put "
            "that back to continue the run, give --overwrite to delete it, or give "
            "another --workdir"
        )
    if not os.access(folder, os.W_OK):
        raise RunDirError(f"cannot write into {folder}")


def _left_of_a_run(folder: Path) -> list[str]:
    """Files of a run that another run would continue or append to."""
    models = folder / rundir.MODELS
    left = [f"{rundir.MODELS}/"] * (models.is_dir() and any(models.iterdir()))
    names = [rundir.METRICS, rundir.PROGRESS]
    names += [f"{rundir.TRACE}/{actor}.jsonl" for actor in ("server", "simulation")]
    return left + [name for name in names if (folder / name).exists()]


def _lock(handle: int, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirError(
            f"{folder} is in use by a live run; end that one first, or give another "
            "--workdir"
        ) from None
    except OSError:  # a file system without locks
        return


def _settle(folder: Path) -> None:
    """Completes a replacement that was interrupted: a run that had started replaces the
    old one; otherwise the old one is restored."""
    if (folder / _ASIDE).exists() and (folder / rundir.SPLIT).exists():
        shutil.rmtree(folder / _ASIDE)
    _put_back(folder)


def _put_back(folder: Path) -> None:
    """Restores an old run that was moved aside; keeps the logs of both."""
    aside, moving = folder / _ASIDE, folder / _MOVING
    if aside.exists():
        for log in (folder / rundir.LOGS).glob("*"):
            (aside / rundir.LOGS).mkdir(exist_ok=True)
            with open(aside / rundir.LOGS / log.name, "ab") as file:
                file.write(log.read_bytes())
        rundir.delete(folder)
        aside.rename(moving)
    if moving.exists():
        _move(moving, folder)
        moving.rmdir()


def _move(source: Path, target: Path) -> None:
    for name in rundir.ENTRIES:
        if (source / name).exists():
            (source / name).rename(target / name)


@contextlib.contextmanager
def _as_run_dir_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirError(
            f"cannot use {folder}: {rundir.why(error, folder)}"
        ) from error


# ---------------------------------------------------------------- the data of a run


def write_split(
    folder: Path,
    task: Task,
    code: Mapping[str, str] = {},
    reveal: Collection[str] = NUMBERS,
) -> None:
    """Writes each worker's number of examples, of each class too where there are
    labels, and the digests of the data and of the sources that the config names."""
    content = {**split_of(task, reveal), "data": data_digests(task), "code": dict(code)}
    rundir.write_json(folder / rundir.SPLIT, content)


def code_differences(folder: Path, code: Mapping[str, str]) -> list[str]:
    """A line for each module whose sources differ from those that the run in the folder
    began with."""
    then = _split_of(folder).get("code", {})
    return [
        f"the sources of {module} differ from those that the run in {folder} began "
        f"with (digest {then[module]} then, {digest} now)"
        for module, digest in code.items()
        if then.get(module, digest) != digest
    ]


def check_same_code(folder: Path, code: Mapping[str, str]) -> None:
    """Raises ConfigError if there is one of `code_differences`."""
    for difference in code_differences(folder, code):
        raise ConfigError(f"{difference}: restore them, or start another run")


def _split_of(folder: Path) -> dict[str, Any]:
    path = folder / rundir.SPLIT
    return rundir.read_json(path) if path.exists() else {}


def check_same_data(folder: Path, task: Task) -> None:
    """Compares the data with those that the run in the folder began with: a file that
    the config names may have been edited under the same name.

    Raises:
      ConfigError: they differ.
    """
    then = _split_of(folder).get("data")
    now = data_digests(task)
    if then is None:  # written by an older version
        return
    if task.is_private or not any(then[:-1]):
        # Each worker's are its own, and the server compares them when it registers.
        then, now = then[-1:], now[-1:]
    if tuple(then) == now or not any(then):
        return
    count = len(now) - 1
    names = [*(f"worker {k}" for k in range(count)), "the test set"]
    pairs = zip(names, now, then, strict=False)
    other = [name for name, here, there in pairs if here != there] or names
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    raise ConfigError(
        f"config.task: the data of {', '.join(other[:3])}{more} differ from those that "
        f"the run in {folder} began with: has a file of the data set or of the "
        "partition changed? Restore it, or start another run"
    )
