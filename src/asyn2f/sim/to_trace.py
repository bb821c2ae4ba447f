"""Writes a simulated run as the trace that processes would have written."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from asyn2f import trace
from asyn2f.kernels.guards import Guards, findings
from asyn2f.sim import order as o
from asyn2f.sim.order import Numbers, Order
from asyn2f.types import Scores, UpdateInfo

ACTOR = "simulation"
SESSION = "simulated"


def events_of(
    order: Order,
    numbers: Numbers,
    scores: Mapping[int, Scores],
    *,
    run: str,
    environment: dict[str, Any],
    num_examples: Sequence[int],
    qualities: Sequence[float],
    steps_per_epoch: Sequence[int],
    num_bytes: int,
    guards: Guards,
) -> Iterator[trace.Event]:
    """The events of a run that was scheduled and executed; times are virtual seconds.

    Args:
      order: of a schedule: its history does not fork.
      numbers: of its execution.
      scores: of the evaluated versions.
      run: the run's name.
      environment: that the numbers may depend on.
      num_examples, qualities, steps_per_epoch: [W]; no steps = unknown.
      num_bytes: of a model.
      guards: of the experiment.
    """
    yield trace.ProcessStarted(0.0, ACTOR, run, 1, environment, trace.FORMAT)
    writer = _Writer(
        order, numbers, num_examples, qualities, steps_per_epoch, num_bytes, guards
    )
    is_started = False
    columns = (order.time_s, order.kind, order.worker, order.value)
    for event, (time_s, kind, worker, value) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        if not is_started and (kind == o.ADOPT or time_s > order.start_s):
            is_started = True
            yield writer.published(order.start_s, 0)
        if kind in (o.KEEP, o.RESTORE):  # of a replay; simulated workers never restart
            continue
        if kind in _OF_WORKERS:
            yield from writer.worker_event(event, time_s, kind, worker, value)
        else:
            yield from writer.server_event(time_s, kind, worker, value)
            if kind == o.AGGREGATE and value in scores:
                yield trace.Evaluated(time_s, value, scores[value])
    yield trace.Stopped(order.end_s, ACTOR, order.reason)


_OF_WORKERS = (o.TRAIN, o.WAITED, o.ADOPT, o.MERGE, o.PUSH)
_OUTCOMES = {
    o.SUPERSEDE: ("superseded", "replaced by a newer"),
    o.REJECT: ("rejected", "stale"),
    o.LOSE: ("withdrawn", "its worker left"),
    o.REFUSE: ("rejected", "not finite: has training diverged?"),
}


class _Worker:
    """The progress of a worker."""

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s  # of its last event
        self.step = self.seq = 0
        self.base = self.start = -1


class _Writer:
    """Makes the events, with the workers' progress and the pending updates."""

    def __init__(
        self,
        order: Order,
        numbers: Numbers,
        num_examples: Sequence[int],
        qualities: Sequence[float],
        steps_per_epoch: Sequence[int],
        num_bytes: int,
        guards: Guards,
    ) -> None:
        self._order, self._numbers = order, numbers
        self._num_examples, self._qualities = num_examples, qualities
        self._steps_per_epoch = steps_per_epoch
        self._num_bytes, self._guards = num_bytes, guards
        self._workers: dict[int, _Worker] = {}
        self._updates: dict[int, trace.Pushed] = {}

    def published(self, time_s: float, node: int) -> trace.Published:
        receivers = int(self._order.receivers[node])
        return trace.Published(time_s, node, self._num_bytes, receivers)

    def server_event(
        self, time_s: float, kind: int, worker: int, value: int
    ) -> Iterator[trace.Event]:
        if kind in (o.BEGIN, o.RETURN):
            if kind == o.BEGIN:
                self._workers[worker] = _Worker(time_s)
            examples = self._num_examples[worker]
            yield trace.WorkerJoined(time_s, worker, SESSION, examples)
        elif kind == o.LEAVE:
            yield trace.WorkerLeft(time_s, worker, SESSION, "left")
        elif kind == o.AGGREGATE:
            yield from self._aggregated(time_s, value)
            yield self.published(time_s, value)
        else:
            outcome, reason = _OUTCOMES[kind]
            seq = self._updates.pop(value).seq
            yield trace.UpdateSettled(time_s, worker, SESSION, seq, outcome, -1, reason)

    def worker_event(
        self, event: int, time_s: float, kind: int, number: int, value: int
    ) -> Iterator[trace.Event]:
        worker, numbers = self._workers[number], self._numbers
        before_s, worker.time_s = worker.time_s, time_s
        if kind == o.TRAIN:
            worker.step += value
            loss, metric = float(numbers.loss[event]), float(numbers.metric[event])
            spent = before_s, value, worker.step, worker.base
            yield trace.Trained(time_s, number, *spent, loss, metric)
        elif kind == o.WAITED:
            yield trace.Blocked(time_s, number, before_s, worker.base)
        elif kind == o.ADOPT:
            worker.base = worker.start = value
            yield trace.Adopted(time_s, number, value, worker.step)
        elif kind == o.MERGE:
            base, worker.base = worker.base, value
            length = self._steps_per_epoch[number]
            position = worker.step % length / length if length else 0.0
            share = numbers.share[event]
            where = value, base, worker.step, position
            yield trace.Merged(time_s, number, *where, float(share))
        else:
            yield self._pushed(event, time_s, number, value)

    def _pushed(
        self, event: int, time_s: float, number: int, update: int
    ) -> trace.Pushed:
        worker = self._workers[number]
        info = UpdateInfo(
            base_version=worker.base,
            start_version=worker.start,
            step=worker.step,
            num_examples=float(self._num_examples[number]),
            loss=float(self._numbers.loss[event]),
            quality=float(np.float32(self._qualities[number])),
            metric=float(self._numbers.metric[event]),
        )
        pushed = trace.Pushed(time_s, number, SESSION, worker.seq, info)
        worker.seq += 1
        worker.start = worker.base
        self._updates[update] = pushed
        return pushed

    def _aggregated(self, time_s: float, node: int) -> Iterator[trace.Event]:
        order, numbers = self._order, self._numbers
        span = slice(order.member_starts[node], order.member_starts[node + 1])
        shares = numbers.coefficients[span].tolist()
        members = [self._updates.pop(k) for k in order.members[span].tolist()]
        yield trace.Aggregated(
            time_s,
            node,
            1,
            [[pushed.worker, SESSION, pushed.seq] for pushed in members],
            [pushed.info.base_version for pushed in members],
            numbers.staleness[span].tolist(),
            shares,
            float(numbers.learning_rate[node]),
            findings(self._guards, [pushed.info.loss for pushed in members], shares),
            int(order.lacking[node]),
        )
        for pushed in members:
            yield trace.UpdateSettled(
                time_s, pushed.worker, SESSION, pushed.seq, "committed", node, ""
            )
