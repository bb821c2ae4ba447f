"""How much of a worker the server takes in at once."""

from dataclasses import dataclass, field

_REFUSED_PER_S, _REFUSED_AT_ONCE = 2.0, 20.0  # updates that nobody has looked into


@dataclass
class Bucket:
    """So many per second of each key in the long run, after a burst.

    >>> bucket = Bucket(per_s=1.0, burst=2.0)
    >>> [bucket.wait_s("a", now) for now in (0.0, 0.0, 0.0, 0.75, 1.0)]
    [0.0, 0.0, 1.0, 0.25, 0.0]
    """

    per_s: float
    burst: float
    _tokens: dict[str, tuple[float, float]] = field(default_factory=dict)

    def wait_s(self, key: str, now: float) -> float:
        """Seconds until the next one may come; 0 = it may, and is counted."""
        tokens, since = self._tokens.get(key, (self.burst, now))
        tokens = min(self.burst, tokens + (now - since) * self.per_s)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / self.per_s
        self._tokens[key] = (tokens if wait_s else tokens - 1.0, now)
        return wait_s

    def forget(self, key: str) -> None:
        """There will be no more of it."""
        self._tokens.pop(key, None)


class Admission:
    """Bounds on what one session may have under way, and how often it may push."""

    def __init__(self, most_open: int, per_s: float, pause_s: float) -> None:
        """
        Args:
          most_open: updates without a verdict; what one aggregation takes, and a few
            more.
          per_s: updates per second in the long run, after a burst of two seconds'
            worth; 0 = any.
          pause_s: how long a worker with too many is told to wait.
        """
        self._most_open = most_open
        self._pause_s = pause_s
        self._pushes = Bucket(per_s, max(1.0, 2.0 * per_s)) if per_s else None
        self._refused = Bucket(_REFUSED_PER_S, _REFUSED_AT_ONCE)

    def wait_s(self, session: str, num_open: int, is_good: bool, now: float) -> float:
        """How long an update of this session has to wait; 0 = it may come in, and is
        counted. An update whose header forbids it (not `is_good`) has a limit of its
        own besides, as each costs an entry in the trace.

        >>> admission = Admission(most_open=4, per_s=0.0, pause_s=0.5)
        >>> admission.wait_s("a", 0, True, now=0.0)
        0.0
        >>> admission.wait_s("a", 4, True, now=0.0)
        0.5
        """
        if num_open >= self._most_open and is_good:
            return self._pause_s
        wait_s = 0.0 if is_good else self._refused.wait_s(session, now)
        if self._pushes is not None and not wait_s:
            wait_s = self._pushes.wait_s(session, now)
        return wait_s

    def forget(self, session: str) -> None:
        """This session has ended."""
        self._refused.forget(session)
        if self._pushes is not None:
            self._pushes.forget(session)
