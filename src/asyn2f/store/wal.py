"""Versions in one file each: written in a millisecond, where Orbax takes fifty.

    b"asyn2f-1" | bytes of what is next, u64 little-endian | JSON | the arrays

The JSON is the record, signed as in a checkpoint (`integrity`), and what arrays there
are; they stand as on the wire (`payloads`).
"""

import json
import os
import struct
from itertools import zip_longest
from pathlib import Path

from asyn2f.errors import WireError, WriteAheadError
from asyn2f.rundir import new_file
from asyn2f.serialization import decode_params, encode_params, template_of
from asyn2f.store.integrity import Record, other_bytes
from asyn2f.types import ServerState

MOST_BYTES = 4 << 20
"""Larger states are not written ahead: a disk takes as long for them as Orbax does."""

_HEAD = struct.Struct("<8sQ")
_MAGIC = b"asyn2f-1"
_MOST_RECORD_BYTES = 64 << 20


def write(beside: Path, state: ServerState, record: Record) -> None:
    """Writes it whole, to the disk, under the name it has for the time being, and reads
    it back.

    Raises:
      OSError: that is not possible; `beside` may be there in part.
      WriteAheadError: what is read back is not what was written.
    """
    head = {"record": record, "arrays": _looks(state)}
    said = json.dumps(head).encode()
    with new_file(beside) as file:
        file.write(_HEAD.pack(_MAGIC, len(said)))
        file.write(said)
        file.write(encode_params(state))
        file.flush()
        os.fsync(file.fileno())
    found, found_record = read(beside, state)
    if found_record != record or other_bytes(found, state):
        raise WriteAheadError(f"{beside} is not read back as it was written")


def read(path: Path, like: ServerState) -> tuple[ServerState, Record]:
    """What was written, of the shapes and dtypes of `like`; whether it is as it was
    signed is still to be seen.

    Raises:
      WriteAheadError: it is no such file, cut short, or has other shapes.
      OSError: it cannot be read.
    """
    record, looks, arrays = _parts(path)
    for found, wanted in zip_longest(looks, _looks(like)):
        if found != wanted:
            raise WriteAheadError(
                f"found {found}, expected {wanted}: made with another config"
            )
    try:
        return decode_params(template_of(like), arrays), record
    except WireError as error:
        raise WriteAheadError(f"arrays: {error}") from None


def read_record(path: Path) -> Record:
    """Its record alone. Raises as `read`."""
    return _parts(path)[0]


def _looks(state: ServerState) -> list[str]:
    """What arrays there are, in order, a line each."""
    leaves = template_of(state).leaves
    return [f"{x.path}: {x.dtype.name}{list(x.shape)}" for x in leaves]


def _parts(path: Path) -> tuple[Record, list[str], memoryview]:
    whole = memoryview(path.read_bytes())
    if len(whole) < _HEAD.size:
        raise WriteAheadError(f"{len(whole)} bytes, needed at least {_HEAD.size}")
    magic, size = _HEAD.unpack_from(whole)
    body = whole[_HEAD.size :]
    if magic != _MAGIC or size > min(len(body), _MOST_RECORD_BYTES):
        raise WriteAheadError("no such file: it begins with something else")
    try:
        head = json.loads(bytes(body[:size]))
        record, looks = dict(head["record"]), list(head["arrays"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WriteAheadError(f"its record cannot be read: {error!r}") from None
    return record, looks, body[size:]
