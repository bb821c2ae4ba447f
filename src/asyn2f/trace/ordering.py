"""Merges the events of several processes in causal order: effects after causes.

Clocks of different machines disagree by milliseconds or by hours, so the wall times of
two processes do not determine their order. The protocol does: a version is published
before a worker receives it, an update pushed before a server uses or settles it, an
outcome recorded before its worker receives it, and one server ends before its successor
resumes. Where this leaves a choice, the times decide.

If a process's clock contradicts the server's, all its times are shifted: each version
received bounds the offset from below, each update used from above (as in NTP, RFC 5905,
section 8), and the offset is the middle of the interval.
"""

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from itertools import chain, pairwise
from math import inf, isinf
from typing import Any

from asyn2f.trace import events as e

_SLACK_S = 0.01  # clocks of one machine: a contradiction of less moves no process

Fact = tuple[Any, ...]
Life = list[e.Event]  # of one process, on its own clock
# An event, the fact that it establishes, and those that it requires.
Step = tuple[e.Event, Fact | None, list[Fact]]


def by_cause(files: Sequence[Sequence[Life]]) -> list[e.Event]:
    """All events in one order, on the clock of the server.

    Args:
      files: the lives of each process, in order.

    Returns:
      The events. Those that contradict each other are sorted by time;
      `causality.check` names them.

    >>> served = [e.Published(100.0, 0, 400, 1), e.Aggregated(102.0, 1, 1,
    ...           [[0, "a", 0]], [0], [0], [1.0], 0.1), e.Published(102.1, 1, 400, 1)]
    >>> from asyn2f.types import UpdateInfo
    >>> info = UpdateInfo(0, 0, 9, 30.0, 0.5, 1.0, 0.9, 0.9)
    >>> worked = [e.Adopted(50.1, 0, 0, 0), e.Pushed(51.9, 0, "a", 0, info),
    ...           e.Adopted(52.2, 0, 1, 9)]
    >>> for event in by_cause([[served], [worked]]):
    ...     print(f"{event.time_s:.2f} {type(event).__name__}")
    100.00 Published
    100.10 Adopted
    101.90 Pushed
    102.00 Aggregated
    102.10 Published
    102.20 Adopted
    """
    if len(files) < 2:
        return list(chain.from_iterable(chain.from_iterable(files)))
    lives = [life for file in files for life in file if life]
    steps = _with_successions([_steps(life) for life in lives])
    made_true = {
        fact: (number, event.time_s)
        for number, life in enumerate(steps)
        for event, fact, _ in life
        if fact is not None
    }
    for life in steps:
        _keep_known(life, made_true)
    offsets = _offsets(steps, made_true)
    steps = [
        [(shifted(event, by_s), fact, needs) for event, fact, needs in life]
        if by_s
        else life
        for life, by_s in zip(steps, offsets, strict=True)
    ]
    lived = iter(steps)
    return _merged(
        [[step for life in file if life for step in next(lived)] for file in files]
    )


def shifted(event: e.Event, by_s: float) -> e.Event:
    """The event with all its times shifted by `by_s`."""
    names = {"time_s", "start_s"} & {*event._fields}
    changes: dict[str, Any] = {name: getattr(event, name) + by_s for name in names}
    return event._replace(**changes)


# ------------------------------------------------------------- dependencies


def _steps(life: Life) -> list[Step]:
    """Each event with the fact it establishes and those it requires."""
    incarnation = 1  # of this server, or of the one last registered with
    sessions = {event.session for event in life if isinstance(event, e.Pushed)}
    steps: list[Step] = []
    for event in life:
        fact: Fact | None = None
        needs: list[Fact] = []
        match event:
            case e.ProcessStarted(_, actor, _, own):
                if actor == "server":
                    incarnation, fact = own, ("began", own)
                elif len(sessions) == 1:
                    fact = "lives", *sessions
            case e.Registered():
                incarnation = event.incarnation
                needs = [("began", incarnation)]
            case e.Resumed(_, incarnation, version, _):
                fact = "made", incarnation, version
            case e.Aggregated(_, version, incarnation, updates):
                fact = "made", incarnation, version
                needs = [("pushed", *update) for update in updates]
            case e.Published(_, version):
                fact = "given", incarnation, version
            case e.Received() | e.Evaluated() | e.WorkerScored():
                version = event.version
                needs = [("given", incarnation, version)]
            case e.Adopted() | e.Merged():
                needs = [("given", event.incarnation, event.version)]
            case e.WorkerJoined(_, _, session):
                needs = [("lives", session)]
            case e.Pushed(_, worker, session, seq):
                fact = "pushed", worker, session, seq
            case e.UpdateSettled(_, worker, session, seq, outcome):
                if outcome != "withdrawn":
                    fact = "settled", incarnation, worker, session, seq
                    needs = [("pushed", worker, session, seq)]
            case e.OutcomeReceived(_, worker, session, seq):
                needs = [("settled", event.incarnation, worker, session, seq)]
        steps.append((event, fact, needs))
    return steps


