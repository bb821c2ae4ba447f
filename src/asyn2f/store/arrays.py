"""The arrays of a version by path, for readers that do not know the model."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from asyn2f.errors import WriteAheadError
from asyn2f.store.formats import parts_of, plain_name


def read_ahead_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a write-ahead file by path, whatever they are.

    Raises:
      WriteAheadError: not a write-ahead file, or truncated.
      OSError: the file cannot be read.
    """
    _, layout, content = parts_of(path)
    found, start = {}, 0
    for line in layout:
        name, _, text = line.rpartition(": ")
        kind, _, sizes = text.rstrip("]").partition("[")
        shape = [int(size) for size in sizes.split(",") if size]
        end = start + math.prod(shape) * (dtype := jnp.dtype(kind)).itemsize
        if end > len(content):
            raise WriteAheadError(f"{len(content)} bytes of arrays, expected {end}")
        found[name] = np.frombuffer(content[start:end], dtype).reshape(shape).copy()
        start = end
    return found


def read_checkpoint_arrays(
    checkpointer: ocp.Checkpointer, folder: Path
) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by path, whatever they are.

    Raises:
      Exception: from Orbax's layers.
    """
    with plain_name(folder) as alias:
        only = ocp.args.Composite(state=ocp.args.PyTreeRestore())
        tree = checkpointer.restore(alias, args=only).state
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    return found
