"""A run in numbers, as its server keeps them; those before a resume are included."""

from collections import deque
from typing import Any

_RATE_WINDOW_S = 10.0


class RunCounters:
    """Time, bytes, versions and scores of a run."""

    def __init__(
        self, before: dict[str, Any], best: tuple[float | None, int | None]
    ) -> None:
        """
        Args:
          before: `totals` of the server that began this run, or {}.
          best: accuracy and version of the best so far.
        """
        self._elapsed_before_s: float = before.get("elapsed_s", 0.0)
        self.bytes_up: int = before.get("bytes_up", 0)
        self.bytes_down: int = before.get("bytes_down", 0)
        self.incomplete: int = before.get("incomplete_versions", 0)
        self.best_accuracy, self.best_version = best
        self.accuracy: float | None = None  # of the newest version scored
        self.loss: float | None = None
        self.scored = -1  # which that is
        self._judged: set[int] = set()
        self._started_s: float | None = None
        self._announced_s: deque[float] = deque()

    @property
    def has_started(self) -> bool:
        """Whether the run's clock is running."""
        return self._started_s is not None

    def start(self, now: float) -> None:
        """The run begins, or goes on."""
        self._started_s = now

    def elapsed_s(self, now: float) -> float:
        """Seconds of the run, without the time between two servers."""
        here_s = 0.0 if self._started_s is None else now - self._started_s
        return self._elapsed_before_s + here_s

    def announce(self, now: float) -> None:
        """Another version has been given out."""
        self._announced_s.append(now)

    def versions_per_s(self, now: float) -> float:
        """Over the last few seconds."""
        while self._announced_s and now - self._announced_s[0] > _RATE_WINDOW_S:
            self._announced_s.popleft()
        here_s = now - self._started_s if self._started_s is not None else 0.0
        window_s = min(_RATE_WINDOW_S, here_s)
        return len(self._announced_s) / window_s if window_s > 0 else 0.0

    def judge(self, version: int, accuracy: float, loss: float) -> bool | None:
        """Takes in a score; whether it is the best, or None if it cannot be used: no
        accuracy, or told before."""
        if version in self._judged or not 0.0 <= accuracy <= 1.0:
            return None
        self._judged.add(version)
        if version > self.scored:
            self.scored, self.accuracy, self.loss = version, accuracy, loss
        is_best = self.best_accuracy is None or accuracy > self.best_accuracy
        if is_best:
            self.best_accuracy, self.best_version = accuracy, version
        return is_best

    def totals(self, now: float) -> dict[str, Any]:
        """What a server that resumes begins with."""
        return {
            "elapsed_s": self.elapsed_s(now),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "incomplete_versions": self.incomplete,
        }
