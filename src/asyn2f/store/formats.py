"""The two formats of a version on disk: a write-ahead file and an Orbax checkpoint.

A write-ahead file is durable within a millisecond, where Orbax takes fifty:

    b"asyn2f-1" | length of the JSON, u64 little-endian | JSON | the arrays

The JSON holds the record, signed as in a checkpoint (`base.signed`), and one line per
array with its path, dtype and shape; the arrays are encoded as on the wire.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from asyn2f import rundir
from asyn2f.errors import WireError, WriteAheadError
from asyn2f.serialization import decode_params, encode_params, layout_of, template_of
from asyn2f.store.base import Record, bytes_of
from asyn2f.types import ServerState

MAX_WRITE_AHEAD_BYTES = 4 << 20
"""Larger states get no write-ahead file: a disk takes as long for it as Orbax does."""

_HEAD = struct.Struct("<8sQ")
_MAGIC = b"asyn2f-1"
_MAX_JSON_BYTES = 64 << 20

_PLAIN = re.compile(r"[\w./ ,;+=@%#~'\"&$|-]*")
_HANDLES = Path("/proc/self/fd")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left", "quota exceeded")


# ------------------------------------------------------------- write-ahead files


def write_ahead(path: Path, state: ServerState, record: Record) -> None:
    """Writes a write-ahead file, flushes it to the disk, and reads it back.

    Raises:
      OSError: the file cannot be written; a part of it may be there.
      WriteAheadError: the file reads back differently.
    """
    head = json.dumps({"record": record, "arrays": layout_of(state)}).encode()
    with rundir.new_file(path) as file:
        file.write(_HEAD.pack(_MAGIC, len(head)))
        file.write(head)
        file.write(encode_params(state))
        file.flush()
        os.fsync(file.fileno())
    found, found_record = read_ahead(path, state)
    if found_record != record or first_difference(found, state):
        raise WriteAheadError(f"{path} is not read back as it was written")


def read_ahead(path: Path, like: ServerState) -> tuple[ServerState, Record]:
    """Arrays and record of a write-ahead file; the digest is not compared here.

    Args:
      path: the file.
      like: arrays of the expected shapes and dtypes.

    Raises:
      WriteAheadError: not a write-ahead file, truncated, or of other shapes.
      OSError: the file cannot be read.
    """
    record, layout, arrays = parts_of(path)
    for found, wanted in zip_longest(layout, layout_of(like)):
        if found != wanted:
            raise WriteAheadError(
                f"found {found}, expected {wanted}: made with another config"
            )
    try:
        return decode_params(template_of(like), arrays), record
    except WireError as error:
        raise WriteAheadError(f"arrays: {error}") from None


def read_ahead_record(path: Path) -> Record:
    """The record of a write-ahead file. Raises as `read_ahead`."""
    return parts_of(path)[0]


def parts_of(path: Path) -> tuple[Record, list[str], memoryview]:
    """The record of a write-ahead file, a line on each array, and their bytes. Raises
    as `read_ahead`, whatever the shapes."""
    content = memoryview(path.read_bytes())
    if len(content) < _HEAD.size:
        raise WriteAheadError(f"{len(content)} bytes, expected at least {_HEAD.size}")
    magic, size = _HEAD.unpack_from(content)
    body = content[_HEAD.size :]
    if magic != _MAGIC or size > min(len(body), _MAX_JSON_BYTES):
        raise WriteAheadError("not a write-ahead file: bad magic number or length")
    try:
        head = json.loads(bytes(body[:size]))
        record, layout = dict(head["record"]), list(head["arrays"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WriteAheadError(f"invalid record: {error!r}") from None
    return record, layout, body[size:]


# ------------------------------------------------------------- Orbax checkpoints


def new_checkpointer() -> ocp.Checkpointer:
    """Orbax's reader and writer of versions."""
    # Compression saves 7 % of trained float32 weights and costs half again the time.
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            state=ocp.PyTreeCheckpointHandler(use_compression=False),
            record=ocp.JsonCheckpointHandler(),
        )
    )


