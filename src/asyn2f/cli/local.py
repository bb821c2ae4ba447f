"""A whole run on this machine: one server, its workers and an evaluator, as processes.

    python -m launch.local --config=configs/digits.py --workdir=runs/digits

Any key can be given as a flag: --config.workers=8 --config.strategy.name=fedavg
"""

import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from absl import flags

from asyn2f import errors, rundir
from asyn2f.cli import app, children, security
from asyn2f.cli.children import Child
from asyn2f.cli.serving import empty_summary, prepared, print_summary
from asyn2f.config import build
from asyn2f.protocol.status import RunStatus, WorkerStatus
from asyn2f.report.live import LiveView

app.takes("config", "workdir", "insecure", "resume", "overwrite")
_START = flags.DEFINE_integer(
    "start_workers", None, "Start only that many; others may join by hand."
)

_PATIENCE_S = (3.5, 0.7)  # until a child that shall end gets SIGTERM, then SIGKILL


class Launcher:
    """Starts the processes, passes on what they say, and sees to it that all end."""

    def __init__(
        self,
        config: build.Config,
        folder: Path,
        workers: int,
        insecure: bool,
        on_begun: Callable[[], None],
    ) -> None:
        self._on_begun = on_begun  # called when the server listens
        self._view = LiveView()
        self._folder = folder
        self._children = children.start_all(config, folder, workers, insecure)
        self._server = self._children[0]
        # What tells of a child: its pipe, then, when that has broken, its sentinel. The
        # sentinel by itself may tell of the end of what the child was forked from.
        self._watched: dict[Any, Child] = {
            child.pipe: child for child in self._children
        }
        self._codes: dict[str, int] = {}  # of children that have said theirs
        self._joined: set[str] = set()
        self._deadlines_s: list[float] = []
        self._stop_reason: str | None = None
        self._has_begun = False
        self.interrupted = False
        self.usage_error: str | None = None
        # Signals end `wait` by a byte in this pair; their handlers do nothing else.
        self._wake, ring = socket.socketpair()
        ring.setblocking(False)
        signal.set_wakeup_fd(ring.fileno(), warn_on_full_buffer=False)
        self._ring = ring
        for number in app.stopping_signals():
            signal.signal(number, lambda *_: None)

    def run(self) -> str | None:
        """Watches until all have ended; the reason if they were told to stop."""
        try:
            with self._view:
                while self._watched:
                    self._watch()
        finally:
            self._abandon()
        return self._stop_reason

    def _watch(self) -> None:
        timeout_s = None
        if self._deadlines_s:
            timeout_s = max(0.0, self._deadlines_s[0] - time.monotonic())
        for item in wait([*self._watched, self._wake], timeout_s):
            if item is self._wake:
                number = signal.Signals(self._wake.recv(1)[0])
                self.interrupted = True
                self._stop(f"{number.name} received")
            elif isinstance(item, Connection):
                self._hear(self._watched[item])
            else:
                self._on_exit(self._watched.pop(item))
        self._enforce_deadline()

    def _abandon(self) -> None:
        """Ends the remaining children if the launcher itself has failed: a broken pipe
        asks them to stop."""
        left = [child.process for child in self._watched.values()]
        for child in self._watched.values():
            child.pipe.close()
        give_up_s = time.monotonic() + sum(_PATIENCE_S)
        for process in left:
            process.join(max(0.0, give_up_s - time.monotonic()))
            process.kill()

    def _hear(self, child: Child) -> None:
        message = children.hear(child)
        if message is None:
            self._watched[child.process.sentinel] = self._watched.pop(child.pipe)
        elif "code" in message:
            self._codes[child.name] = message["code"]
        elif "address" in message:
            self._on_begun()
            self._view.message(f"server at {message['address']}")
            for other in self._children[1:]:
                other.tell(address=message["address"])
        elif "status" in message:
            status = _status(message["status"])
            self._has_begun = status.state != "waiting for workers"
            self._view.update(status)
            self._tell_who_has_joined(status)
        elif "error" in message:
            if message.get("usage"):
                self.usage_error = message["error"]
            self._view.message(f"{child.name}: {message['error']}")

    def _tell_who_has_joined(self, status: RunStatus) -> None:
        """From then on it gives way. Who did while it starts could start for minutes,
        on cores that others keep busy."""
        joined = {f"worker-{worker.worker}" for worker in status.workers}
        if status.accuracy is not None:
            joined.add("evaluator")
        for child in self._children:
            if child.name in joined - self._joined:
                child.tell(joined=True)
        self._joined |= joined

    def _on_exit(self, child: Child) -> None:
        """A process has ended: the server's end is everybody's, another's is not."""
        code = self._codes.get(child.name, child.process.exitcode)
        left = {other.name for other in self._watched.values()}
        how = f"ended with {code}{self._last_word(child, code)}"
        if child is self._server:
            self._stop("the run is over" if code == 0 else f"the server {how}")
        elif code != 0:
            self._view.message(f"{child.name} {how}")
            if not any(name.startswith("worker") for name in left):
                self._stop("no worker is left")
            elif not self._has_begun and not self._deadlines_s:
                self._stop(f"{child.name} ended before the run began")

    def _last_word(self, child: Child, code: int | None) -> str:
        """The last line of its log, if it failed and could not say why: a library that
        ends the process asks nobody."""
        log = self._folder / rundir.LOGS / f"{child.name}.log"
        if not code or code < 0 or child.name in self._codes or not log.exists():
            return ""
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        return "".join(f": {line.strip()}" for line in lines[-2:-1])

    def _stop(self, reason: str) -> None:
        """Asks the server to end the run; it tells the others. Twice: at once."""
        now = time.monotonic()
        if self._deadlines_s:
            self._deadlines_s = [now, *self._deadlines_s[-1:]]
            return
        self._stop_reason = reason
        self._deadlines_s = [now + _PATIENCE_S[0], now + sum(_PATIENCE_S)]
        self._server.tell(stop=reason)
        if not self._has_begun or self._server not in self._watched.values():
            for child in self._watched.values():
                child.tell(stop=reason)

    def _enforce_deadline(self) -> None:
        """Kills the children that have not ended in time."""
        while self._deadlines_s and time.monotonic() >= self._deadlines_s[0]:
            self._deadlines_s.pop(0)
            for child in self._watched.values():
                if self._deadlines_s:
                    child.process.terminate()
                else:
                    child.process.kill()


