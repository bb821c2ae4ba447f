"""The programs as a user runs them: real processes, real sockets, real signals.

`start` starts the interpreter as a shell does. `run` forks it from a process that has
imported JAX and never used it, which saves two thirds of a short program's time;
nothing else is shared.
"""

import atexit
import json
import multiprocessing
import os
import re
import runpy
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
FAST = [
    "--config=configs/digits.py",
    "--config.workers=3",
    "--config.stop.max_versions=12",
    "--config.timing.epochs_per_push=1",
    "--config.timing.min_updates=2",
    "--config.worker_speeds=(200.0,100.0,50.0)",
    "--config.runtime.idle_priority=False",  # other tests keep all cores busy
]
ENDLESS = [*FAST, "--config.stop.max_versions=100000"]
Outcome = tuple[int, str, str]  # exit code, output, errors

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["asyn2f.cli.local", "asyn2f.cli.simulate"])


def run(program: str, *flags: str, folder: Path = ROOT) -> Outcome:
    """The outcome of a program that is run in this folder."""
    with tempfile.TemporaryDirectory() as name:
        out, err = paths = Path(name, "out"), Path(name, "err")
        process = _CONTEXT.Process(
            target=_run, args=(program, flags, folder, *paths, dict(os.environ))
        )
        process.start()
        process.join(PATIENCE_S)
        assert process.exitcode is not None, out.read_text() + err.read_text()
        return process.exitcode, out.read_text(), err.read_text()


def _run(program, flags, folder, out, err, env) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.path[:0] = [str(folder), str(ROOT / "src"), str(ROOT)]
    sys.argv = ["", *flags]
    try:
        runpy.run_module(f"launch.{program}", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        atexit._run_exitfuncs()
        os._exit(1 if isinstance(error.code, str) else int(error.code or 0))


def start(program: str, *flags: str, **options: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"launch.{program}", *flags],
        cwd=ROOT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def finish(process: subprocess.Popen) -> Outcome:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen, pattern: str) -> str:
    """The next line of its output that has this in it."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"{process.args} ended: {process.stderr.read()}")


def children_of(pid: int) -> set[int]:
    """All descendants that live at this moment (Linux)."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found |= {child} | children_of(child)
    return found


def has_ended(pid: int, by_s: float) -> bool:
    """Whether a process that is not our child ends before this monotonic time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        left_s = max(0.0, by_s - time.monotonic())
        return bool(select.select([handle], [], [], left_s)[0])
    finally:
        os.close(handle)


def read(path: Path) -> dict:
    return json.loads(path.read_text())
