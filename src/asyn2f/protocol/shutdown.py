"""The end of a run, in order: how long a server waits for whom before it finishes."""

import math

GIVE_UP_S = 2.0  # on a store that fails
_SILENCE_S = 5.0  # on one that does not answer
_FAREWELL_S = 1.5  # how long peers have to say goodbye
_LAST_SCORE_S = {"finished": 6.0, "interrupted": 1.0, "failed": 1.0}


class Shutdown:
    """What is left to wait for: the last save, the last score, the goodbyes."""

    def __init__(self) -> None:
        self.status = self.reason = ""  # "" = it has not begun
        self.is_farewell = False  # peers have been told to go
        self.is_complete = False
        self._last_score_s = self._farewell_s = self._give_up_s = math.inf
        self._silence_s = math.inf

    @property
    def has_begun(self) -> bool:
        return bool(self.status)

    def begin(self, status: str, reason: str, now: float) -> None:
        """No new version from now on. `status` is that of `protocol.Finish`."""
        self.status, self.reason = status, reason
        self._last_score_s = now + _LAST_SCORE_S[status]
        self._give_up_s = now + GIVE_UP_S
        self._silence_s = now + _SILENCE_S

    def gives_up(self, now: float) -> bool:
        """Whether a version that cannot be saved is given up."""
        return now >= self._give_up_s

    def waits(self, now: float) -> bool:
        """Whether the store may still say what became of the last version. It may also
        be there later: nobody is told of it then."""
        return now < self._silence_s

    def bid_farewell(self, waits_for_score: bool, now: float) -> bool:
        """Whether peers are to be told now, once, that it is time to go."""
        if self.is_farewell or (waits_for_score and now < self._last_score_s):
            return False
        self.is_farewell, self._farewell_s = True, now + _FAREWELL_S
        return True

    def completes(self, is_alone: bool, now: float) -> bool:
        """Whether all is said and done now; once."""
        is_due = self.is_farewell and (is_alone or now >= self._farewell_s)
        if self.is_complete or not is_due:
            return False
        self.is_complete = True
        return True
