"""Arrays that are expensive to make, made once and shared by all processes."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from asyn2f.tasks.caches import cache_folder

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
    """The arrays that `make` makes of some files, memory-mapped.

    Made at the first call, and again when a source has changed, or when what is there
    does not have the checksums it was written with.

    Args:
      name: what they are called, for people who look into the cache.
      sources: the files they are made of, known by place, size and time of change.
      settings: what else they depend on.
      make: puts them into a folder, as .npy files.
      cache: where they are kept.

    Returns:
      By name of the file, without ending.

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
    """Makes the files beside their place, and then puts all of them there at once."""
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
    """Whether every file is there as it was written."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return all(_checksum(folder / name) == said for name, said in record.items())
    except (OSError, ValueError, AttributeError):
        return False


def _checksum(path: Path) -> str:
    found = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
