"""The server of a run.

    asyn2f server --config=configs/digits.py --workdir=runs/digits \
        --config.runtime.address=tcp://127.0.0.1:5570

Workers and evaluators join with `asyn2f worker` and `asyn2f evaluator`.
"""

import contextlib
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from asyn2f import errors, failpoints, rundir
from asyn2f.api.results import epochs_of
from asyn2f.cli import app, claim, machine, process
from asyn2f.cli.claim import Claim
from asyn2f.config import build, identity, user_code
from asyn2f.config.schema import RunSettings, section
from asyn2f.privacy import Privacy
from asyn2f.protocol.caveats import warnings_of
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.protocol.status import RunStatus
from asyn2f.report.live import LiveView
from asyn2f.report.metrics import MetricsWriter
from asyn2f.rundir import Listening
from asyn2f.runtime.server import Observer, Server
from asyn2f.runtime.startup import create_server
from asyn2f.store.base import StoreSettings
from asyn2f.store.orbax import OrbaxStore
from asyn2f.tasks.base import Task
from asyn2f.timing import deadline_warning
from asyn2f.training.experiment import Experiment
from asyn2f.transport import keys
from asyn2f.transport.base import Transport, check_host, parse_address, reachable
from asyn2f.transport.shared_memory import SharedMemoryTransport
from asyn2f.transport.zmq import ZmqTransport, check_free
from asyn2f.types import Metric

_SWITCH_S = 5e-4  # so that threads of I/O do not wait long for the one that computes
_PORTS_FREE_S = 5.0  # a server that has been taken over has usually ended by then

EXIT_CODES = {"finished": 0, "interrupted": 130, "failed": 1}


def main() -> int:
    request = app.request()
    machine.prepare_jax()
    task = build.build_task(request.config, "nobody")
    with prepared(request, task) as claim, LiveView() as view:
        app.log_with_dates()

        def on_ready(address: str, server: Server) -> None:
            claim.begin()
            process.stop_on_signals(server.stop)
            host, _ = parse_address(section(request.config, RuntimeSettings).address)
            more = " and this machine's other addresses"
            more = "" if host == reachable(host) else more
            view.message(f"listening at {address}{more}, run folder {request.folder}")

        summary = serve(request, view.update, on_ready, task)
    return print_summary(summary, request.folder)


@contextlib.contextmanager
def prepared(request: app.Request, task: Task) -> Iterator[Claim]:
    """Claims a run's folder and writes its config; call `Claim.begin` on listening.

    Raises:
      RunDirError, ConfigError, AddressError, KeysError: nothing has been changed then.
    """
    config, folder = request.config, request.folder
    # Before anything is overwritten: a port that is taken must not cost an old run.
    failpoints.check()
    process.check_descriptors(section(config, RunSettings).workers)
    address, own_keys = section(config, RuntimeSettings).address, server_keys(config)
    app.check_address(address, own_keys is not None, request.insecure)
    check_host(parse_address(address)[0])
    check_free(address, own_keys, request.insecure)
    resume, overwrite = request.resume, request.overwrite
    with claim.claimed(
        folder, resume=resume, overwrite=overwrite, takes_over=True
    ) as claimed:
        if resume:
            stored = rundir.read_json(folder / rundir.CONFIG)
            identity.check_same_experiment(stored, config)
            claim.check_same_code(folder, user_code.digests(config))
            claim.check_same_data(folder, task)
        claimed.clear(overwrite=overwrite)
        write_config(folder, config, task.metric)
        claimed.share()
        yield claimed


def write_config(folder: Path, config: build.Config, metric: Metric) -> None:
    """Writes a run's config, and its id with its headline if it has none yet."""
    rundir.write_json(folder / rundir.CONFIG, dict(config))
    if not (folder / rundir.RUN).exists():
        content = {"run": secrets.token_hex(6), "metric": metric._asdict()}
        rundir.write_json(folder / rundir.RUN, content)


def server_keys(config: build.Config) -> keys.ServerKeys | None:
    """The server's keys; None if the config names none.

    Raises:
      KeysError: they cannot be used.
    """
    folder = section(config, RuntimeSettings).keys_dir
    return keys.read_server_keys(Path(folder)) if folder else None


def serve(
    request: app.Request,
    on_status: Callable[[RunStatus], None],
    on_ready: Callable[[str, Server], None],
    task: Task | None = None,
) -> dict[str, Any]:
    """Runs a server in a prepared folder.

    Args:
      request: of which config, folder and `insecure` are used.
      on_status: called a few times per second.
      on_ready: called once, with the address at which it listens and the server.
      task: of the config, without data of workers' own; None = build it.

    Returns:
      The summary, which has been written into the folder as well.
    """
    sys.setswitchinterval(_SWITCH_S)
    config, folder = request.config, request.folder
    task = task or build.build_task(config, "nobody")
    experiment = build.build_experiment(config, task)
    settings = section(config, RuntimeSettings)
    timing = experiment.strategy.timing
    if short := deadline_warning(timing, _cycles_s(experiment, settings)):
        print(f"warning: {short}", flush=True)
    opened = _open(request, experiment, settings)
    run_id, incarnation = opened.listening.run, opened.incarnation
    claim.write_split(
        folder, experiment.task, user_code.digests(config), experiment.reveal
    )
    journal = machine.open_journal(folder, "server", run_id, incarnation)
    metrics = MetricsWriter(folder)
    server = create_server(
        experiment,
        identity.terms(config),
        run_id,
        settings,
        opened.transport,
        opened.store,
        journal,
        Observer(row=metrics.write, status=on_status),
        incarnation,
        opened.listening.token,
        section(config, Privacy).max_examples,
    )
    rundir.write_listening(folder, opened.listening)
    on_ready(opened.listening.address, server)
    summary = server.run()
    summary["warnings"] = warnings_of(summary)
    failpoints.reach("ending")
    rundir.write_json(folder / rundir.SUMMARY, summary)
    metrics.close()
    journal.close()
    opened.store.close()
    return summary


