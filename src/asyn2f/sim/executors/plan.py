"""The record of a plan: which lane does what in which wave."""

from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """N waves on D devices with L lanes each; P pushes and A aggregations in all.

    A worker lives on device number % D. Idle lanes have row -1.
    """

    # waves
    steps: np.ndarray  # i32 [N]: local steps, of every lane
    row: np.ndarray  # i32 [N, D, L]: of its worker's state
    worker: np.ndarray  # i32 [N, D, L]
    first: np.ndarray  # i32 [N, D, L]: local steps its worker has done before
    take: np.ndarray  # i32 [N, D, L]: KEEP, START, ADOPT or MERGE ...
    slot: np.ndarray  # i32 [N, D, L]: ... the version in this slot
    merge_event: np.ndarray  # i32 [N, D, L]: event of the order, or -1
    train_event: np.ndarray  # i32 [N, D, L]: the one whose last step this is, or -1
    push_event: np.ndarray  # i32 [N, D, L]
    push_slot: np.ndarray  # i32 [N, D, L]: slot of the update, or -1: unused
    # aggregations
    made_starts: np.ndarray  # i32 [N + 1]: wave n makes made_starts[n] up to [n + 1]
    made_node: np.ndarray  # i32 [A]
    made_slot: np.ndarray  # i32 [A]: slot of the version, or -1: unused
    member_starts: np.ndarray  # i64 [M + 1]: as in the order
    member_device: np.ndarray  # i32, in parallel to `order.members`
    member_slot: np.ndarray  # i32
    # sizes
    rows: int  # on each device
    version_slots: int
    update_slots: int  # on each device
    max_members: int  # K: of one aggregation
    watched: frozenset[int]  # nodes, each the last one made by its wave
    row_of: dict[int, int]  # the last row of each worker

    @property
    def fill(self) -> float:
        """The share of the lanes' steps that are used by a worker."""
        busy = (self.row >= 0).sum(axis=(1, 2)) @ self.steps.astype(np.int64)
        _, devices, lanes = self.row.shape
        return float(busy / max(1, self.steps.sum() * devices * lanes))
