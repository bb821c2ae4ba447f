"""What the programs of a worker and of an evaluator have in common."""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from asyn2f import rundir
from asyn2f.cli import app, listening, machine, security
from asyn2f.config import build
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.evaluator import Evaluator
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.peer import Ended
from asyn2f.runtime.worker import Worker
from asyn2f.training.experiment import Experiment
from asyn2f.transport.zmq import ZmqTransport

Stop = Callable[[str], None]
Make = Callable[[Experiment, RuntimeSettings, Journal], Worker | Evaluator]

EXIT_CODES = {"finished": 0, "failed": 1, "refused": app.USAGE_ERROR}


def make_worker(worker: int) -> Make:
    """A function that makes this worker."""

    def make(
        experiment: Experiment, settings: RuntimeSettings, journal: Journal
    ) -> Worker:
        return Worker(experiment, worker, settings, journal)

    return make


def join(
    make: Make,
    actor: str,
    config: build.Config,
    folder: Path,
    wait_for_address: Callable[[], str],
    on_ready: Callable[[Stop], None],
    insecure: bool,
) -> Ended:
    """Runs a worker or an evaluator.

    Args:
      make: makes it; compiles.
      actor: its name in the trace.
      config: checked; the server's.
      folder: where its trace goes.
      wait_for_address: called when it is ready to join.
      on_ready: called once before that, with the function that stops it.
      insecure: without keys, join a server on another machine.

    Raises:
      AddressError: not an address, or not one to be used without keys.
      KeysError: its keys cannot be used.
    """
    keys = security.peer_keys(config, actor)
    experiment, settings = build.build_experiment(config), build.build_runtime(config)
    journal = machine.open_journal(folder, actor, "", 0)
    peer = make(experiment, settings, journal)
    on_ready(peer.stop)
    transport = ZmqTransport.connect_to(
        wait_for_address(),
        experiment.template.num_bytes,
        peer.depth,
        keys,
        insecure,
        settings.shared_memory,
    )
    ended = peer.run(transport, build.terms(config), lambda: listening.token_of(folder))
    journal.close()
    return ended


def main(
    make: Make,
    actor: str,
    config: build.Config,
    folder: Path,
    server: flags.FlagHolder[str | None],
) -> int:
    """The program around `join`: returns the exit code."""
    build.build_task(config)
    machine.prepare_jax()

    def address() -> str:
        if server.value:
            return server.value
        found = folder / rundir.SERVER
        if not found.exists():
            app.fail(f"--server must be given: {found} is not there to say it")
        return listening.read(folder).address

    insecure = security.INSECURE.value
    keyed = security.peer_keys(config, actor) is not None
    security.check(address(), keyed, insecure)
    print(f"{actor}: ready to join {address()}", flush=True)
    ended = join(make, actor, config, folder, address, app.stop_on_signals, insecure)
    if ended.status == "refused":
        app.fail(f"{actor} was turned away: {ended.reason}")
    print(f"{actor}: {ended.status}: {ended.reason}")
    return EXIT_CODES[ended.status]
