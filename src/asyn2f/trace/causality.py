"""Checks that a trace is causally consistent: no effect before its cause, or without.

Versions are consecutive, consumed by workers only once published, and never regress;
updates are used once, after their push, and as their outcomes tell; what a worker holds
and what a version records about its updates follows from the events before.

Every process writes an event before its consequences become visible, so all of this
holds after kills and resumes as well.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from asyn2f import trace
from asyn2f.errors import Asyn2fError
from asyn2f.trace.history import History, Key

_SUM_TOLERANCE = 1e-4  # coefficients are float32
_NAMED = ["actor", "worker", "session", "seq", "outcome", "version"]
_NAMED += ["incarnation", "made_in", "step"]

_Consumed = trace.Adopted | trace.Merged
_Act = _Consumed | trace.Trained | trace.Pushed | trace.Blocked


class CausalityError(Asyn2fError, ValueError):
    """Two events of a trace contradict each other.

    Attributes:
      rule: the rule that they break.
      cause: the event that should have come first, or says otherwise; None if the
        effect contradicts itself, or has no cause in the trace.
      effect: the event that cannot have happened as recorded.
    """

    def __init__(self, rule: str, cause: trace.Event | None, effect: trace.Event):
        against = f", against {_describe(cause)}" if cause is not None else ""
        super().__init__(f"{rule}: {_describe(effect)}{against}")
        self.rule = rule
        self.cause = cause
        self.effect = effect


def check(events: Iterable[trace.Event]) -> None:
    """Validates that the events can have happened in this order.

    Times are compared within one process only: the clocks of two may be hours apart.

    Args:
      events: of all processes, as returned by `trace.read`; also of an unfinished run.

    Raises:
      CausalityError: two events contradict each other.

    >>> adopted = trace.Adopted(2.0, worker=1, version=1, step=0)
    >>> check([adopted])
    Traceback (most recent call last):
        ...
    asyn2f.trace.causality.CausalityError: worker consumed a version that was never \
