"""Executing an order one worker at a time, with the functions that the runtime calls.

The oracle: on the same machine it computes what the processes did, bit for bit.
"""

from collections.abc import Callable, Collection

import jax
import numpy as np

from asyn2f.serialization import all_finite
from asyn2f.sim import order as o
from asyn2f.sim.executors.workers import Workers
from asyn2f.sim.order import Log, Order, Result, empty_numbers, uses_of
from asyn2f.training.evaluation import KeptOf
from asyn2f.training.experiment import (
    Experiment,
    initial_server_state,
    published,
    stage,
)
from asyn2f.types import (
    GlobalModel,
    Params,
    ServerState,
    WorkerUpdate,
)

Watch = Callable[[int, float, ServerState, KeptOf], bool]
"""Called with node, time and state of a version, and what the workers keep as it is
made; returns True to end the execution."""

_STAGES = {
    o.ADOPT: "adopt",
    o.TRAIN: "train",
    o.MERGE: "merge",
    o.PUSH: "push",
    o.AGGREGATE: "aggregate",
}


def execute_serially(
    experiment: Experiment,
    order: Order,
    watched: Collection[int] = (),
    watch: Watch | None = None,
) -> Result:
    """Executes an order by a plain loop over its events.

    Args:
      experiment: what is computed.
      order: in which order; it may fork, where a crash took versions that were used.
      watched: nodes that `watch` is called with, each as soon as it is made.
      watch: see `Watch`.

    Raises:
      ExecutionError: a function of the task or the strategy has failed.
    """
    watched = frozenset(watched) if watch is not None else frozenset()
    run = _Execution(experiment, order)
    columns = (order.time_s, order.kind, order.worker, order.value)
    for event, (time_s, kind, worker, value) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        run.execute(event, kind, worker, value)
        if kind == o.AGGREGATE and value in watched and watch is not None:
            if not run.fetch():
                break
            if watch(value, time_s, run.made, run.kept_of):
                return Result(run.made, run.numbers, event + 1)
        # Many at a time: each by itself would wait for the device.
        if len(run.pending) >= 1000 and not run.fetch():
            break
    run.fetch()
    return Result(run.newest, run.numbers, len(order.kind))


class _Execution:
    """The state of a serial execution: models that workers will take in, states that
    versions will be made of, and updates that will be aggregated."""

    def __init__(self, experiment: Experiment, order: Order) -> None:
        self._experiment, self._order = experiment, order
        self._uses = uses_of(order)
        self._workers = Workers(experiment)
        with stage(experiment, "init", 0):
            initial = initial_server_state(experiment)
            model = published(experiment, initial.model)
        self._models: dict[int, GlobalModel] = {0: model}
        self._states: dict[int, ServerState] = {0: initial}
        self._children = np.bincount(order.parent[1:], minlength=len(order.version))
        self._updates: dict[int, WorkerUpdate] = {}
        self._is_finite = jax.jit(all_finite)
        self._finite: list[tuple[int, jax.Array]] = []  # node, whether it is finite
        self.pending: list[tuple[int, jax.Array, jax.Array]] = []  # event, loss, metric
        self.numbers = empty_numbers(order)
        self.made = self.newest = initial  # the last one made; the order's newest

    def execute(self, event: int, kind: int, worker: int, value: int) -> None:
        if kind in (o.BEGIN, o.RESTORE):
            self._workers.begin(worker, value if kind == o.RESTORE else None)
        elif kind == o.KEEP:
            self._workers.keep(worker, value)
        elif kind == o.AGGREGATE:
            version = int(self._order.version[value])
            with stage(self._experiment, "aggregate", version, event=event):
                self._aggregate(value)
        elif kind in _STAGES:
            is_taken = kind in (o.ADOPT, o.MERGE)
            node = value if is_taken else self._workers.base.get(worker, 0)
            version = int(self._order.version[node])
            with stage(self._experiment, _STAGES[kind], version, worker, event):
                self._work(event, kind, worker, value)

    def fetch(self) -> bool:
        """Brings pending numbers to the host; whether all versions are finite."""
        for event, loss, metric in jax.device_get(self.pending):
            self.numbers.loss[event], self.numbers.metric[event] = loss, metric
        for node, is_finite in jax.device_get(self._finite):
            self.numbers.finite[node] = is_finite
        self.pending.clear()
        self._finite.clear()
        return bool(self.numbers.finite.all())

    def kept_of(self, worker: int) -> Params:
        """The part of the model that a worker keeps now."""
        return self._workers.kept_of(worker)

    def _work(self, event: int, kind: int, worker: int, value: int) -> None:
        workers = self._workers
        if kind == o.TRAIN:
            workers.train(worker, value)
            report = workers.report(worker).info
            self.pending.append((event, report.loss, report.metric))
        elif kind == o.PUSH:
            update = workers.push(worker)
            self.pending.append((event, update.info.loss, update.info.metric))
            if self._uses.updates[value]:
                self._updates[value] = update
        else:
            if kind == o.ADOPT:
                workers.adopt(worker, self._models[value], value)
            else:
                share = workers.merge(worker, self._models[value], value)
                self.numbers.share[event] = share
            self._uses.versions[value] -= 1
            if not self._uses.versions[value]:
                del self._models[value]

    def _aggregate(self, node: int) -> None:
        order, numbers, uses = self._order, self.numbers, self._uses
        members, before = order.members_of(node).tolist(), int(order.parent[node])
        made, metrics = self._experiment.aggregate(
            self._states[before], [self._updates[member] for member in members]
        )
        span = slice(*order.member_starts[node : node + 2])
        numbers.coefficients[span] = metrics["coefficients"]
        numbers.staleness[span] = metrics["staleness"]
        numbers.model_loss[node] = made.model.loss
        numbers.learning_rate[node] = made.model.learning_rate
        self._finite.append((node, self._is_finite(made)))
        self._children[before] -= 1
        if not self._children[before]:
            del self._states[before]
        for member in members:
            uses.updates[member] -= 1
            if not uses.updates[member]:
                del self._updates[member]
        if uses.versions[node]:
            self._models[node] = published(self._experiment, made.model)
        if self._children[node]:
            self._states[node] = made
        self.made = made
        self.newest = made if node <= order.newest else self.newest