def write_checkpoint(
    checkpointer: ocp.Checkpointer, folder: Path, arrays: ServerState, record: Record
) -> None:
    """Writes a checkpoint into a new folder and reads it back.

    Args:
      checkpointer: of `new_checkpointer`.
      folder: absolute; its parent exists.
      arrays: on the host, of any shapes and dtypes.
      record: JSON.

    Raises:
      Exception: from Orbax's layers.
      OSError: the checkpoint reads back differently.
    """
    with plain_name(folder) as alias:
        checkpointer.save(
            alias,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(arrays._asdict()),
                record=ocp.args.JsonSave(record),
            ),
        )
    found, found_record = read_checkpoint(checkpointer, folder, arrays)
    problem = first_difference(found, arrays)
    if found_record != record:
        problem = "its record differs"
    if problem:
        raise OSError(f"{folder} is not read back as it was written: {problem}")


def read_checkpoint(
    checkpointer: ocp.Checkpointer, folder: Path, like: ServerState
) -> tuple[ServerState, Record]:
    """Arrays, of the structure of `like`, and record of a checkpoint.

    Raises:
      Exception: from Orbax's layers.
      OSError: the checkpoint contains a symbolic link.
    """
    if link := first_link(folder):
        raise OSError(f"{link} is a symbolic link")
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)._asdict()
    numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    with plain_name(folder) as alias:
        restored = checkpointer.restore(
            alias,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(item=target, restore_args=numpy),
                record=ocp.args.JsonRestore(),
            ),
        )
    return ServerState(**restored.state), dict(restored.record)


def read_checkpoint_record(checkpointer: ocp.Checkpointer, folder: Path) -> Record:
    """The record of a checkpoint. Raises as `read_checkpoint`."""
    with plain_name(folder) as alias:
        only = ocp.args.Composite(record=ocp.args.JsonRestore())
        return dict(checkpointer.restore(alias, args=only).record)


@contextlib.contextmanager
def plain_name(folder: Path) -> Iterator[Path]:
    """The folder under a name without special meaning to Orbax, which treats `[`, `*`,
    `?` and `\\` as glob patterns, then finds no metadata and only warns; `gs:/` would
    be a bucket.

    Raises:
      OSError: the parent folder cannot be opened.
    """
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    handle = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _HANDLES / str(handle) / folder.name
    finally:
        os.close(handle)


def unreadable_reason(folder: Path) -> str:
    """Why Orbax could not read checkpoints back from this folder, or ""."""
    if _PLAIN.fullmatch(str(folder)) or _HANDLES.is_dir():
        return ""
    odd = " ".join(sorted(set(_PLAIN.sub("", str(folder)))))
    return (
        f"{str(folder)!r} contains {odd!r}, a pattern to Orbax on this system; give a "
        "run folder of letters, digits and . _ - , = +"
    )


# ------------------------------------------------------------- both


def first_link(path: Path) -> Path | None:
    """The first symbolic link in a version, or None. The store does not own the target
    of a link, which may change after it was verified."""
    return next((each for each in (path, *path.rglob("*")) if each.is_symlink()), None)


def first_difference(found: ServerState, arrays: ServerState) -> str:
    """The path of the first array that is not bit-identical; "" if all are."""
    for (path, leaf), array in zip(
        jax.tree_util.tree_leaves_with_path(arrays), jax.tree.leaves(found), strict=True
    ):
        same = leaf.dtype == array.dtype and leaf.shape == array.shape
        if not same or bytes_of(leaf) != bytes_of(array):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""


def delete(path: Path) -> None:
    """Deletes a file or folder, and Orbax's temporary folders beside it."""
    for each in [path, *path.parent.glob(f"{path.name}.*")]:
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)


def write_failure(error: Exception, folder: Path, needed_bytes: int) -> str:
    """Describes why a write into a folder failed; for a full disk, the bytes needed."""
    is_full = isinstance(error, OSError) and error.errno in _FULL
    if is_full or any(text in str(error) for text in _FULL_TEXTS):
        free = shutil.disk_usage(folder).free
        full = f"the disk is full: {needed_bytes:,} bytes are needed, {free:,} are free"
        return rundir.why(OSError(errno.ENOSPC, full), folder)
    if isinstance(error, OSError) and error.errno:
        return rundir.why(error, folder)
    return shortened(error)


def shortened(error: Exception) -> str:
    """The beginning of an error message of tensorstore, which can be pages long."""
    return str(error).partition("[tensorstore_spec")[0].strip()[:400]
