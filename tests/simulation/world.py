"""Which faults there are, how strong, and how a run is set up."""

import math
import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from asyn2f.protocol.settings import PublishWhen
from asyn2f.timing import Stop, Timing

Span = tuple[float, float]  # a duration is drawn between these, in seconds
CALM_S = 5.0  # drawn worlds have no faults after that

TIMINGS = {
    "asyn2f": Timing(while_training="merge", after_push="continue", quorum="some"),
    "adopting": Timing(while_training="ignore", after_push="adopt", quorum="some"),
    "fedavg": Timing(
        while_training="ignore", after_push="wait", quorum="all", max_staleness=0
    ),
    "fedasync": Timing(while_training="ignore", after_push="wait", quorum="each"),
    "fedasmu": Timing(while_training="merge_once", after_push="wait", quorum="each"),
    "fedbuff": Timing(
        while_training="ignore", after_push="adopt", quorum="some", pending="all"
    ),
    "asafl": Timing(
        while_training="ignore",
        after_push="wait",
        quorum="each",
        push_below_mean=True,
        keep_unsent=True,
    ),
}
"""Every timing that a strategy has."""
ENDLESS = Stop()


class Fault(NamedTuple):
    """Something is done to the run.

    kind:
      "kill": a worker dies at once, and another process of its number comes after
        `seconds`.
      "pause": the process stands still so long, and then finds all that has come.
      "cut": the connections break; what was on its way is lost. They come back after
        `seconds`.
      "stall": the connections carry nothing so long, and then all of it, unless they
        have been given up.
      "half open": the connections break; the peer notices later, and what it sends
        until then is lost.
      "twin": a second process begins with that worker's number.
      "hang": the worker trains no more, but its process speaks.
      "retire": the process is asked to stop, and stays away.
      "crash": the server dies, and is started again after `seconds`.
      "rot": the same, and the newest version is damaged then.
      "successor": the server stands still, another one is started, and after `seconds`
        the first goes on.
      "full": the store has no space so long.
    """

    time_s: float
    kind: str
    worker: int = -2  # -1 = the evaluator, -2 = the server
    seconds: float = 0.0
    channels: str = "control model update"  # that the faults of connections concern


@dataclass(frozen=True, kw_only=True)
class World:
    """How a run goes: durations in seconds, chances in 0..1, no faults after `calm_s`.

    Attributes:
      crash_at: the server dies before it has carried out its n-th effect.
      codec: messages are encoded and decoded on their way.
    """

    timing: Timing
    publish: PublishWhen = "after_save"
    workers: int = 2
    evaluator: bool = True
    stop: Stop = ENDLESS
    calm_s: float = math.inf
    server_timeout_s: float = 8.0
    max_updates_per_s: float = 0.0
    codec: bool = False
    latency_s: Span = (0.001, 0.01)
    late_s: float = 1.0
    subscribe_s: Span = (0.0, 0.05)
    reconnect_s: Span = (0.05, 0.5)
    step_s: Span = (0.1, 0.3)
    check_s: Span = (0.0, 0.01)
    make_s: Span = (0.01, 0.05)
    save_s: Span = (0.01, 0.1)
    depth: int = 4  # models or updates on a connection; one more is dropped
    drop: float = 0.0  # a model or an update, on its way to one receiver
    repeat: float = 0.0  # a message comes a second time, by up to `late_s` later
    late: float = 0.0  # a message comes later, others overtake it
    save_fails: float = 0.0
    bad_updates: float = 0.0  # `ValidateUpdate` finds a problem
    bad_versions: float = 0.0  # what comes of the updates cannot be used
    crash_at: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()


