"""Pytrees as bytes: templates, fingerprints, digests; nothing that computes a model."""

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.types import Params


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
