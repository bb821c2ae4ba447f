"""How much of a worker the server takes in at once."""

from dataclasses import dataclass, field


@dataclass
class Admission:
    """Bounds on what one session may have under way, and how often it may push.

    Attributes:
      most_open: updates without a verdict; what one aggregation takes, and a few more.
      per_s: updates per second in the long run, after a burst of two seconds' worth;
        0 = any.
      pause_s: how long a worker with too many is told to wait.
    """

    most_open: int
    per_s: float
    pause_s: float
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)

    def wait_s(self, session: str, num_open: int, now: float) -> float:
        """How long an update of this session has to wait; 0 = it may come in, and is
        counted.

        >>> admission = Admission(most_open=4, per_s=1.0, pause_s=0.5)
        >>> [admission.wait_s("a", 0, now) for now in (0.0, 0.0, 0.0, 0.75, 1.0)]
        [0.0, 0.0, 1.0, 0.25, 0.0]
        >>> admission.wait_s("b", 4, now=0.0)
        0.5
        """
        if num_open >= self.most_open:
            return self.pause_s
        if not self.per_s:
            return 0.0
        burst = max(1.0, 2.0 * self.per_s)
        tokens, since = self._buckets.get(session, (burst, now))
        tokens = min(burst, tokens + (now - since) * self.per_s)
        if tokens < 1.0:
            self._buckets[session] = (tokens, now)
            return (1.0 - tokens) / self.per_s
        self._buckets[session] = (tokens - 1.0, now)
        return 0.0

    def forget(self, session: str) -> None:
        """This session has ended."""
        self._buckets.pop(session, None)
