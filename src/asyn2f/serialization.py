"""Pytrees as bytes: templates, fingerprints, digests, and models as one buffer.

A model is encoded as all of its arrays, little-endian, in tree order.
"""

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from asyn2f.errors import WireError
from asyn2f.types import Buffer, Params, UpdateInfo

_WORTH_LAYING_OUT = 1 << 20  # bytes

ALIGNMENT = 64
"""Bytes: what JAX wants of memory that it does not copy."""


class Leaf(NamedTuple):
    """One array of a template: where it is in the tree and what it looks like."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Template(NamedTuple):
    """What a model looks like, without its numbers: known before anything is sent."""

    leaves: tuple[Leaf, ...]
    treedef: jax.tree_util.PyTreeDef
    num_bytes: int
    fingerprint: str  # hex, of all paths, shapes and dtypes in tree order

    @property
    def sizes(self) -> list[int]:
        """Entries of each leaf, in tree order."""
        return [math.prod(leaf.shape) for leaf in self.leaves]


def template_of(params: Params) -> Template:
    """The template of a tree of arrays, or of `jax.ShapeDtypeStruct`s.

    >>> import jax.numpy as jnp
    >>> template = template_of({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    >>> [leaf.path for leaf in template.leaves], template.num_bytes
    (['b', 'w'], 36)
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves = tuple(
        Leaf(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            tuple(array.shape),
            np.dtype(array.dtype),
        )
        for path, array in paths
    )
    text = ";".join(f"{x.path}:{x.dtype.name}{list(x.shape)}" for x in leaves)
    return Template(
        leaves=leaves,
        treedef=treedef,
        num_bytes=sum(leaf.num_bytes for leaf in leaves),
        fingerprint=hashlib.sha256(text.encode()).hexdigest()[:32],
    )


def params_sha256(params: Params) -> str:
    """SHA-256 over the leaves as little-endian float32, in tree order.

    The identity of a result: two runs agree bit for bit if and only if these agree.

    >>> import numpy as np
    >>> params_sha256({"w": np.zeros(2, np.float32)})[:16]
    'af5570f5a1810b7a'
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(np.asarray(leaf), "<f4").data)
    return digest.hexdigest()


def all_finite(tree: Any) -> jax.Array:
    """Whether no leaf holds a NaN or an infinity, bool [].

    >>> bool(all_finite({"w": np.float32([1, 2]), "n": np.int32(3)}))
    True
    >>> bool(all_finite({"w": np.float32([1, np.inf])}))
    False
    """
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in floats] or True).all()


def num_bytes(params: Params) -> int:
    """Bytes of all leaves together."""
    return sum(int(leaf.nbytes) for leaf in jax.tree.leaves(params))


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


def layout_of(tree: Any) -> list[str]:
    """A line per array, in tree order: path, dtype and shape.

    >>> layout_of({"w": np.zeros((2, 3), np.float32)})
    ['w: float32[2, 3]']
    """
    leaves = template_of(tree).leaves
    return [f"{x.path}: {x.dtype.name}{list(x.shape)}" for x in leaves]


def arrays_by_path(layout: list[str], payload: Buffer) -> dict[str, np.ndarray]:
    """The arrays in bytes of `encode_params`, copied, by path; without knowing the tree
    that `layout` was made of.

    Raises:
      WireError: another size than the layout's.

    >>> tree = {"w": np.ones((2, 3), np.float32)}
    >>> arrays_by_path(layout_of(tree), encode_params(tree))["w"].sum().item()
    6.0
    """
    found, start = {}, 0
    for line in layout:
        name, _, text = line.rpartition(": ")
        kind, _, sizes = text.rstrip("]").partition("[")
        shape = [int(size) for size in sizes.split(",") if size]
        end = start + math.prod(shape) * (dtype := jnp.dtype(kind)).itemsize
        if end > memoryview(payload).nbytes:
            break
        part = memoryview(payload)[start:end]
        found[name] = np.frombuffer(part, dtype).reshape(shape).copy()
        start = end
    size = memoryview(payload).nbytes
    if len(found) < len(layout) or start != size:
        raise WireError(f"{size} bytes of arrays, not as many as they have")
    return found


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


def to_numbers(info: UpdateInfo[Any, Any]) -> UpdateInfo[int, float]:
    """An update's scalars as numbers of Python, for a message or an event.

    >>> info = UpdateInfo(*np.int32([3, 2, 40]), *np.float32([10, 0.5, 1, 0]))
    >>> to_numbers(info)[:4]
    (3, 2, 40, 10.0)
    """
    return UpdateInfo(*(np.asarray(x).item() for x in jax.device_get(info)))


def to_scalars(info: UpdateInfo[int, float]) -> UpdateInfo[Any, Any]:
    """The opposite of `to_numbers`: int32 and float32 of NumPy, which JAX takes. To put
    one on the device costs as much as a small model, and many an update is superseded
    before it is used."""
    kinds = (np.int32 if isinstance(x, int) else np.float32 for x in info)
    return UpdateInfo(*(kind(x) for kind, x in zip(kinds, info, strict=True)))


def aligned(size: int) -> np.ndarray:
    """An array of `size` bytes, uint8, that begins at a multiple of `ALIGNMENT`."""
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return whole[start : start + size]


def digest(payload: Buffer) -> str:
    """XXH3-128 of a payload, hex: tells damage, at the speed of memory. It does not
    tell malice; that is the business of the transport's keys."""
    return xxhash.xxh3_128_hexdigest(payload)


def nonfinite_leaf(params: Params) -> str:
    """The path of the first array that holds a NaN or an infinity, or ""."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        if array.dtype.kind not in "iub" and not np.isfinite(array).all():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return ""
