"""Executing an order one worker at a time, with the very functions the runtime calls.

The oracle: on the same machine it computes, bit for bit, what the processes did.
"""

from collections.abc import Callable, Collection

import jax
import numpy as np

from asyn2f.serialization import all_finite
from asyn2f.sim import order as o
from asyn2f.sim.order import (
    Log,
    Numbers,
    Order,
    Result,
    empty_numbers,
    uses_of,
)
from asyn2f.training.experiment import Experiment, initial_server_state, published
from asyn2f.training.trainer import shard_of
from asyn2f.types import GlobalModel, ServerState, Shard, WorkerState, WorkerUpdate

Watch = Callable[[int, float, ServerState], bool]
"""Called with node, time and state of a version; True ends the execution there."""


def execute_serially(
    experiment: Experiment,
    order: Order,
    watched: Collection[int] = (),
    watch: Watch | None = None,
) -> Result:
    """The numbers of an order, by a plain loop over its events.

    Args:
      experiment: what is computed.
      order: in which order; it may fork, where a crash took versions that were used.
      watched: nodes that `watch` is called with, each as soon as it is made.
      watch: see `Watch`.
    """
    numbers, uses = empty_numbers(order), uses_of(order)
    workers, watched = Workers(experiment), frozenset(watched)
    initial = initial_server_state(experiment)
    # What is needed later: models by workers, states by the version after.
    models: dict[int, GlobalModel] = {0: published(experiment, initial.model)}
    states: dict[int, ServerState] = {0: initial}
    children = np.bincount(order.parent[1:], minlength=len(order.version))
    updates: dict[int, WorkerUpdate] = {}
    last, num_events = initial, len(order.kind)
    notes: list[_Note] = []
    finite: list[_Finite] = []
    is_finite = jax.jit(all_finite)

    columns = (order.time_s, order.kind, order.worker, order.value)
    for event, (time_s, kind, worker, value) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        if kind == o.BEGIN:
            workers.begin(worker)
        elif kind in (o.ADOPT, o.MERGE):
            if kind == o.ADOPT:
                workers.adopt(worker, models[value])
            else:
                numbers.share[event] = workers.merge(worker, models[value])
            uses.versions[value] -= 1
            if not uses.versions[value]:
                del models[value]
        elif kind == o.TRAIN:
            workers.train(worker, value)
            report = workers.report(worker).info
            notes.append((event, report.loss, report.metric))
        elif kind == o.PUSH:
            update = workers.push(worker)
            notes.append((event, update.info.loss, update.info.metric))
            if uses.updates[value]:
                updates[value] = update
        elif kind == o.AGGREGATE:
            members = order.members_of(value).tolist()
            before = int(order.parent[value])
            made, metrics = experiment.aggregate(
                states[before], [updates[member] for member in members]
            )
            span = slice(*order.member_starts[value : value + 2])
            numbers.coefficients[span] = metrics["coefficients"]
            numbers.staleness[span] = metrics["staleness"]
            numbers.model_loss[value] = made.model.loss
            numbers.learning_rate[value] = made.model.learning_rate
            finite.append((value, is_finite(made)))
            children[before] -= 1
            if not children[before]:
                del states[before]
            for member in members:
                uses.updates[member] -= 1
                if not uses.updates[member]:
                    del updates[member]
            if uses.versions[value]:
                models[value] = published(experiment, made.model)
            if children[value]:
                states[value] = made
            last = made if value <= order.newest else last
            if value in watched and watch is not None:
                if not _all_finite(finite, numbers):
                    break
                if watch(value, time_s, made):
                    last, num_events = made, event + 1
                    break
        if len(notes) >= 1000:
            _fetch(notes, numbers)
            if not _all_finite(finite, numbers):
                break
    _fetch(notes, numbers)
    _all_finite(finite, numbers)
    return Result(last, numbers, num_events)


_Note = tuple[int, jax.Array, jax.Array]  # event, loss and metric
_Finite = tuple[int, jax.Array]  # node, and whether its state is finite


def _fetch(notes: list[_Note], numbers: Numbers) -> None:
    """Brings many to the host at once: each by itself would wait for the device."""
    for event, loss, metric in jax.device_get(notes):
        numbers.loss[event], numbers.metric[event] = loss, metric
    notes.clear()


