"""Caches on disk: arrays that are expensive to make, shared by all processes."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash


def cache_folder() -> Path:
    """A folder for caches that this user can write: in the home folder, or among
    temporary files where that is not possible. It need not exist yet.

    >>> cache_folder().name.startswith("asyn2f")
    True
    """
    home = os.path.expanduser("~")  # stays "~" for a user without one
    wanted = Path(home) / ".cache" / "asyn2f"
    if wanted.is_absolute() and _can_be_written(wanted):
        return wanted
    return _temporary()


def _can_be_written(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A private folder: any user may create one of that name."""
    folder = Path(tempfile.gettempdir()) / f"asyn2f-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
            folder.chmod(0o700)
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="asyn2f-"))


CACHE = cache_folder() / "data"

_RECORD = "checksums.json"
_BLOCK = 2**24

Arrays = dict[str, np.ndarray]


def cached_arrays(
    name: str,
    sources: Sequence[Path],
    settings: Mapping[str, Any],
    make: Callable[[Path], None],
    cache: Path = CACHE,
) -> Arrays:
    """The arrays that `make` derives from some files, memory-mapped.

    Made at the first call, and again if a source has changed or a checksum of the
    cached files does not match.

    Args:
      name: of the folder in the cache.
      sources: the files they are derived from, identified by path, size and mtime.
      settings: what else they depend on.
      make: writes them into a folder, as .npy files.
      cache: the folder of all caches.

    Returns:
      By name of the file, without its suffix.

    Raises:
      OSError: a source or the cache cannot be read or written.
    """
    facts = [
        (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in sources
    ]
    text = json.dumps([facts, settings], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache / f"{name}-{digest}"
    if not _is_sound(folder):
        _put(folder, make)
    return {
        file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))
    }


def _put(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes the files in a temporary folder, and then renames it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    made = beside / "made"
    try:
        made.mkdir()
        make(made)
        record = {file.name: _checksum(file) for file in made.glob("*.npy")}
        (made / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            if not _is_sound(folder):
                folder.rename(beside / "unsound")
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not _is_sound(folder):
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _is_sound(folder: Path) -> bool:
    """Whether every file has its recorded checksum."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return all(_checksum(folder / name) == x for name, x in record.items())
    except (OSError, ValueError, AttributeError):
        return False


def _checksum(path: Path) -> str:
    found = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
