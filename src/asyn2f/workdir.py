"""The folder of a run: what lies where, and how it is claimed."""

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

_FILES = (CONFIG, RUN, SPLIT, SUMMARY, METRICS, REPORT, SERVER, PROGRESS)
_FOLDERS = (MODELS, TRACE, LOGS, TENSORBOARD)


class WorkdirError(Exception):
    """A folder that cannot be used for a run, and why."""


def claim(workdir: Path, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder ready for a run: new, resumed, or in place of an old one.

    Overwriting deletes what a run leaves in its folder, and nothing else in it.

    Raises:
      WorkdirError: it holds a run and neither flag is given; or there is nothing to
        resume; or it cannot be written.
    """
    holds_run = (workdir / CONFIG).exists()
    if resume and overwrite:
        raise WorkdirError("--resume and --overwrite exclude each other; give one")
    if resume and not holds_run:
        raise WorkdirError(
            f"--resume: {workdir} holds no run (no {CONFIG}); leave --resume out"
        )
    if holds_run and not resume and not overwrite:
        raise WorkdirError(
            f"{workdir} holds a run already; give --resume to go on with it, "
            "--overwrite to delete it, or another --workdir"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for name in _FILES:
                (workdir / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                if (workdir / name).exists():
                    shutil.rmtree(workdir / name)
        for name in (SUMMARY, REPORT):
            (workdir / name).unlink(missing_ok=True)
    except OSError as error:
        raise WorkdirError(f"cannot use {workdir}: {error.strerror}") from error
    if not os.access(workdir, os.W_OK):
        raise WorkdirError(f"cannot write into {workdir}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all; NaN becomes null."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
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
