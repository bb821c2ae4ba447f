"""Where a machine keeps what is expensive to make: decoded data, compiled programs."""

import os
import stat
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """A folder for caches that this user can write: in the home folder, or, where there
    is no home or it cannot be written, among temporary files. It need not be there.

    >>> cache_folder().name.startswith("asyn2f")
    True
    """
    home = os.path.expanduser("~")  # "~" in a container's user that has none
    wanted = Path(home) / ".cache" / "asyn2f"
    if wanted.is_absolute() and _can_be_written(wanted):
        return wanted
    return _temporary()


def _can_be_written(folder: Path) -> bool:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _temporary() -> Path:
    """A folder for this user alone: among temporary files anybody may put one."""
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
