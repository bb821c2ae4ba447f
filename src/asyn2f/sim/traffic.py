"""Which versions were carried to whom: what the links of a schedule had to do."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asyn2f.sim import order as o
from asyn2f.sim.order import Order
from asyn2f.sim.presence import Presence
from asyn2f.sim.profiles import Profiles
from asyn2f.sim.virtual_worker import soon
from asyn2f.timing import Timing


class Traffic(NamedTuple):
    """Versions that were carried, by time."""

    time_s: np.ndarray  # f64 [N], of the order's clock, not falling
    versions: np.ndarray  # i64 [N]: each to one worker, since the time before

    def until(self, times_s: np.ndarray) -> np.ndarray:
        """How many by each of these times, i64 [T]."""
        places = np.searchsorted(self.time_s, times_s, side="right")
        return np.concatenate([[0], np.cumsum(self.versions)])[places]


def carried(
    order: Order, timing: Timing, profiles: Profiles, num_bytes: int, seed: int
) -> Traffic:
    """The versions that the workers of a schedule were sent.

    A worker that merges whatever comes is sent what its link can carry, the newest
    first, from when it joins until it leaves or the run ends. Any other fetches what it
    takes in: once at the start of a cycle, and where `merge_once` has it merge.

    Args:
      order: as `schedule` has made it of these profiles; it may have been cut.
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
    join_s, end_s = (
        profiles.join_s,
        np.minimum(profiles.leave_s, order.end_s),
    )
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
    """What workers took in; a version that a worker holds it need not be sent again."""
    (events,) = np.nonzero(np.isin(order.kind, (o.BEGIN, o.ADOPT, o.MERGE)))
    events = events[np.argsort(order.worker[events], kind="stable")]
    worker = order.worker[events]
    held = np.where(order.kind[events] == o.BEGIN, -1, order.value[events])
    is_new = held >= 0
    is_new[1:] &= (worker[1:] != worker[:-1]) | (held[1:] != held[:-1])
    time_s = np.sort(order.time_s[events[is_new]])
    return Traffic(time_s, np.ones(len(time_s), np.int64))


# Below: arrivals, i64 [M + 1], by the first of M publications that is not before them,
# or else the end.


def _over_free_links(
    published_s: np.ndarray, join_s: np.ndarray, end_s: np.ndarray
) -> np.ndarray:
    """Links of any bandwidth carry the newest version there is, and all that follow."""
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
