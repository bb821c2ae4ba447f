"""What became of each update: counted once, and answered as often as it is asked."""

from typing import Literal, NamedTuple

from asyn2f.programs import UpdateKey

_REMEMBERED = 64  # verdicts kept per session; a worker never has that many unsettled


class Verdict(NamedTuple):
    """The last word on an update."""

    verdict: Literal["committed", "superseded", "rejected"]
    version: int  # that holds it, or -1
    reason: str


class Ledger:
    """Updates by session and number: not seen, taken in, or settled."""

    def __init__(self, counts: dict[str, int]) -> None:
        """`counts`: committed, superseded and rejected of the run before."""
        self._sessions: dict[str, dict[int, Verdict | None]] = {}
        self._unsettled: set[UpdateKey] = set()
        self._last_seq: dict[str, int] = {}
        self.counts = dict(counts)
        self.taken_in: dict[str, int] = {}  # new updates per session

    def is_known(self, session: str, seq: int) -> bool:
        """Whether this update has come before (or is older than memory reaches)."""
        forgotten = seq <= self._last_seq.get(session, -1) - _REMEMBERED
        return forgotten or seq in self._sessions.get(session, {})

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
        """The verdict, or nothing while there is none."""
        return self._sessions.get(session, {}).get(seq)

    def unsettled(self) -> frozenset[UpdateKey]:
        """All that are taken in and not settled."""
        return frozenset(self._unsettled)

    def settle(self, key: UpdateKey, verdict: Verdict) -> None:
        """Writes the last word on an update; there is only one.

        Raises:
          ValueError: it is not unsettled.
        """
        if key not in self._unsettled:
            raise ValueError(f"{key} is unknown or has its verdict already")
        self._unsettled.remove(key)
        verdicts = self._sessions[key.session]
        verdicts[key.seq] = verdict
        self.counts[verdict.verdict] += 1
        settled = sorted(seq for seq, found in verdicts.items() if found is not None)
        for seq in settled[:-_REMEMBERED]:
            del verdicts[seq]
