"""A long run in which something is killed, stopped or cut off every few seconds (R-24).

A server, eight workers, each behind a `ChaosProxy`, and an evaluator, as processes; the
server is killed as well, and goes on with --resume. In the end all faults stop, the run
must go on, end, and be in order; its accuracy is compared with that of a run of as many
versions without faults.
"""

import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from asyn2f import rundir, trace
from asyn2f.api.verification import artifacts_of
from asyn2f.programs import UpdateKey
from asyn2f.trace.invariants import check
from tests.soak.figures import Figure
from tests.soak.programs import broken
from tests.support.chaos import ChaosProxy

WORKERS = 8
MEAN_S = 5.0  # between two faults
GOES_ON_S = 60.0  # promised: updates are settled again, once faults have stopped
ENDS_S = 30.0
ACCURACY = 0.01  # promised: lost to faults, at most
LAST = 10  # scores that a run's accuracy is the median of
STARTS_S = 300.0  # ten processes compile at once
FLAGS = (
    "--config=configs/digits.py",
    f"--config.workers={WORKERS}",
    "--config.min_workers=1",
    "--config.timing.epochs_per_push=4",
    "--config.timing.min_updates=3",
    "--config.stop.max_versions=0",
    "--config.stop.max_time_s=1e6",
    "--config.worker_speeds=(60.0,30.0)",
)
LOCAL = (sys.executable, "-m", "launch.local")
KINDS = ("kill", "stop", "cut", "stall", "kill server", "stop server")
OFTEN = (4, 3, 4, 4, 1, 1)


