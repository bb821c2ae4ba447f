"""Creates a server: restores the newest version, or begins a run."""

import logging
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f import programs, trace
from asyn2f.errors import StoreError
from asyn2f.protocol.admission import check_pins
from asyn2f.protocol.ledger import Ledger
from asyn2f.protocol.server import ServerProtocol
from asyn2f.protocol.settings import RuntimeSettings, ServerSettings
from asyn2f.runtime.aggregator import Aggregator
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.server import Observer, Server, best_of
from asyn2f.store.base import ModelStore, Record
from asyn2f.training.agreement import data_digests
from asyn2f.training.evaluation import is_federated
from asyn2f.training.experiment import Experiment, initial_server_state, registered
from asyn2f.transport.base import Transport
from asyn2f.types import ServerState


class Start(NamedTuple):
    """The version that a server begins with."""

    state: ServerState
    accounting: dict[str, Any]  # of the protocol; {} for a new run
    made_in: int  # the incarnation that created it; 0 for a new run


def start_of(experiment: Experiment, store: ModelStore, run: str = "") -> Start:
    """The newest valid version in the store, or version 0 if it is empty.

    Damaged versions are set aside, with a warning.

    Args:
      experiment: of the run.
      store: of the run.
      run: its name; "" = any.

    Raises:
      StoreError: no version in the store is valid, or they are of another run.
    """
    shapes = jax.eval_shape(lambda: initial_server_state(experiment))
    problems: dict[int, str] = {}
    for version in reversed(store.versions()):
        try:
            state, record = store.load(version, shapes)
        except StoreError as error:
            problems[version] = str(error)
            continue
        try:
            check_record(record)
        except ValueError as error:
            problems[version] = f"version {version}, its record: {error}"
            continue
        check_run(store, version, record, run)
        for damaged, problem in problems.items():
            logging.warning("set version %d aside: %s", damaged, problem)
            store.set_aside(damaged)
        state = jax.tree.map(jnp.asarray, state)
        return Start(state, record.get("accounting", {}), record.get("incarnation", 1))
    if problems:
        first = next(iter(problems.values()))
        raise StoreError(f"no version in the store can be used: {first}")
    return Start(initial_server_state(experiment), {}, made_in=0)


def check_run(store: ModelStore, version: int, record: Record, run: str) -> None:
    """Raises StoreError if a version, or the best one, names another run."""
    found = {version: record.get("run")}
    best = store.best()
    if best is not None and best.version != version:
        found[best.version] = store.record(best.version).get("run")
    for number, theirs in found.items():
        if run and theirs and theirs != run:
            raise StoreError(
                f"version {number} in the store is of run {theirs!r}, this is run "
                f"{run!r}: give the folder of that run, or take its models away"
            )


def check_record(record: Record) -> None:
    """Validates a version's record, which has no digest.

    Raises:
      ValueError: no server can begin with it.
    """
    accounting, made_in = record.get("accounting", {}), record.get("incarnation", 1)
    if type(made_in) is not int or made_in < 0:
        raise ValueError(f"its incarnation is {str(made_in)[:40]!r}")
    try:
        Ledger.restore(accounting.get("ledger", {}))
        check_pins(accounting.get("data", {}))
        totals = list(accounting.get("totals", {}).values())
    except AttributeError as error:
        raise ValueError(f"invalid accounting: {error}") from None
    if not all(type(x) in (int, float) and 0 <= x < np.inf for x in totals):
        raise ValueError(f"its totals are {str(totals)[:80]}")


def create_server(
    experiment: Experiment,
    terms: tuple[str, ...],
    run: str,
    settings: RuntimeSettings,
    transport: Transport,
    store: ModelStore,
    journal: Journal,
    observer: Observer,
    incarnation: int,
    token: str = "",
    most_examples: int = 0,
) -> Server:
    """A server that begins with the newest version in the store, or with version 0,
    which it saves; everything is compiled.

    Args:
      experiment: of the run.
      terms: what peers must agree on: `agreement.terms_of`.
      run: its name.
      settings: of the runtime.
      transport: bound.
      store: of the run; written by this server alone.
      journal: of this process.
      observer: hears of the run's progress.
      incarnation: of this server: `store.begin_incarnation`.
      token: that peers must present, where there are no keys.
      most_examples: of a worker whose data are its own.

    Raises:
      StoreError: the store cannot be read or written.
    """
    start = start_of(experiment, store, run)
    aggregator = Aggregator(
        experiment,
        store,
        start.state,
        run=run,
        incarnation=incarnation,
        zstd=settings.zstd,
    )
    first = aggregator.encoded()
    version = first.header.version
    if not start.made_in:
        store.save(0, start.state, aggregator.record({}))
    elif version:  # version 0 is drawn from the seed, by any incarnation
        now = time.monotonic()
        journal.write(trace.Resumed(now, incarnation, version, start.made_in))
    aggregator.warm_up()
    protocol_settings = _protocol_settings(
        experiment,
        settings,
        transport,
        most_examples,
        run=run,
        incarnation=incarnation,
        terms=terms,
        token=token,
        best=best_of(experiment.task.metric, store),
        accounting=start.accounting,
    )
    program = programs.server_program(experiment.strategy.timing, version)
    machine = ServerProtocol(protocol_settings, program, first, time.monotonic())
    return Server(machine, aggregator, store, transport, journal, observer, run)


def _of_data(experiment: Experiment, most_examples: int) -> dict[str, Any]:
    """What is known of the data here: all, or nothing but the test set."""
    known: dict[str, Any] = {"data": data_digests(experiment.task)}
    known["federated"] = is_federated(experiment)
    if experiment.task.is_private:
        return {**known, "most_examples": most_examples}
    return {**known, "shards": registered(experiment)}


def _protocol_settings(
    experiment: Experiment,
    settings: RuntimeSettings,
    transport: Transport,
    most_examples: int,
    **of_run: Any,
) -> ServerSettings:
    timing, (_, model_port, update_port) = experiment.strategy.timing, transport.ports()
    return ServerSettings(
        strategy=experiment.strategy.name,
        fingerprint=experiment.template.fingerprint,
        coding=str(experiment.coding),
        num_bytes=experiment.publication.template.num_bytes,
        workers=experiment.workers,
        **_of_data(experiment, most_examples),
        min_workers=timing.min_workers,
        replaces=timing.replaces,
        waits=timing.after_push == "wait",
        deadline_s=timing.deadline_s,
        most_open=max(4, timing.most_updates(experiment.workers)),
        stop=experiment.stop,
        metric=experiment.task.metric,
        runtime=settings,
        model_port=model_port,
        update_port=update_port,
        **of_run,
    )
