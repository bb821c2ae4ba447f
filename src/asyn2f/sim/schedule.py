"""Scheduling a run under a virtual clock: its order, without computing any numbers.

The programs are the generators that the runtime's processes interpret; the profiles of
the workers give the durations. The order is a function of the arguments alone.
"""

import gc
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from asyn2f import programs
from asyn2f.sim import order as o
from asyn2f.sim.order import Order
from asyn2f.sim.profiles import Profiles
from asyn2f.sim.virtual_worker import Presence, VirtualWorker, soon
from asyn2f.sim.world import Accepts, SignalOf, World
from asyn2f.timing import Stop, Timing

_MOST_IN_FLIGHT = 10_000  # updates of one worker


def schedule(
    timing: Timing,
    profiles: Profiles,
    stop: Stop,
    seed: int,
    *,
    steps_per_epoch: Sequence[int],
    num_bytes: int = 0,
    update_bytes: int | None = None,
    aggregate_s: float = 0.0,
    heartbeat_timeout_s: float = math.inf,
    signal_of: SignalOf | None = None,
    accepts: Accepts | None = None,
) -> Order:
    """The order of a run of these workers.

    Each worker's link carries one version at a time, the newest first: a slow link
    skips versions. Steps, uploads and downloads pause during an outage; one longer than
    `heartbeat_timeout_s` makes the server count the worker as gone until it ends.

    Args:
      timing: the strategy's, with the experiment's settings.
      profiles: of the W workers.
      stop: `max_versions`, `max_time_s` (virtual, from the start of training); a target
        value is ignored, see `order.cut`.
      seed: of jitter and drawn outages.
      steps_per_epoch: i [W], of each worker's shard.
      num_bytes: of an encoded version.
      update_bytes: of an encoded update; None = as many.
      aggregate_s: seconds the server takes for a version.
      heartbeat_timeout_s: of the server's failure detector; inf = it has none.
      signal_of: needed where `timing.depends_on_values`.
      accepts: whether an update is accepted on arrival; None = always.

    Raises:
      ValueError: nothing ends the run; `signal_of` is needed and missing; or a worker
        pushes far faster than its link carries.

    >>> from asyn2f.sim.profiles import profiles_of
    >>> timing = Timing(while_training="merge", after_push="continue", quorum="some")
    >>> order = schedule(timing, profiles_of([{"step_s": 1.0}, {"step_s": 2.5}], 2),
    ...                  Stop(max_versions=2), seed=0, steps_per_epoch=[2, 2])
    >>> order.end_s, order.num_steps
    (4.0, 5)
    """
    _check(timing, stop, signal_of)
    sent_bytes = num_bytes if update_bytes is None else update_bytes
    workers = _workers(timing, profiles, seed, steps_per_epoch, num_bytes, sent_bytes)
    if timing.after_push != "wait":
        for worker, steps in zip(workers, steps_per_epoch, strict=False):
            _check_upload(worker, timing.cycle_steps(steps, worker.step_s))
    settings = timing, stop, seed, aggregate_s, heartbeat_timeout_s
    world = World(*settings, signal_of, accepts, len(workers))
    for worker, join_s in zip(workers, profiles.join_s.tolist(), strict=True):
        world.schedule(join_s, world.join, worker)
    # There are no reference cycles, and searching a million workers for them would cost
    # more than the run.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return world.run()
    finally:
        if was_enabled:
            gc.enable()


def _check(timing: Timing, stop: Stop, signal_of: SignalOf | None) -> None:
    if not stop.max_versions and not stop.max_time_s:
        raise ValueError(
            "stop: found neither max_versions nor max_time_s; set one of them, also "
            "where a target may end the run earlier"
        )
    if timing.depends_on_values and signal_of is None:
        raise ValueError(
            "timing: pushes depend on values (push_at_metric or the strategy); give "
            "signal_of"
        )


def _workers(
    timing: Timing,
    profiles: Profiles,
    seed: int,
    steps_per_epoch: Sequence[int],
    version_bytes: int,
    update_bytes: int,
) -> list[VirtualWorker]:
    columns = profiles._replace(outages={})._asdict()
    lists = {name: column.tolist() for name, column in columns.items() if len(column)}
    # At one megabit per second.
    transfer_s, sending_s = 8e-6 * version_bytes, 8e-6 * update_bytes
    return [
        VirtualWorker(
            number=k,
            program=programs.worker_program(
                timing, steps_per_epoch[k], lists["step_s"][k]
            ),
            step_s=lists["step_s"][k],
            jitter=lists["jitter"][k],
            upload_s=lists["upload_s"][k] + sending_s / lists["upload_mbps"][k],
            latency_s=lists["download_s"][k],
            transfer_s=transfer_s / lists["download_mbps"][k],
            leave_s=lists["leave_s"][k],
            presence=Presence(profiles, k, seed) if profiles.has_outages(k) else None,
        )
        for k in range(profiles.workers)
    ]


def _check_upload(worker: VirtualWorker, cycle_steps: int) -> None:
    cycle_s, upload_s = worker.step_s * cycle_steps, worker.upload_s
    if upload_s > _MOST_IN_FLIGHT * cycle_s:
        raise ValueError(
            f"sim: worker {worker.number} would have {upload_s / cycle_s:,.3g} updates "
            f"in flight, as it pushes every {cycle_s:g} s and each takes {upload_s:g} "
            f"s; allowed: {_MOST_IN_FLIGHT:,}; give it a faster link or longer cycles"
        )


