"""A worker under a virtual clock: its progress, its link and its outages."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from random import Random
from typing import TypeVar

import numpy as np

from asyn2f import programs
from asyn2f.sim.profiles import Profiles


class Presence:
    """The outages of one worker, drawn as far as they are asked for."""

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
        """The time at which `work_s` seconds outside of outages have passed."""
        begin_s, end_s = self.next_outage(start_s)
        while start_s + work_s > begin_s:
            work_s -= max(0.0, begin_s - start_s)
            start_s = end_s
            begin_s, end_s = self.next_outage(start_s)
        return max(start_s, end_s) if start_s >= begin_s else start_s + work_s

    def worked(self, start_s: float, end_s: float) -> float:
        """The seconds outside of outages between two times."""
        total_s, now = end_s - start_s, start_s
        while (outage := self.next_outage(now))[0] < end_s:
            total_s -= min(outage[1], end_s) - max(outage[0], now)
            now = outage[1]
        return total_s


def _spans(profiles: Profiles, worker: int, seed: int) -> Iterator[tuple[float, float]]:
    """A worker's outages, without end; those after the last are at infinity."""
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


# Ties begin with 1.
GONE, PARKED = -1, 0  # not present; waiting for a version not published yet


_Time = TypeVar("_Time", float, np.ndarray)


def soon(time_s: _Time) -> _Time:
    """The latest time that counts as equal: times are sums, and rounded."""
    return time_s + (1e-9 + 1e-12 * time_s)


class VirtualWorker:
    """The state of a worker; slots, as there may be a million of them."""

    __slots__ = (
        "arrival_s",
        "base",
        "coming",
        "due",
        "end_s",
        "free_s",
        "got",
        "jitter",
        "latency_s",
        "leave_s",
        "number",
        "pace_s",
        "presence",
        "program",
        "start_s",
        "step_s",
        "steps",
        "transfer_s",
        "upload_s",
    )

    def __init__(
        self,
        number: int,
        program: programs.WorkerProgram,
        step_s: float,
        jitter: float,
        upload_s: float,
        latency_s: float,
        transfer_s: float,
        leave_s: float,
        presence: Presence | None,
    ) -> None:
        self.number = number
        self.program = program
        self.step_s = step_s
        self.jitter = jitter
        self.upload_s = upload_s  # of a whole update
        self.latency_s = latency_s
        self.transfer_s = transfer_s  # of a version, while its link is taken
        self.leave_s = leave_s
        self.presence = presence  # None = there are no outages
        self.base = -1
        # the present stretch
        self.due = GONE  # or PARKED, or the tie of the event that ends it or a wait
        self.steps = 0  # until that event; 0 = it waits
        self.start_s = self.pace_s = self.end_s = 0.0  # pace: seconds per step
        # its link
        self.got = -1  # newest version received
        self.coming = -1  # version on the link, or -1 ...
        self.arrival_s = 0.0  # ... and its time of arrival
        self.free_s = 0.0  # when the link is free again

    def after(self, start_s: float, work_s: float) -> float:
        """The time at which it has worked that long."""
        if self.presence is None:
            return start_s + work_s
        return self.presence.after(start_s, work_s)

    def boundary(self) -> tuple[float, int]:
        """The first batch boundary after the version on its way has arrived: its time,
        and the steps of the present stretch until then."""
        worked_s = self.arrival_s - self.start_s
        if self.presence is not None:
            worked_s = self.presence.worked(self.start_s, self.arrival_s)
        # A boundary that rounding puts just before the arrival counts as after it.
        rounding_s = soon(self.arrival_s) - self.arrival_s
        steps = max(1, math.ceil((worked_s - rounding_s) / self.pace_s))
        end_s = self.after(self.start_s, steps * self.pace_s)
        return max(end_s, self.arrival_s), steps

    def newest(self, now: float, published_s: list[float]) -> int:
        """The newest version received; the next one is on the link then."""
        if self.coming < 0:
            self.fetch(published_s)
        latest_s = soon(now)
        if self.coming < 0 or self.arrival_s > latest_s:
            return self.got
        if self.presence is None:
            self._skip(now, published_s)
        while self.coming >= 0 and self.arrival_s <= latest_s:
            self.got = self.coming
            self.fetch(published_s)
        return self.got

    def _skip(self, now: float, published_s: list[float]) -> None:
        """Skips versions that came and went since the last look.

        Between two versions so far apart that the link can carry two, it becomes free
        for the second, whatever was before.
        """
        transfer_s = self.transfer_s
        carried_s = 2.0 * now - soon(now) - self.latency_s - transfer_s
        version = bisect_right(published_s, carried_s) - 1
        apart_s = 2.0 * transfer_s
        while (
            version > self.coming
            and published_s[version] - published_s[version - 1] < apart_s
        ):
            version -= 1
        if version > self.coming:
            self.got = version
            self.free_s = published_s[version] + transfer_s
            self.fetch(published_s)

    def fetch(self, published_s: list[float]) -> None:
        """Puts the next version on the link: the newest one once the link is free, or
        the next to be published."""
        following = self.got + 1
        if following >= len(published_s):
            self.coming = -1
            return
        start_s = published_s[following]
        latest_s = soon(self.free_s)
        if start_s <= latest_s:
            following = bisect_right(published_s, latest_s) - 1
            start_s = max(self.free_s, published_s[following])
        self.coming = following
        self.free_s = free_s = self.after(start_s, self.transfer_s)
        self.arrival_s = self.after(free_s, self.latency_s)
