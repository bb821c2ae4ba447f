"""An execution in lanes that can go on where it was cut off."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from asyn2f.sim.lanes import Carry
from asyn2f.sim.order import (
    Numbers,
)


class Progress(NamedTuple):
    """How far an execution is."""

    wave: int  # all before it are done
    carry: Carry  # on the host
    numbers: Numbers


Scores = Mapping[int, tuple[float, ...]]
"""What has been found of the nodes that were looked at."""


def write_progress(path: Path, key: str, progress: Progress, scores: Scores) -> None:
    """Keeps it in a file, which is replaced whole or not at all.

    Args:
      path: the file, .npz.
      key: names everything that the execution depends on.
      progress: how far it is.
      scores: each of as many figures.
    """
    leaves = jax.tree.leaves(progress.carry)
    arrays: dict[str, Any] = {
        f"carry-{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)
    }
    arrays |= {f"numbers-{k}": v for k, v in progress.numbers._asdict().items()}
    arrays |= {"key": np.array(key), "wave": np.array(progress.wave)}
    arrays["nodes"] = np.array(list(scores), np.int64)
    arrays["scores"] = np.array(list(scores.values()), np.float64)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_progress(path: Path, key: str, like: Carry) -> tuple[Progress, Scores] | None:
    """What was kept; None where nothing was, or nothing of this execution.

    Args:
      path: the file.
      key: must be the one that it was written with.
      like: a carry of this execution, for the structure and dtypes.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            if str(found["key"]) != key:
                return None
            leaves, structure = jax.tree.flatten(like)
            # NumPy's files do not know bfloat16.
            carry = [
                found[f"carry-{number}"].view(leaf.dtype).reshape(leaf.shape)
                for number, leaf in enumerate(leaves)
            ]
            numbers = Numbers(*(found[f"numbers-{name}"] for name in Numbers._fields))
            progress = Progress(
                int(found["wave"]), jax.tree.unflatten(structure, carry), numbers
            )
            nodes, scores = found["nodes"].tolist(), found["scores"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return progress, dict(zip(nodes, map(tuple, scores), strict=True))