def _with_successions(steps: list[list[Step]]) -> list[list[Step]]:
    """The same, with each life of a server requiring the end of its predecessor's: what
    that wrote without knowing its successor took effect before."""
    served = []
    for number, life in enumerate(steps):
        head = life[0][0]
        if isinstance(head, e.ProcessStarted) and head.actor == "server":
            served.append((head.incarnation, number))
    served.sort()
    for (_, before), (_, number) in pairwise(served):
        end = e.Stopped(steps[before][-1][0].time_s, "", "")  # not part of the result
        steps[before].append((end, ("over", before), []))
        event, fact, needs = steps[number][0]
        steps[number][0] = event, fact, [*needs, ("over", before)]
    return steps


def _keep_known(life: list[Step], made_true: dict[Fact, tuple[int, float]]) -> None:
    """Drops requirements that no event in the trace establishes. A publication that is
    missing, as its server died, is replaced by the making of the version."""
    for place, (event, fact, needs) in enumerate(life):
        known = []
        for need in needs:
            if need not in made_true and need[0] == "given":
                need = "made", *need[1:]
            if need in made_true:
                known.append(need)
        life[place] = event, fact, known


# ------------------------------------------------------------- clocks


def _offsets(
    steps: list[list[Step]], made_true: dict[Fact, tuple[int, float]]
) -> list[float]:
    """How far each life's clock is behind the servers'; 0 if they agree."""
    is_server = [any(fact and fact[0] in _SERVED for _, fact, _ in x) for x in steps]
    least, most = [-inf] * len(steps), [inf] * len(steps)
    for number, life in enumerate(steps):
        for event, _, needs in life:
            for need in needs:
                other, cause_s = made_true[need]
                apart_s = cause_s - event.time_s
                if is_server[other] and not is_server[number]:
                    least[number] = max(least[number], apart_s)
                elif is_server[number] and not is_server[other]:
                    most[other] = min(most[other], -apart_s)
    return [_offset(*bounds) for bounds in zip(least, most, strict=True)]


_SERVED = {"began", "made", "given", "settled"}


def _offset(least_s: float, most_s: float) -> float:
    if least_s <= _SLACK_S and most_s >= -_SLACK_S:
        return 0.0
    if isinf(least_s) or isinf(most_s):
        return most_s if isinf(least_s) else least_s
    return (least_s + most_s) / 2


# ------------------------------------------------------------- the order


def _merged(files: list[list[Step]]) -> list[e.Event]:
    """Repeatedly takes the earliest of the next events whose requirements are met; if
    there is none, the earliest of all."""
    order: list[e.Event] = []
    true: set[Fact] = set()
    ready: list[tuple[float, int]] = []
    waiting: dict[Fact, list[int]] = {}
    left = [iter(file) for file in files]
    head: dict[int, Step] = {}

    def look(file: int) -> None:
        event, _, needs = head[file]
        lacking = next((need for need in needs if need not in true), None)
        if lacking is None:
            heappush(ready, (event.time_s, file))
        else:
            waiting.setdefault(lacking, []).append(file)

    def advance(file: int) -> Iterator[int]:
        """Takes the next event of a file; yields the files to look at again."""
        event, fact, _ = head.pop(file)
        if fact is None or fact[0] != "over":
            order.append(event)
        if fact is not None:
            true.add(fact)
            yield from waiting.pop(fact, ())
        following = next(left[file], None)
        if following is not None:
            head[file] = following
            yield file

    for file, steps in enumerate(left):
        first = next(steps, None)
        if first is not None:
            head[file] = first
            look(file)
    while head:
        if ready:
            _, file = heappop(ready)
        else:
            _, file, fact = min(
                (head[x][0].time_s, x, fact) for fact, w in waiting.items() for x in w
            )
            waiting[fact].remove(file)
            if not waiting[fact]:
                del waiting[fact]
        for each in advance(file):
            look(each)
    return order