class Chaos:
    """The processes, and what is done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.faults: Counter[str] = Counter()
        self.slowest_return_s = 0.0
        self._chance = random.Random(seed)
        self._logs = (folder.parent / f"{folder.name}.log").open("ab")
        self._later: list[tuple[float, Callable[[], object]]] = []
        self.server = self._start("server")
        while not (folder / rundir.SERVER).exists():
            self._tick(0.2)
        ports = tuple(rundir.read_json(folder / rundir.SERVER)["ports"])
        self.proxies = [
            ChaosProxy(f"127.0.2.{n + 1}", ports, seed=1000 * seed + n)
            for n in range(WORKERS)
        ]
        self.workers = [self._start_worker(number) for number in range(WORKERS)]
        self.evaluator = self._start("evaluator")
        self._wait_settled(STARTS_S)

    def _start(self, program: str, *flags: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-X", "faulthandler", "-m", f"launch.{program}"]
        return subprocess.Popen(
            [*command, *FLAGS, f"--workdir={self.folder}", *flags],
            stdout=self._logs,
            stderr=self._logs,
        )

    def _start_worker(self, number: int) -> subprocess.Popen[bytes]:
        address = self.proxies[number].address
        return self._start("worker", f"--worker={number}", f"--server={address}")

    def _tick(self, seconds: float) -> None:
        """Time passes; what is due is done, and no process may end by itself."""
        until_s = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            due = [action for due_s, action in self._later if due_s <= now]
            self._later = [pair for pair in self._later if pair[0] > now]
            for action in due:
                action()
            for name, process in self.processes().items():
                assert process.poll() is None, f"{name} ended: {process.returncode}"
            if now >= until_s:
                return
            threading.Event().wait(min(0.05, until_s - now))

    def processes(self) -> dict[str, subprocess.Popen[bytes]]:
        """Those that should live."""
        found = {"server": self.server}
        if hasattr(self, "evaluator"):
            found |= {f"worker-{n}": w for n, w in enumerate(self.workers)}
            found["evaluator"] = self.evaluator
        return found

    def _in(self, seconds: float, action: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, action))

    def disturb(self) -> None:
        """One fault, after the pause before it."""
        self._tick(self._chance.expovariate(1 / MEAN_S))
        (kind,) = self._chance.choices(KINDS, OFTEN)
        number, lasts_s = self._chance.randrange(WORKERS), self._chance.uniform(0.5, 8)
        worker, proxy = self.workers[number], self.proxies[number]
        links = self._chance.sample(proxy.each(), self._chance.randint(1, 3))
        match kind:
            case "kill":
                _kill(worker)
                self.workers[number] = self._start_worker(number)
            case "stop":
                self._stop(worker, lasts_s)
            case "cut":
                for link in links:
                    link.cut()
            case "stall":
                for link in links:
                    link.set(stalled=True)
                    self._in(lasts_s, lambda link=link: link.set(stalled=False))
            case "kill server":
                _kill(self.server)
                self.server = self._start("server", "--resume")
            case "stop server":
                self._stop(self.server, lasts_s)
        self.faults[kind] += 1

    def _stop(self, process: subprocess.Popen[bytes], lasts_s: float) -> None:
        process.send_signal(signal.SIGSTOP)
        self._in(lasts_s, lambda: process.send_signal(signal.SIGCONT))

    def heal(self) -> float:
        """Ends all faults; seconds until all workers' new updates are in versions."""
        while self._later:
            self._tick(0.1)
        for proxy in self.proxies:
            proxy.calm()
        return self._wait_settled(GOES_ON_S)

    def _wait_settled(self, most_s: float) -> float:
        """Until every worker has made an update from now on that is settled; how long
        that took."""
        start_s, since_s = time.monotonic(), time.time()
        missing = set(range(WORKERS))
        while missing:
            self._tick(0.5)
            events = trace.read(self.folder / rundir.TRACE)
            pushed = {
                UpdateKey(e.worker, e.session, e.seq)
                for e in events
                if isinstance(e, trace.Pushed) and e.time_s > since_s
            }
            settled = {
                UpdateKey(e.worker, e.session, e.seq)
                for e in events
                if isinstance(e, trace.UpdateSettled)
            }
            missing -= {key.worker for key in pushed & settled}
            took_s = time.monotonic() - start_s
            assert took_s < most_s, f"nothing settled of {sorted(missing)}"
        return took_s

    def end(self) -> tuple[float, dict[str, int]]:
        """Ends the run; how long that took, and exit codes. Who hangs says where."""
        self.server.send_signal(signal.SIGTERM)
        start_s, codes = time.monotonic(), {}
        for name, process in self.processes().items():
            try:
                left_s = start_s + ENDS_S - time.monotonic()
                codes[name] = process.wait(max(0.0, left_s))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)
                codes[name] = process.wait()
        return time.monotonic() - start_s, codes

    def close(self) -> None:
        """Leaves nothing behind."""
        for process in self.processes().values():
            if process.poll() is None:
                _kill(process)
        for proxy in self.proxies:
            proxy.close()
        self._logs.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def monkey(folder: Path, seed: int, minutes: float) -> list[Figure]:
    """Faults for so long, then calm, then the end; and a run of as many versions
    without any, to compare."""
    run = folder / "run"
    chaos = Chaos(run, seed)
    try:
        until_s = time.monotonic() + 60 * minutes
        while time.monotonic() < until_s:
            chaos.disturb()
        back_s = chaos.heal()
        ended_s, codes = chaos.end()
    finally:
        chaos.close()
    expected = {name: 130 if name == "server" else 0 for name in codes}
    found = artifacts_of(run)
    outcomes = dict(check(found).outcomes)
    versions = max(found.commits)
    print(f"faults: {dict(chaos.faults)}; {versions} versions of {outcomes}")
    print(
        f"back after {back_s:.1f} s, ended after {ended_s:.1f} s: {codes}", flush=True
    )
    calm, last = folder / "calm", f"--config.stop.max_versions={versions}"
    subprocess.run(
        [*LOCAL, *FLAGS, last, f"--workdir={calm}"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    accuracies = [_settled_accuracy(each) for each in (calm, run)]
    print(f"accuracy {accuracies[0]:.4f} without faults, {accuracies[1]:.4f} with")
    return [
        Figure("back_s", back_s, GOES_ON_S),
        Figure("ended_s", ended_s, ENDS_S),
        Figure("other_exit_codes", sum(codes[n] != expected[n] for n in codes), 0),
        Figure("accuracy_lost", accuracies[0] - accuracies[1], ACCURACY),
        broken(found),
    ]


def _settled_accuracy(run: Path) -> float:
    """The median of the last scores: one alone varies by more."""
    events = trace.read(run / rundir.TRACE)
    scores = [e for e in events if isinstance(e, trace.Evaluated)]
    last = sorted(scores, key=lambda e: e.version)[-LAST:]
    return statistics.median(e.scores["accuracy"] for e in last)
