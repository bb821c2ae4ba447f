"""A whole run on this machine: server, workers and evaluator, as processes.

    asyn2f run --config=configs/digits.py --workdir=runs/digits

Each key of the config is a flag: --config.workers=8 --config.strategy.name=fedavg
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
from asyn2f.cli import app, children, process
from asyn2f.cli.children import Child
from asyn2f.cli.server import prepared, print_summary
from asyn2f.config import build, private
from asyn2f.config.schema import RunSettings, section, strategy_of
from asyn2f.protocol.ledger import COUNTED
from asyn2f.protocol.status import RunStatus, WorkerStatus
from asyn2f.report.live import LiveView
from asyn2f.store.orbax import OrbaxStore
from asyn2f.types import Best, Metric, headline_of, metric_of

_START = flags.DEFINE_integer(
    "start_workers", None, "Start only this many; others may join by hand."
)

_PATIENCE_S = (3.5, 0.7)  # until a stopping child gets SIGTERM, and then SIGKILL


def main() -> int:
    request = app.request()
    config, folder = request.config, request.folder
    most = section(config, RunSettings).workers
    workers = most if _START.value is None else _START.value
    if not 0 <= workers <= most:
        raise errors.ConfigError(
            f"--start_workers: found {workers}, allowed: 0 to {most}"
        )
    task = build.build_task(config, "nobody", request.data)
    check_data(request, workers)
    with prepared(request, task) as claim:
        evaluator = private.has_evaluator(config, task)
        print(f"starting {started(workers, evaluator=evaluator)}", flush=True)
        launcher = Launcher(request, workers, claim.begin, evaluator=evaluator)
        reason = launcher.run()
        if launcher.usage_error is not None:
            app.fail(launcher.usage_error)
        if claim.holds_old:
            app.fail(f"the run did not start ({reason}); {folder} is as it was before")
        if not (folder / rundir.SUMMARY).exists():
            status = "interrupted" if launcher.interrupted else "failed"
            summary = empty_summary(config, folder, status, reason or "")
            rundir.write_json(folder / rundir.SUMMARY, summary)
        return print_summary(rundir.read_json(folder / rundir.SUMMARY), folder)


def started(workers: int, *, evaluator: bool) -> str:
    """The processes of a run, in words.

    >>> started(8, evaluator=True)
    'a server, 8 workers and an evaluator'
    >>> started(1, evaluator=False)
    'a server and 1 worker'
    """
    found = ["a server", f"{workers} worker{'s' * (workers != 1)}"]
    found += ["an evaluator"] * evaluator
    return f"{', '.join(found[:-1])} and {found[-1]}"


def check_data(request: app.Request, workers: int) -> None:
    """Raises ConfigError unless each worker that is started has its own data."""
    if private.takes_path(request.config):
        request.data.of_each(workers)


class Launcher:
    """Supervises the processes of a run: starts them, forwards their messages, and
    ends them."""

    def __init__(
        self,
        request: app.Request,
        workers: int,
        on_begun: Callable[[], None],
        *,
        evaluator: bool,
    ) -> None:
        self._on_begun = on_begun  # called when the server listens
        self._view = LiveView()
        self._folder = request.folder
        self._children = children.start_all(request, workers, evaluator=evaluator)
        self._server = self._children[0]
        # By what is waited for: a child's pipe, and once that has broken, its sentinel.
        # A sentinel alone may also report the end of the fork server.
        self._watched: dict[Any, Child] = {
            child.pipe: child for child in self._children
        }
        self._codes: dict[str, int] = {}  # of children that have reported theirs
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
        for number in process.stopping_signals():
            signal.signal(number, lambda *_: None)

    def run(self) -> str | None:
        """Waits until all have ended; returns the reason if they were stopped."""
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
                self._receive(self._watched[item])
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
        for each in left:
            each.join(max(0.0, give_up_s - time.monotonic()))
            each.kill()

    def _receive(self, child: Child) -> None:
        message = child.receive()
        if message is None:
            self._watched[child.process.sentinel] = self._watched.pop(child.pipe)
        elif "code" in message:
            self._codes[child.name] = message["code"]
        elif "address" in message:
            self._on_begun()
            self._view.message(f"server at {message['address']}")
            for other in self._children[1:]:
                other.send(address=message["address"])
        elif "status" in message:
            status = _status(message["status"])
            self._has_begun = status.state != "waiting for workers"
            self._view.update(status)
            self._lower_priorities(status)
        elif "error" in message:
            if message.get("usage"):
                self.usage_error = message["error"]
            self._view.message(f"{child.name}: {message['error']}")

    def _lower_priorities(self, status: RunStatus) -> None:
        """Has each peer lower its priority once it has joined: before, its start could
        take minutes on busy cores."""
        joined = {f"worker-{worker.worker}" for worker in status.workers}
        if status.scores is not None:
            joined.add("evaluator")
        for child in self._children:
            if child.name in joined - self._joined:
                child.send(joined=True)
        self._joined |= joined

    def _on_exit(self, child: Child) -> None:
        """Reports the end of a process; the server's end stops the run."""
        code = self._codes.get(child.name, child.process.exitcode)
        left = {other.name for other in self._watched.values()}
        how = f"ended with {code}{self._last_line_of(child, code)}"
        if child is self._server:
            self._stop("the run is over" if code == 0 else f"the server {how}")
        elif code != 0:
            self._view.message(f"{child.name} {how}")
            if not any(name.startswith("worker") for name in left):
                self._stop("no worker is left")
            elif not self._has_begun and not self._deadlines_s:
                self._stop(f"{child.name} ended before the run began")

    def _last_line_of(self, child: Child, code: int | None) -> str:
        """The last line of its log, if it ended without a report: a library may end the
        process."""
        log = self._folder / rundir.LOGS / f"{child.name}.log"
        if not code or code < 0 or child.name in self._codes or not log.exists():
            return ""
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        return "".join(f": {line.strip()}" for line in lines[-2:-1])

    def _stop(self, reason: str) -> None:
        """Asks the server to end the run, which ends its peers; a second call kills."""
        now = time.monotonic()
        if self._deadlines_s:
            self._deadlines_s = [now, *self._deadlines_s[-1:]]
            return
        self._stop_reason = reason
        self._deadlines_s = [now + _PATIENCE_S[0], now + sum(_PATIENCE_S)]
        self._server.send(stop=reason)
        if not self._has_begun or self._server not in self._watched.values():
            for child in self._watched.values():
                child.send(stop=reason)

    def _enforce_deadline(self) -> None:
        """Terminates, and then kills, children that have not ended in time."""
        while self._deadlines_s and time.monotonic() >= self._deadlines_s[0]:
            self._deadlines_s.pop(0)
            for child in self._watched.values():
                if self._deadlines_s:
                    child.process.terminate()
                else:
                    child.process.kill()


