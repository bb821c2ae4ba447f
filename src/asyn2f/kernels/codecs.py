"""Compression of models and updates, as pure functions.

It is lossy, so it is part of the numbers: workers, server, simulation and replay all
compute with models that have been coded and decoded. Only trained leaves in float32 are
coded: statistics are few bytes, and not sums of changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from asyn2f import settings
from asyn2f.kernels.deltas import trained, with_trained
from asyn2f.kernels.quantisation import (
    MOST_FRAGMENTS,
    Fragment,
    Quantised,
    Sparse,
    fragment,
    largest,
    num_largest,
    placed,
    problem_of_part,
    quantised,
    restored,
    spread,
    without,
)
from asyn2f.settings import setting
from asyn2f.types import Params

UpdateCoding = Literal["float32", "bfloat16", "int8", "topk", "fragments"]
VersionCoding = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Coding:
    """The coding of updates and versions; the numbers depend on it."""

    updates: UpdateCoding = setting(
        "float32",
        "`float32`: unchanged; `int8`: with a scale per leaf; `topk`: the largest "
        "entries of each leaf of the change since the base version; `fragments`: one "
        "part of each leaf of that change, another with every push",
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
    fragments: int = setting(
        4,
        "number of equal parts of each leaf that `fragments` sends in turn",
        at_least=2,
        at_most=MOST_FRAGMENTS,
    )
    versions: VersionCoding = setting(
        "float32", "as `updates`; stateless, so that late peers decode the same bits"
    )

    def __str__(self) -> str:
        """As in a registration: "updates topk 0.1, versions bfloat16"."""
        more = {"topk": f" {self.topk_share:g}", "fragments": f" {self.fragments}"}
        change = " of changes" if self.delta else ""
        updates = f"{self.updates}{more.get(self.updates, '')}{change}"
        return f"updates {updates}, versions {self.versions}"


PLAIN = Coding()


class Codec(NamedTuple):
    """A coding of models of one shape; its functions are pure and can be jitted.

    Attributes:
      encode: (params, base, memory) -> (coded, memory). `base` is a model that the
        receiver has too, or () where `needs_base` is False; `memory` is what the next
        push depends on, as the residual that has not been sent so far, or ().
      decode: (coded, base) -> params.
      blank: () -> the initial memory.
      needs_base: whether the change since a base is coded.
      is_plain: whether it is the identity.
    """

    encode: Callable[[Params, Params, Any], tuple[Any, Any]]
    decode: Callable[[Any, Params], Params]
    blank: Callable[[], Any]
    needs_base: bool = False
    is_plain: bool = False


def update_codec(
    coding: Coding, shapes: Params, pushes_models: bool, keeps_model: bool
) -> Codec:
    """The codec of updates.

    Top-k with error feedback (Stich et al., 2018; Karimireddy et al., 2019), of a leaf
    with model w, base b and memory e:

        a = (w - b) + e;  sent: the k largest of a;  e <- a - sent

    A worker that continues from its own model after a push keeps no residual: its next
    change since the base still contains it, and it would count twice.

    Fragments are the same with another choice of the entries: push p of a worker sends
    part p mod F of each leaf. Streaming DiLoCo (Douillard et al., 2025) lets groups of
    layers take turns; parts of every leaf have the same size in every push.

    Args:
      coding: settings.
      shapes: of the model; a pytree of `jax.ShapeDtypeStruct`.
      pushes_models: whether updates are models; else they are differences already.
      keeps_model: whether a worker continues from its own model after a push.
    """
    check_coding(coding)
    has_residual = not (pushes_models and keeps_model)
    if coding.updates == "topk":
        return _sparse(coding.topk_share, shapes, pushes_models, has_residual)
    if coding.updates == "fragments":
        return _rotating(coding.fragments, shapes, pushes_models, has_residual)
    return _dense(coding.updates, shapes, coding.delta and pushes_models)


def version_codec(coding: Coding, shapes: Params) -> Codec:
    """The codec of versions: without base or memory."""
    check_coding(coding)
    return _dense(coding.versions, shapes, needs_base=False)


def check_coding(coding: Coding) -> None:
    """Raises ValueError, which names the setting, unless all are allowed together."""
    settings.check(coding)
    if coding.delta and coding.updates not in ("bfloat16", "int8"):
        raise ValueError(
            f"delta: found True with updates = {coding.updates!r}, allowed with "
            "bfloat16 and int8: float32 would be no smaller, topk and fragments are "
            "of changes anyway"
        )


def problem_of(coded: Any, sizes: Sequence[int]) -> str:
    """The first defect of a received coded model, on the host; "" if there is none.

    Args:
      coded: as it was decoded from bytes.
      sizes: entries of the model's leaves, in tree order.
    """

    def is_part(x: Any) -> bool:
        return isinstance(x, Sparse | Quantised | Fragment)

    parts = jax.tree.leaves(coded, is_leaf=is_part)
    found = (problem_of_part(*pair) for pair in zip(parts, sizes, strict=True))
    return next(filter(None, found), "")


def _is_coded(leaf: Any) -> bool:
    return leaf.dtype == jnp.float32 and leaf.size > 0


def _dense(kind: str, shapes: Params, needs_base: bool) -> Codec:
    """All entries, in fewer bits."""
    if kind == "float32":
        return Codec(
            encode=lambda params, base, memory: (params, memory),
            decode=lambda coded, base: coded,
            blank=lambda: (),
            is_plain=True,
        )

    def encode_leaf(leaf, x):
        if not _is_coded(leaf):
            return x
        match kind:
            case "int8":
                return quantised(x)
            case "bfloat16":
                # Rounded first: XLA may drop a pair of conversions within one program.
                return jax.lax.reduce_precision(x, 8, 7).astype(jnp.bfloat16)
        raise ValueError(f"updates: no encoder for {kind!r}")

    def decode_leaf(leaf, coded):
        if not _is_coded(leaf):
            return coded
        return restored(coded) if kind == "int8" else coded.astype(jnp.float32)

    return _leaf_by_leaf(shapes, needs_base, encode_leaf, decode_leaf)


def _rotating(
    count: int, shapes: Params, needs_base: bool, has_residual: bool
) -> Codec:
    """One of `count` parts of each leaf. Memory: the number of the next, and the
    residual."""

    def numbered(number):
        def encode_leaf(leaf, x):
            return fragment(x, count, number) if _is_coded(leaf) else x

        def decode_leaf(leaf, coded):
            return placed(coded, count, leaf.shape) if _is_coded(leaf) else coded

        def rest_leaf(leaf, x, coded):
            if not _is_coded(leaf):
                return jnp.zeros_like(x)
            return without(x, coded, count)

        rest = rest_leaf if has_residual else None
        return _leaf_by_leaf(shapes, needs_base, encode_leaf, decode_leaf, rest)

    any_number = numbered(0)  # what has been coded says its own

    def encode(params, base, memory):
        number, residual = memory
        coded, residual = numbered(number).encode(params, base, residual)
        return coded, ((number + 1) % count, residual)

    def blank():
        return jnp.int32(0), any_number.blank()

    return Codec(encode, any_number.decode, blank, needs_base)


def _sparse(
    share: float, shapes: Params, needs_base: bool, has_residual: bool
) -> Codec:
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

    residual = rest_leaf if has_residual else None
    return _leaf_by_leaf(shapes, needs_base, encode_leaf, decode_leaf, residual)


def _leaf_by_leaf(
    shapes: Params,
    needs_base: bool,
    encode_leaf: Callable[..., Any],
    decode_leaf: Callable[..., jax.Array],
    rest_leaf: Callable[..., jax.Array] | None = None,
) -> Codec:
    """A codec of functions of a leaf's shape and its value; `rest_leaf` is the residual
    that stays in memory."""

    def encode(params, base, memory):
        change = trained(params)
        if needs_base:
            change = _combined(jnp.subtract, change, trained(base))
        if rest_leaf is not None:
            change = _combined(jnp.add, change, memory)
        coded = jax.tree.map(encode_leaf, trained(shapes), change)
        if rest_leaf is not None:
            memory = jax.tree.map(rest_leaf, trained(shapes), change, coded)
            # What has diverged must not outlive the model that the worker adopts next.
            memory = jax.tree.map(_finite, memory)
        return with_trained(params, coded), memory

    def decode(coded, base):
        values = jax.tree.map(decode_leaf, trained(shapes), trained(coded))
        if needs_base:
            values = _combined(jnp.add, values, trained(base))
        return with_trained(coded, values)

    def blank():
        if rest_leaf is None:
            return ()
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trained(shapes))

    return Codec(encode, decode, blank, needs_base)


def _finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), x, 0) if _is_coded(x) else x


def _combined(combine: Callable[..., jax.Array], tree: Any, other: Any) -> Any:
    """`combine` of the coded leaves; the others as in `tree`."""
    return jax.tree.map(lambda x, y: combine(x, y) if _is_coded(x) else x, tree, other)
