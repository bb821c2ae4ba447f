"""Workers and evaluators: what a run's peers have in common, and their programs."""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from asyn2f import errors, rundir
from asyn2f.cli import app, machine, process
from asyn2f.config import build, identity, private
from asyn2f.config.schema import RunSettings, section
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.evaluator import Evaluator
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.peer import Ended
from asyn2f.runtime.worker import Worker
from asyn2f.store.worker_state import WorkerStateFile
from asyn2f.tasks.base import Task
from asyn2f.training.experiment import Experiment
from asyn2f.transport import keys
from asyn2f.transport.shared_memory import SharedMemoryTransport
from asyn2f.transport.zmq import ZmqTransport

_WORKER = flags.DEFINE_integer("worker", None, "Which worker: the number of its shard.")

Stop = Callable[[str], None]
Make = Callable[[Experiment, RuntimeSettings, Journal, Path], Worker | Evaluator]

EXIT_CODES = {"finished": 0, "failed": 1, "refused": app.USAGE_ERROR}


def worker() -> int:
    """One worker of a run, on this or another machine.

        asyn2f worker --config=configs/digits.py --workdir=runs/digits \\
            --worker=3 --server=tcp://127.0.0.1:5570

    The config must be the server's. Without --server, the address is read from
    --workdir, where a server on the same file system has written it. The worker's
    trace goes to --workdir; see `asyn2f collect`.
    """
    request, number = app.request(), _WORKER.value
    count = section(request.config, RunSettings).workers
    if number is None or not 0 <= number < count:
        raise errors.ConfigError(
            f"--worker: found {number}, allowed: 0 to {count - 1}; config.workers is "
            "the number of shards of the data"
        )
    return _main(make_worker(number), f"worker-{number}", request, number)


def evaluator() -> int:
    """The evaluator of a run, on this or another machine.

        asyn2f evaluator --config=configs/digits.py --workdir=runs/digits \\
            --server=tcp://127.0.0.1:5570

    For the flags see `asyn2f worker`.
    """
    return _main(make_evaluator, "evaluator", app.request())


def make_worker(number: int) -> Make:
    """A function that makes the worker with this number, which keeps its own state in
    the folder."""

    def make(
        experiment: Experiment,
        settings: RuntimeSettings,
        journal: Journal,
        folder: Path,
    ) -> Worker:
        own = WorkerStateFile(folder / rundir.WORKERS / f"worker-{number}")
        return Worker(experiment, number, settings, journal, own)

    return make


def make_evaluator(
    experiment: Experiment, settings: RuntimeSettings, journal: Journal, folder: Path
) -> Evaluator:
    return Evaluator(experiment, settings, journal)


def join(
    make: Make,
    actor: str,
    request: app.Request,
    wait_for_address: Callable[[], str],
    on_ready: Callable[[Stop], None],
    task: Task,
) -> Ended:
    """Runs a worker or an evaluator.

    Args:
      make: makes it; compiles.
      actor: its name in the trace.
      request: the server's config, the folder for the trace, and whether to join a
        server on another machine without keys.
      wait_for_address: called when it is ready to join.
      on_ready: called once before that, with the function that stops it.
      task: of the config, with this peer's data.

    Raises:
      AddressError: the address is invalid, or requires keys.
      KeysError: its keys cannot be used.
    """
    config, folder = request.config, request.folder
    own_keys = _peer_keys(config, actor)
    experiment = build.build_experiment(config, task)
    settings = section(config, RuntimeSettings)
    journal = machine.open_journal(folder, actor, "", 0)
    peer = make(experiment, settings, journal, folder)
    on_ready(peer.stop)
    size = experiment.template.num_bytes
    sockets = ZmqTransport.connect_to(
        wait_for_address(), size, peer.depth, own_keys, request.insecure
    )
    transport = SharedMemoryTransport.at_peer(sockets, size, settings.shared_memory)
    ended = peer.run(transport, identity.terms(config), lambda: rundir.token_of(folder))
    journal.close()
    return ended


def _main(
    make: Make, actor: str, request: app.Request, whose: build.Whose = "nobody"
) -> int:
    """The program around `join`; returns the exit code. `whose`: see `build_task`."""
    machine.prepare_jax()
    task = build.build_task(request.config, whose, request.data)
    if actor == "evaluator" and not private.has_evaluator(request.config, task):
        raise errors.ConfigError(
            "found no test set that an evaluator could use, or a model of which the "
            "workers keep a part: they score the versions themselves; start none"
        )
    has_keys = _peer_keys(request.config, actor) is not None
    app.check_address(_address(request.folder), has_keys, request.insecure)
    app.log_with_dates()
    print(f"{actor}: ready to join {_address(request.folder)}", flush=True)
    ended = join(
        make,
        actor,
        request,
        lambda: _address(request.folder),
        process.stop_on_signals,
        task,
    )
    if ended.status == "refused":
        app.fail(f"{actor} was refused: {ended.reason}")
    print(f"{actor}: {ended.status}: {ended.reason}")
    return EXIT_CODES[ended.status]


def _address(folder: Path) -> str:
    """The server's address, from the flag or its folder."""
    if app.SERVER.value:
        return app.SERVER.value
    if not (folder / rundir.SERVER).exists():
        app.fail(f"--server must be given: there is no {folder / rundir.SERVER}")
    return rundir.read_listening(folder).address


def _peer_keys(config: build.Config, name: str) -> keys.PeerKeys | None:
    """The keys of the peer of that name; None if the config names none.

    Raises:
      KeysError: they cannot be used.
    """
    folder = section(config, RuntimeSettings).keys_dir
    return keys.read_peer_keys(Path(folder), name) if folder else None
