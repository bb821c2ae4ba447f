"""A simulated run as the trace that processes would have written."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from asyn2f import trace
from asyn2f.kernels.guards import Guards, findings
from asyn2f.sim import order as o
from asyn2f.sim.order import (
    Numbers,
    Order,
)
from asyn2f.training.batches import (
    Score,
)
from asyn2f.types import UpdateInfo

ACTOR = "simulation"
SESSION = "simulated"


def events_of(
    order: Order,
    numbers: Numbers,
    scores: Mapping[int, Score],
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
      numbers: what came of executing it.
      scores: of the versions that were evaluated.
      run: the run's name.
      environment: what the numbers may depend on.
      num_examples, qualities, steps_per_epoch: [W].
      num_bytes: of a model.
      guards: of the experiment.
    """
    yield trace.ProcessStarted(0.0, ACTOR, run, 1, environment, trace.FORMAT)
    workers: dict[int, _Worker] = {}
    updates: dict[int, trace.Pushed] = {}
    is_started = False
    columns = (order.time_s, order.kind, order.worker, order.value)
    for event, (time_s, kind, number, value) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        if not is_started and (kind == o.ADOPT or time_s > order.start_s):
            is_started = True
            receivers = int(order.receivers[0])
            yield trace.Published(order.start_s, 0, num_bytes, receivers)
        worker = workers.get(number)
        if kind == o.BEGIN:
            workers[number] = _Worker(time_s)
            yield trace.WorkerJoined(time_s, number, SESSION, num_examples[number])
        elif kind == o.RETURN:
            yield trace.WorkerJoined(time_s, number, SESSION, num_examples[number])
        elif kind == o.LEAVE:
            yield trace.WorkerLeft(time_s, number, SESSION, "left")
        elif kind == o.AGGREGATE:
            yield from _made(order, numbers, value, time_s, updates, guards)
            yield trace.Published(time_s, value, num_bytes, int(order.receivers[value]))
            if value in scores:
                score = scores[value]
                yield trace.Evaluated(time_s, value, score.accuracy, score.loss)
        elif kind in _OUTCOMES:
            outcome, reason = _OUTCOMES[kind]
            pushed = updates.pop(value)
            yield trace.UpdateSettled(
                time_s, number, SESSION, pushed.seq, outcome, -1, reason
            )
        elif worker is not None:
            loss, metric = float(numbers.loss[event]), float(numbers.metric[event])
            if kind == o.TRAIN:
                worker.step += value
                yield trace.Trained(
                    time_s,
                    number,
                    worker.time_s,
                    value,
                    worker.step,
                    worker.base,
                    loss,
                    metric,
                )
            elif kind == o.WAITED:
                yield trace.Blocked(time_s, number, worker.time_s, worker.base)
            elif kind == o.ADOPT:
                worker.base = worker.start = value
                yield trace.Adopted(time_s, number, value, worker.step)
            elif kind == o.MERGE:
                before, worker.base = worker.base, value
                epoch = steps_per_epoch[number]
                yield trace.Merged(
                    time_s,
                    number,
                    value,
                    before,
                    worker.step,
                    worker.step % epoch / epoch,
                    float(numbers.share[event]),
                )
            elif kind == o.PUSH:
                updates[value] = trace.Pushed(
                    time_s,
                    number,
                    SESSION,
                    worker.seq,
                    UpdateInfo(
                        base_version=worker.base,
                        start_version=worker.start,
                        step=worker.step,
                        num_examples=float(num_examples[number]),
                        loss=loss,
                        quality=float(np.float32(qualities[number])),
                        metric=metric,
                    ),
                )
                worker.seq += 1
                worker.start = worker.base
                yield updates[value]
            worker.time_s = time_s
    yield trace.Stopped(order.end_s, ACTOR, order.reason)


_OUTCOMES = {
    o.SUPERSEDE: ("superseded", "replaced by a newer"),
    o.REJECT: ("rejected", "stale"),
    o.LOSE: ("withdrawn", "its worker left"),
    o.REFUSE: ("rejected", "not finite: has training diverged?"),
}


class _Worker:
    """Where a worker stands."""

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s  # of its last event
        self.step = self.seq = 0
        self.base = self.start = -1


def _made(
    order: Order,
    numbers: Numbers,
    node: int,
    time_s: float,
    updates: dict[int, trace.Pushed],
    guards: Guards,
) -> Iterator[trace.Event]:
    span = slice(order.member_starts[node], order.member_starts[node + 1])
    shares = numbers.coefficients[span].tolist()
    members = [updates.pop(update) for update in order.members[span].tolist()]
    yield trace.Aggregated(
        time_s,
        node,
        1,
        [[pushed.worker, SESSION, pushed.seq] for pushed in members],
        [pushed.info.base_version for pushed in members],
        numbers.staleness[span].tolist(),
        shares,
        float(numbers.learning_rate[node]),
        findings(guards, [pushed.info.loss for pushed in members], shares),
        int(order.lacking[node]),
    )
    for pushed in members:
        yield trace.UpdateSettled(
            time_s, pushed.worker, SESSION, pushed.seq, "committed", node, ""
        )
