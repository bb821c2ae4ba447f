"""Whether a trace can have happened: no effect before its cause, or without one.

Versions are consecutive, and taken in by workers after a server gave them out,
the newest wins; updates are used once, after their push, and as their verdicts say;
what a worker holds and what a version says of its updates follows from what was before.

Every process writes an event down before anybody can see what came of it, so all this
holds also where a process was killed, and of a run that goes on.
"""

from collections.abc import Callable, Iterable
from typing import Any

from asyn2f import trace
from asyn2f.errors import Asyn2fError
from asyn2f.trace.history import History, Key

_SHARES_SUM_TO_1_WITHIN = 1e-4  # they are float32
_NAMED = ["actor", "worker", "session", "seq", "verdict", "version"]
_NAMED += ["incarnation", "made_in", "step"]

_TakenIn = trace.Adopted | trace.Merged
_Act = _TakenIn | trace.Trained | trace.Pushed | trace.Blocked


class CausalityError(Asyn2fError, ValueError):
    """Two events of a trace that cannot both be true.

    Attributes:
      rule: the rule that they break.
      cause: what should have come first, or says otherwise; None where the effect
        contradicts itself, or where nothing in the trace can have led to it.
      effect: the event that cannot have happened as it is written.
    """

    def __init__(self, rule: str, cause: trace.Event | None, effect: trace.Event):
        against = f", against {_sentence(cause)}" if cause is not None else ""
        super().__init__(f"{rule}: {_sentence(effect)}{against}")
        self.rule = rule
        self.cause = cause
        self.effect = effect


def check(events: Iterable[trace.Event]) -> None:
    """Checks that the events can have happened in this order.

    The times of one process are compared with each other, never with another's: their
    clocks may be hours apart.

    Args:
      events: of all processes, as `trace.read` gives them; also of an unfinished run.

    Raises:
      CausalityError: they cannot; it names two events.

    >>> adopted = trace.Adopted(2.0, worker=1, version=1, step=0)
    >>> check([adopted])
    Traceback (most recent call last):
        ...
    asyn2f.trace.causality.CausalityError: a worker takes in a version that no server \
gave out: Adopted (worker 1, version 1, incarnation 1, step 0) at 2.000000 s
    """
    events = list(events)
    history = History(events)
    checker = _Checker(history)
    handle_of: dict[type, Callable[[Any], None]] = {
        trace.ProcessStarted: checker.recorded,
        trace.Adopted: checker.adopted,
        trace.Trained: checker.trained,
        trace.Merged: checker.merged,
        trace.Pushed: checker.pushed,
        trace.Blocked: checker.waited,
        trace.Resumed: checker.resumed,
        trace.Aggregated: checker.aggregated,
        trace.Published: checker.published,
        trace.UpdateSettled: checker.settled,
    }
    for event in events:
        handle = handle_of.get(type(event))
        if handle is not None:
            handle(event)
            checker.seen.add(id(event))


class _Life:
    """What a worker holds, since its process began."""

    __slots__ = ("base_version", "cycle", "last", "start_version", "step", "taken")

    def __init__(self, began: trace.Event | None) -> None:
        self.last = began  # its latest event
        self.taken: _TakenIn | None = None  # the newest of them
        self.cycle: trace.Adopted | trace.Pushed | None = None  # began the present one
        self.step = 0
        self.base_version = -1
        self.start_version = -1