class Traffic(NamedTuple):
    """Versions that links carried, by time."""

    time_s: np.ndarray  # f64 [N], of the order's clock, not falling
    versions: np.ndarray  # i64 [N]: each to one worker, since the time before

    def until(self, times_s: np.ndarray) -> np.ndarray:
        """Their number by each of these times, i64 [T]."""
        places = np.searchsorted(self.time_s, times_s, side="right")
        return np.concatenate([[0], np.cumsum(self.versions)])[places]


def carried(
    order: Order, timing: Timing, profiles: Profiles, num_bytes: int, seed: int
) -> Traffic:
    """The versions that were sent to the workers of a schedule.

    A worker that merges each version is sent what its link can carry, the newest first,
    while it is present. Any other fetches the versions that it takes in: one at the
    start of a cycle, and the one that `merge_once` merges.

    Args:
      order: of `schedule` with these profiles; it may have been cut.
      timing: of the strategy.
      profiles: of the workers.
      num_bytes: of a version.
      seed: of the schedule, for outages.

    Returns:
      Whole versions; of those on slow links the time is that of the next version.

    >>> from asyn2f.sim.profiles import profiles_of
    >>> from asyn2f.sim.schedule import schedule
    >>> from asyn2f.timing import Stop
    >>> timing = Timing(while_training="merge", after_push="continue", quorum="each")
    >>> rows = [{"step_s": 1.0}, {"step_s": 99.0, "download_mbps": 16e-6}]
    >>> workers = profiles_of(rows, 2)  # 4 bytes take 2 s over the second link
    >>> order = schedule(timing, workers, Stop(max_time_s=9.5), seed=0,
    ...                  steps_per_epoch=[1, 1], num_bytes=4)
    >>> carried(order, timing, workers, 4, seed=0).until(np.array([0, 4, 9.5])).tolist()
    [1, 7, 14]
    """
    if timing.while_training != "merge":
        return _taken_in(order)
    made_s = order.time_s[order.kind == o.AGGREGATE]
    published_s = np.concatenate([[order.start_s], made_s])
    join_s, end_s = profiles.join_s, np.minimum(profiles.leave_s, order.end_s)
    took_s = 8e-6 * num_bytes / profiles.download_mbps
    away = np.array([profiles.has_outages(k) for k in range(profiles.workers)])
    free, slow = (took_s == 0.0) & ~away, (took_s > 0.0) & ~away
    counts = _over_free_links(published_s, join_s[free], end_s[free])
    counts += _over_links(published_s, join_s[slow], end_s[slow], took_s[slow], np.add)
    for worker in np.flatnonzero(away).tolist():
        presence = np.vectorize(Presence(profiles, worker, seed).after, otypes="d")
        own = slice(worker, worker + 1)
        counts += _over_links(
            published_s, join_s[own], end_s[own], took_s[own], presence
        )
    return Traffic(np.append(published_s, order.end_s), counts)


def _taken_in(order: Order) -> Traffic:
    """The versions that workers took in, unless they held them already."""
    (events,) = np.nonzero(np.isin(order.kind, (o.BEGIN, o.ADOPT, o.MERGE)))
    events = events[np.argsort(order.worker[events], kind="stable")]
    worker = order.worker[events]
    held = np.where(order.kind[events] == o.BEGIN, -1, order.value[events])
    is_new = held >= 0
    is_new[1:] &= (worker[1:] != worker[:-1]) | (held[1:] != held[:-1])
    time_s = np.sort(order.time_s[events[is_new]])
    return Traffic(time_s, np.ones(len(time_s), np.int64))


# Below: arrivals, i64 [M + 1], by the first of M publications that is not before them,
# or the end.


def _over_free_links(
    published_s: np.ndarray, join_s: np.ndarray, end_s: np.ndarray
) -> np.ndarray:
    """Links without limit carry the newest version, and all that follow."""
    first = np.maximum(np.searchsorted(published_s, join_s, side="right") - 1, 0)
    last = np.searchsorted(published_s, end_s, side="left") - 1
    there, size = (first <= last) & (join_s <= end_s), len(published_s) + 1
    joined = np.searchsorted(published_s, join_s[there], side="left")
    steps = np.bincount(first[there] + 1, minlength=size + 1)
    steps -= np.bincount(last[there] + 1, minlength=size + 1)
    return np.bincount(joined, minlength=size) + np.cumsum(steps)[:size]


def _over_links(
    published_s: np.ndarray,
    free_s: np.ndarray,
    end_s: np.ndarray,
    took_s: np.ndarray,
    after: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Links that carry one version after the other: see `VirtualWorker.fetch`."""
    counts = np.zeros(len(published_s) + 1, np.int64)
    following = np.zeros(len(free_s), np.int64)
    while len(following):
        newest = np.searchsorted(published_s, soon(free_s), side="right") - 1
        following = np.maximum(newest, following)
        free_s = after(np.maximum(free_s, published_s[following]), took_s)
        done = (free_s <= end_s) & (published_s[following] < end_s)
        arrived = np.searchsorted(published_s, free_s[done], side="left")
        counts += np.bincount(arrived, minlength=len(counts))
        following += 1
        left = done & (following < len(published_s))
        following, free_s, end_s, took_s = (
            column[left] for column in (following, free_s, end_s, took_s)
        )
    return counts
