"""The processes that `launch.local` starts, and what they say to it.

A child is forked from a server that has imported JAX and never used it, so it starts in
a fraction of a second. Parent and child talk JSON over a pipe: the parent sends the
address and a wish to stop, the child how things stand; when the pipe breaks, the parent
is gone, and the child ends.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from asyn2f import errors, rundir
from asyn2f.cli import app, machine, peers
from asyn2f.cli.claim import in_use
from asyn2f.cli.serving import serve
from asyn2f.config import build, config_file
from asyn2f.protocol.status import RunStatus
from asyn2f.runtime.evaluator import Evaluator
from asyn2f.runtime.server import Server

_NICE = 10  # where a process cannot say that it is idle, or is not to


class Child(NamedTuple):
    """A process of this machine's run."""

    name: str
    process: BaseProcess
    pipe: Connection

    def tell(self, **message: Any) -> None:
        """Sends it a message; nothing happens if it has ended."""
        try:
            self.pipe.send_bytes(json.dumps(message).encode())
        except OSError:
            logging.debug("%s has ended", self.name)


def start_all(
    config: build.Config, folder: Path, workers: int, insecure: bool
) -> list[Child]:
    """Starts the server, so many workers, and the evaluator; in this order."""
    context = multiprocessing.get_context("forkserver")
    source = config_file.imported()

    def start(name: str, target: Callable[..., None], *rest: Any) -> Child:
        here, there = context.Pipe()
        process = context.Process(
            target=target,
            args=(name, there, source, config, folder, insecure, *rest),
            name=name,
        )
        process.start()
        there.close()
        return Child(name, process, here)

    return [
        start("server", _server),
        *(start(f"worker-{k}", _worker, k) for k in range(workers)),
        start("evaluator", _evaluator),
    ]


def hear(child: Child) -> dict[str, Any] | None:
    """A child's next message; None when it has said its last."""
    try:
        return json.loads(child.pipe.recv_bytes())
    except (EOFError, OSError):
        return None


class _Parent:
    """The child's side of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._addresses: SimpleQueue[str | None] = SimpleQueue()
        self._stop: Callable[[str], None] | None = None
        self.lower_priority: Callable[[], None] = lambda: None  # see `Child.tell`
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def say(self, **message: Any) -> None:
        """Tells the parent; a parent that has gone is noticed by `_listen`."""
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send_bytes(json.dumps(message).encode())

    def wait_for_address(self) -> str:
        """Where the server listens, as soon as the parent knows.

        Raises:
          SystemExit: there will be none, as the run ends before it has begun.
        """
        address = self._addresses.get()
        if address is None:
            sys.exit(0)
        return address

    def obey(self, stop: Callable[[str], None]) -> None:
        """From now on a wish to stop, the parent's end and SIGTERM call this."""
        self._stop = stop
        signal.signal(signal.SIGTERM, lambda *_: stop("SIGTERM"))

    def _listen(self) -> None:
        reason = None
        while reason is None:
            try:
                message = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                message = {"stop": "the launcher has ended"}
            if "address" in message:
                self._addresses.put(message["address"])
            if message.get("joined"):
                self.lower_priority()
            reason = message.get("stop")
        if self._stop is None:
            os._exit(0)  # not at work yet: nothing to bring to an end
        self._addresses.put(None)
        self._stop(reason)


def _server(
    name: str,
    pipe: Connection,
    source: Path | None,
    config: build.Config,
    folder: Path,
    insecure: bool,
) -> None:
    def body(parent: _Parent) -> None:
        def on_ready(address: str, server: Server) -> None:
            parent.obey(server.stop)
            parent.say(address=address)

        def on_status(status: RunStatus) -> None:
            parent.say(status=status)

        with in_use(folder):
            serve(config, folder, on_status, on_ready, insecure)

    _run(name, pipe, source, folder, body)


def _worker(
    name: str,
    pipe: Connection,
    source: Path | None,
    config: build.Config,
    folder: Path,
    insecure: bool,
    worker: int,
) -> None:
    cores = machine.usable_cores()
    can_pin = hasattr(os, "sched_setaffinity")
    if can_pin and config["runtime"]["pin_cpus"] and config["workers"] >= len(cores):
        os.sched_setaffinity(0, {cores[worker % len(cores)]})
    _join(name, pipe, source, config, folder, insecure, peers.make_worker(worker))


def _evaluator(
    name: str,
    pipe: Connection,
    source: Path | None,
    config: build.Config,
    folder: Path,
    insecure: bool,
) -> None:
    _join(name, pipe, source, config, folder, insecure, Evaluator)


def _lower_priority(config: build.Config) -> None:
    """To the server, which has many small things to do, and to whoever writes to disks
    for it: on machines of their own the workers would not be in their way either."""
    threads = Path("/proc/self/task")
    is_idle = config["runtime"]["idle_priority"]
    for thread in [int(p.name) for p in threads.iterdir()] if threads.exists() else [0]:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            _lower(thread, is_idle)


def _lower(thread: int, is_idle: bool) -> None:
    if is_idle and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(PermissionError):  # not everybody may choose
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            return
    os.setpriority(os.PRIO_PROCESS, thread, _NICE)


def _join(
    name: str,
    pipe: Connection,
    source: Path | None,
    config: build.Config,
    folder: Path,
    insecure: bool,
    make: peers.Make,
) -> None:
    def body(parent: _Parent) -> None:
        parent.lower_priority = lambda: _lower_priority(config)
        address, obey = parent.wait_for_address, parent.obey
        ended = peers.join(make, name, config, folder, address, obey, insecure)
        if ended.status != "finished":
            parent.say(error=f"{ended.status}: {ended.reason}")
            sys.exit(peers.EXIT_CODES[ended.status])

    _run(name, pipe, source, folder, body)


def _run(
    name: str,
    pipe: Connection,
    source: Path | None,
    folder: Path,
    body: Callable[[_Parent], None],
) -> None:
    """A child's life: its output in a file, its errors told to the parent. `source` is
    the config's file, which may register what the config names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C does
    logs = folder / rundir.LOGS
    logs.mkdir(parents=True, exist_ok=True)
    with rundir.append_to(logs / f"{name}.log") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    app.log_with_dates()
    parent = _Parent(pipe)
    code = 0
    try:
        machine.prepare_jax()
        if source is not None:
            config_file.import_file(source)
        body(parent)
    except errors.Asyn2fError as error:
        parent.say(error=str(error), usage=True)
        code = app.USAGE_ERROR
    except Exception as error:
        logging.exception("%s has failed", name)
        parent.say(error=f"{type(error).__name__}: {error} (see {logs / name}.log)")
        code = 1
    except SystemExit as ended:
        code = int(ended.code or 0)
    parent.say(code=code)
    sys.exit(code)