def _status(fields: list[Any]) -> RunStatus:
    """A status from JSON, which has lists for named tuples."""
    status = RunStatus(*fields)
    return status._replace(
        metric=Metric(*status.metric),
        best=None if status.best is None else Best(*status.best),
        workers=tuple(WorkerStatus(*worker) for worker in status.workers),
    )


def empty_summary(
    config: build.Config, folder: Path, status: str, reason: str
) -> dict[str, Any]:
    """The summary of a run whose server was killed: from its newest checkpoint's
    record; null where that has no value."""
    version = 0
    accounting: dict[str, Any] = {}
    best = None
    if (folder / rundir.MODELS).exists():  # else not even JAX may have started
        store = OrbaxStore(folder / rundir.MODELS)
        if store.versions():
            version = max(store.versions())
            accounting = store.record(version).get("accounting", {})
        best = store.best()
        store.close()
    totals = accounting.get("totals", {})
    counts = accounting.get("ledger", {}).get("counts", {})
    stored = rundir.read_json(folder / rundir.RUN)
    metric = metric_of(stored) or Metric(best.metric if best else "score")
    return {
        "status": status,
        "reason": reason,
        "run": stored["run"],
        "strategy": strategy_of(config)[0],
        "seed": section(config, RunSettings).seed,
        "versions": version,
        **headline_of(metric, best, None),
        "wall_s": totals.get("elapsed_s"),
        "updates": {name: counts.get(name) for name in COUNTED},
        "incomplete_versions": totals.get("incomplete_versions"),
        "bytes_up": totals.get("bytes_up"),
        "bytes_down": totals.get("bytes_down"),
        "params_sha256": None,
    }
