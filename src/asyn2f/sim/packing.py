"""Pytrees as rows: one array for all small leaves of a dtype, so that a gather is one
gather; a large leaf has an array of its own, so that it is not copied to and fro."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Packed = dict[str, jax.Array]
"""By dtype and, of a large leaf, its number: [n] for one tree, [rows, n] for many."""

# A copy of so many bytes takes longer than a gather takes to begin.
LARGE_BYTES = 2**16


class Packing(NamedTuple):
    """How trees of one shape are laid out in rows."""

    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def names(self) -> list[str]:
        """In which of a row's arrays each leaf is."""
        return [
            f"{leaf.dtype.name}/{number}"
            if leaf.size * leaf.dtype.itemsize >= LARGE_BYTES
            else leaf.dtype.name
            for number, leaf in enumerate(self.leaves)
        ]

    @property
    def num_bytes(self) -> int:
        """Of one row."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.leaves)

    def pack(self, tree: Any) -> Packed:
        """The tree as a row."""
        parts: dict[str, list[jax.Array]] = {}
        leaves = self.treedef.flatten_up_to(tree)
        for name, leaf in zip(self.names, leaves, strict=True):
            parts.setdefault(name, []).append(leaf.reshape(-1))
        return {name: jnp.concatenate(leaves) for name, leaves in parts.items()}

    def unpack(self, row: Packed) -> Any:
        """The tree that a row holds."""
        position = dict.fromkeys(row, 0)
        leaves = []
        for name, leaf in zip(self.names, self.leaves, strict=True):
            begin, end = position[name], position[name] + leaf.size
            leaves.append(row[name][begin:end].reshape(leaf.shape))
            position[name] = end
        return self.treedef.unflatten(leaves)

    def empty(self, rows: int) -> Packed:
        """So many rows of zeros."""
        one = jax.eval_shape(self.pack, self.treedef.unflatten(self.leaves))
        return {
            name: jnp.zeros((rows, *row.shape), row.dtype) for name, row in one.items()
        }


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
