"""Rate limits: of updates, of processes that register, and of warnings."""

from dataclasses import dataclass, field

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
