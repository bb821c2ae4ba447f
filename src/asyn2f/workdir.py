"""The folder of a run: what lies where; `asyn2f.claim` says who may use it."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

CONFIG = "config.json"
RUN = "run.json"  # the run's name
SPLIT = "split.json"  # examples of each class with each worker
SUMMARY = "summary.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
PROGRESS = "progress.npz"  # of a simulation, to go on from
SERVER = "server.json"  # where the server of this run listens
MODELS = "models"
TRACE = "trace"
LOGS = "logs"
TENSORBOARD = "tensorboard"

ENTRIES = (
    *(CONFIG, RUN, SPLIT, SUMMARY, METRICS, REPORT, SERVER, PROGRESS),
    *(MODELS, TRACE, LOGS, TENSORBOARD),
)
"""All that a run leaves in its folder."""


class WorkdirError(Exception):
    """A folder that cannot be used for a run, and why."""


def delete(workdir: Path) -> None:
    """Deletes what a run leaves in its folder, and nothing else in it."""
    for name in ENTRIES:
        path = workdir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_json(
    path: Path, content: dict[str, Any], *, is_private: bool = False
) -> None:
    """Writes the file whole or not at all; NaN becomes null. One that `is_private` is
    for its owner alone."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    if is_private:  # made with its mode: a chmod would come too late
        beside.unlink(missing_ok=True)
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    beside.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """The content of such a file.

    Raises:
      WorkdirError: not there, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkdirError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{path} is not valid JSON: {error}") from error