def _status(fields: list[Any]) -> RunStatus:
    """JSON makes lists of named tuples."""
    status = RunStatus(*fields)
    return status._replace(
        workers=tuple(WorkerStatus(*worker) for worker in status.workers)
    )


def main() -> int:
    folder = Path(app.required(app.WORKDIR))
    config = app.plain(app.CONFIG.value)
    workers = config["workers"] if _START.value is None else _START.value
    if not 0 <= workers <= config["workers"]:
        raise errors.ConfigError(
            f"--start_workers: found {workers}, allowed: 0 to {config['workers']}"
        )
    task = build.build_task(config)
    insecure = security.INSECURE.value
    with prepared(
        config,
        task,
        folder,
        resume=app.RESUME.value,
        overwrite=app.OVERWRITE.value,
        insecure=insecure,
    ) as claim:
        launcher = Launcher(config, folder, workers, insecure, claim.begin)
        reason = launcher.run()
        if launcher.usage_error is not None:
            app.fail(launcher.usage_error)
        if claim.holds_old:
            app.fail(
                f"the run has not begun ({reason}); {folder} holds the old one still"
            )
        if not (folder / rundir.SUMMARY).exists():
            status = "interrupted" if launcher.interrupted else "failed"
            summary = empty_summary(config, folder, status, reason or "")
            rundir.write_json(folder / rundir.SUMMARY, summary)
        return print_summary(rundir.read_json(folder / rundir.SUMMARY), folder)
