"""Synthetic traces of possible runs, to test the checks of traces.

`hand_made()` is small and complete: merges, a superseded update, a version that is lost
in a crash and made again, a worker that restarts. `random_trace(seed, n)` has any
length.
"""

import random
from collections.abc import Iterable
from typing import Any, NamedTuple

from asyn2f import trace
from asyn2f.types import UpdateInfo
from tests.support.updates import replaced, update_info

RUN = "run-1"
NUM_BYTES = 400


def hand_made() -> list[trace.Event]:
    """Two workers and two incarnations of a server, by time. Version 2 is made twice;
    of the first one, worker 0 has merged, update [0, "a", 2] is used again."""
    return [
        _server_began(0.0, 1),
        trace.ProcessStarted(0.1, "worker-0", "", 0, {}),
        trace.ProcessStarted(0.15, "worker-1", "", 0, {}),
        trace.WorkerJoined(0.2, 0, "a", 30),
        trace.WorkerJoined(0.3, 1, "b", 10),
        trace.Published(0.4, 0, NUM_BYTES, 2),
        trace.Adopted(0.5, 0, 0, 0),
        trace.Adopted(0.6, 1, 0, 0),
        _trained(1.0, 0, 0.5, 2, 2, 0),
        _pushed(1.0, 0, "a", 0, 0, 0, 2),
        _trained(1.4, 0, 1.1, 2, 4, 0),
        _pushed(1.4, 0, "a", 1, 0, 0, 4),
        trace.UpdateSettled(1.5, 0, "a", 0, "superseded", -1, "replaced by a newer"),
        _trained(1.6, 1, 0.6, 2, 2, 0),
        _pushed(1.6, 1, "b", 0, 0, 0, 2),
        _aggregated(2.0, 1, 1, {(0, "a", 1): 0, (1, "b", 0): 0}, [0.6, 0.4]),
        trace.UpdateSettled(2.1, 0, "a", 1, "committed", 1, ""),
        trace.UpdateSettled(2.1, 1, "b", 0, "committed", 1, ""),
        trace.Published(2.2, 1, NUM_BYTES, 2),
        _trained(2.3, 1, 1.7, 1, 3, 0),
        trace.Merged(2.4, 1, 1, 0, 3, 0.5, 0.3),
        _trained(2.4, 0, 1.5, 3, 7, 0),
        trace.Merged(2.5, 0, 1, 0, 7, 0.5, 0.3),
        _trained(2.8, 0, 2.6, 1, 8, 1),
        _pushed(2.8, 0, "a", 2, 1, 0, 8),
        _trained(3.0, 1, 2.5, 1, 4, 1),
        _pushed(3.0, 1, "b", 1, 1, 0, 4),
        # Published before it was saved, and lost with the server.
        _aggregated(3.2, 2, 1, {(0, "a", 2): 1, (1, "b", 1): 1}, [0.5, 0.5]),
        trace.Published(3.3, 2, NUM_BYTES, 2),
        _trained(3.5, 0, 2.9, 2, 10, 1),
        trace.Merged(3.6, 0, 2, 1, 10, 0.0, 0.3),
        _server_began(4.0, 2),
        trace.Resumed(4.1, 2, 1, 1),
        trace.Published(4.2, 1, NUM_BYTES, 0),
        trace.ProcessStarted(4.3, "worker-1", "", 0, {}),
        _trained(4.4, 0, 3.7, 2, 12, 2),
        trace.Merged(4.5, 0, 1, 2, 12, 0.0, 0.3, incarnation=2),
        trace.Adopted(4.6, 1, 1, 0, incarnation=2),
        _trained(5.0, 1, 4.7, 2, 2, 1),
        _pushed(5.0, 1, "c", 0, 1, 1, 2),
        _aggregated(5.2, 2, 2, {(0, "a", 2): 1, (1, "c", 0): 1}, [0.75, 0.25]),
        trace.UpdateSettled(5.3, 0, "a", 2, "committed", 2, ""),
        trace.UpdateSettled(5.3, 1, "c", 0, "committed", 2, ""),
        trace.Published(5.4, 2, NUM_BYTES, 2),
        _trained(5.5, 0, 4.6, 2, 14, 1),
        trace.Merged(5.6, 0, 2, 1, 14, 0.0, 0.3, incarnation=2),
        _trained(5.8, 1, 5.1, 2, 4, 1),
        _pushed(5.8, 1, "c", 1, 1, 1, 4),
        _trained(5.9, 0, 5.7, 2, 16, 2),
        _pushed(5.9, 0, "a", 3, 2, 1, 16),
        trace.Blocked(6.0, 1, 5.8, 2),
        _aggregated(6.1, 3, 2, {(1, "c", 1): 1, (0, "a", 3): 2}, [0.25, 0.75]),
        trace.UpdateSettled(6.2, 1, "c", 1, "committed", 3, ""),
        trace.UpdateSettled(6.2, 0, "a", 3, "committed", 3, ""),
        trace.Published(6.3, 3, NUM_BYTES, 2),
        trace.Adopted(6.4, 1, 2, 4, incarnation=2),
        _trained(6.6, 1, 6.4, 1, 5, 2),
        _pushed(6.6, 1, "c", 2, 2, 2, 5),
        trace.UpdateSettled(6.7, 1, "c", 2, "rejected", -1, "the run is over"),
        trace.Stopped(6.8, "server", "version 3 reached"),
    ]