published: Adopted (worker 1, version 1, incarnation 1, step 0) at 2.000000 s
    """
    events = list(events)
    checker = _Checker(History(events))
    handlers: dict[type, Callable[[Any], None]] = {
        trace.ProcessStarted: checker.process_started,
        trace.Adopted: checker.adopted,
        trace.StateKept: lambda x: checker.kept.add((x.worker, x.digest)),
        trace.Trained: checker.trained,
        trace.Merged: checker.merged,
        trace.Pushed: checker.pushed,
        trace.Blocked: checker.blocked,
        trace.Resumed: checker.resumed,
        trace.Aggregated: checker.aggregated,
        trace.Published: checker.published,
        trace.UpdateSettled: checker.settled,
    }
    for event in events:
        handler = handlers.get(type(event))
        if handler is not None:
            handler(event)
            checker.seen.add(id(event))


class _Worker:
    """What a worker holds, since its process started."""

    __slots__ = ("base_version", "consumed", "cycle", "last", "start_version", "step")

    def __init__(self, started: trace.Event | None = None) -> None:
        self.last = started  # its latest event
        self.consumed: _Consumed | None = None  # the latest of them
        self.cycle: trace.Adopted | trace.Pushed | None = None  # began the current one
        self.step = 0
        self.base_version = -1
        self.start_version = -1


class _Checker:
    """Validates the events one by one, given the whole history."""

    def __init__(self, history: History) -> None:
        self.seen: set[int] = set()  # events, kept alive by `history`, by identity
        self._history = history
        self._survivors = set(history.line_of(history.newest))
        self._workers: dict[int, _Worker] = defaultdict(_Worker)
        self.kept: set[tuple[int, str]] = set()  # own states, by worker and digest
        self._last_push: dict[tuple[int, str], trace.Pushed] = {}
        self._incarnation = 1
        # Each incarnation's newest version, and the event that established it.
        self._reached: dict[int, tuple[int, trace.Event | None]] = {}
        self._held_by: dict[Key, tuple[trace.Aggregated, ...]] = {}
        self._refused: dict[Key, tuple[trace.UpdateSettled, int]] = {}

    def process_started(self, event: trace.ProcessStarted) -> None:
        if event.actor in ("server", "simulation"):
            self._incarnation = event.incarnation
            self._reached.setdefault(event.incarnation, (0, event))
        if event.actor.startswith("worker-"):
            self._workers[int(event.actor.removeprefix("worker-"))] = _Worker(event)
        elif event.actor == "simulation":  # one process for all workers
            self._workers.clear()

    # ------------------------------------------------------------- workers

    def adopted(self, event: trace.Adopted) -> None:
        worker = self._worker_of(event, event.time_s)
        if event.restored and (event.worker, event.restored) not in self.kept:
            rule = "a worker continued from a state that it never kept"
            raise CausalityError(rule, worker.last, event)
        self._consume(worker, event)
        worker.start_version, worker.cycle = event.version, event

    def merged(self, event: trace.Merged) -> None:
        worker = self._worker_of(event, event.time_s)
        self._compare_base(worker, event.from_version, event)
        self._consume(worker, event)

    def blocked(self, event: trace.Blocked) -> None:
        self._worker_of(event, event.start_s).last = event

    def trained(self, event: trace.Trained) -> None:
        worker = self._worker_of(event, event.start_s)
        if event.steps < 1:
            raise CausalityError("training without a step", None, event)
        if event.step != worker.step + event.steps:
            rule = f"steps must continue from {worker.step}"
            raise CausalityError(rule, worker.last, event)
        self._compare_base(worker, event.base_version, event)
        worker.step, worker.last = event.step, event

    def pushed(self, event: trace.Pushed) -> None:
        worker = self._worker_of(event, event.time_s)
        self._compare_step(worker, event.info.step, event)
        self._compare_base(worker, event.info.base_version, event)
        if event.info.start_version != worker.start_version:
            rule = f"this cycle started from version {worker.start_version}"
            raise CausalityError(rule, worker.cycle, event)
        before = self._last_push.get(session := (event.worker, event.session))
        if before is not None and event.seq != before.seq + 1:
            rule = f"the update numbers of a session must continue from {before.seq}"
            raise CausalityError(rule, before, event)
        self._last_push[session] = worker.last = worker.cycle = event
        worker.start_version = event.info.base_version

    def _worker_of(self, event: _Act, start_s: float) -> _Worker:
        """The worker of an event, after checking that the event can have started."""
        worker = self._workers[event.worker]
        last = worker.last
        if worker.consumed is None and type(event) is not trace.Adopted:
            raise CausalityError("a worker must adopt a version first", last, event)
        if last is not None and start_s < last.time_s:
            raise CausalityError("a worker's events overlap", last, event)
        if start_s > event.time_s:
            raise CausalityError("the event ends before it starts", None, event)
        return worker

    def _consume(self, worker: _Worker, event: _Consumed) -> None:
        self._compare_step(worker, event.step, event)
        node = event.incarnation, event.version
        given = self._history.given.get(node)
        if given is None and event.version:
            rule = "worker consumed a version that was never published"
            raise CausalityError(rule, None, event)
        if given is not None and id(given) not in self.seen:
            rule = "worker consumed a version before it was published"
            raise CausalityError(rule, given, event)
        before = worker.consumed
        if before is not None and node < (before.incarnation, before.version):
            rule = "worker regressed to an older version"
            raise CausalityError(rule, before, event)
        worker.consumed = worker.last = event
        worker.base_version = event.version

    def _compare_step(self, worker: _Worker, step: int, event: trace.Event) -> None:
        if step != worker.step:
            rule = f"the worker is at step {worker.step}"
            raise CausalityError(rule, worker.last, event)

    def _compare_base(self, worker: _Worker, base: int, event: trace.Event) -> None:
        if base != worker.base_version:
            rule = f"the worker's base is version {worker.base_version}"
            raise CausalityError(rule, worker.consumed, event)

    # ------------------------------------------------------------- the server

    def resumed(self, event: trace.Resumed) -> None:
        self._incarnation = event.incarnation
        made = self._history.made.get((event.made_in, event.version))
        # A trace may begin with a resume, and then lacks the making of that version.
        is_known = event.made_in in self._reached
        if event.made_in >= event.incarnation or (is_known and made is None):
            _, newest = self._reached.get(event.made_in, (0, None))
            rule = "server resumed from a version that was never made"
            raise CausalityError(rule, newest, event)
        if made is not None and id(made) not in self.seen:
            rule = "server resumed from a version before it was made"
            raise CausalityError(rule, made, event)
        self._reached[event.incarnation] = event.version, event

    def published(self, event: trace.Published) -> None:
        given = self._history.given.get((self._incarnation, event.version))
        if given is not event and (given is None or id(given) not in self.seen):
            rule = "server published a version that it does not have yet"
            raise CausalityError(rule, given, event)

    def aggregated(self, event: trace.Aggregated) -> None:
        self._incarnation = event.incarnation
        version, reached = self._reached.get(event.incarnation, (0, None))
        if event.version != version + 1:
            raise CausalityError(f"expected version {version + 1}", reached, event)
        self._reached[event.incarnation] = event.version, event
        shares, updates = event.coefficients, event.updates
        lists = shares, event.base_versions, event.staleness
        if any(len(values) != len(updates) for values in lists):
            raise CausalityError("the lists differ in length", None, event)
        is_one = abs(sum(shares) - 1.0) <= _SUM_TOLERANCE
        if not is_one or min(shares) < 0.0:
            raise CausalityError("coefficients must be >= 0 and sum to 1", None, event)
        for update, base_version, staleness in zip(
            updates, event.base_versions, event.staleness, strict=True
        ):
            self._use(event, tuple(update), base_version, staleness)

    def _use(
        self, event: trace.Aggregated, key: Key, base_version: int, staleness: int
    ) -> None:
        """One update is aggregated into a version."""
        pushed = self._history.pushed.get(key)
        if pushed is None:
            rule = f"update {list(key)} was never pushed"
            raise CausalityError(rule, None, event)
        if id(pushed) not in self.seen:
            rule = f"update {list(key)} was used before it was pushed"
            raise CausalityError(rule, pushed, event)
        if base_version != pushed.info.base_version:
            rule = f"update {list(key)} has base version {pushed.info.base_version}"
            raise CausalityError(rule, pushed, event)
        if not staleness == event.version - 1 - base_version >= 0:
            rule = f"the staleness of update {list(key)} contradicts its base version"
            raise CausalityError(rule, pushed, event)
        before = self._held_by.get(key, ())
        self._held_by[key] = (*before, event)
        for other in before:  # allowed only after a crash that lost the other version
            maker = self._history.maker_of(event.incarnation, other.version)
            if maker == other.incarnation and other.version <= event.version:
                rule = f"update {list(key)} was used twice"
                raise CausalityError(rule, other, event)
        refusal, incarnation = self._refused.get(key, (None, -1))
        node = event.incarnation, event.version
        if incarnation == event.incarnation and node in self._survivors:
            rule = f"update {list(key)} was used although it had been refused"
            raise CausalityError(rule, refusal, event)

    def settled(self, event: trace.UpdateSettled) -> None:
        if event.outcome == "withdrawn":  # by a worker that had received no outcome
            return
        key = event.worker, event.session, event.seq
        if key not in self._history.pushed:
            raise CausalityError("the update was never pushed", None, event)
        held_by = self._held_by.get(key, ())
        if event.outcome == "committed":
            made = self._history.made.get((self._incarnation, event.version))
            if made is None or made not in held_by:
                rule = "update committed in a version that does not contain it"
                raise CausalityError(rule, made, event)
            return
        # A refusal is lost with its server: the next one may use the update.
        self._refused[key] = event, self._incarnation
        for version in held_by:
            if (version.incarnation, version.version) in self._survivors:
                rule = f"update {event.outcome}, although a version contains it"
                raise CausalityError(rule, version, event)


def _describe(event: trace.Event) -> str:
    """The event in a few words."""
    known = [name for name in _NAMED if name in event._fields]
    words = ", ".join(f"{name} {getattr(event, name)}" for name in known)
    return f"{type(event).__name__} ({words}) at {event.time_s:.6f} s"
