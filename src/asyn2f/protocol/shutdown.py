"""The shutdown of a run with its timeouts, and the detection of a stalled run."""

import math

from asyn2f.protocol.sessions import SessionRegistry

GIVE_UP_S = 2.0  # on a store that fails
_SILENCE_S = 5.0  # on a store that does not answer
_FAREWELL_S = 1.5  # for the goodbyes of peers
_LAST_SCORE_S = {"finished": 6.0, "interrupted": 1.0, "failed": 1.0}


class Shutdown:
    """Waits for the last save, then the last score, then the goodbyes."""

    def __init__(self) -> None:
        self.status = self.reason = ""  # "" = it has not begun
        self.is_farewell = False  # peers have been told to stop
        self.is_complete = False
        self._last_score_s = self._farewell_s = self._give_up_s = math.inf
        self._silence_s = math.inf

    @property
    def has_begun(self) -> bool:
        return bool(self.status)

    def begin(self, status: str, reason: str, now: float) -> None:
        """Begins the shutdown; `status` is that of `events.Finish`."""
        self.status, self.reason = status, reason
        self._last_score_s = now + _LAST_SCORE_S[status]
        self._give_up_s = now + GIVE_UP_S
        self._silence_s = now + _SILENCE_S

    def gives_up(self, now: float) -> bool:
        """Whether a version that cannot be saved is abandoned."""
        return now >= self._give_up_s

    def waits(self, now: float) -> bool:
        """Whether the last save may still be answered. Peers do not learn of one that
        succeeds later."""
        return now < self._silence_s

    def bid_farewell(self, waits_for_score: bool, now: float) -> bool:
        """Whether peers are to be told to stop now; true once."""
        if self.is_farewell or (waits_for_score and now < self._last_score_s):
            return False
        self.is_farewell, self._farewell_s = True, now + _FAREWELL_S
        return True

    def completes(self, is_alone: bool, now: float) -> bool:
        """Whether the shutdown is complete now; true once."""
        is_due = self.is_farewell and (is_alone or now >= self._farewell_s)
        if self.is_complete or not is_due:
            return False
        self.is_complete = True
        return True


class StallDetector:
    """Detects that every update for the next version has been rejected.

    Where a worker blocks after its push until the next version, it does not push again
    when its update is rejected; the others have to contribute to that version. If all
    live workers block, the run cannot go on. A silent worker may come back, or another
    process in its place, so it is waited for as long as peers wait for a server. A live
    worker that has not pushed is waited for without end; but where rounds have a
    deadline, at most that long once its step count has ceased to grow.
    """

    def __init__(self, waits: bool, deadline_s: float, patience_s: float) -> None:
        """
        Args:
          waits: whether a worker blocks after its push until the next version.
          deadline_s: of a round; 0 = none.
          patience_s: the time allowed to a silent worker.
        """
        self._waits = waits
        self._deadline_s = deadline_s or math.inf
        self._patience_s = patience_s
        self._rejected: dict[str, str] = {}  # reasons, by session that blocks
        self._since_s = -math.inf  # of the last change

    def begin(self) -> None:
        """A version has been published: no worker blocks."""
        self._rejected.clear()

    def reject(self, session: str, problem: str, now: float) -> None:
        """The update of a worker for the next version has been rejected."""
        self._rejected[session] = problem
        self._since_s = now

    def touch(self, now: float) -> None:
        """A worker has joined or left."""
        self._since_s = now

    def reason(self, sessions: SessionRegistry, now: float) -> str:
        """Why the run is stalled, if no update is unsettled; or ""."""
        live = sessions.live_workers()
        if not (self._waits and live and self._rejected):
            return ""
        owes = [s for s in live if s.name not in self._rejected]
        owing = [s.actor for s in owes]
        silent = [s.actor for s in sessions if s.may_come_back]
        patience_s = self._patience_s if owing or silent else 0.0
        patience_s += self._deadline_s if owing else 0.0
        since_s = max([self._since_s, *(s.moved_s for s in owes)])
        if now < since_s + patience_s:
            return ""
        *_, problem = self._rejected.values()
        awaited = f"; none comes from {', '.join(owing + silent)}" if patience_s else ""
        return f"no update of the round can be used: {problem}{awaited}"
