"""Running a server: what `launch.server` and `launch.local` have in common."""

import contextlib
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asyn2f import errors, failpoints, rundir
from asyn2f.cli import descriptors, inputs, listening, machine, security
from asyn2f.cli.claim import Claim, claimed
from asyn2f.cli.listening import Listening
from asyn2f.config import build
from asyn2f.errors import AddressError
from asyn2f.protocol.ledger import COUNTED
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.protocol.status import RunStatus, warnings_of
from asyn2f.report.metrics import MetricsWriter
from asyn2f.report.run_page import write_report
from asyn2f.runtime.server import Observer, Server
from asyn2f.runtime.startup import create_server
from asyn2f.store.orbax import OrbaxStore
from asyn2f.tasks.base import Task
from asyn2f.timing import deadline_warning
from asyn2f.training.batches import steps_per_epoch
from asyn2f.training.experiment import Experiment
from asyn2f.transport.addresses import (
    check_host,
    parse_address,
    reachable,
)
from asyn2f.transport.keys import ServerKeys
from asyn2f.transport.zmq import ZmqTransport, check_free

_SWITCH_S = 5e-4  # between threads; Python's own is ten times that
_PORTS_FREE_S = 5.0  # by then a server whose place is taken has usually ended

EXIT_CODES = {"finished": 0, "interrupted": 130, "failed": 1}


@contextlib.contextmanager
def prepared(
    config: build.Config,
    task: Task,
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    insecure: bool,
) -> Iterator[Claim]:
    """Claims the folder and writes the config into it; `Claim.begin` is to be called
    when the server listens.

    Raises:
      RunDirError, ConfigError, AddressError, KeysError: nothing has been touched then.
    """
    # Before anything is overwritten: a run is not lost for a port that is taken.
    descriptors.check(config["workers"])
    address, keys = config["runtime"]["address"], security.server_keys(config)
    security.check(address, keys is not None, insecure)
    check_host(parse_address(address)[0])
    check_free(address, keys, insecure)
    with claimed(folder, resume=resume, overwrite=overwrite, takes_over=True) as claim:
        if resume:
            stored = rundir.read_json(folder / rundir.CONFIG)
            build.check_same_experiment(stored, config)
            inputs.check_same_data(folder, task)
        claim.clear(overwrite=overwrite)
        rundir.write_json(folder / rundir.CONFIG, dict(config))
        if not (folder / rundir.RUN).exists():
            rundir.write_json(folder / rundir.RUN, {"run": secrets.token_hex(6)})
        claim.share()
        yield claim


def serve(
    config: build.Config,
    folder: Path,
    on_status: Callable[[RunStatus], None],
    on_ready: Callable[[str, Server], None],
    insecure: bool,
) -> dict[str, Any]:
    """Runs a server in a prepared folder.

    Args:
      config: checked.
      folder: the run's.
      on_status: called a few times per second.
      on_ready: called once, with the address at which it listens and the server.
      insecure: without keys, listen where other machines can reach it.

    Returns:
      The summary, which has been written into the folder as well.
    """
    # What talks to peers and writes must not wait long for what computes.
    sys.setswitchinterval(_SWITCH_S)
    experiment, settings = build.build_experiment(config), build.build_runtime(config)
    cycles_s = _cycles_s(experiment, settings)
    if short := deadline_warning(experiment.strategy.timing, cycles_s):
        print(f"warning: {short}", flush=True)
    keys = security.server_keys(config)
    store = OrbaxStore(
        folder / rundir.MODELS,
        settings.keep_last,
        settings.keep_younger_than_s,
        write_ahead=settings.write_ahead,
    )
    # Before the sockets: a server that still serves this run ends, and frees its ports.
    incarnation = store.begin_incarnation()
    try:
        before = _listened(folder)
        transport, address = _bind(before, settings, experiment, keys, insecure)
    except BaseException:
        store.close()
        raise
    run_id = rundir.read_json(folder / rundir.RUN)["run"]
    inputs.write_split(folder, experiment.task)
    # A run that goes on keeps its token: its peers present the one they have read.
    token = before.token if before is not None else ""
    token = "" if insecure or keys is not None else token or listening.new_token()
    journal = machine.open_journal(folder, "server", run_id, incarnation)
    metrics = MetricsWriter(folder)
    server = create_server(
        experiment,
        build.terms(config),
        run_id,
        settings,
        transport,
        store,
        journal,
        Observer(row=metrics.write, status=on_status),
        incarnation,
        token,
    )
    listening.write(folder, Listening(address, transport.ports(), run_id, token))
    on_ready(address, server)
    summary = server.run()
    summary["warnings"] = warnings_of(summary)
    failpoints.reach("ending")
    rundir.write_json(folder / rundir.SUMMARY, summary)
    metrics.close()
    journal.close()
    store.close()
    return summary


