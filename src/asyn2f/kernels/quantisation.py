"""Codings of single arrays: int8 with a scale, the largest entries, and fragments."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MOST_FRAGMENTS = 1000


class Quantised(NamedTuple):
    """A leaf as whole multiples of a scale."""

    values: jax.Array  # i8, of the leaf's shape; -127 to 127
    scale: jax.Array  # bf16 []


class Sparse(NamedTuple):
    """A few entries of a leaf; the others are zero."""

    values: jax.Array  # f32 [k]
    places: jax.Array  # i32 [k]: in the flattened leaf, ascending


class Fragment(NamedTuple):
    """One of F equal parts of a flattened leaf; the others are zero. The last one is
    padded with zeros."""

    values: jax.Array  # f32 [ceil(size / F)]
    number: jax.Array  # i32 []: which of them, from 0


def quantised(x: jax.Array) -> Quantised:
    """`round(x / s)` and `s = max |x| / 127`, rounded up to bfloat16; f32 to int8.

    The error of an entry is at most s / 2, up to rounding. A scale of 8 significant
    bits times a value of 7 is exact in float32, so that it does not matter whether XLA
    contracts `base + q * s` into one operation.

    >>> q = quantised(jnp.array([127.0, -1.0, 0.4]))
    >>> q.values.tolist(), float(q.scale)
    ([127, -1, 0], 1.0)
    """
    # A product, as XLA may or may not make one of a division by a constant.
    most = jnp.max(jnp.abs(x)) * np.float32(1 / 127)
    bits = jax.lax.bitcast_convert_type(most, jnp.uint32)
    up = (bits + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000)
    # Non-finite values stay so, and are rejected once decoded.
    scale = jnp.where(
        jnp.isfinite(most), jax.lax.bitcast_convert_type(up, jnp.float32), jnp.nan
    )
    # Some processors flush subnormal numbers to zero.
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    values = jnp.clip(jnp.round(x / scale), -127, 127)
    return Quantised(values.astype(jnp.int8), scale.astype(jnp.bfloat16))


def restored(coded: Quantised) -> jax.Array:
    """`q * s`, f32."""
    return coded.values.astype(jnp.float32) * coded.scale.astype(jnp.float32)


def largest(x: jax.Array, count: int) -> Sparse:
    """The `count` entries of largest magnitude; the first of equal ones.

    >>> print(largest(jnp.array([1.0, -3.0, 2.0]), 2))
    Sparse(values=Array([-3.,  2.], dtype=float32), places=Array([1, 2], dtype=int32))
    """
    flat = x.reshape(-1)
    _, places = jax.lax.top_k(jnp.abs(flat), count)
    places = jnp.sort(places).astype(jnp.int32)
    return Sparse(flat[places], places)


def spread(coded: Sparse, shape: tuple[int, ...]) -> jax.Array:
    """The leaf with these entries, zero elsewhere; places beyond it are dropped."""
    flat = jnp.zeros(math.prod(shape), jnp.float32)
    return flat.at[coded.places].set(coded.values, mode="drop").reshape(shape)


def num_largest(size: int, share: float) -> int:
    """The number of entries of a leaf that `topk` sends; 0 = all: no more bytes."""
    count = max(1, math.ceil(share * size))
    return count if 2 * count < size else 0


def fragment(x: jax.Array, count: int, number: jax.Array | int) -> Fragment:
    """The part `number` of `count` equal parts; NaN if the leaf is not finite.

    >>> print(fragment(jnp.array([1.0, 2.0, 3.0]), 2, 1).values)
    [3. 0.]
    """
    values = jnp.where(jnp.isfinite(x).all(), _parts(x, count)[number], jnp.nan)
    return Fragment(values, jnp.asarray(number, jnp.int32))


def without(x: jax.Array, coded: Fragment, count: int) -> jax.Array:
    """The leaf with zeros for one of its `count` parts."""
    parts = _parts(x, count).at[coded.number].set(0.0)
    return parts.reshape(-1)[: x.size].reshape(x.shape)


def _parts(x, count):
    size = math.ceil(x.size / count)
    return jnp.pad(x.reshape(-1), (0, size * count - x.size)).reshape(count, size)


def placed(coded: Fragment, count: int, shape: tuple[int, ...]) -> jax.Array:
    """The leaf with this one of its `count` parts, zero elsewhere; a part beyond the
    last is dropped.

    >>> x = jnp.array([1.0, 2.0, 3.0])
    >>> print(sum(placed(fragment(x, 2, k), 2, x.shape) for k in (0, 1)))
    [1. 2. 3.]
    """
    parts = jnp.zeros((count, coded.values.size), jnp.float32)
    parts = parts.at[coded.number].set(coded.values, mode="drop")
    return parts.reshape(-1)[: math.prod(shape)].reshape(shape)


def problem_of_part(part: Quantised | Sparse | Fragment | Any, size: int) -> str:
    """The first defect of a received leaf of `size` entries, on the host; "" if there
    is none.

    >>> problem_of_part(Sparse(np.ones(2, np.float32), np.array([3, 3], np.int32)), 9)
    'places of its entries are not ascending from 0 to 8'
    """
    if isinstance(part, Sparse):
        places = np.asarray(part.places, np.int64)
        is_inside = ((places >= 0) & (places < size)).all()
        if not is_inside or (np.diff(places) <= 0).any():
            return f"places of its entries are not ascending from 0 to {size - 1}"
    elif isinstance(part, Quantised):
        scale = float(part.scale)
        if not math.isfinite(scale):
            return f"a scale of {scale:g} is not finite: has training diverged?"
        if not 0 < scale * 127 <= np.finfo(np.float32).max:
            return f"a scale of {scale:g} is out of range: has training diverged?"
        if np.asarray(part.values).min(initial=0) < -127:
            return "a value of -128, allowed -127 to 127"
    elif isinstance(part, Fragment) and not 0 <= int(part.number) < MOST_FRAGMENTS:
        return f"fragment {int(part.number)}, allowed: 0 to {MOST_FRAGMENTS - 1}"
    return ""
