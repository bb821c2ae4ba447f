"""A round of nothing: who waits for a version that nobody is left to bring about."""

import math

from asyn2f.protocol.sessions import SessionRegistry


class StallDetector:
    """Notices that every update for the next version has been refused.

    Where a worker that has pushed waits for the next version, it pushes no more when
    its update is refused; the others have to bring that version about. If all that are
    live wait so, the run cannot go on. One that fell silent may come back, or another
    process in its place, so it is waited for as long as peers wait for a server. One
    that is live and owes its update is waited for without end; but where rounds have a
    deadline, no longer than that besides once its steps have ceased to grow.
    """

    def __init__(self, waits: bool, deadline_s: float, patience_s: float) -> None:
        """
        Args:
          waits: whether a worker that has pushed waits for the next version.
          deadline_s: of a round; 0 = none.
          patience_s: how long a worker that is silent may take to come back.
        """
        self._waits = waits
        self._deadline_s = deadline_s or math.inf
        self._patience_s = patience_s
        self._refused: dict[str, str] = {}  # by session that waits, why
        self._since_s = -math.inf  # nothing has changed

    def begin(self) -> None:
        """Another version has been given out: nobody waits any more."""
        self._refused.clear()

    def refuse(self, session: str, problem: str, now: float) -> None:
        """The update that this worker made of the newest version is of no use."""
        self._refused[session] = problem
        self._since_s = now

    def stir(self, now: float) -> None:
        """A worker has come, or gone."""
        self._since_s = now

    def reason(self, roster: SessionRegistry, now: float) -> str:
        """Why the run cannot go on, if that is so and no update is on its way."""
        live = roster.live_workers()
        if not (self._waits and live and self._refused):
            return ""
        owes = [s for s in live if s.name not in self._refused]
        owing = [s.actor for s in owes]
        silent = [s.actor for s in roster if s.may_come_back]
        patience_s = self._patience_s if owing or silent else 0.0
        patience_s += self._deadline_s if owing else 0.0
        since_s = max([self._since_s, *(s.moved_s for s in owes)])
        if now < since_s + patience_s:
            return ""
        *_, problem = self._refused.values()
        awaited = f"; none comes from {', '.join(owing + silent)}" if patience_s else ""
        return f"no update of the round can be used: {problem}{awaited}"