class _Opened(NamedTuple):
    """What a server holds exclusively."""

    store: OrbaxStore
    incarnation: int
    transport: Transport
    listening: Listening


def _open(
    request: app.Request, experiment: Experiment, settings: RuntimeSettings
) -> _Opened:
    """Takes the store over and binds the sockets.

    Raises:
      AddressError: it cannot listen there.
    """
    folder, keys_here = request.folder, server_keys(request.config)
    retention = vars(section(request.config, StoreSettings))
    store = OrbaxStore(folder / rundir.MODELS, **retention)
    # Before the sockets: a server that still serves this run ends and frees its ports.
    incarnation = store.begin_incarnation()
    try:
        before = _listening_before(folder)
        transport, address = _bind(
            before, settings, experiment, keys_here, request.insecure
        )
    except BaseException:
        store.close()
        raise
    # A resumed run keeps its token: its peers present the one that they have read.
    token = (before.token if before else "") or secrets.token_hex(16)
    if keys_here is not None or request.insecure:
        token = ""
    run_id = rundir.read_json(folder / rundir.RUN)["run"]
    listening = Listening(address, transport.ports(), run_id, token)
    return _Opened(store, incarnation, transport, listening)


def _cycles_s(experiment: Experiment, settings: RuntimeSettings) -> list[float]:
    """Lower bounds of the seconds of each worker's cycle, from the limits of their
    speeds; 0 where there is none."""
    speeds = settings.worker_speeds
    limits = [speeds[k % len(speeds)] for k in range(experiment.workers)]
    steps_s = [1.0 / limit if limit else 0.0 for limit in limits]
    pairs = zip(epochs_of(experiment), steps_s, strict=True)
    return [experiment.strategy.timing.cycle_s(*pair) for pair in pairs]


def _listening_before(folder: Path) -> Listening | None:
    """Where the run's previous server listened, if that is known."""
    if not (folder / rundir.SERVER).exists():
        return None
    try:
        return rundir.read_listening(folder)
    except errors.RunDirError as error:
        logging.warning("%s", error)
        return None


def _bind(
    before: Listening | None,
    settings: RuntimeSettings,
    experiment: Experiment,
    own_keys: keys.ServerKeys | None,
    insecure: bool,
) -> tuple[Transport, str]:
    """The bound sockets, and the address for peers.

    A resumed run listens at its previous ports if they become free while its peers
    still try them: a server that is taken over frees them at once, or, if it hangs,
    when it continues.
    """
    size, workers = experiment.template.num_bytes, experiment.workers
    host, port = parse_address(settings.address)

    def bind(ports: tuple[int, int, int] | None) -> ZmqTransport:
        address = settings.address
        return ZmqTransport.bind(address, size, workers, ports, own_keys, insecure)

    transport = None
    start_s, has_warned = time.monotonic(), False
    while (
        (port == 0 and before is not None)
        and transport is None
        and time.monotonic() < start_s + settings.server_timeout_s
    ):
        try:
            transport = bind(before.ports)
        except errors.AddressError:
            if not has_warned and time.monotonic() > start_s + _PORTS_FREE_S:
                logging.warning(
                    "ports %s of this run are in use: if its previous server hangs, "
                    "kill it; waiting for them for at most %g s",
                    before.ports,
                    settings.server_timeout_s,
                )
                has_warned = True
            time.sleep(0.1)  # there is no event for another process's port
    if transport is None:
        transport = bind(None)
    host = reachable(host)
    host = f"[{host}]" if ":" in host else host
    offers = settings.shared_memory
    shared = SharedMemoryTransport.at_server(transport, size, workers + 1, offers)
    return shared, f"tcp://{host}:{transport.ports()[0]}"


# ---------------------------------------------------------------- the end of a run


def print_summary(summary: dict[str, Any], folder: Path) -> int:
    """Writes the report and prints where the results are; returns the exit code."""
    from asyn2f.report.run_page import write_report  # nothing else needs Plotly

    best, version = summary.get("best_value"), summary.get("best_version")
    print(f"{summary['status']}: {summary['reason']}")
    if best is not None:
        print(f"best {summary['metric']['name']} {best:.4f} at version {version}")
    for warning in warnings_of(summary):
        print(f"warning: {warning}")
    print(f"results in {folder}: summary.json, metrics.jsonl, models/, tensorboard/")
    try:
        print(f"report: {write_report(folder)}", flush=True)
    except (OSError, ValueError) as error:  # the run has ended as it has, all the same
        print(f"warning: the report cannot be written: {error}", file=sys.stderr)
    return EXIT_CODES[summary["status"]]
