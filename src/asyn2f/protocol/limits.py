"""Rate limits: of updates, of processes that register, and of warnings."""

from dataclasses import dataclass, field

# Updates whose header is invalid: each costs an entry in the trace.
_INVALID_PER_S, _INVALID_BURST = 2.0, 20.0
_REPEAT_S = 60.0
_MAX_WARNINGS = 32  # different texts within that time


@dataclass
class Bucket:
    """Token buckets: a rate limit with a burst, for each key.

    >>> bucket = Bucket(per_s=1.0, burst=2.0)
    >>> [bucket.wait_s("a", now) for now in (0.0, 0.0, 0.0, 0.75, 1.0)]
    [0.0, 0.0, 1.0, 0.25, 0.0]
    """

    per_s: float
    burst: float
    _tokens: dict[str, tuple[float, float]] = field(default_factory=dict)

    def wait_s(self, key: str, now: float) -> float:
        """Takes a token and returns 0, or returns the seconds until there is one."""
        tokens, since = self._tokens.get(key, (self.burst, now))
        tokens = min(self.burst, tokens + (now - since) * self.per_s)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self.per_s
        self._tokens[key] = (tokens if wait_s else tokens - 1.0, now)
        return wait_s

    def forget(self, key: str) -> None:
        self._tokens.pop(key, None)


class Admission:
    """Backpressure: bounds on a session's unsettled updates and on its push rate."""

    def __init__(self, most_open: int, per_s: float, pause_s: float) -> None:
        """
        Args:
          most_open: unsettled updates; what one aggregation takes, and a few more.
          per_s: updates per second, with a burst of two seconds' worth; 0 = no limit.
          pause_s: the backoff of a worker with too many unsettled updates.
        """
        self._most_open = most_open
        self._pause_s = pause_s
        self._pushes = Bucket(per_s, max(1.0, 2.0 * per_s)) if per_s else None
        self._invalid = Bucket(_INVALID_PER_S, _INVALID_BURST)

    def wait_s(self, session: str, num_open: int, is_valid: bool, now: float) -> float:
        """Admits an update and returns 0, or returns its backoff in seconds. Updates
        with an invalid header have a limit of their own.

        >>> admission = Admission(most_open=4, per_s=0.0, pause_s=0.5)
        >>> admission.wait_s("a", 0, True, now=0.0)
        0.0
        >>> admission.wait_s("a", 4, True, now=0.0)
        0.5
        """
        if num_open >= self._most_open and is_valid:
            return self._pause_s
        wait_s = 0.0 if is_valid else self._invalid.wait_s(session, now)
        if self._pushes is not None and not wait_s:
            wait_s = self._pushes.wait_s(session, now)
        return wait_s

    def forget(self, session: str) -> None:
        self._invalid.forget(session)
        if self._pushes is not None:
            self._pushes.forget(session)


class WarningLimit:
    """Passes each warning once a minute, and a bounded number of different ones: peers
    can cause as many as they like.

    >>> limit = WarningLimit()
    >>> [limit.passes("no", now) for now in (0.0, 59.0, 60.0)]
    [True, False, True]
    """

    def __init__(self) -> None:
        self._passed_s: dict[str, float] = {}  # in the order of their times

    def passes(self, text: str, now: float) -> bool:
        for old in [x for x, at in self._passed_s.items() if now >= at + _REPEAT_S]:
            del self._passed_s[old]
        if text in self._passed_s or len(self._passed_s) >= _MAX_WARNINGS:
            return False
        self._passed_s[text] = now
        return True
