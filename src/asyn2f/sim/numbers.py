"""What came of executing an order."""

from typing import NamedTuple

import numpy as np

from asyn2f.sim import order as o
from asyn2f.sim.order import Order
from asyn2f.types import ServerState


class Numbers(NamedTuple):
    """The values of a run of E events and M versions; NaN where there is none."""

    # per event
    loss: np.ndarray  # f32 [E]: of a worker's epoch, at TRAIN and PUSH
    metric: np.ndarray  # f32 [E]
    share: np.ndarray  # f32 [E]: what the local model kept, at MERGE
    # per version
    coefficients: np.ndarray  # f32, in parallel to `order.members`
    staleness: np.ndarray  # i32, likewise
    model_loss: np.ndarray  # f32 [M]
    learning_rate: np.ndarray  # f32 [M]
    finite: np.ndarray  # bool [M]: False = it holds a NaN or an infinity


def empty_numbers(order: Order) -> Numbers:
    """Numbers to be filled in."""
    events, versions = len(order.kind), len(order.version)

    def blank(length: int) -> np.ndarray:
        return np.full(length, np.nan, np.float32)

    return Numbers(
        loss=blank(events),
        metric=blank(events),
        share=blank(events),
        coefficients=blank(len(order.members)),
        staleness=np.zeros(len(order.members), np.int32),
        model_loss=blank(versions),
        learning_rate=blank(versions),
        finite=np.ones(versions, bool),
    )


class Result(NamedTuple):
    """The end of an execution: where it was told to end, where the order does, or soon
    after the first version that is not finite."""

    state: ServerState  # of the newest version made
    numbers: Numbers
    num_events: int  # fewer than the order's if whoever watched has ended it


def ended_by_divergence(order: Order, numbers: Numbers) -> Order | None:
    """The order up to its first version that is not finite, that one excluded; None if
    all are finite. The runtime's server would not have made it either."""
    if numbers.finite.all():
        return None
    node = int(np.argmin(numbers.finite))
    (events,) = np.nonzero((order.kind == o.AGGREGATE) & (order.value == node))
    time_s = float(order.time_s[events[0]])
    reason = (
        f"version {order.version[node]} is not finite, at "
        f"{time_s - order.start_s:g} virtual s: training has diverged; a smaller "
        "training.learning_rate may help"
    )
    return o.cut(order, int(events[0]), reason, time_s)


class Uses(NamedTuple):
    """How often versions and updates are needed: what nobody needs is not kept."""

    versions: np.ndarray  # i64 [M]: adoptions and merges
    updates: np.ndarray  # i64 [U]: aggregations


def uses_of(order: Order) -> Uses:
    taken = order.value[(order.kind == o.ADOPT) | (order.kind == o.MERGE)]
    return Uses(
        versions=np.bincount(taken, minlength=len(order.version)),
        updates=np.bincount(order.members, minlength=order.num_updates),
    )
