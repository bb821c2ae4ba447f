"""The arrays of a version by path, for readers that do not know the model."""

from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from asyn2f.errors import WireError, WriteAheadError
from asyn2f.serialization import arrays_by_path
from asyn2f.store.formats import parts_of, plain_name


def read_ahead_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a write-ahead file by path, whatever they are.

    Raises:
      WriteAheadError: not a write-ahead file, or truncated.
      OSError: the file cannot be read.
    """
    _, layout, content = parts_of(path)
    try:
        return arrays_by_path(layout, content)
    except WireError as error:
        raise WriteAheadError(str(error)) from None


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
