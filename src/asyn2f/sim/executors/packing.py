"""Pytrees as rows of arrays: all small leaves of a dtype in one array, so that a gather
is one gather; each large leaf in its own, so that it is not copied more than once."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.training.computation import Computation, any_hyperparams, functions_of

Packed = dict[str, jax.Array]
"""By dtype and, for a large leaf, its number: [n] for one tree, [rows, n] for many."""

# Copying this many bytes takes longer than starting a gather.
LARGE_BYTES = 2**16


class Packing(NamedTuple):
    """The layout of trees of one shape in rows."""

    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def names(self) -> list[str]:
        """The name of each leaf's array."""
        return [
            f"{leaf.dtype.name}/{number}"
            if leaf.size * leaf.dtype.itemsize >= LARGE_BYTES
            else leaf.dtype.name
            for number, leaf in enumerate(self.leaves)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of one row."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in self.leaves)

    def pack(self, tree: Any) -> Packed:
        """The tree as a row."""
        parts: dict[str, list[jax.Array]] = {}
        leaves = self.treedef.flatten_up_to(tree)
        for name, leaf in zip(self.names, leaves, strict=True):
            parts.setdefault(name, []).append(leaf.reshape(-1))
        return {name: jnp.concatenate(leaves) for name, leaves in parts.items()}

    def unpack(self, row: Packed) -> Any:
        """The tree of a row."""
        position = dict.fromkeys(row, 0)
        leaves = []
        for name, leaf in zip(self.names, self.leaves, strict=True):
            begin, end = position[name], position[name] + leaf.size
            leaves.append(row[name][begin:end].reshape(leaf.shape))
            position[name] = end
        return self.treedef.unflatten(leaves)

    def empty(self, rows: int) -> Packed:
        """Rows of zeros."""
        one = jax.eval_shape(self.pack, self.treedef.unflatten(self.leaves))
        return {
            name: jnp.zeros((rows, *row.shape), row.dtype) for name, row in one.items()
        }


def packing_of(tree: Any) -> Packing:
    """The layout of trees like this one, of arrays or their shapes.

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
    """One row, or several if `index` is an array."""
    return {name: array[index] for name, array in rows.items()}


def write_row(rows: Packed, index: jax.Array, row: Packed) -> Packed:
    """The rows with one replaced."""
    return {
        name: jax.lax.dynamic_update_index_in_dim(array, row[name], index, 0)
        for name, array in rows.items()
    }


def write_rows(rows: Packed, indices: jax.Array, several: Packed) -> Packed:
    """The rows with several replaced, the last one at an index that occurs twice; a
    loop of copies, faster than a scatter."""

    def write(i, rows):
        row = {name: array[i] for name, array in several.items()}
        return write_row(rows, indices[i], row)

    return jax.lax.fori_loop(0, indices.shape[0], write, rows)


Packings = tuple[Packing, Packing, Packing]
"""The layouts of a worker's state, of an update and of a version."""


@lru_cache(maxsize=32)
def packings(computation: Computation) -> Packings:
    """The layouts of a computation's records."""

    def shapes():
        functions = functions_of(computation, any_hyperparams())
        server = functions.init_server()
        state = functions.trainer.start(server.model, 0, 1, 1.0)
        return state, functions.trainer.report(state), server.model

    state, update, model = jax.eval_shape(shapes)
    return packing_of(state), packing_of(update), packing_of(model)
