"""The checks behind `invariants.check`: one function per invariant, a case a line."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from asyn2f import trace
from asyn2f.trace import causality, records
from asyn2f.trace.artifacts import Commit, View, key_of
from asyn2f.trace.history import Key
from asyn2f.types import Scores

_SUM_TOLERANCE = 1e-4  # coefficients are float32
_MAX_END_DELAY_S = 10.0


def _name(key: Key) -> str:
    return f"update {key[2]} of worker {key[0]}, session {key[1]}"


# ------------------------------------------------------------- versions


def versions_are_consecutive(view: View) -> Iterator[str]:
    numbers = [version for _, version in reversed(view.line)]
    for version, following in pairwise(numbers):
        if following != version + 1:
            yield f"version {following} follows version {version}"
    # A simulation keeps its last version besides the best.
    kept = view.line[:1] if view.is_simulated else []
    saved = {e.version for e in view.those(trace.Saved)} & {v for _, v in view.line}
    saved |= {version for _, version in kept}
    yield from records.missing_versions(
        view.artifacts.records, saved, view.artifacts.damaged
    )
    for version in sorted(view.artifacts.unreadable):
        yield f"the record of version {version} in the store cannot be read"
    runs = sorted({event.run for event in view.those(trace.ProcessStarted)} - {""})
    maker = {version: incarnation for incarnation, version in view.line}
    for version, commit in sorted(view.artifacts.commits.items()):
        name = f"version {version} in the store"
        if commit.run and runs and commit.run not in runs:
            of_trace = ", ".join(runs)
            yield f"{name} belongs to run {commit.run}, the trace to run {of_trace}"
        yield from _commit_differs(view, version, commit, maker)


def _commit_differs(
    view: View, version: int, commit: Commit, maker: dict[int, int]
) -> Iterator[str]:
    """How a commit differs from the trace, or from the place it is stored in."""
    name = f"version {version} in the store"
    if commit.version != version:
        yield f"{name} is recorded as version {commit.version}"
    if version and commit.parent != version - 1:
        yield f"{name} has parent {commit.parent}"
    made = view.history.made.get((commit.incarnation, version))
    if version and version in maker and made is None:
        yield (
            f"{name} was made by incarnation {commit.incarnation}, in the trace by "
            f"incarnation {maker[version]}"
        )
    elif commit.keys and made and _content(made) != commit[3:6]:
        yield f"{name} differs from the trace in its updates, bases or coefficients"


def _content(made: trace.Aggregated) -> tuple[Any, ...]:
    keys = tuple(tuple(update) for update in made.updates)
    return keys, tuple(made.base_versions), tuple(made.coefficients)


def saved_before_published(view: View) -> Iterator[str]:
    if view.artifacts.before_save or not any(view.those(trace.Saved)):
        return
    saved = {0}
    for event in view.events:
        match event:
            case trace.Resumed(version=version):
                # Versions above it are lost, though they were saved.
                saved = set(range(version + 1))
            case trace.Saved(_, version):
                saved.add(version)
            case trace.Published(_, version) if version not in saved:
                yield f"version {version} was published before it was saved"


def resumed_from_newest(view: View) -> Iterator[str]:
    newest, incarnation = 0, 0
    has_version = True  # False between the start of a server and its first version
    for event in view.events:
        match event:
            case trace.ProcessStarted(actor="server"):
                if event.incarnation <= incarnation:
                    yield f"incarnation {event.incarnation} follows {incarnation}"
                incarnation, has_version = event.incarnation, False
            case trace.Saved(_, version):
                newest = version
            case trace.Resumed(_, _, version) | trace.Published(_, version):
                if has_version:
                    continue
                has_version = True
                lost = set(range(version + 1, newest + 1)) - view.artifacts.damaged
                if lost:
                    yield (
                        f"incarnation {incarnation} resumed from version {version}, "
                        f"although version {max(lost)} was saved"
                    )
                newest = version


def versions_never_decrease(view: View) -> Iterator[str]:
    """Within one process and incarnation: a crash can lose published versions."""
    newest: dict[str, int] = {}
    for event in view.events:
        match event:
            case trace.ProcessStarted(_, actor) | trace.Registered(_, actor):
                newest.pop(actor, None)
            case trace.Received(_, worker, version):
                actor = f"worker-{worker}"
                if version <= newest.get(actor, -1):
                    yield f"{actor} received version {version} after {newest[actor]}"
                newest[actor] = version


def one_writer(view: View) -> Iterator[str]:
    """Except for versions that were quarantined and made again."""
    writer: dict[int, int] = {}
    for event in view.those(trace.Saved):
        before = writer.setdefault(event.version, event.incarnation)
        if before != event.incarnation and event.version not in view.artifacts.damaged:
            yield (
                f"version {event.version} was saved by incarnations {before} and "
                f"{event.incarnation}"
            )


# ------------------------------------------------------------- updates


def updates_count_once(view: View) -> Iterator[str]:
    for key, versions in view.held_by.items():
        if len(versions) > 1:
            yield f"{_name(key)} is in versions {sorted(versions)}"
    for name, made in view.made():
        keys = made.keys if isinstance(made, Commit) else map(tuple, made.updates)
        for key, count in Counter(keys).items():
            if count > 1:
                yield f"{_name(key)} is {count} times in {name}"


def commits_hold(view: View) -> Iterator[str]:
    for received in view.those(trace.OutcomeReceived):
        if received.outcome == "committed":
            key = key_of(received)
            if received.version not in view.held_by.get(key, ()):
                yield f"{_name(key)} is not in version {received.version}"


def refusals_hold(view: View) -> Iterator[str]:
    for received in view.those(trace.OutcomeReceived):
        key = key_of(received)
        if received.outcome != "committed" and key in view.held_by:
            version = view.held_by[key][0]
            yield f"{_name(key)} was {received.outcome}, but is in version {version}"


def coefficients_are_shares(view: View) -> Iterator[str]:
    for name, made in view.made():
        shares = made.coefficients
        if any(not math.isfinite(share) or share < 0 for share in shares):
            yield f"{name}: coefficients {list(shares)}"
        elif abs(sum(shares) - 1.0) > _SUM_TOLERANCE:
            yield f"{name}: coefficients sum to {sum(shares):g}"


def updates_have_outcomes(view: View) -> Iterator[str]:
    if view.artifacts.finished and not view.is_simulated:
        for key, outcome in view.outcomes().items():
            if outcome == "pending":
                yield f"{_name(key)} has no outcome"


def pushed_by_its_worker(view: View) -> Iterator[str]:
    pushed = view.history.pushed
    for key, versions in view.held_by.items():
        has_trace = f"worker-{key[0]}" not in view.absent
        if pushed and key not in pushed and has_trace:
            yield f"{_name(key)} is in version {versions[0]}, but was never pushed"


def bases_are_earlier(view: View) -> Iterator[str]:
    for name, made in view.made():
        for base in made.base_versions:
            if not 0 <= base < made.version:
                yield f"{name} has an update with base version {base}"
        if isinstance(made, trace.Aggregated):
            wanted = [made.version - 1 - base for base in made.base_versions]
            if wanted != list(made.staleness):
                yield f"{name}: staleness {made.staleness}, from the bases {wanted}"


# ------------------------------------------------------------- scores and the end


def scores_exist(view: View) -> Iterator[str]:
    known = {version for _, version in view.history.given} | {0}
    scores: dict[int, Scores] = {}
    for score in view.those(trace.Evaluated):
        if score.version not in known and view.history.made:
            yield f"version {score.version} was evaluated, but never published"
        scores[score.version] = score.scores
    if view.artifacts.best is not None:
        version, name, value = view.artifacts.best
        if version not in view.artifacts.commits:
            yield f"the best version, {version}, is not in the store"
        elif version in scores and scores[version].get(name) != value:
            yield (
                f"the best version, {version}, has {name} {scores[version].get(name)}, "
                f"in the store {value}"
            )


def all_processes_end(view: View) -> Iterator[str]:
    """All that registered. As clocks may disagree, a process counts as late only if it
    is late by the largest lead that its clock can have."""
    registered = {event.actor for event in view.those(trace.Registered)}
    stops = [*view.those(trace.Stopped)]
    end_s = max((x.time_s for x in stops if x.actor == "server"), default=math.inf)
    leads_s = _clock_leads_s(view)
    for stop in stops:
        late_s = stop.time_s - leads_s.get(stop.actor, math.inf) - end_s
        if stop.actor in registered and late_s > _MAX_END_DELAY_S:
            yield f"{stop.actor} ended {late_s:.1f} s after the server"


def _clock_leads_s(view: View) -> dict[str, float]:
    """The largest possible lead of each peer's clock over the server's: no version
    arrives before it is published."""
    leads_s: dict[str, float] = {}
    incarnation_of: dict[str, int] = {}
    for event in view.events:
        match event:
            case trace.ProcessStarted(_, actor):
                leads_s.pop(actor, None)
                continue
            case trace.Registered(_, actor):
                incarnation_of[actor] = event.incarnation
                continue
            case trace.Received(_, worker):
                actor = f"worker-{worker}"
            case trace.Evaluated():
                actor = "evaluator"
            case _:
                continue
        given = view.history.given.get((incarnation_of.get(actor, 1), event.version))
        if given is not None:
            lead_s = event.time_s - given.time_s
            leads_s[actor] = min(leads_s.get(actor, math.inf), lead_s)
    return leads_s


# ------------------------------------------------------------- the whole


def records_agree(view: View) -> Iterator[str]:
    if "server" not in view.absent:
        yield from records.differences(
            view.artifacts.records,
            view.artifacts.best,
            view.events,
            view.history,
            view.line,
        )


def is_causal(view: View) -> Iterator[str]:
    if view.absent:
        return
    try:
        causality.check(view.events)
    except causality.CausalityError as error:
        yield str(error)
