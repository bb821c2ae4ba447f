"""What travels instead of a model in float32: fewer bytes, as pure functions.

Coding loses something, so it is part of the numbers: workers, server, simulation and
replay all compute with what has been coded and decoded. Only leaves in float32 of what
is trained are coded. Statistics are few bytes, and no sums of changes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f import settings
from asyn2f.kernels.deltas import trained, with_trained
from asyn2f.settings import setting
from asyn2f.types import Params

UpdateCoding = Literal["float32", "bfloat16", "int8", "topk"]
VersionCoding = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How updates and versions are encoded; the numbers depend on it."""

    updates: UpdateCoding = setting(
        "float32",
        "`float32`: unchanged; `int8`: with a scale per leaf; `topk`: the largest "
        "entries of each leaf of the change since the base version",
    )
    delta: bool = setting(
        False, "`bfloat16` and `int8` encode the change since the base version"
    )
    topk_share: float = setting(
        0.1,
        "fraction of the entries that `topk` sends, at least one of each leaf",
        above=0,
        at_most=0.5,
        allowed="(0, 0.5]: an entry with its index takes twice the bytes of an entry",
    )
    versions: VersionCoding = setting(
        "float32", "as `updates`; stateless, so that late peers decode the same bits"
    )

    def __str__(self) -> str:
        """As a peer says it at registration: "updates topk 0.1, versions bfloat16"."""
        share = f" {self.topk_share:g}" if self.updates == "topk" else ""
        change = " of changes" if self.delta else ""
        return f"updates {self.updates}{share}{change}, versions {self.versions}"


PLAIN = Coding()


class Codec(NamedTuple):
    """A way to write a model, of one shape; its functions are pure and can be jitted.

    Attributes:
      encode: (params, base, memory) to (coded, memory). `base` is a model that the
        receiver has too, or () where `needs_base` is False; `memory` is what has not
        been sent so far, or ().
      decode: (coded, base) to params.
      blank: the memory to begin with.
      needs_base: whether the change since a base is coded.
      is_plain: whether it leaves everything as it is.
    """

    encode: Callable[[Params, Params, Any], tuple[Any, Any]]
    decode: Callable[[Any, Params], Params]
    blank: Callable[[], Any]
    needs_base: bool = False
    is_plain: bool = False


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

    The error of an entry is s / 2 at most, up to rounding. A scale of 8 significant
    bits times a value of 7 is exact in float32: whether XLA contracts `base + q * s`
    into one operation cannot change a bit.

    >>> q = quantised(jnp.array([127.0, -1.0, 0.4]))
    >>> q.values.tolist(), float(q.scale)
    ([127, -1, 0], 1.0)
    """
    # Times, as XLA may or may not make a product of a division by a constant.
    most = jnp.max(jnp.abs(x)) * np.float32(1 / 127)
    bits = jax.lax.bitcast_convert_type(most, jnp.uint32)
    up = (bits + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000)
    # What is not finite stays so, and is refused once it has been decoded.
    scale = jnp.where(
        jnp.isfinite(most), jax.lax.bitcast_convert_type(up, jnp.float32), jnp.nan
    )
    # No smaller than what some processors take for zero.
    scale = jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)
    values = jnp.clip(jnp.round(x / scale), -127, 127)
    return Quantised(values.astype(jnp.int8), scale.astype(jnp.bfloat16))


def restored(coded: Quantised) -> jax.Array:
    """`q * s`, f32."""
    return coded.values.astype(jnp.float32) * coded.scale.astype(jnp.float32)


def largest(x: jax.Array, count: int) -> Sparse:
    """The `count` entries of largest magnitude; of equal ones the first.

    >>> print(largest(jnp.array([1.0, -3.0, 2.0]), 2))
    Sparse(values=Array([-3.,  2.], dtype=float32), places=Array([1, 2], dtype=int32))
    """
    flat = x.reshape(-1)
    _, places = jax.lax.top_k(jnp.abs(flat), count)
    places = jnp.sort(places).astype(jnp.int32)
    return Sparse(flat[places], places)


def spread(coded: Sparse, shape: tuple[int, ...]) -> jax.Array:
    """The leaf whose entries these are; zero elsewhere. What has its place beyond the
    leaf is left out."""
    flat = jnp.zeros(math.prod(shape), jnp.float32)
    return flat.at[coded.places].set(coded.values, mode="drop").reshape(shape)


def num_largest(size: int, share: float) -> int:
    """How many of a leaf's entries `topk` sends; 0 = all, as that is no more bytes."""
    count = max(1, math.ceil(share * size))
    return count if 2 * count < size else 0


def update_codec(
    coding: Coding, shapes: Params, pushes_models: bool, keeps_model: bool
) -> Codec:
    """The codec of what workers push.

    Top-k with error feedback (Stich et al., 2018; Karimireddy et al., 2019), of a leaf
    with model w, base b and memory e:

        a = (w - b) + e;  sent: the k largest of a;  e <- a - sent

    Feedback is for what would be lost. A worker that trains on from its own model after
    a push has lost nothing: the next change since the base holds it still, and with a
    memory it would count twice. It has none.

    Args:
      coding: settings.
      shapes: of the model; a pytree of `jax.ShapeDtypeStruct`.
      pushes_models: whether models are pushed; else differences, and there is nothing
        to subtract.
      keeps_model: whether a worker trains on from its own model after a push.
    """
    check_coding(coding)
    if coding.updates == "topk":
        has_memory = not (pushes_models and keeps_model)
        return _sparse(coding.topk_share, shapes, pushes_models, has_memory)
    return _dense(coding.updates, shapes, coding.delta and pushes_models)


