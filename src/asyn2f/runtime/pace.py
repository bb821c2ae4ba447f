"""The pace of a worker: its limit, or else the measured time of its steps."""

import time
from collections.abc import Callable
from typing import Any

import jax


class Pace:
    """The time of a step, on which `Timing.seconds_per_push` depends."""

    def __init__(self, speed: float) -> None:
        """`speed`: at most so many steps per second; 0 = no limit."""
        self.limit_s = 1.0 / speed if speed else 0.0
        self._measured_s = 0.0  # in the last whole cycle; 0 = unknown
        self._trained_s, self._steps = 0.0, 0  # in the present cycle

    @property
    def step_s(self) -> float:
        """The limit; without one, the measured time; 0 = unknown."""
        return self.limit_s or self._measured_s

    def measure(self, step: Callable[[Any], Any], state: Any) -> Any:
        """Measures one call of a compiled step; returns its result."""
        jax.block_until_ready(state)
        start_s = time.monotonic()
        state = jax.block_until_ready(step(state))
        self._measured_s = time.monotonic() - start_s
        return state

    def add(self, start_s: float, steps: int) -> None:
        """Counts a stretch of steps that ends now."""
        self._trained_s += time.monotonic() - start_s
        self._steps += steps

    def end_cycle(self) -> None:
        """Takes the mean over the cycle that has ended."""
        if self._steps:
            self._measured_s = self._trained_s / self._steps
        self._trained_s, self._steps = 0.0, 0