def _server_began(time_s: float, incarnation: int) -> trace.ProcessStarted:
    return trace.ProcessStarted(time_s, "server", RUN, incarnation, {})


def _trained(
    time_s: float, worker: int, start_s: float, steps: int, step: int, base: int
) -> trace.Trained:
    return trace.Trained(time_s, worker, start_s, steps, step, base, 0.5, 0.9)


def _pushed(
    time_s: float, worker: int, session: str, seq: int, base: int, start: int, step: int
) -> trace.Pushed:
    size, loss = 30.0 - 20.0 * worker, 1.0 / (1 + seq)
    info = UpdateInfo(base, start, step, size, loss, 1.0, 0.9, 0.9)
    return trace.Pushed(time_s, worker, session, seq, info)


def _aggregated(
    time_s: float,
    version: int,
    incarnation: int,
    bases: dict[tuple[int, str, int], int],
    coefficients: list[float],
) -> trace.Aggregated:
    """`bases`: the base version of every update in it."""
    keys, behind = (
        [list(key) for key in bases],
        [version - 1 - b for b in bases.values()],
    )
    return trace.Aggregated(
        time_s, version, incarnation, keys, [*bases.values()], behind, coefficients, 0.1
    )


def files_of(events: Iterable[Any]) -> list[list[list[Any]]]:
    """The same events as lives of processes, each with a file of its own."""
    files: dict[str, list[list[Any]]] = {}
    for event in events:
        own = _actor_of(event)
        lives = files.setdefault(own, [[]])
        if isinstance(event, trace.ProcessStarted):
            lives.append([])
        lives[-1].append(event)
    return [files[actor] for actor in sorted(files)]


def _actor_of(event: Any) -> str:
    """The process that records an event."""
    theirs = trace.Adopted | trace.Trained | trace.Merged | trace.Pushed
    theirs |= trace.Blocked | trace.Received | trace.OutcomeReceived
    is_withdrawn = (
        isinstance(event, trace.UpdateSettled) and event.outcome == "withdrawn"
    )
    if isinstance(event, theirs) or is_withdrawn:
        return f"worker-{event.worker}"
    if isinstance(event, trace.Evaluated):
        return "evaluator"
    return getattr(event, "actor", "server")


# ------------------------------------------------------------- and with a change


class At(NamedTuple):
    """The event of this kind at this time, of this worker if there are several."""

    kind: type
    time_s: float
    worker: int | None = None

    def of(self, events: list[Any]) -> Any:
        (found,) = (
            event
            for event in events
            if type(event) is self.kind
            and event.time_s == self.time_s
            and self.worker in (None, getattr(event, "worker", None))
        )
        return found


def by_time(events):
    return sorted(events, key=lambda event: event.time_s)


def changed(where: At, **fields: Any) -> list[Any]:
    """The hand-made trace with another event in place of that one."""
    events = hand_made()
    old = where.of(events)
    return by_time(replaced(old, **fields) if e is old else e for e in events)


def without(where: At) -> list[Any]:
    events = hand_made()
    old = where.of(events)
    return [event for event in events if event is not old]


def having(*more: Any) -> list[Any]:
    return by_time([*hand_made(), *more])


# ------------------------------------------------------------- of any length


class _Worker:
    """What a worker holds."""

    def __init__(self, worker: int, lives: int = 0) -> None:
        self.worker, self.session, self.lives = worker, f"{worker}-{lives}", lives
        self.base, self.start, self.step, self.seq = (0, -1), -1, 0, 0


