"""The stretches of each worker: its steps between merges, adoptions and pushes."""

from array import array
from collections.abc import Sequence

from asyn2f.sim import order as o
from asyn2f.sim.order import Order

KEEP, START, ADOPT, MERGE = 0, 1, 2, 3  # how a version is taken in before the steps


class Stretches:
    """The stretches of all workers in order of time, as columns.

    A worker starts with its first version. If nothing outlives an adoption, it starts
    again with each one that follows a push, so that nobody has to keep its state.

    Args:
      order: of a run.
      epochs: steps in the epochs of each worker, of which a cycle has a whole number
        where losses are counted by epochs; None = something outlives an adoption.
    """

    def __init__(self, order: Order, epochs: Sequence[int] | None = None) -> None:
        self.worker = array("i")
        self.take = array("b")
        self.node = array("i")
        self.steps = array("i")
        self.first = array("i")
        self.update = array("i")  # pushed at its end, or -1
        self.merge_event = array("i")
        self.train_event = array("i")
        self.push_event = array("i")
        self.next = array("i")  # of the same worker, or -1
        self._open: dict[int, int] = {}  # the present stretch of each worker
        self._done: dict[int, int] = {}  # local steps before it
        begun: set[int] = set()
        columns = (order.kind, order.worker, order.value)
        for event, (kind, worker, value) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            if kind == o.TRAIN:
                stretch = self._open.get(worker, -1)
                if stretch < 0 or self.steps[stretch] or self.update[stretch] >= 0:
                    stretch = self._begin(worker)
                self.steps[stretch] = value
                self.train_event[stretch] = event
                self._done[worker] += value
            elif kind in (o.ADOPT, o.MERGE):
                if kind == o.ADOPT and epochs and self._begins(worker, epochs):
                    begun.add(worker)
                stretch = self._begin(worker)
                self.node[stretch] = value
                self.merge_event[stretch] = event
                self.take[stretch] = MERGE if kind == o.MERGE else ADOPT
                if worker in begun:
                    begun.discard(worker)
                    self.take[stretch] = START
            elif kind == o.PUSH:
                stretch = self._open[worker]
                if self.push_event[stretch] >= 0:
                    stretch = self._begin(worker)
                self.update[stretch] = value
                self.push_event[stretch] = event
            elif kind == o.BEGIN:
                begun.add(worker)
                self._done[worker] = 0

    def _begins(self, worker: int, epochs: Sequence[int]) -> bool:
        """Whether a cycle begins now, and no mean loss is under way."""
        stretch = self._open.get(worker, -1)
        has_pushed = stretch >= 0 and self.push_event[stretch] >= 0
        return has_pushed and self._done[worker] % epochs[worker] == 0

    def _begin(self, worker: int) -> int:
        number = len(self.worker)
        before = self._open.get(worker, -1)
        if before >= 0:
            self.next[before] = number
        self._open[worker] = number
        self.worker.append(worker)
        self.take.append(KEEP)
        self.first.append(self._done[worker])
        self.steps.append(0)
        for column in (
            self.node,
            self.update,
            self.merge_event,
            self.train_event,
            self.push_event,
            self.next,
        ):
            column.append(-1)
        return number

    def firsts(self) -> list[int]:
        """The first stretch of every worker."""
        later = set(self.next)
        return [number for number in range(len(self.worker)) if number not in later]