def _cycles_s(experiment: Experiment, settings: RuntimeSettings) -> list[float]:
    """Seconds that the cycles of the workers take at least, as far as their speeds are
    limited; 0 where they are not."""
    speeds = settings.worker_speeds
    limits = [speeds[k % len(speeds)] for k in range(experiment.workers)]
    epochs = experiment.strategy.timing.epochs_per_push
    batch_size = experiment.training.batch_size
    return [
        epochs * steps_per_epoch(len(rows), batch_size) / limit if limit else 0.0
        for rows, limit in zip(experiment.task.shards, limits, strict=True)
    ]


def print_summary(summary: dict[str, Any], folder: Path) -> int:
    """Writes the report, and says where everything is; the program's exit code."""
    best, version = summary.get("best_accuracy"), summary.get("best_version")
    print(f"{summary['status']}: {summary['reason']}")
    if best is not None:
        print(f"best accuracy {best:.4f} at version {version}")
    for warning in warnings_of(summary):
        print(f"warning: {warning}")
    print(f"results in {folder}: summary.json, metrics.jsonl, models/, tensorboard/")
    _say_report(folder)
    return EXIT_CODES[summary["status"]]


def _say_report(folder: Path) -> None:
    """Writes the report and says where it is; a run has ended as it has without one."""
    try:
        print(f"report: {write_report(folder)}", flush=True)
    except (OSError, ValueError) as error:
        print(f"warning: the report cannot be written: {error}", file=sys.stderr)


def empty_summary(
    config: build.Config, folder: Path, status: str, reason: str
) -> dict[str, Any]:
    """The summary of a run whose server did not live to write one: what its newest
    record in the store says; what that does not say is null."""
    version = 0
    accounting: dict[str, Any] = {}
    best_accuracy, best_version = None, None
    if (folder / rundir.MODELS).exists():  # else not even JAX may have begun
        store = OrbaxStore(folder / rundir.MODELS)
        version = max(store.versions(), default=0)
        accounting = (
            store.record(version).get("accounting", {}) if store.versions() else {}
        )
        best_accuracy, best_version = store.best()
        store.close()
    totals = accounting.get("totals", {})
    counts = accounting.get("ledger", {}).get("counts", {})
    return {
        "status": status,
        "reason": reason,
        "run": rundir.read_json(folder / rundir.RUN)["run"],
        "strategy": config["strategy"]["name"],
        "seed": config["seed"],
        "versions": version,
        "best_version": best_version,
        "best_accuracy": best_accuracy,
        "final_accuracy": None,
        "wall_s": totals.get("elapsed_s"),
        "updates": {name: counts.get(name) for name in COUNTED},
        "incomplete_versions": totals.get("incomplete_versions"),
        "bytes_up": totals.get("bytes_up"),
        "bytes_down": totals.get("bytes_down"),
        "params_sha256": None,
    }


def _listened(folder: Path) -> Listening | None:
    """Where the server before this one listened; None: there was none, or it cannot be
    told."""
    if not (folder / rundir.SERVER).exists():
        return None
    try:
        return listening.read(folder)
    except errors.RunDirError as error:
        logging.warning("%s", error)
        return None


def _bind(
    before: Listening | None,
    settings: RuntimeSettings,
    experiment: Experiment,
    keys: ServerKeys | None,
    insecure: bool,
) -> tuple[ZmqTransport, str]:
    """The sockets, and the address that peers are to be given. A run that goes on
    listens where it did, if it can while its peers still call there: a server whose
    place is taken frees its ports at once, or, if it stands still, when it goes on."""
    size, workers = experiment.template.num_bytes, experiment.workers
    host, port = parse_address(settings.address)

    def bind(ports: tuple[int, int, int] | None) -> ZmqTransport:
        return ZmqTransport.bind(
            settings.address,
            size,
            workers,
            ports,
            keys,
            insecure,
            settings.shared_memory,
        )

    transport = None
    if port == 0 and before is not None:
        ports = before.ports
        start_s, warned = time.monotonic(), False
        while (
            transport is None and time.monotonic() < start_s + settings.server_timeout_s
        ):
            try:
                transport = bind(ports)
            except AddressError:
                if not warned and time.monotonic() > start_s + _PORTS_FREE_S:
                    logging.warning(
                        "its ports %s are in use: if the server before this one stands "
                        "still, end it; waiting for them, %g s at most",
                        ports,
                        settings.server_timeout_s,
                    )
                    warned = True
                time.sleep(0.1)  # nothing tells when another's port is free
    if transport is None:
        transport = bind(None)
    host = reachable(host)
    host = f"[{host}]" if ":" in host else host
    return transport, f"tcp://{host}:{transport.ports()[0]}"
