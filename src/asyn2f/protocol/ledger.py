"""What became of each update: counted once, and answered as often as it is asked."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from asyn2f.programs import UpdateKey

Snapshot = dict[str, Any]
"""A ledger as JSON: what a version's record in the store says of all updates."""

COUNTED = ("committed", "superseded", "rejected")
_MOST_AHEAD = 2**32  # numbers that a worker may leave out at once


class Verdict(NamedTuple):
    """The last word on an update."""

    verdict: Literal["committed", "superseded", "rejected"]
    version: int  # that holds it, or -1
    reason: str


class Life(NamedTuple):
    """The process that a worker is, as far as its updates are concerned."""

    session: str
    first: int  # number of its first update


class Ledger:
    """Updates by session and number: not seen, taken in, or settled.

    The numbers of a worker's updates only grow, also from one of its processes to the
    next (`begin`), and a process whose successor has begun is never taken back
    (`is_past`): so no update is counted twice, and of the processes before the present
    one nothing has to be remembered. A verdict is kept until its worker says that it
    knows it (`forget`), so memory is bounded by what workers have under way.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, dict[int, Verdict | None]] = {}
        self._unsettled: set[UpdateKey] = set()
        self._last_seq: dict[str, int] = {}
        self._floor: dict[str, int] = {}  # all below is settled, and known to be
        self._lives: dict[int, Life] = {}  # by worker, the newest
        self._next: dict[int, int] = {}  # by worker, above all numbers taken in
        self.counts = dict.fromkeys(COUNTED, 0)
        self.taken_in: dict[str, int] = {}  # new updates per session

    def owner(self, session: str) -> int | None:
        """The worker whose newest process that session is."""
        return next((w for w, x in self._lives.items() if x.session == session), None)

    def is_past(self, worker: int, session: str, first: int) -> bool:
        """Whether that is an earlier process of the worker than one that is known.

        `first` is what a server told the process when it began; -1 = nothing yet. It
        is unknown here if a server before this one did, and was lost before it saved.

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
        """The worker is this process from now on, which is not past; the number of its
        first update."""
        life = self._lives.get(worker, Life("", -1))
        if life.session != session:
            if first < 0:
                first = max(self._next.get(worker, 0), life.first + 1)
            life = self._lives[worker] = Life(session, first)
        return life.first

    def is_known(self, session: str, seq: int) -> bool:
        """Whether this update has come before."""
        below = seq < self._floor.get(session, 0)
        return below or seq in self._sessions.get(session, {})

    def is_overtaken(self, session: str, seq: int) -> bool:
        """Whether a newer update of the same session has come before this one."""
        return seq < self._last_seq.get(session, -1)

    def take_in(self, key: UpdateKey) -> None:
        """A new update: from now on it is known, and unsettled."""
        session = key.session
        self._sessions.setdefault(session, {})[key.seq] = None
        self._unsettled.add(key)
        self._next[key.worker] = max(key.seq + 1, self._next.get(key.worker, 0))
        self._last_seq[session] = max(key.seq, self._last_seq.get(session, -1))
        self.taken_in[session] = self.taken_in.get(session, 0) + 1

    def verdict(self, session: str, seq: int) -> Verdict | None:
        """The verdict, or nothing while there is none (or it is forgotten)."""
        return self._sessions.get(session, {}).get(seq)

    def unsettled(self) -> frozenset[UpdateKey]:
        """All that are taken in and not settled."""
        return frozenset(self._unsettled)

    def num_open(self, session: str) -> int:
        """How many of a session's updates are unsettled."""
        return sum(key.session == session for key in self._unsettled)

    def is_ahead(self, worker: int, seq: int) -> bool:
        """Whether a worker that numbers its updates one by one is not there yet."""
        return seq > self._next.get(worker, 0) + _MOST_AHEAD

    def end(self, session: str) -> None:
        """Nothing more of this session will be taken in; all of it is settled."""
        for kept in (self._sessions, self._last_seq, self._floor, self.taken_in):
            kept.pop(session, None)

    def settle(self, key: UpdateKey, verdict: Verdict) -> None:
        """Writes the last word on an update; there is only one.

        Raises:
          ValueError: it is not unsettled.
        """
        if key not in self._unsettled:
            raise ValueError(f"{key} is unknown or has its verdict already")
        self._unsettled.remove(key)
        self._sessions[key.session][key.seq] = verdict
        self.counts[verdict.verdict] += 1

    def forget(self, session: str, below: int) -> None:
        """The worker knows the verdicts of all updates with smaller numbers."""
        self._floor[session] = max(below, self._floor.get(session, 0))
        verdicts = self._sessions.get(session, {})
        done = [
            s for s, verdict in verdicts.items() if s < below and verdict is not None
        ]
        for seq in done:
            del verdicts[seq]

    def snapshot(self, version: int, keys: Iterable[UpdateKey]) -> Snapshot:
        """The ledger as it will be once `version`, made of these updates, is saved.

        Only commitments are in it: they alone outlive the server that made them; and
        only those of each worker's newest process, as the others never come back.
        """
        committed = {
            name: {
                str(seq): verdict.version
                for seq, verdict in verdicts.items()
                if verdict is not None and verdict.verdict == "committed"
            }
            for name, verdicts in self._sessions.items()
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
        """The ledger of a server that begins with that version; {} = nothing yet.

        Raises:
          ValueError: no snapshot.
        """
        ledger = cls()
        try:
            for name, number in snapshot.get("counts", {}).items():
                ledger.counts[COUNTED[COUNTED.index(name)]] = _count(number)
            for worker, kept in snapshot.get("workers", {}).items():
                life = Life(_name(kept["session"]), _count(kept["first"]))
                ledger._lives[_count(int(worker))] = life
                ledger._next[int(worker)] = _count(kept["next"])
                below = ledger._floor[life.session] = _count(kept["below"])
                verdicts = ledger._sessions.setdefault(life.session, {})
                for seq, version in kept["committed"].items():
                    verdicts[int(seq)] = Verdict("committed", _count(version), "")
                ledger._last_seq[life.session] = max(verdicts, default=below - 1)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no snapshot of a ledger: {error!r}") from None
        return ledger


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"found {str(value)[:40]!r}, expected a whole number")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {str(value)[:40]!r}, expected the name of a session")
    return value
