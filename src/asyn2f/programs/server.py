"""The server's program: its commands and events, and the generator between them."""

from collections.abc import Generator
from typing import NamedTuple

from asyn2f.timing import Timing


class UpdateKey(NamedTuple):
    """The id of an update: worker, session and sequence number."""

    worker: int
    session: str
    seq: int


class Listen(NamedTuple):
    """Wait for the next event: `Due` at `until_s`, on the clock of the events."""

    until_s: float | None


class Supersede(NamedTuple):
    """Settle an update as replaced by a newer one of the same worker."""

    key: UpdateKey


class Reject(NamedTuple):
    """Settle an update as rejected."""

    key: UpdateKey
    reason: str


class Aggregate(NamedTuple):
    """Aggregate these updates, in order of arrival, into the next version."""

    keys: tuple[UpdateKey, ...]
    # The number of updates it lacks: up to `min_updates`, or of live workers that a
    # synchronous round did not wait for.
    lacking: int = 0


class Publish(NamedTuple):
    """Publish this version."""

    version: int


ServerCommand = Listen | Supersede | Reject | Aggregate | Publish


class Joined(NamedTuple):
    """A worker has registered."""

    time_s: float
    worker: int


class Left(NamedTuple):
    """A worker has left, or its heartbeat timeout has passed."""

    time_s: float
    worker: int


class Arrived(NamedTuple):
    """A valid update has arrived."""

    time_s: float
    key: UpdateKey
    base_version: int


class Failed(NamedTuple):
    """A worker's update was rejected: its cycle contributes nothing."""

    time_s: float
    worker: int


class Due(NamedTuple):
    """`Listen.until_s` has come."""

    time_s: float


class Done(NamedTuple):
    """A command other than `Listen` has been carried out."""

    time_s: float


class NotMade(NamedTuple):
    """The result of an aggregation is invalid: there is no such version."""

    time_s: float


ServerEvent = Joined | Left | Arrived | Failed | Due | Done | NotMade


ServerProgram = Generator[ServerCommand, ServerEvent, None]


def server_program(timing: Timing, version: int = 0) -> ServerProgram:
    """The server, from the first registration (Asyn2F, server side).

    Args:
      timing: the strategy's, with the experiment's settings.
      version: the version it begins with; above 0 after a resume.

    Yields:
      Commands; an event is sent in return for each: after `Listen` any but `Done`,
      after every other command `Done`, or `NotMade` after `Aggregate`.
    """
    state = _ServerState()
    live, pending = state.live, state.pending
    replaces, limit = timing.replaces, timing.max_staleness
    most = None if replaces else timing.most_updates(workers=0)
    is_due = False
    listen = Listen(None)  # the most frequent command by far
    while True:
        if state.opened_s is None and len(live) >= timing.min_workers:
            state.opened_s = (yield Publish(version)).time_s
            # After a restart an update may precede the first round.
            state.expected = live - state.failed
            state.missing = state.expected - pending.keys()
        while (
            state.opened_s is not None
            and pending
            and (is_due or _is_ready(timing, state))
        ):
            slots = tuple(pending)[:most]
            keys = tuple(pending.pop(slot).key for slot in slots)
            lacking = _lacking(timing, len(keys), len(state.missing))
            made = yield Aggregate(keys, lacking)
            is_due = False
            if isinstance(made, NotMade):
                continue
            version += 1
            state.opened_s = (yield Publish(version)).time_s
            if timing.quorum == "all":
                state.expected, state.missing = set(live), set(live)
            if limit is not None:  # the staleness of the others has grown
                for slot, left in tuple(pending.items()):
                    if version - left.base_version > limit:
                        del pending[slot]
                        yield Reject(left.key, "stale")
        event = yield Listen(_deadline(timing, state)) if timing.deadline_s else listen
        is_due = isinstance(event, Due)
        if not isinstance(event, Arrived):
            state.update(event)
        elif limit is not None and version - event.base_version > limit:
            yield Reject(event.key, "stale")
        else:
            worker = event.key.worker
            slot = worker if replaces else event.key
            older = pending.pop(slot, None)
            if older is not None:
                yield Supersede(older.key)
                if timing.deadline_s:  # it inherits the deadline
                    event = event._replace(time_s=older.time_s)
            pending[slot] = event
            state.missing.discard(worker)


class _ServerState:
    """Live workers and pending updates."""

    def __init__(self) -> None:
        self.live: set[int] = set()
        # By worker where a newer update replaces an older one, else by update.
        self.pending: dict[int | UpdateKey, Arrived] = {}
        self.expected: set[int] = set()  # live when the newest version was published
        self.missing: set[int] = set()  # of those, live and without a pending update
        self.failed: set[int] = set()  # before the run began
        self.opened_s: float | None = (
            None  # when that was; None = the run has not begun
        )

    def update(self, event: ServerEvent) -> None:
        """Records that a worker has joined, left or failed."""
        if isinstance(event, Joined):
            self.live.add(event.worker)
            if event.worker in self.expected and event.worker not in self.pending:
                self.missing.add(event.worker)
        elif isinstance(event, Left):
            self.live.discard(event.worker)
            self.missing.discard(event.worker)
        elif isinstance(event, Failed):
            self.expected.discard(event.worker)
            self.missing.discard(event.worker)
            if self.opened_s is None:
                self.failed.add(event.worker)


def _is_ready(timing: Timing, state: _ServerState) -> bool:
    if timing.quorum == "all":
        return not state.missing
    pending, live = state.pending, state.live
    if timing.quorum == "each" or len(pending) >= timing.min_updates:
        return True
    # A worker that waits for a version, or that would replace its update, adds nothing.
    if timing.pending == "all":
        if timing.after_push != "wait":
            return False
        return {update.key.worker for update in pending.values()} >= live
    return pending.keys() >= live


def _lacking(timing: Timing, updates: int, missing: int) -> int:
    if timing.quorum == "all":
        return missing
    return 0 if timing.quorum == "each" else max(0, timing.min_updates - updates)


def _deadline(timing: Timing, state: _ServerState) -> float | None:
    if not state.pending or state.opened_s is None:
        return None
    if timing.quorum == "all":
        return state.opened_s + timing.deadline_s
    return min(update.time_s for update in state.pending.values()) + timing.deadline_s
