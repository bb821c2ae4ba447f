"""Pytrees as rows: one array per dtype, so that a gather is one gather."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Packed = dict[str, jax.Array]
"""By name of a dtype: [n] for one tree, [rows, n] for many."""


class Packing(NamedTuple):
    """How trees of one shape are laid out in rows."""

    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def num_bytes(self) -> int:
        """Of one row."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.leaves)

    def pack(self, tree: Any) -> Packed:
        """The tree as a row."""
        parts: dict[str, list[jax.Array]] = {}
        for leaf in self.treedef.flatten_up_to(tree):
            parts.setdefault(leaf.dtype.name, []).append(leaf.reshape(-1))
        return {name: jnp.concatenate(leaves) for name, leaves in parts.items()}

    def unpack(self, row: Packed) -> Any:
        """The tree that a row holds."""
        position = dict.fromkeys(row, 0)
        leaves = []
        for leaf in self.leaves:
            name = leaf.dtype.name
            begin, end = position[name], position[name] + leaf.size
            leaves.append(row[name][begin:end].reshape(leaf.shape))
            position[name] = end
        return self.treedef.unflatten(leaves)

    def empty(self, rows: int) -> Packed:
        """So many rows of zeros."""
        sizes: dict[str, int] = {}
        for leaf in self.leaves:
            name = leaf.dtype.name
            sizes[name] = sizes.get(name, 0) + leaf.size
        return {name: jnp.zeros((rows, n), name) for name, n in sizes.items()}


def packing_of(tree: Any) -> Packing:
    """The layout for trees like this one, of arrays or their shapes.

    >>> packing = packing_of({"w": jnp.ones((2, 3)), "n": jnp.int32(7)})
    >>> row = packing.pack({"w": jnp.ones((2, 3)), "n": jnp.int32(7)})
    >>> {name: values.shape for name, values in row.items()}
    {'int32': (1,), 'float32': (6,)}
    >>> packing.unpack(row)["n"].item(), packing.num_bytes
    (7, 28)
    """
    leaves, treedef = jax.tree.flatten(tree)
    return Packing(
        treedef,
        tuple(jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in leaves),
    )


def read_row(rows: Packed, index: jax.Array) -> Packed:
    """One row; or several, where `index` is an array of places."""
    return {name: array[index] for name, array in rows.items()}


def write_row(rows: Packed, index: jax.Array, row: Packed) -> Packed:
    """The rows with this one in its place."""
    return {
        name: jax.lax.dynamic_update_index_in_dim(array, row[name], index, 0)
        for name, array in rows.items()
    }


def write_rows(rows: Packed, indices: jax.Array, several: Packed) -> Packed:
    """The rows with several in their places; a loop of copies, faster than a scatter.

    The last one stands where two have the same place.
    """

    def write(i, rows):
        row = {name: array[i] for name, array in several.items()}
        return write_row(rows, indices[i], row)

    return jax.lax.fori_loop(0, indices.shape[0], write, rows)