class _Checker:
    """Goes through the events once more, with the whole history known."""

    def __init__(self, history: History) -> None:
        self.seen: set[int] = set()  # events, which `history` keeps alive, by identity
        self._history = history
        self._survivors = set(history.line_of(history.newest))
        self._lives: dict[int, _Life] = {}
        self._last_push: dict[tuple[int, str], trace.Pushed] = {}
        self._incarnation = 1
        # Each incarnation's newest version, and the event that says so.
        self._reached: dict[int, tuple[int, trace.Event | None]] = {}
        self._held_by: dict[Key, tuple[trace.Aggregated, ...]] = {}
        self._refused: dict[Key, tuple[trace.UpdateSettled, int]] = {}

    def recorded(self, event: trace.ProcessStarted) -> None:
        """A process begins; in a simulated run, all of them."""
        if event.actor in ("server", "simulation"):
            self._incarnation = event.incarnation
            self._reached.setdefault(event.incarnation, (0, event))
        if event.actor.startswith("worker-"):
            self._lives[int(event.actor.removeprefix("worker-"))] = _Life(event)
        elif event.actor == "simulation":
            self._lives.clear()

    # ------------------------------------------------------------- workers

    def adopted(self, event: trace.Adopted) -> None:
        life = self._life_of(event, event.time_s)
        self._take_in(life, event)
        life.start_version, life.cycle = event.version, event

    def merged(self, event: trace.Merged) -> None:
        life = self._life_of(event, event.time_s)
        self._compare_base(life, event.from_version, event)
        self._take_in(life, event)

    def waited(self, event: trace.Blocked) -> None:
        self._life_of(event, event.start_s).last = event

    def trained(self, event: trace.Trained) -> None:
        life = self._life_of(event, event.start_s)
        if event.steps < 1:
            raise CausalityError("a stretch has one step at least", None, event)
        if event.step != life.step + event.steps:
            rule = f"steps are counted on, from {life.step}"
            raise CausalityError(rule, life.last, event)
        self._compare_base(life, event.base_version, event)
        life.step, life.last = event.step, event

    def pushed(self, event: trace.Pushed) -> None:
        life = self._life_of(event, event.time_s)
        self._compare_step(life, event, event.info.step)
        self._compare_base(life, event.info.base_version, event)
        if event.info.start_version != life.start_version:
            rule = f"the cycle of this update began with version {life.start_version}"
            raise CausalityError(rule, life.cycle, event)
        session = event.worker, event.session
        before = self._last_push.get(session)
        if before is not None and event.seq != before.seq + 1:
            rule = f"the updates of a session are numbered on, from {before.seq}"
            raise CausalityError(rule, before, event)
        self._last_push[session] = life.last = life.cycle = event
        life.start_version = event.info.base_version

    def _life_of(self, event: _Act, start_s: float) -> _Life:
        """Who did this, if it can have begun to then."""
        life = self._lives.get(event.worker)
        if life is None:
            life = self._lives[event.worker] = _Life(None)
        last = life.last
        if life.taken is None and type(event) is not trace.Adopted:
            raise CausalityError("a worker begins by adopting a version", last, event)
        if last is not None and start_s < last.time_s:
            rule = "a worker does one thing after the other"
            raise CausalityError(rule, last, event)
        if start_s > event.time_s:
            raise CausalityError("nothing ends before it begins", None, event)
        return life

    def _take_in(self, life: _Life, event: _TakenIn) -> None:
        self._compare_step(life, event, event.step)
        node = event.incarnation, event.version
        given = self._history.given.get(node)
        if given is None and event.version:
            rule = "a worker takes in a version that no server gave out"
            raise CausalityError(rule, None, event)
        if given is not None and id(given) not in self.seen:
            rule = "a worker takes in a version before it was given out"
            raise CausalityError(rule, given, event)
        taken = life.taken
        if taken is not None and node < (taken.incarnation, taken.version):
            rule = "a worker goes back to an older version"
            raise CausalityError(rule, taken, event)
        life.taken = life.last = event
        life.base_version = event.version

    def _compare_step(self, life: _Life, event: trace.Event, step: int) -> None:
        if step != life.step:
            rule = f"the worker has done {life.step} steps"
            raise CausalityError(rule, life.last, event)

    def _compare_base(self, life: _Life, base_version: int, event: trace.Event) -> None:
        if base_version != life.base_version:
            rule = f"the worker's base is version {life.base_version}"
            raise CausalityError(rule, life.taken, event)

    # ------------------------------------------------------------- the server

    def resumed(self, event: trace.Resumed) -> None:
        self._incarnation = event.incarnation
        made = self._history.made.get((event.made_in, event.version))
        # A trace may begin with a resume: then it knows nothing of who made that.
        is_known = event.made_in in self._reached
        if event.made_in >= event.incarnation or (is_known and made is None):
            _, newest = self._reached.get(event.made_in, (0, None))
            rule = "a server goes on from a version that was never made"
            raise CausalityError(rule, newest, event)
        if made is not None and id(made) not in self.seen:
            rule = "a server goes on from a version before it was made"
            raise CausalityError(rule, made, event)
        self._reached[event.incarnation] = event.version, event

    def published(self, event: trace.Published) -> None:
        given = self._history.given.get((self._incarnation, event.version))
        if given is not event and (given is None or id(given) not in self.seen):
            rule = "a server gives out a version that it does not have yet"
            raise CausalityError(rule, given, event)

    def aggregated(self, event: trace.Aggregated) -> None:
        self._incarnation = event.incarnation
        version, reached = self._reached.get(event.incarnation, (0, None))
        if event.version != version + 1:
            rule = f"version {version + 1} follows"
            raise CausalityError(rule, reached, event)
        self._reached[event.incarnation] = event.version, event
        shares, updates = event.coefficients, event.updates
        lists = shares, event.base_versions, event.staleness
        if any(len(values) != len(updates) for values in lists):
            raise CausalityError("the lists run in parallel", None, event)
        is_one = abs(sum(shares) - 1.0) <= _SHARES_SUM_TO_1_WITHIN
        if not is_one or min(shares) < 0.0:
            rule = "coefficients are >= 0 and sum to 1"
            raise CausalityError(rule, None, event)
        for update, base_version, staleness in zip(
            updates, event.base_versions, event.staleness, strict=True
        ):
            self._use(event, tuple(update), base_version, staleness)

    def _use(
        self, event: trace.Aggregated, key: Key, base_version: int, staleness: int
    ) -> None:
        """One update goes into a version."""
        pushed = self._history.pushed.get(key)
        if pushed is None:
            rule = f"update {list(key)} was never pushed"
            raise CausalityError(rule, None, event)
        if id(pushed) not in self.seen:
            rule = f"update {list(key)} is used before it was pushed"
            raise CausalityError(rule, pushed, event)
        if base_version != pushed.info.base_version:
            rule = f"update {list(key)} has base version {pushed.info.base_version}"
            raise CausalityError(rule, pushed, event)
        if not staleness == event.version - 1 - base_version >= 0:
            rule = f"the staleness of update {list(key)} is not what its base says"
            raise CausalityError(rule, pushed, event)
        before = self._held_by.get(key, ())
        self._held_by[key] = (*before, event)
        for other in before:  # unless a crash has taken that one, and only then
            maker = self._history.maker_of(event.incarnation, other.version)
            if maker == other.incarnation and other.version <= event.version:
                rule = f"update {list(key)} is used twice"
                raise CausalityError(rule, other, event)
        refusal, incarnation = self._refused.get(key, (None, -1))
        node = event.incarnation, event.version
        if incarnation == event.incarnation and node in self._survivors:
            rule = f"update {list(key)} was not to be used"
            raise CausalityError(rule, refusal, event)

    def settled(self, event: trace.UpdateSettled) -> None:
        if event.verdict == "withdrawn":  # written by a worker who knows no verdict
            return
        key = event.worker, event.session, event.seq
        if key not in self._history.pushed:
            raise CausalityError("an update is settled that nobody pushed", None, event)
        held_by = self._held_by.get(key, ())
        if event.verdict == "committed":
            node = self._incarnation, event.version
            made = self._history.made.get(node)
            if made is None or made not in held_by:
                rule = "an update is committed in a version that does not hold it"
                raise CausalityError(rule, made, event)
            return
        # A refusal dies with its server, so a later one may use the update.
        self._refused[key] = event, self._incarnation
        for version in held_by:
            if (version.incarnation, version.version) in self._survivors:
                rule = f"an update is {event.verdict} that stands in a version"
                raise CausalityError(rule, version, event)


def _sentence(event: trace.Event) -> str:
    """The event in a few words."""
    known = [name for name in _NAMED if name in event._fields]
    words = ", ".join(f"{name} {getattr(event, name)}" for name in known)
    return f"{type(event).__name__} ({words}) at {event.time_s:.6f} s"
