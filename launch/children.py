"""The processes that `launch.local` starts, and what they say to it.

A child is forked from a server that has imported JAX and never used it, so it starts in
a fraction of a second. Parent and child talk JSON over a pipe: the parent sends the
address and a wish to stop, the child how things stand; when the pipe breaks, the parent
is gone, and the child ends.
"""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from asyn2f import build, workdir
from asyn2f.runtime.evaluator import Evaluator
from launch import peer, program
from launch.serving import serve

_PRELOADED = ["launch.children", "flax.linen", "optax", "sklearn.datasets"]


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


def begin_preloading() -> None:
    """Has the server that children are forked from import what they need, meanwhile."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # Several processes share one accelerator: none may take all of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    forkserver.ensure_running()


def start_all(config: build.Config, folder: Path, workers: int) -> list[Child]:
    """Starts the server, so many workers, and the evaluator; in this order."""
    context = multiprocessing.get_context("forkserver")

    def start(name: str, target: Callable[..., None], *rest: Any) -> Child:
        here, there = context.Pipe()
        process = context.Process(
            target=target, args=(name, there, config, folder, *rest), name=name
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


def _server(name: str, pipe: Connection, config: build.Config, folder: Path) -> None:
    def body(say: Callable[..., None]) -> None:
        def on_ready(address: str, server: Any) -> None:
            _obey(pipe, server.stop)
            say(address=address)

        serve(config, folder, lambda status: say(status=status), on_ready)

    _run(name, pipe, folder, body)


def _worker(
    name: str, pipe: Connection, config: build.Config, folder: Path, worker: int
) -> None:
    cores = program.usable_cores()
    can_pin = hasattr(os, "sched_setaffinity")
    if can_pin and config["runtime"]["pin"] and config["workers"] >= len(cores):
        os.sched_setaffinity(0, {cores[worker % len(cores)]})
    _join(name, pipe, config, folder, peer.make_worker(worker))


def _evaluator(name: str, pipe: Connection, config: build.Config, folder: Path) -> None:
    _join(name, pipe, config, folder, Evaluator)


def _join(
    name: str, pipe: Connection, config: build.Config, folder: Path, make: peer.Make
) -> None:
    def body(say: Callable[..., None]) -> None:
        def wait_for_address() -> str:
            address: str = json.loads(pipe.recv_bytes())["address"]
            _obey(pipe, stops[0])
            return address

        stops: list[peer.Stop] = []
        ended = peer.join(make, name, config, folder, wait_for_address, stops.append)
        if ended.status != "finished":
            say(error=f"{ended.status}: {ended.reason}")

    _run(name, pipe, folder, body)


def _run(
    name: str,
    pipe: Connection,
    folder: Path,
    body: Callable[[Callable[..., None]], None],
) -> None:
    """A child's life: its output in a file, its errors told to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C does
    logs = folder / workdir.LOGS
    logs.mkdir(parents=True, exist_ok=True)
    with open(logs / f"{name}.log", "ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    program.prepare_jax()
    lock = threading.Lock()

    def say(**message: Any) -> None:
        with lock:
            pipe.send_bytes(json.dumps(message).encode())

    try:
        body(say)
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # the parent has gone
    except program.SPEAKING_ERRORS as error:
        say(error=str(error), usage=True)
        sys.exit(program.USAGE_ERROR)
    except Exception as error:
        logging.exception("%s has failed", name)
        say(error=f"{type(error).__name__}: {error} (see {logs / name}.log)")
        sys.exit(1)


def _obey(pipe: Connection, stop: Callable[[str], None]) -> None:
    """Stops when the parent says so, ends, or somebody sends SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: stop("SIGTERM"))

    def listen() -> None:
        try:
            stop(json.loads(pipe.recv_bytes())["stop"])
        except (EOFError, OSError):
            stop("the launcher has ended")

    threading.Thread(target=listen, name="parent", daemon=True).start()
