"""Whether what is read back is what was written: digests, shapes, links."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyn2f.trees import params_sha256
from asyn2f.types import ServerState

_THREADS = 4  # hashing 40 MiB on one takes as long as a fifth of writing them
_PIECE = 2**20  # bytes

Record = dict[str, Any]
"""What a version's checkpoint says of it besides the arrays; JSON."""


def signed(record: Record, arrays: ServerState) -> Record:
    """The record as JSON has it, with the digest of both; it may bear an older one."""
    unsigned = _unsigned(json.loads(json.dumps(record)))
    return {**unsigned, "digest": _digest(unsigned, arrays)}


def is_as_signed(record: Record, arrays: ServerState) -> bool:
    """Whether nothing has changed since; of old records, nothing in the arrays."""
    if "digest" in record:
        return bool(record["digest"] == _digest(_unsigned(record), arrays))
    return bool(record.get("sha256") == params_sha256(arrays))


def _unsigned(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "digest"}


def _digest(record: Record, arrays: ServerState) -> str:
    """SHA-256 over the record and over the digests of the arrays' bytes, in pieces, in
    tree order."""
    pieces = [piece for leaf in jax.tree.leaves(arrays) for piece in _pieces(leaf)]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    with ThreadPoolExecutor(_THREADS) as pool:
        for each in pool.map(hashlib.sha256, pieces):
            digest.update(each.digest())
    return digest.hexdigest()


def _pieces(leaf: np.ndarray) -> list[memoryview]:
    content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data
    return [content[k : k + _PIECE] for k in range(0, len(content), _PIECE)]


def first_link(path: Path) -> Path | None:
    """A symbolic link in a version, if there is one: what it points at is not the
    store's, and may change after it was read."""
    return next((each for each in (path, *path.rglob("*")) if each.is_symlink()), None)


def other_shapes(state: ServerState, like: ServerState) -> str:
    """How the arrays differ in number, shape or dtype from those; nothing if not."""
    wanted = jax.tree_util.tree_leaves_with_path(like)
    found = jax.tree.leaves(state)
    for (path, leaf), array in zip(wanted, found, strict=False):
        if leaf.shape != array.shape or leaf.dtype != array.dtype:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return (
                f"{name}: found {array.dtype}{list(array.shape)}, expected "
                f"{leaf.dtype}{list(leaf.shape)}: made with another config"
            )
    if len(wanted) != len(found):
        return f"found {len(found)} arrays, expected {len(wanted)}"
    return ""