def draw_world(seed: int, calm_s: float = CALM_S) -> World:
    """The world of a seed: first which faults there are at all, then how strong."""
    draw = random.Random(f"world {seed}")
    chance, uniform, choice = draw.random, draw.uniform, draw.choice

    def perhaps(strongest: float, share: float = 0.35) -> float:
        return uniform(0.0, strongest) if chance() < share else 0.0

    workers = choice((1, 2, 2, 3, 3, 4))
    name = choice(sorted(TIMINGS))
    hangs = workers > 1 and chance() < 0.1
    retires = workers > 1 + hangs and chance() < 0.15
    timing = replace(
        TIMINGS[name],
        min_workers=draw.randint(1, workers - retires),
        min_updates=draw.randint(1, workers + 1),
        epochs_per_push=choice((1, 1, 2)),
        # Whoever hangs is waited for without one, and that is no fault of ours.
        deadline_s=choice((0.5, 1.0) if hangs else (0.0, 0.0, 0.5, 1.0)),
    )
    if timing.max_staleness is None:
        timing = replace(timing, max_staleness=choice((None, None, 1, 3)))
    faults = _draw_faults(draw, workers, calm_s)
    some_worker, another, *_ = [*draw.sample(range(workers), workers), None]
    if hangs:
        faults.append(Fault(uniform(0.5, calm_s), "hang", some_worker))
    if retires:
        faults.append(Fault(uniform(0.5, calm_s), "retire", another))
    stops = [ENDLESS] * 7 + [
        Stop(max_versions=draw.randint(1, 12)),
        Stop(max_time_s=uniform(0.1, 4.0)),
        Stop(target=uniform(0.01, 0.1)),
    ]
    return World(
        timing=timing,
        publish=choice(("after_save", "after_save", "after_save", "before_save")),
        workers=workers,
        evaluator=chance() < 0.6,
        stop=choice(stops),
        calm_s=calm_s,
        server_timeout_s=choice((2.5, 8.0, 8.0)),
        max_updates_per_s=choice((0.0, 0.0, 0.0, 2.0)),
        codec=chance() < 0.03,
        latency_s=(0.0, choice((0.001, 0.02, 0.3))),
        late_s=choice((0.3, 1.5, 4.0)),
        subscribe_s=(0.0, choice((0.0, 0.1, 0.8))),
        step_s=(0.1, choice((0.2, 0.5))),
        check_s=(0.0, choice((0.0, 0.02, 0.2))),
        make_s=(0.0, choice((0.01, 0.3))),
        save_s=(0.0, choice((0.01, 0.1, 0.8))),
        depth=choice((1, 2, 4, 8)),
        drop=perhaps(0.4),
        repeat=perhaps(0.4),
        late=perhaps(0.3),
        save_fails=perhaps(0.4, share=0.2),
        bad_updates=perhaps(0.3, share=0.2),
        bad_versions=perhaps(0.2, share=0.1),
        crash_at=tuple(draw.randint(10, 400) for _ in range(choice((0, 0, 0, 1, 2)))),
        faults=tuple(sorted(faults)),
    )


_CHANNELS = ("control", "model", "update", "control model update")


def _draw_faults(draw: random.Random, workers: int, calm_s: float) -> list[Fault]:
    faults = []

    def several(share: float, most: int) -> range:
        """None at all in most worlds."""
        return range(draw.randint(1, most) if draw.random() < share else 0)

    def when() -> float:
        return draw.uniform(0.2, calm_s - 0.5)

    def anybody() -> int:
        return draw.randint(-1, workers - 1)

    def worker() -> int:
        return draw.randrange(workers)

    uniform, choice = draw.uniform, draw.choice
    for _ in several(0.3, 3):
        faults.append(Fault(when(), "kill", worker(), uniform(0.0, 2.0)))
    for _ in several(0.25, 2):
        faults.append(Fault(when(), "pause", anybody(), uniform(0.1, 3.5)))
    for _ in several(0.25, 3):  # short ones: busy; long ones: stopped
        faults.append(Fault(when(), "pause", -2, choice((0.2, 0.6, uniform(0, 3.0)))))
    for _ in several(0.3, 4):
        where = choice(_CHANNELS)
        faults.append(Fault(when(), "cut", anybody(), uniform(0.0, 1.5), where))
    for _ in several(0.25, 3):
        where = choice(_CHANNELS)
        faults.append(Fault(when(), "stall", anybody(), uniform(0.1, 4.0), where))
    for _ in several(0.15, 2):
        faults.append(Fault(when(), "twin", worker()))
    for _ in several(0.3, 2):
        faults.append(Fault(when(), "crash", -2, uniform(0.0, 2.0)))
    for _ in several(0.1, 1):
        faults.append(Fault(when(), "rot", -2, uniform(0.0, 1.0)))
    for _ in several(0.12, 1):
        faults.append(Fault(when(), "successor", -2, uniform(0.1, 3.0)))
    for _ in several(0.1, 1):
        faults.append(Fault(when(), "full", -2, uniform(0.1, 2.0)))
    for _ in several(0.2, 3):
        where = choice(_CHANNELS)
        faults.append(Fault(when(), "half open", anybody(), channels=where))
    return faults
