"""Servers as programs: one is stopped and replaced (R-07), one has no memory (R-23)."""

import os
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

from asyn2f import rundir
from asyn2f.api.verification import artifacts_of
from asyn2f.trace import invariants
from asyn2f.trace.artifacts import RunArtifacts
from tests.soak.figures import Figure
from tests.support.crashed_run import SMALL, newest_saved, processes
from tests.support.patience import PATIENCE_S, wait_until

ENDED_S = 2.0  # promised: after SIGCONT the one that was replaced is gone
STANDS_STILL_S = 20.0  # then it is killed, as an operator would
SAID = ("is not saved", "it will be tried again", "the store has failed")
ENDLESS = [*SMALL, "--config.stop.max_versions=100000"]
MIB = 2**20


def takeover(folder: Path, seed: int, stopped_s: float) -> list[Figure]:
    """A server is stopped at any moment, a second one takes its run over, and the first
    goes on: it ends by itself, and writes nothing."""
    chance = random.Random(seed)
    run, models = folder / "run", folder / "run" / "models"
    all_kept = "--config.runtime.keep_younger_than_s=1e6"
    flags = [*ENDLESS, all_kept, f"--workdir={run}"]
    with _programs(folder) as start:
        first = start("server", *flags)
        wait_until((run / rundir.SERVER).exists, first)
        peers = [start("worker", *flags, f"--worker={n}") for n in (0, 1)]
        peers.append(start("evaluator", *flags))
        wait_until(lambda: newest_saved(models) >= 3, first)
        threading.Event().wait(chance.uniform(0.0, 1.0))
        first.send_signal(signal.SIGSTOP)
        before, begun_s = newest_saved(models), time.monotonic()
        second = start("server", *flags, "--resume")
        wait_until((models / "incarnations" / "2").exists, second)
        left_s = begun_s + stopped_s - time.monotonic()
        threading.Event().wait(max(0.0, left_s))
        frozen, continued_s = newest_saved(models), time.monotonic()
        first.send_signal(signal.SIGCONT)
        code = first.wait(PATIENCE_S)
        ended_s = time.monotonic() - continued_s
        goal = newest_saved(models) + 5
        wait_until(lambda: newest_saved(models) >= goal, second)
        second.send_signal(signal.SIGTERM)
        codes = [each.wait(PATIENCE_S) for each in (second, *peers)]
    print(f"stopped at {before}, continued at {frozen}, ended with {code}; {codes}")
    found = artifacts_of(run)
    of_first = [v for v, c in found.commits.items() if c.incarnation == 1]
    return [
        Figure("ended_s", ended_s, ENDED_S),
        Figure("not_ended_as_replaced", float(code != 2), 0),
        Figure("written_since", float(max(of_first, default=0) > before), 0),
        Figure("peers_lost", sum(c != 0 for c in codes[1:]), 0),
        broken(found),
    ]


def memory(folder: Path, seed: int, times: int) -> list[Figure]:
    """A server that gets no more memory, at any moment, so often: it dies of that, and
    the next one goes on."""
    chance = random.Random(seed)
    run, models = folder / "run", folder / "run" / "models"
    large = ["--config.task.hidden=(2048,1024)", "--config.worker_speeds=(60.0,40.0)"]
    flags = [*ENDLESS, *large, f"--workdir={run}"]
    died, stood_still, silent, logs = 0, 0, 0, folder / "logs"
    with _programs(folder) as start:
        server = start("server", *flags)
        wait_until((run / rundir.SERVER).exists, server)
        peers = [start("worker", *flags, f"--worker={n}") for n in (0, 1)]
        for _ in range(times):
            goal = newest_saved(models) + 2
            wait_until(lambda goal=goal: newest_saved(models) >= goal, server)
            starve(server.pid, chance.randrange(32 * MIB))
            try:
                code = server.wait(STANDS_STILL_S)
                died += 1
            except subprocess.TimeoutExpired:  # a thread waits for one without memory
                said = sorted(logs.glob("*-server.log"), key=_started)[-1].read_text()
                stood_still += 1
                silent += not any(words in said for words in SAID)
                server.kill()
                code = server.wait()
            print(f"version {newest_saved(models)}: ended with {code}", flush=True)
            server = start("server", *flags, "--resume")
        goal = newest_saved(models) + 3
        wait_until(lambda: newest_saved(models) >= goal, server)
        server.send_signal(signal.SIGTERM)
        codes = [each.wait(PATIENCE_S) for each in (server, *peers)]
    print(f"{died} died, {stood_still} stood still and were killed; {codes}")
    found = artifacts_of(run)
    return [
        Figure("stood_still_in_silence", silent, 0),
        Figure("peers_lost", sum(c != 0 for c in codes[1:]), 0),
        broken(found),
    ]


def starve(pid: int, left: int) -> None:
    """From now on the process gets no more than so many bytes of address space besides
    what it has (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + left
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def broken(found: RunArtifacts) -> Figure:
    """How many promises about the run were broken; each is printed."""
    violations = invariants.check(found).violations
    for violation in violations:
        print(f"BROKEN {violation.invariant}: {violation.what}")
    return Figure("broken", len(violations), 0)


def _started(log: Path) -> int:
    """Its number among the programs, in order."""
    return int(log.name.split("-")[0])


def _programs(folder: Path):
    logs = folder / "logs"
    logs.mkdir(parents=True)
    return processes(logs)
