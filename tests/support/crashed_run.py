"""A run whose server dies at a named place and is started again: real processes."""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from asyn2f import failpoints, trace
from asyn2f.api.verification import artifacts_of
from asyn2f.trace import invariants
from asyn2f.trace.artifacts import RunArtifacts
from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
VERSIONS = 16
SMALL = [
    "--config=configs/digits.py",
    "--config.workers=2",
    "--config.timing.epochs_per_push=1",
    "--config.timing.min_updates=2",
    "--config.worker_speeds=(200.0,100.0)",
    # So few that the cleaner has work.
    "--config.runtime.keep_last=3",
    "--config.runtime.keep_younger_than_s=0.5",
    f"--config.stop.max_versions={VERSIONS}",
]


class Crashed(NamedTuple):
    """What became of it.

    Attributes:
      found: what the run left behind.
      back_s: from the start of the last server's trace until the last worker was
        welcomed by it; None if nobody came.
      exits: exit codes of the servers, in order.
      peers: exit codes of workers and evaluator.
      said: what all of them printed.
    """

    found: RunArtifacts
    back_s: float | None
    exits: list[int]
    peers: list[int]
    said: str


def crash(folder: Path, *deaths: str, flags: tuple[str, ...] = ()) -> Crashed:
    """Servers that die at these places, one after the other, each going on with what
    the one before has left; and one more that lives. Workers and evaluator are started
    once, and outlive them.

    Args:
      folder: for the run.
      deaths: places as in `crashes`: "announced:3".
      flags: settings besides `SMALL`.
    """
    address = free_address()
    common = [
        *SMALL,
        *flags,
        f"--config.runtime.address={address}",
        f"--workdir={folder}",
    ]
    logs = folder.with_name(f"{folder.name}.logs")
    logs.mkdir()
    exits: list[int] = []
    with processes(logs) as start:
        server = start("server", *common, dies=deaths[0] if deaths else "")
        roles = [("worker", "--worker=0"), ("worker", "--worker=1"), ("evaluator",)]
        peers = [
            start(name, *rest, *common, f"--server={address}") for name, *rest in roles
        ]
        for dies in [*deaths[1:], ""][: len(deaths)]:
            exits.append(server.wait(PATIENCE_S))
            server = start("server", *common, "--resume", dies=dies)
        exits.append(server.wait(PATIENCE_S))
        codes = [peer.wait(PATIENCE_S) for peer in peers]
    found = artifacts_of(folder)
    said = "\n".join(
        f"--- {log.name}\n{log.read_text()}" for log in sorted(logs.iterdir())
    )
    return Crashed(found, _back_s(found.events), exits, codes, said)


def check_run(run: Crashed, deaths: int = 1) -> None:
    """All that is promised of a run whose server has died so often.

    Raises:
      AssertionError: what was broken, and what the processes said.
    """
    judgement = invariants.check(run.found)
    assert not judgement.violations, (judgement.violations, run.said)
    assert run.exits == [-signal.SIGKILL] * deaths + [0], run.said
    assert run.peers == [0, 0, 0], run.said
    assert judgement.outcomes["committed"] > 0
    # A worker goes on without its server, and withdraws what is too old to be kept.
    ends = {"committed", "superseded", "rejected", "withdrawn"}
    assert judgement.outcomes.keys() <= ends, judgement.outcomes
    assert max(run.found.commits) == VERSIONS


def free_address() -> str:
    """An address with three free ports in a row."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            try:
                for number, each in enumerate((one, two, three)):
                    each.bind(("127.0.0.1", port + number))
            except OSError:
                continue
        return f"tcp://127.0.0.1:{port}"


@contextmanager
def processes(logs: Path) -> Iterator:
    """A function that starts programs; they are killed at the end if they still run."""
    started: list[subprocess.Popen] = []

    def start(program: str, *flags: str, dies: str = "") -> subprocess.Popen:
        path = logs / f"{len(started)}-{program}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"launch.{program}", *flags],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {failpoints.VARIABLE: dies, "PYTHONUNBUFFERED": "1"},
            )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def _back_s(events) -> float | None:
    begins = [
        event
        for event in events
        if isinstance(event, trace.ProcessStarted) and event.actor == "server"
    ]
    last = begins[-1]
    welcomed = [
        event.time_s
        for event in events
        if isinstance(event, trace.Registered) and event.incarnation == last.incarnation
    ]
    return max(welcomed) - last.time_s if welcomed else None


def newest_saved(models: Path) -> int:
    """The newest version in a store, as a checkpoint or write-ahead; -1 = none yet."""
    paths = [*models.glob("*"), *(models / "ahead").glob("*")]
    return max((int(path.name) for path in paths if path.name.isdigit()), default=-1)
