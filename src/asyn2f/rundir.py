"""The folder of a run: names and formats of its files; see `asyn2f.cli.claim` too."""

import errno
import io
import json
import math
import os
import resource
import shutil
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from asyn2f.errors import RunDirError

CONFIG = "config.json"
RUN = "run.json"  # the run's id, and its headline
SPLIT = "split.json"  # class counts of each worker, digests of the data
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
TIMELINE = "timeline.perfetto.json"  # for ui.perfetto.dev
PROGRESS = "progress.npz"  # checkpoint of a simulation
SERVER = "server.json"  # where the server of this run listens
MODELS = "models"
TRACE = "trace"
LOGS = "logs"
WORKERS = "workers"  # the own state of each worker that is here
TENSORBOARD = "tensorboard"

ENTRIES = (
    *(CONFIG, RUN, SPLIT, SUMMARY, METRICS, REPORT, TIMELINE, SERVER, PROGRESS),
    *(MODELS, TRACE, LOGS, TENSORBOARD, WORKERS),
)
"""The files and folders of a run."""


def as_folder(run: Any) -> Path:
    """The folder of a run that a caller names.

    Raises:
      RunDirError: not a path.

    >>> as_folder({"seed": 1})
    Traceback (most recent call last):
    asyn2f.errors.RunDirError: folder: found {'seed': 1}, allowed: the path of a run's \
folder
    """
    if isinstance(run, str | os.PathLike):
        return Path(run)
    raise RunDirError(f"folder: found {run!r:.60}, allowed: the path of a run's folder")


def delete(workdir: Path) -> None:
    """Deletes the run in a folder, and no other file in it."""
    for name in ENTRIES:
        path = workdir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(
    path: Path, content: dict[str, Any], *, is_private: bool = False
) -> None:
    """Writes the file atomically; NaN becomes null. Only its owner can read a file that
    `is_private`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(_finite(content), indent=2) + "\n"
    try:
        with new_file(beside, 0o600 if is_private else 0o666) as file:
            file.write(text.encode())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RunDirError(f"cannot write {path}: {why(error, path)}") from error


def make_folder(path: Path) -> None:
    """Creates a folder and its parents, if missing.

    Raises:
      RunDirError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"cannot make {path}: {why(error, path)}") from error


def new_file(path: Path, mode: int = 0o666) -> BinaryIO:
    """Opens a new file, replacing an old one; never writes through a link.

    Raises:
      OSError: it cannot be created.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, mode), "wb")


def append_to(path: Path) -> io.FileIO:
    """Opens a file, unbuffered, for reading and appending; created if missing.

    Raises:
      RunDirError: it is a link, or cannot be opened.
    """
    try:
        return io.FileIO(path, "a+b", opener=_without_links)
    except OSError as error:
        raise RunDirError(f"cannot write {path}: {why(error, path)}") from error


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def why(error: OSError, path: Path) -> str:
    """Why an operation on a file or folder failed, and how to fix it."""
    for each in (path, *path.parents):
        if each.is_symlink() and (error.errno == errno.ELOOP or not each.exists()):
            return f"{each} is a symbolic link to {os.readlink(each)}; remove it"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"at most {most} files may be open at a time; raise ulimit -n"
    if error.errno in (errno.ENOSPC, errno.EDQUOT) and not _has_inodes(path):
        return "the file system has no inodes left; delete some files"
    return error.strerror or str(error)


def _has_inodes(path: Path) -> bool:
    there = next(each for each in (path, *path.parents) if each.exists())
    found = os.statvfs(there)
    return not found.f_files or found.f_favail > 0


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that `write_json` has written.

    Raises:
      RunDirError: it is missing, or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {why(error, path)}") from error
    except (ValueError, RecursionError) as error:
        raise RunDirError(f"{path} is not valid JSON: {error}") from error


class Listening(NamedTuple):
    """Where the server of a run listens: the content of `server.json`."""

    address: str
    ports: tuple[int, int, int]
    run: str
    # Without keys, peers present it when they register, so that only processes that
    # can read the file can join. "" = not needed: there are keys, or --insecure.
    token: str


def write_listening(folder: Path, listening: Listening) -> None:
    """Writes `server.json`, readable by its owner only."""
    write_json(folder / SERVER, listening._asdict(), is_private=True)


def read_listening(folder: Path) -> Listening:
    """Reads `server.json`.

    Raises:
      RunDirError: it does not exist, or its content is invalid.
    """
    path = folder / SERVER
    found: Any = read_json(path)
    try:
        kept = Listening(
            found["address"],
            tuple(found["ports"]),
            found.get("run", ""),
            found.get("token", ""),
        )
        if not kept.address.startswith("tcp://"):
            raise ValueError(f"address {kept.address!r}"[:80])
        is_good = all(type(port) is int and 0 < port < 2**16 for port in kept.ports)
        if not (is_good and len(kept.ports) == 3 and isinstance(kept.token, str)):
            raise ValueError(f"ports {kept.ports}"[:80])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunDirError(
            f"{path} is not what a server writes there ({type(error).__name__}: "
            f"{error}); delete it, and give workers the address with --server"
        ) from None
    return kept


def token_of(folder: Path) -> str:
    """The token that peers on the server's machine present, or ""."""
    try:
        return read_listening(folder).token
    except RunDirError:
        return ""
