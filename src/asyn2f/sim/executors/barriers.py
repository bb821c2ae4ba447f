"""When stretches may begin and versions be made, if both are looked at together."""

from collections.abc import Collection

import numpy as np

from asyn2f.sim.executors.stretches import Stretches
from asyn2f.sim.order import AGGREGATE, Order


class Barriers:
    """A barrier at each watched version: as it is made, every worker has trained as far
    as in the order, and not, as lanes do otherwise, as far as it can."""

    def __init__(
        self, order: Order, stretches: Stretches, watched: Collection[int]
    ) -> None:
        """`watched`: nodes."""
        (made,) = np.nonzero(order.kind == AGGREGATE)
        made = made[np.isin(order.value[made], np.array(sorted(watched), np.int64))]
        self._nodes: list[int] = order.value[made].tolist()
        trained = np.array(stretches.train_event, np.int64)
        others = np.maximum(stretches.merge_event, stretches.push_event)
        # The number of watched versions that are made before each.
        before = np.searchsorted(made, np.where(trained < 0, others, trained))
        self._before: list[int] = before.tolist()
        self._left = np.bincount(before, minlength=len(made) + 1).tolist()
        self._waiting: dict[int, list[int]] = {}
        self._made = 0

    def holds(self, stretch: int) -> bool:
        """Whether a stretch has to wait; `make` returns it once it may begin."""
        before = self._before[stretch]
        if before <= self._made:
            return False
        self._waiting.setdefault(before, []).append(stretch)
        return True

    def end(self, stretch: int) -> None:
        """A stretch is over."""
        self._left[self._before[stretch]] -= 1

    def is_open(self, node: int) -> bool:
        """Whether all stretches are over that come before a node, if it is watched."""
        return not self._is_next(node) or not self._left[self._made]

    def make(self, node: int) -> list[int]:
        """A node is made; returns the stretches that have waited for it here."""
        if not self._is_next(node):
            return []
        self._made += 1
        return self._waiting.pop(self._made, [])

    def _is_next(self, node: int) -> bool:
        return self._made < len(self._nodes) and node == self._nodes[self._made]
