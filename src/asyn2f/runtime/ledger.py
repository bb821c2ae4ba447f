"""What became of each update: counted once, and answered as often as it is asked."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from asyn2f.programs import UpdateKey

Snapshot = dict[str, Any]
"""A ledger as JSON: what a version's record in the store says of all updates."""

COUNTED = ("committed", "superseded", "rejected")
MOST_ENDED = 4096  # names of ended sessions that are remembered


class Verdict(NamedTuple):
    """The last word on an update."""

    verdict: Literal["committed", "superseded", "rejected"]
    version: int  # that holds it, or -1
    reason: str


class Ledger:
    """Updates by session and number: not seen, taken in, or settled.

    A verdict is kept until its worker says that it knows it (`forget`), so memory is
    bounded by what workers have under way. Of a session that has ended only its name is
    kept, so that nothing of it is ever counted again.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, dict[int, Verdict | None]] = {}
        self._unsettled: set[UpdateKey] = set()
        self._last_seq: dict[str, int] = {}
        self._floor: dict[str, int] = {}  # all below is settled, and known to be
        self.counts = dict.fromkeys(COUNTED, 0)
        self.taken_in: dict[str, int] = {}  # new updates per session
        self._ended: dict[str, None] = {}  # sessions, in the order of their ends

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

    def end(self, session: str) -> None:
        """Nothing more of this session will be taken in; all of it is settled."""
        for kept in (self._sessions, self._last_seq, self._floor, self.taken_in):
            kept.pop(session, None)
        self._ended[session] = None
        if len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def has_ended(self, session: str) -> bool:
        return session in self._ended

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

        Only commitments are in it: they alone outlive the server that made them.
        """
        committed: dict[str, dict[str, int]] = {name: {} for name in self._floor}
        for name, verdicts in self._sessions.items():
            committed[name] = {
                str(seq): verdict.version
                for seq, verdict in verdicts.items()
                if verdict is not None and verdict.verdict == "committed"
            }
        counts = dict(self.counts)
        for key in keys:
            committed.setdefault(key.session, {})[str(key.seq)] = version
            counts["committed"] += 1
        sessions = {
            name: {"below": self._floor.get(name, 0), "committed": found}
            for name, found in committed.items()
        }
        return {"counts": counts, "sessions": sessions, "ended": list(self._ended)}

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
            ledger._ended = dict.fromkeys(map(_name, snapshot.get("ended", [])))
            for name, kept in snapshot.get("sessions", {}).items():
                below = ledger._floor[_name(name)] = _count(kept["below"])
                verdicts = ledger._sessions.setdefault(name, {})
                for seq, version in kept["committed"].items():
                    verdicts[int(seq)] = Verdict("committed", _count(version), "")
                ledger._last_seq[name] = max(verdicts, default=below - 1)
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
