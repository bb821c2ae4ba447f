"""The server's process: interprets its protocol with JAX, a store and files."""

import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from asyn2f import failpoints
from asyn2f.errors import FencedError
from asyn2f.protocol import events as p
from asyn2f.protocol.ledger import COUNTED
from asyn2f.protocol.server import ServerProtocol
from asyn2f.protocol.status import RunStatus
from asyn2f.runtime.aggregator import Aggregator
from asyn2f.runtime.io_thread import IoThread, Journal
from asyn2f.runtime.saver import Saver
from asyn2f.serialization import params_sha256
from asyn2f.store.base import ModelStore
from asyn2f.transport.base import Transport
from asyn2f.types import Best, Metric, Scores, headline_of

_STORE_PATIENCE_S = 2.0  # at the end, for a store that does not answer


def best_of(metric: Metric, store: ModelStore) -> Best | None:
    """The best version in the store, if it is the best by this headline."""
    best = store.best()
    return best if best and best.metric == metric.name else None


class Observer(NamedTuple):
    """Callbacks on the run's progress; called on the server's main thread."""

    row: Callable[[dict[str, Any]], None]  # a line of metrics
    status: Callable[[RunStatus], None]


class Server:
    """One server, from the first registration to the end of the run: see `startup`."""

    def __init__(
        self,
        machine: ServerProtocol,
        aggregator: Aggregator,
        store: ModelStore,
        transport: Transport,
        journal: Journal,
        observer: Observer,
        run: str,
    ) -> None:
        self.aggregator = aggregator
        self._machine = machine
        self._store = store
        self._journal = journal
        self._observer = observer
        self._run = run
        self._initial: Scores | None = None  # of version 0, unless resumed
        self._final: p.ReportScore | None = None  # score of the newest version
        self._rows: dict[int, dict[str, Any]] = {}  # metrics of unpublished versions
        self._status: RunStatus | None = None
        self._todo: SimpleQueue[p.Effect] = SimpleQueue()
        self._io = IoThread(machine, transport, journal, self._pass_on)
        self._saver = Saver(store, aggregator.state, self._io.post)

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
        for event in self._machine.saved_late(int(self._saver.newest.model.version)):
            self._journal.write(event)
            self._status = self._machine.status()
        return self._summary(effect)

    def _pass_on(self, effect: p.Effect) -> None:
        """On the I/O thread."""
        if isinstance(effect, p.SaveVersion):
            self._saver.save(effect.version, effect.accounting)
        else:
            self._todo.put(effect)

    def _carry_out(self, effect: p.Effect) -> None:
        match effect:
            case p.ValidateUpdate(key, header, payload):
                problem = self.aggregator.validate(key, header, payload)
                self._io.post(p.UpdateValidated(key, problem))
            case p.DropUpdate(key):
                self.aggregator.drop(key)
            case p.AggregateVersion():
                made = self._aggregate(effect)
                failpoints.reach("made")
                self._io.post(made)
            case p.ReportVersion():
                row = self._rows.pop(effect.version, None)
                if row is not None:
                    self._observer.row({"kind": "version", **effect._asdict(), **row})
            case p.ReportScore():
                self._report_score(effect)
            case p.ShowStatus(status):
                self._status = status
                self._observer.status(status)

    def _aggregate(
        self, wanted: p.AggregateVersion
    ) -> p.VersionAggregated | p.AggregationFailed:
        done = self.aggregator.aggregate(*wanted)
        if isinstance(done, p.AggregationFailed):
            return done
        made, event = done
        self._journal.write(event)
        record = self.aggregator.record(event._asdict())
        self._saver.take(event.version, self.aggregator.state, record)
        self._rows[event.version] = {
            "updates": len(event.updates),
            "lacking": event.lacking,
            "staleness_mean": float(np.mean(event.staleness)),
            "staleness_max": max(event.staleness),
            "loss": made.header.loss,
            "learning_rate": event.learning_rate,
        }
        return made

    def _report_score(self, score: p.ReportScore) -> None:
        if score.is_best:
            failpoints.reach("best")
            name = self.aggregator.experiment.task.metric.name
            self._saver.keep_best(Best(score.version, name, score.scores[name]))
        if score.version == 0:
            self._initial = score.scores
        if score.version == int(self.aggregator.state.model.version):
            self._final = score
        row = score._asdict()
        del row["is_best"]
        self._observer.row({"kind": "score", **row})

    def _summary(self, finish: p.Finish) -> dict[str, Any]:
        status, experiment = self._status, self.aggregator.experiment
        assert status is not None  # `ShowStatus` comes before `Finish`
        newest = self._saver.newest.model
        return {
            "status": finish.status,
            "reason": finish.reason,
            "run": self._run,
            "strategy": experiment.strategy.name,
            "seed": experiment.seed,
            "versions": int(newest.version),
            **headline_of(
                experiment.task.metric,
                best_of(experiment.task.metric, self._store),
                self._final.scores if self._final else None,
                self._initial,
            ),
            "wall_s": status.elapsed_s,
            "server_cpu_s": round(time.process_time(), 3),  # since it was started
            "updates": {name: getattr(status, name) for name in COUNTED},
            "incomplete_versions": status.incomplete_versions,
            "guarded": self.aggregator.guarded,
            "bytes_up": status.bytes_up,
            "bytes_down": status.bytes_down,
            "params_sha256": params_sha256(newest.params),
        }