def _all_finite(found: list[_Finite], numbers: Numbers) -> bool:
    """Brings those to the host as well; whether all versions so far are finite."""
    for node, is_finite in jax.device_get(found):
        numbers.finite[node] = is_finite
    found.clear()
    return bool(numbers.finite.all())


class Workers:
    """All workers of a run, each with its state and its data."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._states: dict[int, WorkerState] = {}
        self._shards: dict[int, Shard] = {}

    def begin(self, worker: int) -> None:
        """The worker begins with nothing."""
        self._states.pop(worker, None)

    def adopt(self, worker: int, model: GlobalModel) -> None:
        trainer, state = self._experiment.trainer, self._states.get(worker)
        if state is not None:
            self._states[worker] = trainer.adopt(state, model)
            return
        shard = self._shard(worker)
        # As float32, like the runtime's.
        quality = float(np.float32(self._experiment.task.qualities[worker]))
        count = int(shard.num_examples)
        self._states[worker] = trainer.start(model, worker, count, quality)

    def merge(self, worker: int, model: GlobalModel) -> jax.Array:
        """The share that the local model kept, f32 []."""
        state, metrics = self._experiment.trainer.merge(self._states[worker], model)
        self._states[worker] = state
        return metrics["share"]

    def train(self, worker: int, steps: int) -> None:
        state, shard = self._states[worker], self._shard(worker)
        for _ in range(steps):
            state, _ = self._experiment.trainer.advance(state, shard)
        self._states[worker] = state

    def report(self, worker: int) -> WorkerUpdate:
        """What the worker would push now; only until it goes on."""
        return self._experiment.trainer.report(self._states[worker])

    def push(self, worker: int) -> WorkerUpdate:
        """What the server makes of the worker's push; its next cycle begins."""
        trainer, before = self._experiment.trainer, self._states[worker]
        update, self._states[worker] = trainer.push(before)
        return update._replace(params=trainer.decode(update.params, before.base))

    def _shard(self, worker: int) -> Shard:
        if worker not in self._shards:
            self._shards[worker] = shard_of(self._experiment.task, worker)
        return self._shards[worker]


class Follower:
    """Executes a log behind whoever writes it: for timing that depends on values.

    Its models are kept as long as a worker might still take them in, which is what a
    worker that has something newer never does.
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
        """What a worker's push may depend on, after all that the log holds."""
        self._catch_up(log)
        return float(self._workers.report(worker).info.signal)

    def accepts(self, log: Log, update: int) -> bool:
        """Whether the runtime's server would take this update, by what it checks of
        every one: that it is finite."""
        self._catch_up(log)
        return bool(all_finite(self._updates[update]))

    def _catch_up(self, log: Log) -> None:
        while self._done < len(log.kind):
            kind, worker = log.kind[self._done], log.worker[self._done]
            value = log.value[self._done]
            self._done += 1
            if kind in (o.ADOPT, o.MERGE):
                take = self._workers.adopt if kind == o.ADOPT else self._workers.merge
                take(worker, self._models[value])
                self._held[worker] = value
            elif kind == o.TRAIN:
                self._workers.train(worker, value)
            elif kind == o.PUSH:
                self._updates[value] = self._workers.push(worker)
            elif kind in (o.SUPERSEDE, o.REJECT, o.LOSE, o.REFUSE):
                del self._updates[value]
            elif kind == o.AGGREGATE:
                self._aggregate(log, value)
            elif kind == o.BEGIN:
                self._held[worker] = 0
            elif kind == o.LEAVE and value:  # for good
                self._held.pop(worker, None)

    def _aggregate(self, log: Log, node: int) -> None:
        members = log.members[log.member_starts[node] : log.member_starts[node + 1]]
        updates = [self._updates.pop(member) for member in members]
        self._state, _ = self._experiment.aggregate(self._state, updates)
        self._models[node] = published(self._experiment, self._state.model)
        oldest = min(self._held.values(), default=0)
        for version in [v for v in self._models if v < oldest]:
            del self._models[version]
