"""Whether what is read back is what was written: digests, shapes, links."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xxhash

from asyn2f.serialization import params_sha256
from asyn2f.types import ServerState

Record = dict[str, Any]
"""What a version's checkpoint says of it besides the arrays; JSON."""


def signed(record: Record, arrays: ServerState) -> Record:
    """The record as JSON has it, with the digest of both; it may bear an older one."""
    unsigned = _unsigned(json.loads(json.dumps(record)))
    return {**unsigned, "digest": _digest(unsigned, arrays)}


def is_as_signed(record: Record, arrays: ServerState) -> bool:
    """Whether nothing has changed since; of old records, nothing in the arrays."""
    if "digest" not in record:
        return bool(record.get("sha256") == params_sha256(arrays))
    is_old = len(str(record["digest"])) == 2 * hashlib.sha256().digest_size
    digest_of = _old_digest if is_old else _digest
    return bool(record["digest"] == digest_of(_unsigned(record), arrays))


def _unsigned(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "digest"}


def _digest(record: Record, arrays: ServerState) -> str:
    """XXH3-128, hex, over the record and the arrays' bytes in tree order.

    It tells damage, at the speed of memory. It does not tell malice, nor would SHA-256:
    who can write there can write a digest that fits.
    """
    digest = xxhash.xxh3_128(json.dumps(record, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        digest.update(_bytes_of(leaf))
    return digest.hexdigest()


def _old_digest(record: Record, arrays: ServerState) -> str:
    """What stood there first: SHA-256 over the digests of pieces of a mebibyte."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        content = _bytes_of(leaf)
        for start in range(0, len(content), 2**20):
            piece = content[start : start + 2**20]
            digest.update(hashlib.sha256(piece).digest())
    return digest.hexdigest()


def _bytes_of(leaf: np.ndarray) -> memoryview:
    return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data


def first_link(path: Path) -> Path | None:
    """A symbolic link in a version, if there is one: what it points at is not the
    store's, and may change after it was read."""
    return next((each for each in (path, *path.rglob("*")) if each.is_symlink()), None)


def other_bytes(found: ServerState, arrays: ServerState) -> str:
    """The first array that is not the same bit for bit; "" if all are."""
    for (path, leaf), array in zip(
        jax.tree_util.tree_leaves_with_path(arrays), jax.tree.leaves(found), strict=True
    ):
        same = leaf.dtype == array.dtype and leaf.shape == array.shape
        if not same or _bytes_of(leaf) != _bytes_of(array):
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""


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
