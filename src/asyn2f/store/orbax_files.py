"""How a version is written and read with Orbax, in whatever folder it lies."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from asyn2f.store.integrity import Record, first_link, other_bytes
from asyn2f.types import ServerState

_PLAIN = re.compile(r"[\w./ ,;+=@%#~'\"&$|-]*")
_HANDLES = Path("/proc/self/fd")


def checkpointer() -> ocp.Checkpointer:
    """Orbax's writer and reader of versions."""
    # Compression saves 7 % of trained float32 weights and half again the time.
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(use_compression=False),
            record=ocp.JsonCheckpointHandler(),
        )
    )


def write(
    checkpointer: ocp.Checkpointer, folder: Path, arrays: ServerState, record: Record
) -> None:
    """Writes a version into a folder that is not there yet, and reads it back.

    Args:
      folder: absolute; its parent is there.
      arrays: on the host, of any shapes and dtypes.
      record: JSON.

    Raises:
      Exception: whatever Orbax's layers raise.
      OSError: what is read back is not what was written.
    """
    with _plain(folder) as alias:
        checkpointer.save(
            alias,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays._asdict()),
                record=ocp.args.JsonSave(record),
            ),
        )
    found, found_record = read(checkpointer, folder, arrays)
    problem = other_bytes(found, arrays)
    if found_record != record:
        problem = "its record is another"
    if problem:
        raise OSError(f"{folder} is not read back as it was written: {problem}")


def read(
    checkpointer: ocp.Checkpointer, folder: Path, like: ServerState
) -> tuple[ServerState, Record]:
    """The arrays, of the structure of `like`, and the record of a version.

    Raises:
      Exception: whatever Orbax's layers raise.
      OSError: there is a symbolic link in it.
    """
    if link := first_link(folder):
        raise OSError(f"{link} is a symbolic link")
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)._asdict()
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    with _plain(folder) as alias:
        restored = checkpointer.restore(
            alias,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(item=target, restore_args=numpy),
                record=ocp.args.JsonRestore(),
            ),
        )
    return ServerState(**restored.state), dict(restored.record)


def read_record(checkpointer: ocp.Checkpointer, folder: Path) -> Record:
    """The record alone. Raises as `read`."""
    with _plain(folder) as alias:
        only = ocp.args.Composite(record=ocp.args.JsonRestore())
        return dict(checkpointer.restore(alias, args=only).record)


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """The folder under a name that means the same to Orbax, which takes `[`, `*`, `?`
    and `\\` for patterns, finds no metadata then, and only warns; `gs:/` for a bucket.

    Raises:
      OSError: the folder that it lies in is away.
    """
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    handle = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _HANDLES / str(handle) / folder.name
    finally:
        os.close(handle)


def problem_of(folder: Path) -> str:
    """Why versions in this folder could not be read again, or ""."""
    if _PLAIN.fullmatch(str(folder)) or _HANDLES.is_dir():
        return ""
    odd = " ".join(sorted(set(_PLAIN.sub("", str(folder)))))
    return (
        f"{str(folder)!r} has {odd!r} in it, a pattern to Orbax on this system; give a "
        "run folder of letters, digits and . _ - , = +"
    )
