"""The server's process: interprets its protocol with JAX, a store and files."""

import logging
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f import errors, failpoints, programs, serialization, trace
from asyn2f.errors import FencedError, StoreError
from asyn2f.kernels import codecs, guards
from asyn2f.programs import UpdateKey
from asyn2f.protocol import events as p
from asyn2f.protocol import messages, payloads
from asyn2f.protocol.ledger import COUNTED, Ledger
from asyn2f.protocol.server import ServerProtocol
from asyn2f.protocol.settings import RuntimeSettings, ServerSettings
from asyn2f.protocol.status import RunStatus
from asyn2f.runtime.bases import BaseCache
from asyn2f.runtime.io_thread import IoThread, Journal
from asyn2f.runtime.saver import Saver
from asyn2f.serialization import params_sha256
from asyn2f.store.base import (
    ModelStore,
)
from asyn2f.store.integrity import Record
from asyn2f.strategies.base import push_params
from asyn2f.training.agreement import data_digests
from asyn2f.training.experiment import Experiment, initial_server_state
from asyn2f.transport.base import Transport
from asyn2f.types import Buffer, Metrics, Params, ServerState, UpdateInfo, WorkerUpdate

_SUM_TO_1_WITHIN = 1e-4  # shares are float32

_I32: Any = np.int32

_STORE_PATIENCE_S = 2.0  # at the end, for a store that does not answer


class Observer(NamedTuple):
    """Who wants to know how the run goes; called on the server's main thread."""

    row: Callable[[dict[str, Any]], None]  # a line of metrics
    status: Callable[[RunStatus], None]


class Start(NamedTuple):
    """What a server begins with."""

    state: ServerState
    accounting: dict[str, Any]  # of the protocol; {} = nothing yet
    made_in: int  # the incarnation that made it; 0 = it is new