class Follower:
    """Executes a log while it is written: for timing that depends on values.

    It keeps each model as long as a worker might still take it in: while some worker
    holds an older one.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._workers = Workers(experiment)
        self._state = initial_server_state(experiment)
        self._models = {0: published(experiment, self._state.model)}
        self._held: dict[int, int] = {}  # newest version in each worker's model
        self._updates: dict[int, WorkerUpdate] = {}
        self._done = 0

    def signal(self, log: Log, worker: int) -> float:
        """What a worker's push may depend on, after all events of the log."""
        self._catch_up(log)
        with stage(self._experiment, "signal", self._held[worker], worker):
            return float(self._workers.report(worker).info.signal)

    def accepts(self, log: Log, update: int) -> bool:
        """Whether the runtime's server would accept this update: it is finite."""
        self._catch_up(log)
        return bool(all_finite(self._updates[update]))

    def _catch_up(self, log: Log) -> None:
        while self._done < len(log.kind):
            event, self._done = self._done, self._done + 1
            kind, worker, value = log.kind[event], log.worker[event], log.value[event]
            if kind in _STAGES:
                is_node = kind in (o.ADOPT, o.MERGE, o.AGGREGATE)
                version = value if is_node else self._held[worker]
                number = None if kind == o.AGGREGATE else worker
                with stage(self._experiment, _STAGES[kind], version, number, event):
                    self._execute(log, kind, worker, value)
            elif kind in (o.SUPERSEDE, o.REJECT, o.LOSE, o.REFUSE):
                del self._updates[value]
            elif kind == o.BEGIN:
                self._held[worker] = 0
            elif kind == o.LEAVE and value:  # for good
                self._held.pop(worker, None)

    def _execute(self, log: Log, kind: int, worker: int, value: int) -> None:
        if kind in (o.ADOPT, o.MERGE):
            take = self._workers.adopt if kind == o.ADOPT else self._workers.merge
            take(worker, self._models[value], value)
            self._held[worker] = value
        elif kind == o.TRAIN:
            self._workers.train(worker, value)
        elif kind == o.PUSH:
            self._updates[value] = self._workers.push(worker)
        else:
            self._aggregate(log, value)

    def _aggregate(self, log: Log, node: int) -> None:
        members = log.members[log.member_starts[node] : log.member_starts[node + 1]]
        updates = [self._updates.pop(member) for member in members]
        self._state, _ = self._experiment.aggregate(self._state, updates)
        self._models[node] = published(self._experiment, self._state.model)
        oldest = min(self._held.values(), default=0)
        for version in [v for v in self._models if v < oldest]:
            del self._models[version]
