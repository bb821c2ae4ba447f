"""The parameters of a version in a run's folder, for uses of the model."""

from pathlib import Path
from typing import Literal

import jax
import numpy as np

from asyn2f import rundir
from asyn2f.config.dotted import nested
from asyn2f.errors import StoreError
from asyn2f.serialization import template_of
from asyn2f.store.folder import VersionFolder
from asyn2f.store.worker_state import WorkerStateFile
from asyn2f.types import Params

_PREFIX, _KEPT = "model/params/", "kept/"


def load_params(
    run: Path | str,
    version: int | Literal["best", "newest"] = "best",
    like: Params | None = None,
    worker: int | None = None,
) -> Params:
    """The parameters of a version of a run, real or simulated.

    Neither the task nor its data are needed.

    Args:
      run: its folder.
      version: by number, or the best by the task's headline, or the newest there is.
      like: arrays, or `jax.ShapeDtypeStruct`s, of the structure to return: for models
        whose variables are not nested dicts. Their shapes and dtypes are checked.
      worker: its number; adds its part of the model, as it was at its last push, where
        a part stays with the workers (`config.share`). A simulation stores none.

    Returns:
      Nested dicts of arrays of NumPy, `{"params": {...}, ...}`, or the structure of
      `like`.

    Raises:
      RunDirError: there is no run in the folder.
      StoreError: the version is not there or cannot be read, or has other arrays.
    """
    folder = rundir.as_folder(run)
    rundir.read_json(folder / rundir.CONFIG)
    models = folder / rundir.MODELS
    if not models.is_dir():
        raise StoreError(f"{folder} has no models/: no version was saved")
    store = VersionFolder(models)
    number = _number_of(store, version)
    arrays = {
        path.removeprefix(_PREFIX): array
        for path, array in store.arrays(number).items()
        if path.startswith(_PREFIX)
    }
    if worker is not None:
        arrays |= _kept(folder, worker)
    return nested(arrays, "/") if like is None else _as(like, arrays, number)


def _kept(folder: Path, worker: int) -> dict[str, np.ndarray]:
    file = WorkerStateFile(folder / rundir.WORKERS / f"worker-{worker}")
    run = rundir.read_json(folder / rundir.RUN)["run"]
    return {
        path.removeprefix(_KEPT): array
        for path, array in file.arrays(run).items()
        if path.startswith(_KEPT)
    }


def _number_of(store: VersionFolder, version: int | str) -> int:
    if isinstance(version, int):
        return version
    best, versions = store.read_best(), store.versions()
    if version == "best" and best is not None:
        return best.version
    if version not in ("best", "newest"):
        raise StoreError(f"version: found {version!r}, allowed: a number, best, newest")
    if version == "best" or not versions:
        raise StoreError(f"{store.path} has no {version} version")
    return versions[-1]


def _as(like: Params, arrays: dict[str, np.ndarray], version: int) -> Params:
    template = template_of(like)
    leaves = []
    for leaf in template.leaves:
        array = arrays.get(leaf.path)
        if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            found = "none" if array is None else f"{array.dtype}{list(array.shape)}"
            raise StoreError(
                f"version {version}, {leaf.path}: found {found}, expected "
                f"{leaf.dtype}{list(leaf.shape)}: it is of another model"
            )
        leaves.append(array)
    return jax.tree.unflatten(template.treedef, leaves)