def start_of(experiment: Experiment, store: ModelStore, run: str = "") -> Start:
    """The newest valid version in the store, or version 0 if it is empty.

    Versions that turn out damaged are set aside, with a warning, for the one
    before.

    Args:
      experiment: of the run.
      store: of the run.
      run: its name; "" = whichever.

    Raises:
      StoreError: there are versions, and none can be used, or they are of another run.
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


def shards_of(experiment: Experiment) -> tuple[tuple[int, float], ...]:
    """What each worker must register with: its examples, and its quality as float32,
    which is what comes back in its updates."""
    task = experiment.task
    return tuple(
        (len(rows), float(np.float32(quality)))
        for rows, quality in zip(task.shards, task.qualities, strict=True)
    )


def problem_of(state: ServerState, metrics: Metrics) -> str:
    """Why an aggregation cannot be used, or "": each of its updates may be finite, and
    what comes of them not."""
    bad = serialization.nonfinite_leaf(state)
    if bad:
        return f"{bad} is not finite after the aggregation"
    shares = np.asarray(metrics["coefficients"])
    if not (shares.min() >= 0 and abs(shares.sum() - 1) < _SUM_TO_1_WITHIN):
        return f"the coefficients are {shares.tolist()}: no shares of 1"
    return ""


def check_run(store: ModelStore, version: int, record: Record, run: str) -> None:
    """Checks that a version, and the best, are of this run, as far as they say.

    Raises:
      StoreError: one is of another.
    """
    found = {version: record.get("run")}
    best = store.best()[1]
    if best is not None and best != version:
        found[best] = store.record(best).get("run")
    for number, theirs in found.items():
        if run and theirs and theirs != run:
            raise StoreError(
                f"version {number} in the store is of run {theirs!r}, this is run "
                f"{run!r}: give the folder of that run, or take its models away"
            )


def check_record(record: Record) -> None:
    """Nothing, if a server can begin with what a version's record says: the bytes of a
    store may be changed, and a record has no digest.

    Raises:
      ValueError: it cannot.
    """
    accounting, made_in = (
        record.get("accounting", {}),
        record.get("incarnation", 1),
    )
    if type(made_in) is not int or made_in < 0:
        raise ValueError(f"its incarnation is {str(made_in)[:40]!r}")
    try:
        Ledger.restore(accounting.get("ledger", {}))
        totals = list(accounting.get("totals", {}).values())
    except AttributeError as error:
        raise ValueError(f"invalid accounting: {error}") from None
    if not all(type(x) in (int, float) and 0 <= x < np.inf for x in totals):
        raise ValueError(f"its totals are {str(totals)[:80]}")


class Server:
    """One server, from its first registration to the end of the run."""

    def __init__(
        self,
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
    ) -> None:
        """Puts the first version into the store and compiles, so that it is ready.
        `terms` are what peers must agree on (`agreement.terms_of`), and `token` what
        they must present.

        Raises:
          StoreError: the store cannot be read or written.
        """
        self._experiment = experiment
        self._store = store
        self._journal = journal
        self._observer = observer
        self._run = run
        self._incarnation = incarnation
        self._packs = settings.zstd
        self._start = start_of(experiment, store, run)
        self._state = self._start.state
        self._final: p.ReportScore | None = None  # score of the newest version
        self._updates: dict[UpdateKey, WorkerUpdate] = {}
        self._headers: dict[UpdateKey, messages.UpdateHeader] = {}
        self._far: dict[UpdateKey, str] = {}  # what the norm's guard only observes
        self._accepted: deque[float] = deque(maxlen=guards.REMEMBERED)  # distances
        self._guarded = 0  # updates that a guard had something to say of
        self._rows: dict[int, dict[str, Any]] = {}  # metrics of versions not announced
        self._status: RunStatus | None = None
        self._todo: SimpleQueue[p.Effect] = SimpleQueue()
        self._bases = BaseCache(experiment, store)
        first = self._made()
        version, made_in = int(self._state.model.version), self._start.made_in
        if not made_in:
            store.save(0, self._state, self._record({}))
        elif version:  # version 0 is drawn from the seed, whoever draws it
            now = time.monotonic()
            journal.write(trace.Resumed(now, incarnation, version, made_in))
        self._warm_up()
        ports = transport.ports()
        timing = experiment.strategy.timing
        protocol_settings = ServerSettings(
            run=run,
            incarnation=incarnation,
            strategy=experiment.strategy.name,
            terms=terms,
            fingerprint=experiment.template.fingerprint,
            coding=str(experiment.coding),
            num_bytes=experiment.publication.template.num_bytes,
            workers=experiment.workers,
            shards=shards_of(experiment),
            data=data_digests(experiment.task),
            token=token,
            min_workers=timing.min_workers,
            replaces=timing.replaces,
            waits=timing.after_push == "wait",
            deadline_s=timing.deadline_s,
            most_open=max(4, timing.most_updates(experiment.workers)),
            stop=experiment.stop,
            runtime=settings,
            model_port=ports[1],
            update_port=ports[2],
            best=store.best(),
            accounting=self._start.accounting,
        )
        program = programs.server_program(timing, version)
        now = time.monotonic()
        self._machine = ServerProtocol(protocol_settings, program, first, now)
        self._io = IoThread(self._machine, transport, journal, self._todo.put)
        self._saver = Saver(store, self._state, self._io.post)

    def stop(self, reason: str) -> None:
        """Ends the run in good order; from any thread and from signal handlers."""
        self._io.post(p.StopRequested(reason))

    def run(self) -> dict[str, Any]:
        """Serves until the run is over.

        Returns:
          The summary.

        Raises:
          FencedError: another server has taken the run over; it will write the summary.
        """
        self._io.start()
        self._saver.start()
        while not isinstance(effect := self._todo.get(), p.Finish):
            self._carry_out(effect)
        self._io.join(timeout_s=2.0)
        self._saver.close(timeout_s=_STORE_PATIENCE_S)
        if self._saver.replaced:
            raise FencedError(self._saver.replaced)
        newest = int(self._saver.newest.model.version)
        if newest in self._machine.unsaved:  # the store answered when nobody listened
            for event in self._machine.saved_late(newest):
                self._journal.write(event)
            self._status = self._machine.status()
        return self._summary(effect)

    def _carry_out(self, effect: p.Effect) -> None:
        match effect:
            case p.ValidateUpdate(key, header, payload):
                self._io.post(
                    p.UpdateValidated(key, self._take_in(key, header, payload))
                )
            case p.DropUpdate(key):
                self._updates.pop(key, None)
                self._headers.pop(key, None)
                self._far.pop(key, None)
            case p.AggregateVersion(version, keys, lacking):
                made = self._make(version, keys, lacking)
                failpoints.reach("made")
                self._io.post(made)
            case p.SaveVersion(version, accounting):
                self._saver.save(version, accounting)
            case p.ReportVersion():
                row = self._rows.pop(effect.version, None)
                if row is not None:
                    self._observer.row({"kind": "version", **effect._asdict(), **row})
            case p.ReportScore():
                self._judge(effect)
            case p.ShowStatus(status):
                self._status = status
                self._observer.status(status)

    def _take_in(
        self, key: UpdateKey, header: messages.UpdateHeader, payload: Buffer
    ) -> str:
        """Keeps an update for its aggregation; or says why it cannot be used."""
        template = self._experiment.update_template
        try:
            payload = payloads.unpacked(header, payload, template)
            coded = serialization.decode_params(template, payload)
            params = self._decoded(header, coded)
        except errors.WireError as error:
            return str(error)
        bad = serialization.nonfinite_leaf(params)
        if bad:
            return f"{bad} is not finite: has training diverged?"
        problem = self._guard_norm(key, params)
        if problem:
            return problem
        self._headers[key] = header
        self._updates[key] = WorkerUpdate(
            params=params,
            worker=_I32(header.worker),
            info=serialization.to_scalars(header.info),
        )
        failpoints.reach("checked")
        return ""

    def _decoded(self, header: messages.UpdateHeader, coded: Any) -> Params:
        """What an update says.

        Raises:
          WireError: it says nothing that a worker would, or its base is not here.
        """
        sizes = self._experiment.template.sizes
        problem = codecs.problem_of(coded, sizes)
        if problem:
            raise errors.WireError(problem)
        base: Params = ()
        if self._experiment.update_needs_base:
            base = self._bases.find(header.info.base_version, header.base)
            if base is None:
                raise errors.WireError(
                    f"a change since version {header.info.base_version}, which is not "
                    "here any more: keep more with config.runtime.keep_last"
                )
        return self._experiment.trainer.decode(serialization.to_device(coded), base)

    def _guard_norm(self, key: UpdateKey, params: Params) -> str:
        """Why an update is too far from the global model, if that is enforced.

        Who executes the run again need not know: its trace says what was rejected.
        """
        settings = self._experiment.guards
        if settings.mode == "off":
            return ""
        model = self._state.model.params
        is_difference = self._experiment.strategy.push is not push_params
        far = float(guards.distance(params, model, is_difference=is_difference))
        size, factor = float(guards.size_of(model)), settings.max_norm_ratio
        limit = guards.norm_limit(self._accepted, size, factor)
        if far <= limit:
            self._accepted.append(far)
            return ""
        problem = guards.too_far(far, limit)
        logging.warning("update %s: %s", key, problem)
        if settings.mode == "enforce":
            self._guarded += 1
            return problem
        self._far[key] = f"would be rejected: {problem}"
        return ""

    def _make(
        self, version: int, keys: tuple[UpdateKey, ...], lacking: int
    ) -> p.VersionAggregated | p.AggregationFailed:
        """The next version; the present one stays if that cannot be used."""
        updates = [self._updates[key] for key in keys]
        state, metrics = self._experiment.aggregate(self._state, updates)
        problem = problem_of(state, metrics)
        if problem:
            logging.warning("version %d is not made: %s", version, problem)
            return p.AggregationFailed(version, problem)
        self._state = state
        made = self._made()
        staleness = [int(x) for x in metrics["staleness"]]
        bases = [self._headers[key].info.base_version for key in keys]
        shares = [float(x) for x in metrics["coefficients"]]
        rate = made.header.learning_rate
        found = self._findings(keys, shares)
        aggregated = trace.Aggregated(
            time_s=time.monotonic(),
            version=version,
            incarnation=self._incarnation,
            updates=[list(key) for key in keys],
            base_versions=bases,
            staleness=staleness,
            coefficients=shares,
            learning_rate=rate,
            guards=found,
            lacking=lacking,
        )
        self._journal.write(aggregated)
        record = self._record(aggregated._asdict())
        self._saver.take(version, self._state, record)
        self._rows[version] = {
            "updates": len(keys),
            "lacking": lacking,
            "staleness_mean": float(np.mean(staleness)),
            "staleness_max": max(staleness),
            "loss": made.header.loss,
            "learning_rate": rate,
        }
        return made

    def _findings(self, keys: tuple[UpdateKey, ...], shares: list[float]) -> list[str]:
        """What the guards found, as in `trace.Aggregated`."""
        losses = [self._headers[key].info.loss for key in keys]
        found = guards.findings(self._experiment.guards, losses, shares)
        far = [self._far.get(key, "") for key in keys]
        both = zip(far, found or [""] * len(keys), strict=True)
        lines = ["; ".join(filter(None, pair)) for pair in both]
        self._guarded += sum(map(bool, lines))
        return lines if any(lines) else []

    def _made(self) -> p.VersionAggregated:
        """The present version, ready to be sent."""
        model = self._state.model
        coded = self._experiment.publication.encode(model.params)
        payload = serialization.encode_params(coded)
        digest = serialization.digest(payload)
        if self._experiment.update_needs_base:
            self._bases.keep(digest, coded)
        header = messages.ModelHeader(
            run=self._run,
            incarnation=self._incarnation,
            version=int(model.version),
            num_examples=float(model.num_examples),
            loss=float(model.loss),
            quality=float(model.quality),
            learning_rate=float(model.learning_rate),
            fingerprint=self._experiment.publication.template.fingerprint,
            num_bytes=len(payload),
            digest=digest,
        )
        return p.VersionAggregated(
            header, payloads.packed(payload) if self._packs else payload
        )

    def _record(self, aggregated: dict[str, Any]) -> Record:
        """What the store keeps beside the arrays of the present version."""
        version = int(self._state.model.version)
        return {
            "run": self._run,
            "incarnation": self._incarnation,
            "version": version,
            "parent": version - 1,
            "aggregated": aggregated,
        }

    def _judge(self, judged: p.ReportScore) -> None:
        if judged.is_best:
            failpoints.reach("best")
            self._saver.keep_best(judged.version, judged.accuracy)
        if judged.version == int(self._state.model.version):
            self._final = judged
        row = judged._asdict()
        del row["is_best"]
        self._observer.row({"kind": "score", **row})

    def _warm_up(self) -> None:
        """Runs the aggregation once, so that the first one does not wait for XLA."""
        model = self._state.model
        update = WorkerUpdate(
            params=serialization.to_device(jax.device_get(model.params)),
            worker=_I32(0),
            info=serialization.to_scalars(UpdateInfo(0, 0, 0, 1.0, 1.0, 1.0, 0.0, 0.0)),
        )
        jax.block_until_ready(self._experiment.aggregate(self._state, [update]))

    def _summary(self, finish: p.Finish) -> dict[str, Any]:
        status = self._status
        assert status is not None  # `ShowStatus` comes before `Finish`
        best_accuracy, best_version = self._store.best()
        newest = self._saver.newest.model
        return {
            "status": finish.status,
            "reason": finish.reason,
            "run": self._run,
            "strategy": self._experiment.strategy.name,
            "seed": self._experiment.seed,
            "versions": int(newest.version),
            "best_version": best_version,
            "best_accuracy": best_accuracy,
            "final_accuracy": self._final.accuracy if self._final else None,
            "final_f1": self._final.f1 if self._final else None,
            "wall_s": status.elapsed_s,
            "server_cpu_s": round(time.process_time(), 3),  # since it was started
            "updates": {name: getattr(status, name) for name in COUNTED},
            "incomplete_versions": status.incomplete_versions,
            "guarded": self._guarded,
            "bytes_up": status.bytes_up,
            "bytes_down": status.bytes_down,
            "params_sha256": params_sha256(newest.params),
        }
