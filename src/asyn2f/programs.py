"""In which order: the worker's and the server's algorithm, as generators of commands.

A program yields what shall be done and is sent what came of it. It knows no JAX, no
sockets, no clock: time reaches it inside the events. Its interpreters (the runtime's
processes; a virtual clock; a test) decide by what means a command is carried out, so
that the same forty lines run everywhere.
"""

from collections.abc import Generator
from typing import NamedTuple

from asyn2f.timing import Timing

# ---------------------------------------------------------------- the worker's side


class Wait(NamedTuple):
    """Wait until another version than this one is at hand (or the run is over)."""

    known: int


class Adopt(NamedTuple):
    """Drop the local model for this global version."""

    version: int


class Train(NamedTuple):
    """Train for so many steps, and at least one. With `known`, end early, at the
    first batch boundary at which another version than that is at hand."""

    steps: int
    known: int | None


class Merge(NamedTuple):
    """Merge this global version into the local model."""

    version: int


class Push(NamedTuple):
    """Send the local model to the server; do not wait for an answer."""


WorkerCommand = Wait | Adopt | Train | Merge | Push


class Seen(NamedTuple):
    """What a worker knows after a command."""

    steps: int = 0  # local steps done by the command
    # The newest version at hand; it goes down only if a crash has taken a version that
    # was announced before it was saved.
    newest: int = -1
    signal: float = 0.0  # what a push may depend on: `WorkerUpdate.signal`
    stop: bool = False  # the run is over


WorkerProgram = Generator[WorkerCommand, Seen, None]


def worker_program(timing: Timing, steps_per_epoch: int) -> WorkerProgram:
    """One worker, from its first model to the end of the run (Asyn2F, worker side).

    Args:
      timing: the strategy's, with the experiment's settings.
      steps_per_epoch: local steps in one pass over the worker's shard.

    Yields:
      Commands; expects a `Seen` in return for each.

    >>> timing = Timing(while_training="merge", after_push="continue", quorum="some")
    >>> program = worker_program(timing, steps_per_epoch=3)
    >>> next(program)
    Wait(known=-1)
    >>> program.send(Seen(newest=0))
    Adopt(version=0)
    >>> program.send(Seen(newest=0))
    Train(steps=3, known=0)
    >>> program.send(Seen(steps=2, newest=1))
    Merge(version=1)
    >>> program.send(Seen(newest=1))
    Train(steps=1, known=1)
    >>> program.send(Seen(steps=1, newest=2))  # the last batch boundary of the cycle
    Merge(version=2)
    >>> program.send(Seen(newest=2))
    Push()
    """
    push = Push()  # always the same one, as a simulation pushes millions of times
    cycle = steps_per_epoch * timing.epochs_per_push
    merges = timing.while_training == "merge"
    slot = -1
    if timing.while_training == "merge_once":
        slot = max(round(cycle * timing.merge_slot), 1)
    seen = yield Wait(known=-1)
    base, trained, pushed, cycles, mean = -1, False, False, 0, 0.0
    while not seen.stop:
        is_newer = seen.newest != base and not (cycles and timing.keep_unsent)
        if base < 0 or (timing.after_push != "continue" and (pushed or is_newer)):
            base = seen.newest
            seen = yield Adopt(base)
            trained = False
        done, merged = 0, False
        while not seen.stop:
            is_slot = done == slot < cycle and not merged
            if (merges or is_slot) and seen.newest != base:
                base, merged = seen.newest, True
                # Nothing local to keep before the first step: then it is an adoption.
                seen = yield Merge(base) if trained else Adopt(base)
                continue
            if done == cycle:
                break
            until = slot if done < slot < cycle else cycle
            seen = yield Train(until - done, known=base if merges else None)
            done += seen.steps
            trained = trained or seen.steps > 0
        cycles += 1
        mean += (seen.signal - mean) / cycles
        epochs = cycles * timing.epochs_per_push
        pushed = not seen.stop and timing.may_push(seen.signal, mean, epochs)
        if not pushed:
            continue
        seen = yield push
        if timing.after_push == "wait" and not seen.stop:
            seen = yield Wait(known=base)


# ---------------------------------------------------------------- the server's side


class UpdateKey(NamedTuple):
    """Which update: of which worker, in which life of that worker, the how-manieth."""

    worker: int
    session: str
    seq: int


class Listen(NamedTuple):
    """Wait for the next event; after `until_s` (the clock of the events) say `Due`."""

    until_s: float | None


class Supersede(NamedTuple):
    """This pending update has been replaced by a newer one of the same worker."""

    key: UpdateKey


class Reject(NamedTuple):
    """This update will not be used."""

    key: UpdateKey
    reason: str


class Aggregate(NamedTuple):
    """Make the next version of these updates, which stand in order of arrival."""

    keys: tuple[UpdateKey, ...]
    # Updates that it should have had besides: up to `min_updates`, or of the live
    # workers that a synchronous round was closed without.
    lacking: int = 0


class Publish(NamedTuple):
    """Give this version to everybody."""

    version: int


