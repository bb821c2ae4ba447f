"""Models as bytes: all arrays in tree order, little-endian, one after the other.

Both sides know the template of the model, so sizes are compared before anything is
allocated, and decoding makes views into the received bytes.
"""

import math

import jax
import numpy as np
import xxhash

from asyn2f.runtime.wire import Buffer, ModelHeader, UpdateHeader, WireError
from asyn2f.trees import Template
from asyn2f.types import Params

ALIGNMENT = 64
"""Bytes: what JAX wants of memory that it does not copy."""


def encode_params(params: Params) -> memoryview:
    """All arrays of a model as one read-only buffer of bytes, in tree order.

    Read-only, because a socket reads it after the call that sends it has returned.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    payload = np.empty(sum(leaf.nbytes for leaf in leaves), np.uint8)
    start = 0
    for leaf in leaves:
        flat = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        payload[start : start + leaf.nbytes] = flat
        start += leaf.nbytes
    return payload.data.toreadonly()


def decode_params(template: Template, payload: Buffer) -> Params:
    """The model whose bytes these are, as read-only views into them.

    Raises:
      WireError: another size than the template's.
    """
    size = memoryview(payload).nbytes
    if size != template.num_bytes:
        raise WireError(f"payload of {size} bytes, the model has {template.num_bytes}")
    arrays, start = [], 0
    for leaf in template.leaves:
        count = math.prod(leaf.shape)
        flat = np.frombuffer(payload, leaf.dtype, count=count, offset=start)
        array = flat.reshape(leaf.shape)
        array.flags.writeable = False
        arrays.append(array)
        start += leaf.num_bytes
    return jax.tree.unflatten(template.treedef, arrays)


def to_device(params: Params) -> Params:
    """A decoded model on the device.

    JAX on a CPU takes arrays as they are that begin at a multiple of 64 bytes, and
    copies others one by one: to lay them out anew first takes a third of that.
    """
    leaves, treedef = jax.tree.flatten(params)
    starts = np.cumsum(
        [0] + [-(-leaf.nbytes // ALIGNMENT) * ALIGNMENT for leaf in leaves]
    )
    memory, laid_out = aligned(int(starts[-1])), []
    for leaf, start in zip(leaves, starts[:-1], strict=True):
        place = memory[start : start + leaf.nbytes].view(leaf.dtype)
        laid_out.append(place.reshape(leaf.shape))
        laid_out[-1][...] = leaf
    return jax.device_put(jax.tree.unflatten(treedef, laid_out))


def aligned(size: int) -> np.ndarray:
    """So many bytes, uint8, that begin at a multiple of `ALIGNMENT`."""
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size]


def digest(payload: Buffer) -> str:
    """XXH3-128 of a payload, hex: tells damage, at the speed of memory. It does not
    tell malice; that is the business of the transport's keys."""
    return xxhash.xxh3_128_hexdigest(payload)


def check_payload(
    header: ModelHeader | UpdateHeader, payload: Buffer, template: Template
) -> None:
    """Nothing, if the payload is the one its header speaks of and fits the template.

    Raises:
      WireError: other size, other tree, or damaged bytes.
    """
    size = memoryview(payload).nbytes
    if header.fingerprint != template.fingerprint:
        raise WireError("the model has other arrays than ours: different configs?")
    if not header.num_bytes == size == template.num_bytes:
        raise WireError(
            f"payload of {size} bytes, its header says {header.num_bytes}, "
            f"the model has {template.num_bytes}"
        )
    if digest(payload) != header.digest:
        raise WireError("payload is damaged: its digest is another")


def nonfinite_leaf(params: Params) -> str:
    """The path of the first array that holds a NaN or an infinity, or ""."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""
