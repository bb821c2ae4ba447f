"""What holds whatever fails: the promises about a run, checked on what it left behind.

A run leaves a trace and a store. `check` judges both, and says also which promises they
cannot show: those need to see every message and every memory, as a simulation of the
protocol does.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from asyn2f import trace
from asyn2f.trace import causality
from asyn2f.trace.accounts import (
    Accounts,
    differences,
    is_evaluator_absent,
    missing,
)
from asyn2f.trace.history import History, Key, Node, absence_of, absent

INVARIANTS = {
    "I1": "versions are 1, 2, 3, ..., each made of the one before, and never change",
    "I2": "no update counts twice",
    "I3": "an update whose worker heard `committed` stands in that version for ever",
    "I4": "an update whose worker heard `rejected` or `superseded` stands in none",
    "I5": "coefficients are finite, at least 0, and sum to 1",
    "I6": "a version is in the store before anybody hears of it",
    "I7": "every update pushed has an end: none just disappears",
    "I8": "the run goes on, and updates are settled, once faults stop",
    "I9": "a server goes on from the newest valid version, as a higher incarnation",
    "I10": "every update in a version was pushed by the worker it is said to be of",
    "I11": "the version a process holds never goes back",
    "I12": "a version is written by one incarnation",
    "I13": "an update's base is an earlier version, and its staleness says how much",
    "I14": "what waits is bounded",
    "I15": "wall clocks decide nothing",
    "I16": "scores belong to versions that exist, and the best is in the store",
    "I17": "all processes end within 10 s of the server's end",
    "records": "summary, metrics and the best say what trace and store say",
    "causality": "nothing happens before its cause, or without one",
}

_SHARES_SUM_TO_1_WITHIN = 1e-4  # they are float32
_ALL_ENDED_S = 10.0
_NEEDS_SIMULATION = "needs to see every message: see the simulation of the protocol"


E = TypeVar("E", bound=trace.Event)


class Violation(NamedTuple):
    """A promise that was not kept."""

    invariant: str
    what: str


class Commit(NamedTuple):
    """What a version's record in the store says of it."""

    version: int
    parent: int
    incarnation: int
    keys: tuple[Key, ...]
    base_versions: tuple[int, ...]
    coefficients: tuple[float, ...]
    run: str = ""


class Found(NamedTuple):
    """What a run left behind.

    Attributes:
      events: of all processes, as `trace.read` gives them.
      commits: by version, those still in the store.
      damaged: versions that were set aside.
      unreadable: versions in the store whose record cannot be read.
      best: version and accuracy, as the store says; or None.
      early: whether versions were announced before they were saved.
      finished: whether the run came to its end.
      accounts: what is said of it besides.
    """

    events: Sequence[trace.Event]
    commits: Mapping[int, Commit]
    damaged: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()
    best: tuple[int, float] | None = None
    early: bool = False
    finished: bool = True
    accounts: Accounts = Accounts()


class Judgement(NamedTuple):
    """What was found: promises broken, and promises that this run cannot show."""

    violations: list[Violation]
    not_shown: dict[str, str]  # by invariant: why
    fates: Counter[str]  # of updates: committed, superseded, rejected, withdrawn, ...
    absence: str = ""  # which workers' traces are missing


def commit_of(record: Mapping[str, Any]) -> Commit:
    """What a version's record in the store says. Version 0 is made of nothing, and a
    simulated run's records leave it to the trace."""
    made = record.get("aggregated") or {}
    return Commit(
        version=record["version"],
        parent=record.get("parent", record["version"] - 1),
        incarnation=record["incarnation"],
        keys=tuple(tuple(key) for key in made.get("updates", ())),
        base_versions=tuple(made.get("base_versions", ())),
        coefficients=tuple(made.get("coefficients", ())),
        run=record.get("run", ""),
    )