class _Run:
    """A run in which everything that is possible happens at random."""

    def __init__(self, seed: int, workers: int, crashes: float) -> None:
        self.chance, self.now, self.crashes = random.Random(seed), 0.0, crashes
        self.events: list[Any] = []
        self.workers = [_Worker(worker) for worker in range(workers)]
        self.given = (1, 0)  # incarnation and number of the published version
        self.pending: dict[int, trace.Pushed] = {}  # usable
        self.unsaved: list[trace.Pushed] = []  # in a version that may be lost
        self.saved = (0, 1)  # version, and the incarnation that made it
        self.note(trace.ProcessStarted, "server", RUN, 1, {})
        for worker in self.workers:
            self.note(trace.ProcessStarted, f"worker-{worker.worker}", "", 0, {})
        self.note(trace.Published, 0, NUM_BYTES, 0)

    def note(self, kind: Any, *fields: Any) -> Any:
        """Records an event, a moment after the previous one."""
        self.now += self.chance.uniform(0.001, 0.01)
        self.events.append(kind(self.now, *fields))
        return self.events[-1]

    def advance(self) -> None:
        what = self.chance.random()
        if what < self.crashes:
            self.crash()
        elif what < 0.1 and len(self.pending) > 1:
            self.aggregate()
        elif what < 0.15:
            self.save()
        else:
            self.work(self.chance.choice(self.workers))

    def work(self, own: _Worker) -> None:
        k, chance = own.worker, self.chance.random()
        (incarnation, newest), base = self.given, own.base[1]
        if own.start < 0 or (chance < 0.05 and own.base < self.given):
            self.note(trace.Adopted, k, newest, own.step, incarnation)
            own.base, own.start = self.given, newest
        elif chance < 0.3 and own.base < self.given:
            self.note(trace.Merged, k, newest, base, own.step, 0.0, 0.5, incarnation)
            own.base = self.given
        elif chance < 0.6:
            steps, start_s = self.chance.randint(1, 9), self.now
            own.step += steps
            fields = k, start_s, steps, own.step, base, 0.5, 0.9
            self.note(trace.Trained, *fields)
            self.merge_times(k)
        elif chance < 0.9:
            older = self.pending.pop(k, None)
            info = update_info(base, own.start, own.step)
            update = self.note(trace.Pushed, k, own.session, own.seq, info)
            own.seq, own.start = own.seq + 1, base
            if older is not None:
                self.settle(older, "superseded", -1)
            if base <= newest:
                self.pending[k] = update
            else:
                self.settle(update, "rejected", -1)
        elif chance < 0.9 + self.crashes:
            self.workers[k] = _Worker(k, own.lives + 1)
            self.note(trace.ProcessStarted, f"worker-{k}", "", 0, {})

    def merge_times(self, worker: int) -> None:
        """Sometimes lets training start where the worker's previous event ended."""
        trained = self.events[-1]
        before = next(
            (
                e
                for e in self.events[-50:-1][::-1]
                if getattr(e, "worker", -1) == worker
            ),
            None,
        )
        if isinstance(before, trace.Adopted | trace.Merged | trace.Trained):
            self.events[-1] = trained._replace(start_s=before.time_s)

    def aggregate(self) -> None:
        self.save()
        incarnation, version = self.given
        updates = list(self.pending.values())
        bases = {(u.worker, u.session, u.seq): u.info.base_version for u in updates}
        share = 1.0 / len(updates)
        self.now += 0.001
        made = _aggregated(
            self.now, version + 1, incarnation, bases, [share] * len(updates)
        )
        self.events.append(made)
        self.given = incarnation, version + 1
        self.unsaved, self.pending = updates, {}
        self.note(trace.Published, version + 1, NUM_BYTES, 0)

    def save(self) -> None:
        if self.unsaved:
            incarnation, version = self.given
            self.saved = version, incarnation
            for update in self.unsaved:
                self.settle(update, "committed", version)
            self.unsaved = []

    def settle(self, update: trace.Pushed, outcome: str, version: int) -> None:
        key = update.worker, update.session, update.seq
        self.note(trace.UpdateSettled, *key, outcome, version, "")

    def crash(self) -> None:
        """Crashes the server: unsaved versions are lost, their updates sent again."""
        version, made_in = self.saved
        again = {u.worker: u for u in self.unsaved} | self.pending
        self.unsaved = []
        self.pending = {
            k: u for k, u in again.items() if u.info.base_version <= version
        }
        self.given = self.given[0] + 1, version
        self.note(trace.ProcessStarted, "server", RUN, self.given[0], {})
        if version:
            self.note(trace.Resumed, self.given[0], version, made_in)
        self.note(trace.Published, version, NUM_BYTES, 0)


def random_trace(
    seed: int, num_events: int, workers: int = 3, crashes: float = 0.01
) -> list[trace.Event]:
    """A trace of about `num_events`, deterministic in its arguments."""
    run = _Run(seed, workers, crashes)
    while len(run.events) < num_events:
        run.advance()
    return run.events
