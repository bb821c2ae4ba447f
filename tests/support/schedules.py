"""Schedules for tests: by hand, at random, and their properties."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import numpy as np

from asyn2f import trace
from asyn2f.sim import order as o
from asyn2f.sim.order import Numbers, Order, empty_numbers
from asyn2f.sim.profiles import Profiles, profiles_of
from asyn2f.sim.schedule import schedule
from asyn2f.sim.to_trace import events_of
from asyn2f.sim.virtual_worker import Presence
from asyn2f.timing import Stop, Timing
from asyn2f.training.experiment import NO_GUARDS

EPS_S = 1e-6
MEGABYTE = 1_000_000  # takes a second at 8 Mbit/s
NAMES = {
    o.ADOPT: "adopt",
    o.TRAIN: "train",
    o.MERGE: "merge",
    o.PUSH: "push",
    o.AGGREGATE: "aggregate",
    o.BEGIN: "begin",
    o.LEAVE: "leave",
    o.WAITED: "waited",
    o.SUPERSEDE: "supersede",
    o.REJECT: "reject",
    o.LOSE: "lose",
    o.RETURN: "return",
}


class Did(NamedTuple):
    """One event of an order."""

    time_s: float
    kind: int
    worker: int
    value: int


def events_in(order: Order, *kinds: int, worker: int | None = None) -> list[Did]:
    """The events, or those of these kinds, or of this worker."""
    columns = (order.time_s, order.kind, order.worker, order.value)
    return [
        did
        for did in map(
            Did._make, zip(*(column.tolist() for column in columns), strict=True)
        )
        if (not kinds or did.kind in kinds) and worker in (None, did.worker)
    ]


def lines_of(order: Order, *kinds: int, worker: int | None = None) -> list[str]:
    """The events as lines: time, worker (-1: the server), kind and value."""
    valueless = (o.BEGIN, o.LEAVE, o.WAITED, o.RETURN)
    return [
        f"{did.time_s:g} {did.worker} {NAMES[did.kind]}"
        + ("" if did.kind in valueless else f" {did.value}")
        for did in events_in(order, *kinds, worker=worker)
    ]


def run(
    timing: Timing,
    rows: list[dict[str, Any]],
    *,
    steps: int | list[int],
    seed: int = 0,
    **more: Any,
) -> Order:
    """A schedule of one worker per row, with `steps` per epoch.

    What there is `more` goes to `Stop` or to `schedule`.
    """
    stop = {name: more.pop(name) for name in Stop.__annotations__ if name in more}
    profiles = profiles_of(rows, len(rows))
    many = [steps] * len(rows) if isinstance(steps, int) else steps
    more = {"heartbeat_timeout_s": 3.0} | more
    return schedule(timing, profiles, Stop(**stop), seed, steps_per_epoch=many, **more)


def same(one: Order, other: Order) -> bool:
    """Whether two orders are equal in everything."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------- by chance


class Case(NamedTuple):
    """The arguments of `schedule`."""

    timing: Timing
    profiles: Profiles
    stop: Stop
    seed: int
    steps_per_epoch: list[int]
    num_bytes: int
    aggregate_s: float
    heartbeat_timeout_s: float
    signal_of: Callable[..., float] | None

    def order(self, **changes: Any) -> Order:
        arguments = {**self._asdict(), **changes}
        first = [arguments.pop(name) for name in ("timing", "profiles", "stop", "seed")]
        return schedule(*first, **arguments)

    @property
    def cycles(self) -> list[int]:
        """Steps from push to push, of every worker."""
        pairs = zip(self.steps_per_epoch, self.profiles.step_s.tolist(), strict=True)
        return [self.timing.cycle_steps(*pair) for pair in pairs]


def made_up(random: Random) -> Case:
    """Short runs of a few workers, with whatever can happen to them."""
    draw, pick = random.uniform, random.choice
    rows = [_row(random) for _ in range(random.randint(1, 5))]
    staying = sum("leave_s" not in row for row in rows)
    threshold = pick([0.0, 0.0, 0.0, 0.5])
    timing = Timing(
        while_training=pick(["merge", "merge", "merge_once", "ignore"]),
        after_push=pick(["continue", "adopt", "wait"]),
        quorum=pick(["each", "some", "some", "all"]),
        pending=pick(["newest", "all"]),
        merge_slot=pick([0.1, 0.5, 1.0]),
        max_staleness=pick([None, None, 0, 2]),
        min_updates=random.randint(1, 3),
        push_at_metric=threshold or None,
        push_after_epochs=pick([0, 3]),
        deadline_s=pick([0.0, 0.0, draw(0.5, 4.0)]),
        min_workers=random.randint(1, max(1, staying)),
        **pick(
            [
                {"epochs_per_push": random.randint(1, 2)},
                {"epochs_per_push": 0, "steps_per_push": random.randint(1, 9)},
                {"epochs_per_push": 0, "seconds_per_push": draw(0.1, 5.0)},
            ]
        ),
    )
    return Case(
        timing,
        profiles_of(rows, len(rows)),
        Stop(max_versions=pick([0, 0, 1, 20]), max_time_s=draw(2.0, 20.0)),
        random.randint(0, 9),
        [random.randint(1, 6) for _ in rows],
        num_bytes=pick([0, MEGABYTE]),
        aggregate_s=pick([0.0, 0.0, draw(0.1, 1.0)]),
        heartbeat_timeout_s=draw(0.2, 2.0),
        signal_of=made_up_signal if threshold else None,
    )


