"""Impossible traces, each the hand-made one with one change."""

import math
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.trace import (
    Adopted,
    Aggregated,
    Merged,
    Published,
    Pushed,
    Trained,
    UpdateSettled,
)
from tests.support.handmade_trace import At, changed, having, without


class Broken(NamedTuple):
    """A trace, two contradicting events, and words of the rule they break."""

    events: list[Any]
    cause: At | None
    effect: At
    words: str


RESUMED = At(trace.Resumed, 4.1)
MADE_1, MADE_2, MADE_2_AGAIN, MADE_3 = (At(Aggregated, t) for t in (2.0, 3.2, 5.2, 6.1))
TWICE = [[0, "a", 1], [0, "a", 1]]
USED_BY_1 = {"updates": [[0, "a", 1], [1, "c", 0]], "base_versions": [0, 1]}
USED_BY_2 = {"updates": [[1, "c", 0], [0, "a", 3]]}
NEW_LIFE = trace.ProcessStarted(2.45, "worker-0", "", 0, {})
BACK = Merged(5.95, 0, 1, 2, 16, 0.0, 0.3, incarnation=2)
WRONG_BASE = {"base_versions": [0, 2], "staleness": [2, 0]}

BROKEN = {
    # a: no version before it is made
    "a version that nobody made is adopted": Broken(
        changed(At(Adopted, 6.4), version=9), None, At(Adopted, 6.4), "never published"
    ),
    "a version is merged that only another incarnation made": Broken(
        changed(At(Merged, 4.5), version=3, incarnation=1),
        None,
        At(Merged, 4.5),
        "never published",
    ),
    "a version is merged before an incarnation gave it out again": Broken(
        changed(At(Merged, 2.5), incarnation=2),
        At(Published, 4.2),
        At(Merged, 2.5),
        "before it was published",
    ),
    "a version is merged before it is published": Broken(
        changed(At(Published, 2.2), time_s=2.45),
        At(Published, 2.45),
        At(Merged, 2.4),
        "before it was published",
    ),
    "version 0 is adopted before it is published": Broken(
        changed(At(Adopted, 0.5), time_s=0.35),
        At(Published, 0.4),
        At(Adopted, 0.35),
        "before it was published",
    ),
    "a version is published before it is made": Broken(
        changed(At(Published, 2.2), time_s=1.9),
        MADE_1,
        At(Published, 1.9),
        "does not have yet",
    ),
    "a version is published that nobody made": Broken(
        changed(At(Published, 5.4), version=7),
        None,
        At(Published, 5.4),
        "does not have yet",
    ),
    "a server resumes from a version that nobody made": Broken(
        changed(RESUMED, version=7), MADE_2, RESUMED, "never made"
    ),
    "a server resumes from a version of its own": Broken(
        changed(RESUMED, made_in=2),
        At(trace.ProcessStarted, 4.0),
        RESUMED,
        "never made",
    ),
    "a server resumes from a version before it is made": Broken(
        changed(RESUMED, time_s=1.3), MADE_1, At(trace.Resumed, 1.3), "before it was"
    ),
    # b: updates are pushed, and used once
    "an update is used that nobody pushed": Broken(
        without(At(Pushed, 1.4)), None, MADE_1, "was never pushed"
    ),
    "an update is used before it is pushed": Broken(
        changed(MADE_1, time_s=1.55),
        At(Pushed, 1.6),
        At(Aggregated, 1.55),
        "before it was pushed",
    ),
    "an update stands twice in a version": Broken(
        changed(MADE_1, updates=TWICE), MADE_1, MADE_1, "used twice"
    ),
    "an update stands in two versions of an incarnation": Broken(
        changed(MADE_3, **USED_BY_2), MADE_2_AGAIN, MADE_3, "used twice"
    ),
    "an update stands in the versions of two incarnations": Broken(
        changed(MADE_2_AGAIN, staleness=[1, 0], **USED_BY_1),
        MADE_1,
        MADE_2_AGAIN,
        "used twice",
    ),
    # c: versions are consecutive
    "the first version is not 1": Broken(
        changed(MADE_1, version=2),
        At(trace.ProcessStarted, 0.0),
        MADE_1,
        "expected version 1",
    ),
    "a version is left out": Broken(
        changed(MADE_3, version=4), MADE_2_AGAIN, MADE_3, "expected version 3"
    ),
    "a version is made twice by one incarnation": Broken(
        changed(MADE_2, version=1), MADE_1, MADE_2, "expected version 2"
    ),
    "an incarnation does not begin where it resumed": Broken(
        changed(MADE_2_AGAIN, version=3), RESUMED, MADE_2_AGAIN, "expected version 2"
    ),
    # d: a worker's life
    "a worker trains before it has a model": Broken(
        without(At(Adopted, 0.5)),
        At(trace.ProcessStarted, 0.1),
        At(Trained, 1.0),
        "must adopt a version first",
    ),
    "a worker that begins anew has lost its model": Broken(
        having(NEW_LIFE),
        At(trace.ProcessStarted, 2.45),
        At(Merged, 2.5),
        "must adopt a version first",
    ),
    "a stretch has no step": Broken(
        changed(At(Trained, 1.0), steps=0), None, At(Trained, 1.0), "without a step"
    ),
    "a stretch ends at a step it cannot reach": Broken(
        changed(At(Trained, 1.4), step=5),
        At(Pushed, 1.0),
        At(Trained, 1.4),
        "continue from 2",
    ),
    "a worker adopts at another step": Broken(
        changed(At(Adopted, 6.4), step=3),
        At(trace.Blocked, 6.0),
        At(Adopted, 6.4),
        "is at step 4",
    ),
    "a worker merges at another step": Broken(
        changed(At(Merged, 2.4), step=2),
        At(Trained, 2.3),
        At(Merged, 2.4),
        "is at step 3",
    ),
    "a worker pushes at another step": Broken(
        changed(At(Pushed, 1.4), step=2),
        At(Trained, 1.4),
        At(Pushed, 1.4),
        "is at step 4",
    ),
    "a worker trains on another base": Broken(
        changed(At(Trained, 3.5), base_version=0),
        At(Merged, 2.5),
        At(Trained, 3.5),
        "base is version 1",
    ),
    "a worker pushes with another base": Broken(
        changed(At(Pushed, 2.8), base_version=0),
        At(Merged, 2.5),
        At(Pushed, 2.8),
        "base is version 1",
    ),
    "a worker merges into another base": Broken(
        changed(At(Merged, 2.5), from_version=1),
        At(Adopted, 0.5),
        At(Merged, 2.5),
        "base is version 0",
    ),
    "a worker's cycle began with another version": Broken(
        changed(At(Pushed, 2.8), start_version=1),
        At(Pushed, 1.4),
        At(Pushed, 2.8),
        "started from version 0",
    ),
    "a number is given to two updates": Broken(
        changed(At(Pushed, 1.4), seq=0),
        At(Pushed, 1.0),
        At(Pushed, 1.4),
        "continue from 0",
    ),
    "a stretch ends before it begins": Broken(
        changed(At(Trained, 1.0), start_s=1.2),
        None,
        At(Trained, 1.0),
        "ends before it starts",
    ),
    "a stretch begins before the event before it": Broken(
        changed(At(Trained, 1.4), start_s=0.9),
        At(Pushed, 1.0),
        At(Trained, 1.4),
        "overlap",
    ),
    "a wait begins before the event before it": Broken(
        changed(At(trace.Blocked, 6.0), start_s=5.7),
        At(Pushed, 5.8),
        At(trace.Blocked, 6.0),
        "overlap",
    ),
    # e: what a version says of its updates
    "a version says another base than the push": Broken(
        changed(MADE_3, **WRONG_BASE), At(Pushed, 5.8), MADE_3, "has base version 1"
    ),
    "a staleness is not what the base says": Broken(
        changed(MADE_3, staleness=[0, 0]), At(Pushed, 5.8), MADE_3, "the staleness of"
    ),
    "the lists are not parallel": Broken(
        changed(MADE_3, staleness=[1]), None, MADE_3, "differ in length"
    ),
    "coefficients sum to more than 1": Broken(
        changed(MADE_3, coefficients=[0.6, 0.6]), None, MADE_3, "sum to 1"
    ),
    "a coefficient is negative": Broken(
        changed(MADE_3, coefficients=[1.5, -0.5]), None, MADE_3, ">= 0"
    ),
    "a coefficient is no number": Broken(
        changed(MADE_3, coefficients=[1.0, math.nan]), None, MADE_3, "sum to 1"
    ),
    "a version is made of nothing": Broken(
        changed(MADE_3, updates=[], base_versions=[], staleness=[], coefficients=[]),
        None,
        MADE_3,
        "sum to 1",
    ),
    # f: newest wins
    "a worker goes back to an older version": Broken(
        having(BACK), At(Merged, 5.6), At(Merged, 5.95), "regressed"
    ),
    "a worker goes back to an older incarnation": Broken(
        changed(At(Merged, 5.6), incarnation=1),
        At(Merged, 4.5),
        At(Merged, 5.6),
        "regressed",
    ),
    # g: outcomes
    "an update is committed in a version that does not hold it": Broken(
        changed(At(UpdateSettled, 2.1, 0), version=2),
        MADE_2,
        At(UpdateSettled, 2.1, 0),
        "does not contain it",
    ),
    "an update is committed in a version that nobody made": Broken(
        changed(At(UpdateSettled, 6.2, 0), version=9),
        None,
        At(UpdateSettled, 6.2, 0),
        "does not contain it",
    ),
    "an update is rejected that stands in a version": Broken(
        changed(At(UpdateSettled, 2.1, 0), outcome="rejected"),
        MADE_1,
        At(UpdateSettled, 2.1, 0),
        "rejected, although",
    ),
    "an update that was superseded is used": Broken(
        changed(At(UpdateSettled, 1.5), seq=1),
        At(UpdateSettled, 1.5),
        MADE_1,
        "had been refused",
    ),
}
