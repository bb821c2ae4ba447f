"""Models as bytes: all arrays in tree order, little-endian, one after the other.

Both sides know the template of the model, so sizes are compared before anything is
allocated, and decoding makes views into the received bytes.
"""

import math

import jax
import numpy as np
import xxhash
import zstandard

from asyn2f.runtime.wire import Buffer, ModelHeader, UpdateHeader, WireError
from asyn2f.trees import Template
from asyn2f.types import Params

_WORTH_LAYING_OUT = 1 << 20  # bytes
_LEAST_WINDOW = 1 << 20  # zstd asks for some whatever the size

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
    """A decoded model as a program can take it: on the device, if it is large. Small
    arrays go there with the call itself, in half the time.

    JAX on a CPU takes arrays as they are that begin at a multiple of 64 bytes, and
    copies others one by one: to lay them out anew first takes a third of that.
    """
    leaves, treedef = jax.tree.flatten(params)
    if sum(leaf.nbytes for leaf in leaves) < _WORTH_LAYING_OUT:
        return params
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


def packed(payload: Buffer) -> Buffer:
    """The payload as a zstd frame, level 1, if that is shorter; else as it is. Its
    header stays the one of what was packed."""
    frame = zstandard.ZstdCompressor(level=1).compress(payload)
    return frame if len(frame) < memoryview(payload).nbytes else payload


def unpacked(
    header: ModelHeader | UpdateHeader, payload: Buffer, template: Template
) -> Buffer:
    """The payload that its header speaks of, which fits the template; what is shorter
    than that is a zstd frame.

    A frame has to say how long its content is, and that has to be what the template
    says, before any memory is taken for it.

    Raises:
      WireError: other size, other tree, or damaged bytes.
    """
    size = memoryview(payload).nbytes
    if header.fingerprint != template.fingerprint:
        raise WireError("the model has other arrays than ours: different configs?")
    if header.num_bytes != template.num_bytes or size > template.num_bytes:
        raise WireError(
            f"payload of {size} bytes, its header says {header.num_bytes}, "
            f"the model has {template.num_bytes}"
        )
    if size < template.num_bytes:
        payload = _content(payload, template.num_bytes)
    if digest(payload) != header.digest:
        raise WireError("payload is damaged: its digest is another")
    return payload


def _content(frame: Buffer, size: int) -> bytes:
    """What is in a zstd frame, if it is of that size. Raises WireError."""
    said = f"payload of {memoryview(frame).nbytes} bytes, the model has {size}"
    try:
        if zstandard.frame_content_size(frame) != size:
            raise WireError(f"{said}, and it is no zstd frame of so many")
        most = zstandard.ZstdDecompressor(max_window_size=max(size, _LEAST_WINDOW))
        content = most.decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"{said}, and its zstd frame is damaged: {error}") from None
    if len(content) != size:
        raise WireError(f"{said}, and its zstd frame holds {len(content)}")
    return content


def nonfinite_leaf(params: Params) -> str:
    """The path of the first array that holds a NaN or an infinity, or ""."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""