def version_codec(coding: Coding, shapes: Params) -> Codec:
    """The codec of what the server gives out: without base or memory."""
    check_coding(coding)
    return _dense(coding.versions, shapes, needs_base=False)


def check_coding(coding: Coding) -> None:
    """Checks that the settings are in range and fit together.

    Raises:
      ValueError: they do not; begins with the name of the setting.
    """
    settings.check(coding)
    if coding.delta and coding.updates not in ("bfloat16", "int8"):
        raise ValueError(
            f"delta: found True with updates = {coding.updates!r}, allowed with "
            "bfloat16 and int8: float32 would be no smaller, topk is a change anyway"
        )


def problem_of(coded: Any, sizes: Sequence[int]) -> str:
    """What is wrong with a coded model that came from elsewhere, on the host, or "":
    its bytes may say anything.

    Args:
      coded: as it was decoded from bytes.
      sizes: entries of the model's leaves, in tree order.

    >>> problem_of([Sparse(np.ones(2, np.float32), np.array([3, 3], np.int32))], [9])
    'places of its entries are not ascending from 0 to 8'
    """

    def is_part(x: Any) -> bool:
        return isinstance(x, Sparse | Quantised)

    parts = jax.tree.leaves(coded, is_leaf=is_part)
    for part, size in zip(parts, sizes, strict=True):
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
    return ""


def _is_coded(leaf: Any) -> bool:
    return leaf.dtype == jnp.float32 and leaf.size > 0


def _plain() -> Codec:
    return Codec(
        encode=lambda params, base, memory: (params, memory),
        decode=lambda coded, base: coded,
        blank=lambda: (),
        is_plain=True,
    )


def _dense(kind: str, shapes: Params, needs_base: bool) -> Codec:
    """Every entry, in fewer bits."""
    if kind == "float32":
        return _plain()

    def encode_leaf(leaf, x):
        if not _is_coded(leaf):
            return x
        if kind == "int8":
            return quantised(x)
        # Rounded first: of two conversions alone, there and back in one program, XLA is
        # free to make none.
        return jax.lax.reduce_precision(x, 8, 7).astype(jnp.bfloat16)

    def decode_leaf(leaf, coded):
        if not _is_coded(leaf):
            return coded
        return restored(coded) if kind == "int8" else coded.astype(jnp.float32)

    def encode(params, base, memory):
        change = _minus(params, base) if needs_base else trained(params)
        coded = jax.tree.map(encode_leaf, trained(shapes), change)
        return with_trained(params, coded), memory

    def decode(coded, base):
        values = jax.tree.map(decode_leaf, trained(shapes), trained(coded))
        return with_trained(coded, _plus(base, values) if needs_base else values)

    return Codec(encode, decode, lambda: (), needs_base)


def _sparse(share: float, shapes: Params, needs_base: bool, has_memory: bool) -> Codec:
    """The largest entries of each leaf."""

    def count_of(leaf):
        return num_largest(leaf.size, share) if _is_coded(leaf) else 0

    def encode_leaf(leaf, x):
        count = count_of(leaf)
        return largest(x, count) if count else x

    def decode_leaf(leaf, coded):
        return spread(coded, leaf.shape) if count_of(leaf) else coded

    def rest_leaf(leaf, x, coded):
        if not count_of(leaf):
            return jnp.zeros_like(x)
        return x.reshape(-1).at[coded.places].set(0.0).reshape(leaf.shape)

    def encode(params, base, memory):
        change = _minus(params, base) if needs_base else trained(params)
        if has_memory:
            change = jax.tree.map(_when_float(jnp.add), change, memory)
        coded = jax.tree.map(encode_leaf, trained(shapes), change)
        if has_memory:
            memory = jax.tree.map(rest_leaf, trained(shapes), change, coded)
        return with_trained(params, coded), memory

    def decode(coded, base):
        values = jax.tree.map(decode_leaf, trained(shapes), trained(coded))
        return with_trained(coded, _plus(base, values) if needs_base else values)

    def blank():
        if not has_memory:
            return ()
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trained(shapes))

    return Codec(encode, decode, blank, needs_base)


def _when_float(combine: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`combine`, where leaves are coded; what is not coded is the first as it is."""
    return lambda x, y: combine(x, y) if _is_coded(x) else x


def _minus(params: Params, base: Params) -> Params:
    """What is trained, as a change since the base."""
    return jax.tree.map(_when_float(jnp.subtract), trained(params), trained(base))


def _plus(base: Params, change: Params) -> Params:
    """The base, and a change of what is trained."""
    return jax.tree.map(_when_float(jnp.add), change, trained(base))