ServerCommand = Listen | Supersede | Reject | Aggregate | Publish


class Joined(NamedTuple):
    """A worker has registered."""

    time_s: float
    worker: int


class Left(NamedTuple):
    """A worker has gone, or has not been heard of for too long."""

    time_s: float
    worker: int


class Arrived(NamedTuple):
    """An update has arrived whole and has passed the checks."""

    time_s: float
    key: UpdateKey
    base_version: int


class Failed(NamedTuple):
    """A worker's update could not be used: nothing more will come of its cycle."""

    time_s: float
    worker: int


class Due(NamedTuple):
    """The time that `Listen` named has come."""

    time_s: float


class Done(NamedTuple):
    """A command other than `Listen` has been carried out."""

    time_s: float


class NotMade(NamedTuple):
    """What came of these updates cannot be used: there is no such version."""

    time_s: float


ServerEvent = Joined | Left | Arrived | Failed | Due | Done | NotMade


ServerProgram = Generator[ServerCommand, ServerEvent, None]


def server_program(timing: Timing, version: int = 0) -> ServerProgram:
    """The server, from the first registration on (Asyn2F, server side).

    Args:
      timing: the strategy's, with the experiment's settings.
      version: the version it begins with; above 0 after a resume.

    Yields:
      Commands; expects an event in return for each: after `Listen` anything but `Done`,
      after every other command `Done`, or `AggregationFailed` after `Aggregate`.
    """
    live: set[int] = set()
    # By worker where a newer update replaces an older one, else by update.
    pending: dict[int | UpdateKey, Arrived] = {}
    replaces = timing.replaces
    most = None if replaces else timing.most_updates(workers=0)
    limit = timing.max_staleness
    expected: set[int] = set()  # live when the newest version was published
    missing: set[int] = set()  # of those, live and without a pending update
    failed: set[int] = set()  # before the run began
    opened_s: float | None = None  # when that was; None = the run has not begun
    is_due = False
    listen = Listen(None)  # nearly every command there is
    while True:
        if opened_s is None and len(live) >= timing.min_workers:
            opened_s = (yield Publish(version)).time_s
            # After a restart an update may have come before its round was opened.
            expected = live - failed
            missing = expected - pending.keys()
        while (
            opened_s is not None
            and pending
            and (is_due or _is_ready(timing, pending, live, missing))
        ):
            slots = tuple(pending)[:most]
            keys = tuple(pending.pop(slot).key for slot in slots)
            made = yield Aggregate(keys, _lacking(timing, len(keys), len(missing)))
            is_due = False
            if isinstance(made, NotMade):
                continue
            version += 1
            opened_s = (yield Publish(version)).time_s
            if timing.quorum == "all":
                expected, missing = set(live), set(live)
            if limit is not None:  # what is left has become staler
                for slot, left in tuple(pending.items()):
                    if version - left.base_version > limit:
                        del pending[slot]
                        yield Reject(left.key, "stale")
        if timing.deadline_s:
            event = yield Listen(_deadline(timing, pending, opened_s))
        else:
            event = yield listen
        is_due = isinstance(event, Due)
        if isinstance(event, Arrived):
            if limit is not None and version - event.base_version > limit:
                yield Reject(event.key, "stale")
                continue
            worker = event.key.worker
            slot = worker if replaces else event.key
            older = pending.pop(slot, None)
            if older is not None:
                yield Supersede(older.key)
                if timing.deadline_s:  # what replaces it has waited as long
                    event = event._replace(time_s=older.time_s)
            pending[slot] = event
            missing.discard(worker)
        elif isinstance(event, Joined):
            live.add(event.worker)
            if event.worker in expected and event.worker not in pending:
                missing.add(event.worker)
        elif isinstance(event, Left):
            live.discard(event.worker)
            missing.discard(event.worker)
        elif isinstance(event, Failed):
            expected.discard(event.worker)
            missing.discard(event.worker)
            if opened_s is None:
                failed.add(event.worker)


def _is_ready(
    timing: Timing,
    pending: dict[int | UpdateKey, Arrived],
    live: set[int],
    missing: set[int],
) -> bool:
    if timing.quorum == "all":
        return not missing
    if timing.quorum == "each" or len(pending) >= timing.min_updates:
        return True
    # Who waits for a version, or is replaced, cannot add to what is pending.
    if timing.pending == "all":
        if timing.after_push != "wait":
            return False
        return {update.key.worker for update in pending.values()} >= live
    return pending.keys() >= live


def _lacking(timing: Timing, updates: int, missing: int) -> int:
    if timing.quorum == "all":
        return missing
    return 0 if timing.quorum == "each" else max(0, timing.min_updates - updates)


def _deadline(
    timing: Timing, pending: dict[int | UpdateKey, Arrived], opened_s: float | None
) -> float | None:
    if not pending or opened_s is None:
        return None
    if timing.quorum == "all":
        return opened_s + timing.deadline_s
    return min(update.time_s for update in pending.values()) + timing.deadline_s
