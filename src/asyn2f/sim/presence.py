"""When a worker is there: its outages, given or drawn."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from random import Random

from asyn2f.sim.profiles import Profiles


class Presence:
    """When one worker is not in an outage; drawn as far as anybody asks."""

    def __init__(self, profiles: Profiles, worker: int, seed: int) -> None:
        self._coming = _spans(profiles, worker, seed)
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []

    def next_outage(self, time_s: float) -> tuple[float, float]:
        """The first outage, from-to, that ends after `time_s`; inf, inf if none does.

        >>> from asyn2f.sim.profiles import profiles_of
        >>> profiles = profiles_of([{"outages": [[3.0, 5.0]]}], workers=1)
        >>> Presence(profiles, worker=0, seed=0).next_outage(4.0)
        (3.0, 5.0)
        """
        while not self._ends_s or self._ends_s[-1] <= time_s:
            begin_s, end_s = next(self._coming)
            self._begins_s.append(begin_s)
            self._ends_s.append(end_s)
        number = bisect_right(self._ends_s, time_s)
        return self._begins_s[number], self._ends_s[number]

    def after(self, start_s: float, work_s: float) -> float:
        """When `work_s` seconds outside of outages have passed since `start_s`."""
        begin_s, end_s = self.next_outage(start_s)
        while start_s + work_s > begin_s:
            work_s -= max(0.0, begin_s - start_s)
            start_s = end_s
            begin_s, end_s = self.next_outage(start_s)
        return max(start_s, end_s) if start_s >= begin_s else start_s + work_s

    def worked(self, start_s: float, end_s: float) -> float:
        """The seconds outside of outages between two moments."""
        total_s, now = end_s - start_s, start_s
        while (outage := self.next_outage(now))[0] < end_s:
            total_s -= min(outage[1], end_s) - max(outage[0], now)
            now = outage[1]
        return total_s


def _spans(profiles: Profiles, worker: int, seed: int) -> Iterator[tuple[float, float]]:
    """A worker's outages, for ever; those after the last begin and end at infinity."""
    yield from profiles.outages.get(worker, ())
    every_s, length_s = profiles.outage_every_s[worker], profiles.outage_s[worker]
    if worker in profiles.outages or not math.isfinite(every_s):
        yield math.inf, math.inf
    random = Random(f"outages {seed} {worker}")
    end_s = float(profiles.join_s[worker])
    while True:
        begin_s = end_s + random.expovariate(1.0 / every_s)
        end_s = begin_s + (random.expovariate(1.0 / length_s) if length_s else 0.0)
        yield begin_s, end_s