def made_up_signal(log: o.Log, worker: int) -> float:
    return len(log.kind) * 7 % 10 / 10


def _row(random: Random) -> dict[str, Any]:
    draw, row = random.uniform, {}
    row["step_s"] = random.choice([0.5, 1.0, draw(0.2, 1.0)])
    if random.random() < 0.3:
        row["jitter"] = 0.3
    for name, most in [("upload_s", 1.0), ("download_s", 1.0), ("join_s", 4.0)]:
        if random.random() < 0.3:
            row[name] = draw(0.0, most)
    for name in ("upload_mbps", "download_mbps"):
        if random.random() < 0.4:
            row[name] = draw(4.0, 40.0)
    if random.random() < 0.2:
        row["leave_s"] = row.get("join_s", 0.0) + draw(0.0, 20.0)
    outages = random.random()
    if outages < 0.15:
        row["outages"] = [[draw(0.0, 1.0), draw(1.1, 4.0)], [5.0, draw(5.1, 9.0)]]
    elif outages < 0.3:
        row |= {"outage_every_s": draw(1.0, 5.0), "outage_s": draw(0.2, 2.0)}
    return row


# ------------------------------------------------------------- as a trace


def bases_of(order: Order) -> list[int]:
    """The version that each update was made on."""
    base, bases = {}, []
    for did in events_in(order, o.ADOPT, o.MERGE, o.PUSH):
        if did.kind == o.PUSH:
            assert did.value == len(bases)
            bases.append(base[did.worker])
        else:
            base[did.worker] = did.value
    return bases


def numbers_of(order: Order) -> Numbers:
    """What an execution would say, as far as nothing needs to be computed for it."""
    numbers, bases = empty_numbers(order), bases_of(order)
    for node in range(1, len(order.version)):
        span = slice(*order.member_starts[node : node + 2].tolist())
        members = order.members[span].tolist()
        numbers.coefficients[span] = 1.0 / len(members)
        numbers.staleness[span] = [node - 1 - bases[update] for update in members]
    return numbers


def trace_of(case: Case, order: Order) -> list[trace.Event]:
    """The order as the trace of a run."""
    workers = case.profiles.workers
    return list(
        events_of(
            order,
            numbers_of(order),
            {},
            run="run-1",
            environment={},
            num_examples=[10] * workers,
            qualities=[1.0] * workers,
            steps_per_epoch=case.steps_per_epoch,
            num_bytes=case.num_bytes,
            guards=NO_GUARDS,
        )
    )


# ------------------------------------------------------------- worked out otherwise


class Link:
    """What reaches a worker and when, worked out from the first version to the last."""

    def __init__(self, case: Case, order: Order, worker: int) -> None:
        profiles = case.profiles
        after = Presence(profiles, worker, case.seed).after
        published_s = [order.start_s]
        published_s += [did.time_s for did in events_in(order, o.AGGREGATE)]
        transfer_s = 8e-6 * case.num_bytes / float(profiles.download_mbps[worker])
        latency_s = float(profiles.download_s[worker])
        free_s = float(profiles.join_s[worker])
        self.versions: list[int] = []
        self.arrivals_s: list[float] = []
        # The order of two events at one time is not known here.
        self.is_certain = True
        version, last = -1, len(published_s) - 1
        while version < last:
            early, at_hand, late = (
                min(last, max(bisect_right(published_s, time_s) - 1, version + 1))
                for time_s in (free_s - EPS_S, free_s, free_s + EPS_S)
            )
            version = at_hand
            self.is_certain &= early == late or not transfer_s
            free_s = after(max(free_s, published_s[version]), transfer_s)
            self.versions.append(version)
            self.arrivals_s.append(after(free_s, latency_s))
        # Without bandwidth to wait for, nothing is left out but at one time.
        self.carried = set(self.versions if transfer_s else range(last + 1))

    def newest(self, time_s: float) -> int:
        """The newest version that has arrived."""
        count = bisect_right(self.arrivals_s, time_s)
        return self.versions[count - 1] if count else -1


def upload_s(case: Case, worker: int) -> float:
    """How long a push travels."""
    profiles = case.profiles
    transfer_s = 8e-6 * case.num_bytes / float(profiles.upload_mbps[worker])
    return float(profiles.upload_s[worker]) + transfer_s


def absences(case: Case, worker: int, end_s: float) -> list[tuple[float, int]]:
    """When the server loses sight of a worker, and when it sees it again."""
    profiles = case.profiles
    presence = Presence(profiles, worker, case.seed)
    now, leave_s = (
        float(profiles.join_s[worker]),
        float(profiles.leave_s[worker]),
    )
    found: list[tuple[float, int]] = []
    while now < min(leave_s, end_s):
        begin_s, back_s = presence.next_outage(now)
        missed_s = max(begin_s, now) + case.heartbeat_timeout_s
        if missed_s < min(back_s, leave_s):
            found.append((missed_s, o.LEAVE))
            if back_s < leave_s:
                found.append((back_s, o.RETURN))
        now = back_s
    if leave_s < math.inf and (not found or found[-1][1] == o.RETURN):
        found.append((leave_s, o.LEAVE))
    return found


def fates_of(order: Order) -> Counter[int]:
    """How many fates each update has met."""
    fates = Counter(order.members.tolist())
    ends = events_in(order, o.SUPERSEDE, o.REJECT, o.LOSE)
    fates.update(did.value for did in ends)
    return fates
