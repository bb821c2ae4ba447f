"""The processes that `asyn2f run` starts, and their messages to the launcher.

A child is forked from a fork server that has imported JAX and never used it, so it
starts in a fraction of a second. Parent and child exchange JSON over a pipe: the parent
sends the server's address and requests to stop, the child its status. When the pipe
breaks, the parent has ended, and the child ends too.
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
from asyn2f.cli.server import serve
from asyn2f.config import build, config_file
from asyn2f.config.schema import RunSettings, section
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.protocol.status import RunStatus
from asyn2f.runtime.server import Server

_NICE = 10  # where SCHED_IDLE is not available, or not wanted


class Child(NamedTuple):
    """A process of this machine's run."""

    name: str
    process: BaseProcess
    pipe: Connection

    def send(self, **message: Any) -> None:
        """Sends it a message, unless it has ended."""
        try:
            self.pipe.send_bytes(json.dumps(message).encode())
        except OSError:
            logging.debug("%s has ended", self.name)

    def receive(self) -> dict[str, Any] | None:
        """Its next message; None after its last."""
        try:
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None


class _Start(NamedTuple):
    """What a child is started with."""

    name: str
    pipe: Connection
    source: Path | None  # the config's file, which may register what the config names
    request: app.Request


def start_all(
    request: app.Request, workers: int, *, evaluator: bool = True
) -> list[Child]:
    """Starts the server, this number of workers, and the evaluator if there is to be
    one; in this order."""
    context = multiprocessing.get_context("forkserver")
    source = config_file.imported()

    def start(name: str, target: Callable[..., None], *rest: Any) -> Child:
        here, there = context.Pipe()
        own = request.data.only(*rest)
        args = (_Start(name, there, source, request._replace(data=own)), *rest)
        process = context.Process(target=target, args=args, name=name)
        process.start()
        there.close()
        return Child(name, process, here)

    return [
        start("server", _server),
        *(start(f"worker-{k}", _worker, k) for k in range(workers)),
        *([start("evaluator", _evaluator)] if evaluator else []),
    ]


class _Parent:
    """The child's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._addresses: SimpleQueue[str | None] = SimpleQueue()
        self._stop: Callable[[str], None] | None = None
        self.lower_priority: Callable[[], None] = lambda: None  # see `Launcher`
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def send(self, **message: Any) -> None:
        """Sends the parent a message; `_listen` notices if it has ended."""
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send_bytes(json.dumps(message).encode())

    def wait_for_address(self) -> str:
        """Waits for the server's address.

        Raises:
          SystemExit: the run ends before the server listens.
        """
        address = self._addresses.get()
        if address is None:
            sys.exit(0)
        return address

    def set_stop_handler(self, stop: Callable[[str], None]) -> None:
        """Calls `stop` on a request to stop, the parent's end, or SIGTERM."""
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
            os._exit(0)  # nothing has started yet
        self._addresses.put(None)
        self._stop(reason)


def _server(start: _Start) -> None:
    def body(parent: _Parent) -> None:
        def on_ready(address: str, server: Server) -> None:
            parent.set_stop_handler(server.stop)
            parent.send(address=address)

        def on_status(status: RunStatus) -> None:
            parent.send(status=status)

        with in_use(start.request.folder):
            serve(start.request, on_status, on_ready)

    _run(start, body)


def _worker(start: _Start, worker: int) -> None:
    config, cores = start.request.config, machine.usable_cores()
    pins = section(config, RuntimeSettings).pin_cpus
    pins = pins and section(config, RunSettings).workers >= len(cores)
    if pins and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores[worker % len(cores)]})
    _join(start, peers.make_worker(worker), worker)


def _evaluator(start: _Start) -> None:
    _join(start, peers.make_evaluator)


def _join(start: _Start, make: peers.Make, whose: build.Whose = "nobody") -> None:
    def body(parent: _Parent) -> None:
        request = start.request
        task = build.build_task(request.config, whose, request.data)
        settings = section(request.config, RuntimeSettings)
        parent.lower_priority = lambda: lower_priority(settings.idle_priority)
        address, ready = parent.wait_for_address, parent.set_stop_handler
        ended = peers.join(make, start.name, request, address, ready, task)
        if ended.status != "finished":
            parent.send(error=f"{ended.status}: {ended.reason}")
            sys.exit(peers.EXIT_CODES[ended.status])

    _run(start, body)


def lower_priority(is_idle: bool) -> None:
    """Gives the server, and the kernel's threads that write to disks for it, priority
    over this process: on machines of their own, workers would not delay them either.

    Args:
      is_idle: take only time that no other process wants, where that is possible.
    """
    threads = Path("/proc/self/task")
    for thread in [int(p.name) for p in threads.iterdir()] if threads.exists() else [0]:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            _lower(thread, is_idle)


def _lower(thread: int, is_idle: bool) -> None:
    if is_idle and hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            return
    os.setpriority(os.PRIO_PROCESS, thread, _NICE)


def _run(start: _Start, body: Callable[[_Parent], None]) -> None:
    """Runs a child: its output goes to a log file, its errors to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    logs = start.request.folder / rundir.LOGS
    logs.mkdir(parents=True, exist_ok=True)
    with rundir.append_to(logs / f"{start.name}.log") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    app.log_with_dates()
    parent = _Parent(start.pipe)
    code = 0
    try:
        machine.prepare_jax()
        if start.source is not None:
            config_file.import_file(start.source)
        body(parent)
    except errors.ExecutionError as error:  # in the code of a task or a strategy
        logging.exception("%s has failed", start.name)
        parent.send(error=f"{error} (see {logs / start.name}.log)")
        code = 1
    except errors.Asyn2fError as error:
        parent.send(error=str(error), usage=True)
        code = app.USAGE_ERROR
    except Exception as error:
        logging.exception("%s has failed", start.name)
        log_file = logs / f"{start.name}.log"
        parent.send(error=f"{type(error).__name__}: {error} (see {log_file})")
        code = 1
    except SystemExit as ended:
        code = int(ended.code or 0)
    parent.send(code=code)
    sys.exit(code)
