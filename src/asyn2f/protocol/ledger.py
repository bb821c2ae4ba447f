"""Update ledger: exactly-once accounting, idempotent acknowledgements."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from asyn2f.programs import UpdateKey

Snapshot = dict[str, Any]
"""A ledger as JSON, as it stands in the record of a saved version."""

COUNTED = ("committed", "superseded", "rejected")
_MOST_AHEAD = 2**32  # numbers that a worker may leave out at once


class Outcome(NamedTuple):
    """The final outcome of an update."""

    kind: Literal["committed", "superseded", "rejected"]
    version: int  # that contains it, or -1
    reason: str


class Life(NamedTuple):
    """One process of a worker."""

    session: str
    first: int  # number of its first update


class Ledger:
    """Updates by session and number: unknown, unsettled, or settled.

    The numbers of a worker's updates only grow, also from one of its processes to the
    next (`begin`), and a process whose successor has begun is never admitted again
    (`is_past`). So no update is counted twice, and nothing is remembered of earlier
    processes. An outcome is kept until its worker has acknowledged it (`forget`), so
    memory is bounded by the updates in flight.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, dict[int, Outcome | None]] = {}
        self._unsettled: dict[UpdateKey, int] = {}  # and their base versions
        self._last_seq: dict[str, int] = {}
        self._floor: dict[str, int] = {}  # all below: settled and acknowledged
        self._lives: dict[int, Life] = {}  # by worker, the newest
        self._next: dict[int, int] = {}  # by worker, above all numbers seen
        self.counts = dict.fromkeys(COUNTED, 0)
        self.received: dict[str, int] = {}  # new updates per session

    def owner(self, session: str) -> int | None:
        """The worker whose newest process has that session."""
        return next((w for w, x in self._lives.items() if x.session == session), None)

    def is_past(self, worker: int, session: str, first: int) -> bool:
        """Whether a process is older than the newest known one of its worker.

        `first` is the number that a server assigned to its first update; -1 = none yet.
        It may be unknown here: a server that assigned it can crash before it saves.

        >>> ledger = Ledger()
        >>> ledger.begin(3, "a", -1), ledger.begin(3, "b", -1)
        (0, 1)
        >>> [ledger.is_past(3, *x) for x in (("a", 0), ("b", 1), ("c", -1), ("d", 7))]
        [True, False, False, False]
        """
        life = self._lives.get(worker)
        if first < 0 or life is None:
            return first > _MOST_AHEAD
        if life.session == session:
            return first != life.first
        next_seq = self._next.get(worker, 0)
        is_newer = first > life.first and first >= next_seq
        return not is_newer or first > next_seq + _MOST_AHEAD

    def begin(self, worker: int, session: str, first: int) -> int:
        """Registers a process that is not past as the newest of its worker; returns the
        number of its first update."""
        life = self._lives.get(worker, Life("", -1))
        if life.session != session:
            if first < 0:
                first = max(self._next.get(worker, 0), life.first + 1)
            life = self._lives[worker] = Life(session, first)
        return life.first

    def is_known(self, session: str, seq: int) -> bool:
        """Whether this update has been received before."""
        below = seq < self._floor.get(session, 0)
        return below or seq in self._sessions.get(session, {})

    def is_overtaken(self, session: str, seq: int) -> bool:
        """Whether a newer update of the same session has been received already."""
        return seq < self._last_seq.get(session, -1)

    def add(self, key: UpdateKey, base_version: int) -> None:
        """Adds a new update, unsettled."""
        session = key.session
        self._sessions.setdefault(session, {})[key.seq] = None
        self._unsettled[key] = base_version
        self._next[key.worker] = max(key.seq + 1, self._next.get(key.worker, 0))
        self._last_seq[session] = max(key.seq, self._last_seq.get(session, -1))
        self.received[session] = self.received.get(session, 0) + 1

    def outcome(self, session: str, seq: int) -> Outcome | None:
        """The outcome; None if the update is unknown, unsettled or forgotten."""
        return self._sessions.get(session, {}).get(seq)

    def base_of(self, key: UpdateKey) -> int | None:
        """The base version of an unsettled update, or None."""
        return self._unsettled.get(key)

    def unsettled(self) -> frozenset[UpdateKey]:
        return frozenset(self._unsettled)

    def num_open(self, session: str) -> int:
        """Unsettled updates of a session."""
        return sum(key.session == session for key in self._unsettled)

    def is_ahead(self, worker: int, seq: int) -> bool:
        """Whether a number is out of reach for a worker that counts its updates."""
        return seq > self._next.get(worker, 0) + _MOST_AHEAD

    def end(self, session: str) -> None:
        """Forgets a session without unsettled updates."""
        for kept in (self._sessions, self._last_seq, self._floor, self.received):
            kept.pop(session, None)

    def settle(self, key: UpdateKey, outcome: Outcome) -> None:
        """Sets the outcome of an update, once. Raises ValueError if it is not
        unsettled."""
        if key not in self._unsettled:
            raise ValueError(f"{key} is unknown or already settled")
        del self._unsettled[key]
        self._sessions[key.session][key.seq] = outcome
        self.counts[outcome.kind] += 1

    def forget(self, session: str, below: int) -> None:
        """Its worker has acknowledged the outcomes of all updates below a number."""
        self._floor[session] = max(below, self._floor.get(session, 0))
        outcomes = self._sessions.get(session, {})
        done = [
            s for s, outcome in outcomes.items() if s < below and outcome is not None
        ]
        for seq in done:
            del outcomes[seq]

    def snapshot(self, version: int, keys: Iterable[UpdateKey]) -> Snapshot:
        """The ledger as of the save of `version`, aggregated from these updates.

        It contains committed updates only, as other outcomes do not outlive their
        server, and only those of each worker's newest process.
        """
        committed = {
            name: {
                str(seq): outcome.version
                for seq, outcome in outcomes.items()
                if outcome is not None and outcome.kind == "committed"
            }
            for name, outcomes in self._sessions.items()
        }
        counts = dict(self.counts)
        for key in keys:
            committed.setdefault(key.session, {})[str(key.seq)] = version
            counts["committed"] += 1
        workers = {
            str(worker): {
                "session": name,
                "first": first,
                "next": self._next.get(worker, 0),
                "below": self._floor.get(name, 0),
                "committed": committed.get(name, {}),
            }
            for worker, (name, first) in self._lives.items()
        }
        return {"counts": counts, "workers": workers}

    @classmethod
    def restore(cls, snapshot: Snapshot) -> "Ledger":
        """The ledger of a server that begins with that version; {} = a new run. Raises
        ValueError for an invalid snapshot."""
        ledger = cls()
        try:
            for name, number in snapshot.get("counts", {}).items():
                ledger.counts[COUNTED[COUNTED.index(name)]] = _count(number)
            for worker, kept in snapshot.get("workers", {}).items():
                life = Life(_name(kept["session"]), _count(kept["first"]))
                ledger._lives[_count(int(worker))] = life
                ledger._next[int(worker)] = _count(kept["next"])
                below = ledger._floor[life.session] = _count(kept["below"])
                outcomes = ledger._sessions.setdefault(life.session, {})
                for seq, version in kept["committed"].items():
                    outcomes[int(seq)] = Outcome("committed", _count(version), "")
                ledger._last_seq[life.session] = max(outcomes, default=below - 1)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"invalid snapshot of a ledger: {error!r}") from None
        return ledger


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"found {str(value)[:40]!r}, expected a whole number")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {str(value)[:40]!r}, expected the name of a session")
    return value