def check(found: Found) -> Judgement:
    """Judges a run by what it left behind, one that was killed or goes on as well.

    >>> from asyn2f.types import UpdateInfo
    >>> info = UpdateInfo(0, 0, 1, 10.0, 0.5, 1.0, 0.0, 0.0)
    >>> pushed = trace.Pushed(0.0, 0, "s", 0, info)
    >>> made = trace.Aggregated(1.0, 1, 1, [[0, "s", 0]], [0], [0], [0.9], 0.1)
    >>> check(Found([pushed, made], {}, finished=False)).violations[0].what
    'version 1: coefficients sum to 0.9'
    """
    run = _Run(found)
    violations: list[Violation] = []
    for name, judge in _JUDGES.items():
        violations += [Violation(name, what) for what in judge(run)]
    is_alone = is_evaluator_absent(found.accounts, found.events)
    absence = absence_of([*run.absent, *["evaluator"] * is_alone])
    return Judgement(violations, _not_shown(run), run.fates(), absence)


class _Run:
    """What was found, and what follows from it."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.events = found.events
        self.history = History(found.events)
        self.absent = absent(found.events)
        self.line = _saved_line(found, self.history)
        self.held_by: dict[Key, list[int]] = {}  # updates of the versions that live
        for node in reversed(self.line):
            made = self.history.made.get(node)
            for update in made.updates if made else ():
                self.held_by.setdefault(tuple(update), []).append(node[1])
        for version, commit in found.commits.items():
            for key in commit.keys:
                if version not in self.held_by.setdefault(key, []):
                    self.held_by[key].append(version)

    def those(self, kind: type[E]) -> Iterator[E]:
        return (event for event in self.events if isinstance(event, kind))

    def made(self) -> Iterator[tuple[str, Commit | trace.Aggregated]]:
        """Every version that was ever made, and every record of one."""
        for (incarnation, version), made in self.history.made.items():
            again = f" of incarnation {incarnation}" if incarnation > 1 else ""
            yield f"version {version}{again}", made
        for version, commit in self.found.commits.items():
            if commit.keys:
                yield f"version {version} in the store", commit

    def fates(self) -> Counter[str]:
        return Counter(self.fate_of().values())

    def fate_of(self) -> dict[Key, str]:
        """What became of each update that was pushed. The versions have the last word,
        then the server, then the worker; the updates of a process that was killed died
        with it, and others are "open"."""
        fates = {_key(event): "open" for event in self.those(trace.Pushed)}
        for settled in self.those(trace.UpdateSettled):
            key = _key(settled)
            # A commitment that no version bears out was lost with its server.
            is_word = settled.verdict not in ("committed", "withdrawn")
            if is_word or (settled.verdict == "withdrawn" and fates.get(key) == "open"):
                fates[key] = settled.verdict
        killed = _killed(self.found)
        for key, fate in fates.items():
            if key in self.held_by:
                fates[key] = "committed"
            elif fate == "open" and key[1] in killed:
                fates[key] = "died with its worker"
        return fates


def _saved_line(found: Found, history: History) -> list[Node]:
    """The versions that live, the newest first: but for last ones that were made, and
    never saved."""
    line = list(history.line_of(history.newest))
    saved = {e.version for e in found.events if isinstance(e, trace.Saved)}
    in_store = saved | found.commits.keys()
    while saved and line and line[0][1] not in in_store:
        line.pop(0)
    return line


def _key(event: trace.Pushed | trace.UpdateSettled | trace.OutcomeReceived) -> Key:
    return event.worker, event.session, event.seq


def _name(key: Key) -> str:
    return f"update {key[2]} of worker {key[0]}, session {key[1]}"


def _killed(found: Found) -> set[str]:
    """Sessions of workers whose process ended without saying so."""
    session_of: dict[str, str] = {}  # by actor: of its present life
    killed: set[str] = set()
    for event in found.events:
        match event:
            case trace.Pushed(_, worker, session):
                session_of[f"worker-{worker}"] = session
            case trace.Stopped(_, actor):
                session_of.pop(actor, None)
            case trace.ProcessStarted(_, actor) if actor in session_of:
                killed.add(session_of.pop(actor))
    is_over = found.finished and not _is_simulated(found)
    return killed | (set(session_of.values()) if is_over else set())


def _is_simulated(found: Found) -> bool:
    """Whether its workers are none that could be killed, or say that they end."""
    begun = (event for event in found.events if isinstance(event, trace.ProcessStarted))
    return any(event.actor == "simulation" for event in begun)


# ------------------------------------------------------------- one judge per promise


def _versions_follow(run: _Run) -> Iterator[str]:
    numbers = [version for _, version in reversed(run.line)]
    for version, following in pairwise(numbers):
        if following != version + 1:
            yield f"version {following} follows version {version}"
    # A simulation keeps its last version besides the best.
    kept = run.line[:1] if _is_simulated(run.found) else []
    saved = {e.version for e in run.those(trace.Saved)} & {v for _, v in run.line}
    saved |= {version for _, version in kept}
    yield from missing(run.found.accounts, saved, run.found.damaged)
    for version in sorted(run.found.unreadable):
        yield f"version {version} is in the store, and cannot be read"
    maker = {version: incarnation for incarnation, version in run.line}
    heads = [event for event in run.those(trace.ProcessStarted) if event.run]
    runs = sorted({event.run for event in heads})
    for version, commit in sorted(run.found.commits.items()):
        if commit.run and runs and commit.run not in runs:
            yield (
                f"version {version} in the store is of run {commit.run}, the trace of "
                f"run {', '.join(runs)}"
            )
        if commit.version != version:
            yield f"version {version} in the store says it is version {commit.version}"
        if version and commit.parent != version - 1:
            yield f"version {version} in the store is made of version {commit.parent}"
        made = run.history.made.get((commit.incarnation, version))
        if version and version in maker and made is None:
            yield (
                f"version {version} in the store is incarnation {commit.incarnation}'s,"
                f" the trace knows incarnation {maker[version]}'s"
            )
        elif commit.keys and made and _content(made) != commit[3:6]:
            yield f"version {version} in the store is not what the trace says it is"


def _content(made: trace.Aggregated) -> tuple[Any, ...]:
    keys = tuple(tuple(update) for update in made.updates)
    return keys, tuple(made.base_versions), tuple(made.coefficients)


def _counted_once(run: _Run) -> Iterator[str]:
    for key, versions in run.held_by.items():
        if len(versions) > 1:
            yield f"{_name(key)} stands in versions {sorted(versions)}"
    for name, made in run.made():
        keys = made.keys if isinstance(made, Commit) else map(tuple, made.updates)
        for key, count in Counter(keys).items():
            if count > 1:
                yield f"{_name(key)} stands {count} times in {name}"


def _commitments_hold(run: _Run) -> Iterator[str]:
    for heard in run.those(trace.OutcomeReceived):
        if heard.verdict == "committed":
            key = _key(heard)
            if heard.version not in run.held_by.get(key, ()):
                yield f"{_name(key)} is not in version {heard.version}, as was said"


def _refusals_hold(run: _Run) -> Iterator[str]:
    for heard in run.those(trace.OutcomeReceived):
        key = _key(heard)
        if heard.verdict != "committed" and key in run.held_by:
            versions = run.held_by[key]
            yield f"{_name(key)} was {heard.verdict}, and is in version {versions[0]}"


def _are_shares(run: _Run) -> Iterator[str]:
    for name, made in run.made():
        shares = made.coefficients
        if any(not math.isfinite(share) or share < 0 for share in shares):
            yield f"{name}: coefficients {list(shares)}"
        elif abs(sum(shares) - 1.0) > _SHARES_SUM_TO_1_WITHIN:
            yield f"{name}: coefficients sum to {sum(shares):g}"


def _saved_before_told(run: _Run) -> Iterator[str]:
    if run.found.early:
        return
    saved = {0}
    has_begun = False  # traces of old do not say when a version was saved
    for event in run.events:
        match event:
            case trace.Resumed(version=version):
                # What it had saved before of later ones is not what it gives out.
                saved = set(range(version + 1))
            case trace.Saved(_, version):
                has_begun = True
                saved.add(version)
            case trace.Published(_, version) if has_begun and version not in saved:
                yield f"version {version} was given out before it was saved"


def _none_disappears(run: _Run) -> Iterator[str]:
    if run.found.finished and not _is_simulated(run.found):
        for key, fate in run.fate_of().items():
            if fate == "open":
                yield f"{_name(key)}: nobody says what became of it"


def _resumed_from_newest(run: _Run) -> Iterator[str]:
    newest, incarnation = 0, 0
    has_begun = True  # said from where; a server that begins with version 0 does not
    for event in run.events:
        match event:
            case trace.ProcessStarted(actor="server"):
                if event.incarnation <= incarnation:
                    yield f"incarnation {event.incarnation} follows {incarnation}"
                incarnation, has_begun = event.incarnation, False
            case trace.Saved(_, version):
                newest = version
            case trace.Resumed(_, _, version) | trace.Published(_, version):
                if has_begun:
                    continue
                has_begun = True
                lost = set(range(version + 1, newest + 1)) - run.found.damaged
                if lost:
                    yield (
                        f"incarnation {incarnation} goes on from version {version}, "
                        f"although {max(lost)} was saved"
                    )
                newest = version


def _pushed_by_its_worker(run: _Run) -> Iterator[str]:
    pushed = run.history.pushed
    for key, versions in run.held_by.items():
        is_known = f"worker-{key[0]}" not in run.absent
        if pushed and key not in pushed and is_known:
            yield f"{_name(key)} is in version {versions[0]}, and was never pushed"


def _never_back(run: _Run) -> Iterator[str]:
    """Within a life and an incarnation: a crash can take what was announced early."""
    newest: dict[str, int] = {}
    for event in run.events:
        match event:
            case trace.ProcessStarted(_, actor) | trace.Registered(_, actor):
                newest.pop(actor, None)
            case trace.Received(_, worker, version):
                actor = f"worker-{worker}"
                if version <= newest.get(actor, -1):
                    yield f"{actor} took version {version} after {newest[actor]}"
                newest[actor] = version


def _one_writer(run: _Run) -> Iterator[str]:
    """A version that is saved again has been set aside in between, or its server went
    on from an older one because it was damaged."""
    writer: dict[int, int] = {}
    for event in run.those(trace.Saved):
        before = writer.setdefault(event.version, event.incarnation)
        if before != event.incarnation and event.version not in run.found.damaged:
            yield (
                f"version {event.version} was saved by incarnations {before} and "
                f"{event.incarnation}"
            )


def _bases_are_earlier(run: _Run) -> Iterator[str]:
    for name, made in run.made():
        for base in made.base_versions:
            if not 0 <= base < made.version:
                yield f"{name} has an update of base version {base}"
        if isinstance(made, trace.Aggregated):
            wanted = [made.version - 1 - base for base in made.base_versions]
            if wanted != list(made.staleness):
                yield f"{name}: staleness {made.staleness}, its bases say {wanted}"


def _scores_exist(run: _Run) -> Iterator[str]:
    known = {version for _, version in run.history.given} | {0}
    accuracies: dict[int, float] = {}
    for scored in run.those(trace.Evaluated):
        if scored.version not in known and run.history.made:
            yield f"version {scored.version} was evaluated, and never given out"
        accuracies[scored.version] = scored.accuracy
    if run.found.best is not None:
        version, accuracy = run.found.best
        if version not in run.found.commits:
            yield f"the best version, {version}, is not in the store"
        elif accuracies.get(version, accuracy) != accuracy:
            yield (
                f"the best version, {version}, has accuracy {accuracies[version]}, "
                f"the store says {accuracy}"
            )


def _all_end(run: _Run) -> Iterator[str]:
    """All that the server let in; others it cannot tell. As clocks may disagree, a
    process is late if it is by the lead that its clock has at most."""
    welcome = {event.actor for event in run.those(trace.Registered)}
    stops = [*run.those(trace.Stopped)]
    end_s = max((x.time_s for x in stops if x.actor == "server"), default=math.inf)
    leads_s = _leads_s(run)
    for stop in stops:
        late_s = stop.time_s - leads_s.get(stop.actor, math.inf) - end_s
        if stop.actor in welcome and late_s > _ALL_ENDED_S:
            yield f"{stop.actor} ended {late_s:.1f} s after the server"


def _leads_s(run: _Run) -> dict[str, float]:
    """How far each peer's clock is ahead of the server's at most: no version reaches it
    before it was given out."""
    leads_s: dict[str, float] = {}
    heard: dict[str, int] = {}  # the incarnation
    for event in run.events:
        match event:
            case trace.ProcessStarted(_, actor):
                leads_s.pop(actor, None)
                continue
            case trace.Registered(_, actor):
                heard[actor] = event.incarnation
                continue
            case trace.Received(_, worker):
                actor = f"worker-{worker}"
            case trace.Evaluated():
                actor = "evaluator"
            case _:
                continue
        given = run.history.given.get((heard.get(actor, 1), event.version))
        if given is not None:
            lead_s = event.time_s - given.time_s
            leads_s[actor] = min(leads_s.get(actor, math.inf), lead_s)
    return leads_s


def _records_agree(run: _Run) -> Iterator[str]:
    found = run.found
    if "server" not in run.absent:
        yield from differences(
            found.accounts, found.best, run.events, run.history, run.line
        )


def _is_causal(run: _Run) -> Iterator[str]:
    if run.absent:
        return
    try:
        causality.check(run.events)
    except causality.CausalityError as error:
        yield str(error)


_JUDGES: dict[str, Callable[[_Run], Iterator[str]]] = {
    "I1": _versions_follow,
    "I2": _counted_once,
    "I3": _commitments_hold,
    "I4": _refusals_hold,
    "I5": _are_shares,
    "I6": _saved_before_told,
    "I7": _none_disappears,
    "I9": _resumed_from_newest,
    "I10": _pushed_by_its_worker,
    "I11": _never_back,
    "I12": _one_writer,
    "I13": _bases_are_earlier,
    "I16": _scores_exist,
    "I17": _all_end,
    "records": _records_agree,
    "causality": _is_causal,
}


def _not_shown(run: _Run) -> dict[str, str]:
    """The promises that this run says nothing about."""
    reasons = {name: _NEEDS_SIMULATION for name in ("I8", "I14", "I15")}
    if run.absent:
        lacking = "traces of processes are missing"
        reasons |= dict.fromkeys(("I3", "I4", "I7", "I10", "I11", "causality"), lacking)
    has = {type(event) for event in run.events}
    if trace.OutcomeReceived not in has:
        reasons |= dict.fromkeys(("I3", "I4"), "its workers heard no verdicts")
    if run.found.early:
        reasons["I6"] = "announced early: a crash may take versions that were seen"
    elif trace.Saved not in has:
        reasons["I6"] = "its trace does not say when versions were saved"
    if not run.found.finished:
        reasons["I7"] = "it has not come to its end: updates may still be under way"
    elif _is_simulated(run.found):
        reasons["I7"] = "a simulated run ends with updates under way"
    if trace.Resumed not in has:
        reasons["I9"] = "no server went on from the store"
    if trace.Saved not in has:
        reasons["I12"] = "its trace does not say who saved what"
    if trace.Received not in has:
        reasons["I11"] = "no process received anything"
    if trace.Evaluated not in has and run.found.best is None:
        reasons["I16"] = "nothing was evaluated"
    if not run.found.accounts.summary and not run.found.accounts.metrics:
        reasons["records"] = "it has neither summary nor metrics"
    if not any(stop.actor == "server" for stop in run.those(trace.Stopped)):
        reasons["I17"] = "no server came to its end"
    return reasons
