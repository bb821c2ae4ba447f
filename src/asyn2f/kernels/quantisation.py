"""Codings of single arrays: int8 with a scale, and the largest entries."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Quantised(NamedTuple):
    """A leaf as whole multiples of a scale."""

    values: jax.Array  # i8, of the leaf's shape; -127 to 127
    scale: jax.Array  # bf16 []


class Sparse(NamedTuple):
    """A few entries of a leaf; the others are zero."""

    values: jax.Array  # f32 [k]
    places: jax.Array  # i32 [k]: in the flattened leaf, ascending


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
