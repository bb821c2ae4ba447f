"""The data of a run: what its folder says of them, and whether they are still those."""

import os
from pathlib import Path

from asyn2f import errors, rundir
from asyn2f.config import build
from asyn2f.tasks.base import Task, class_counts
from asyn2f.tasks.tfds import is_folder
from asyn2f.training.agreement import data_digests


def write_split(folder: Path, task: Task) -> None:
    """Writes each worker's class counts and the digest of its data."""
    said = {"counts": class_counts(task), "data": data_digests(task)}
    rundir.write_json(folder / rundir.SPLIT, said)


def check_same_data(folder: Path, task: Task) -> None:
    """Compares the data with those that the run in that folder was begun with: a file
    that a config names may be edited, and keep its name.

    Raises:
      ConfigError: they differ.
    """
    if not (folder / rundir.SPLIT).exists():
        return
    then = rundir.read_json(folder / rundir.SPLIT).get("data")
    now = data_digests(task)
    if then is None or tuple(then) == now:  # None: of an older version
        return
    names = [*(f"worker {k}" for k in range(len(task.shards))), "the test set"]
    pairs = zip(names, now, then, strict=False)
    other = [name for name, here, there in pairs if here != there] or names
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    raise errors.ConfigError(
        f"config.task: the data of {', '.join(other[:3])}{more} are not those that the "
        f"run in {folder} was begun with: has a file of the data set or of the "
        "partition been changed? Restore it, or begin another run"
    )


_PATHS = (("task", "indices"), ("task", "data_dir"), ("runtime", "keys_dir"))


def with_absolute_paths(config: build.Config) -> build.Config:
    """The config with its paths as seen from anywhere: a run is replayed and resumed
    from other working directories than the one it was begun in."""
    found = {k: dict(v) if isinstance(v, dict) else v for k, v in config.items()}
    paths = [*_PATHS]
    if is_folder(config["task"]["dataset"]):
        paths.append(("task", "dataset"))
    if config["sim"]["profiles"] != "drawn":
        paths.append(("sim", "profiles"))
    for section, key in paths:
        if found[section][key]:
            found[section][key] = os.path.abspath(
                os.path.expanduser(found[section][key])
            )
    return found
