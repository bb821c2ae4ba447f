"""What is shown while a run is executed."""

import sys
import time
from collections.abc import Callable
from typing import Any

from asyn2f.types import Metric

Progress = Callable[[dict[str, Any]], Any]
"""Called with a dict of `version`, `time_s` and `scores`."""

_EVERY_S = 0.2  # lines on the screen


def shown(
    progress: Progress | bool, versions: int, metric: Metric
) -> Callable[[dict[str, Any] | None], None]:
    """A function to be called with each evaluated version, and None at the end.

    Args:
      progress: see `simulate`.
      versions: of the whole run.
      metric: that is shown.
    """
    if callable(progress):
        return lambda row: None if row is None else progress(row)
    if not progress:
        return lambda row: None
    best: float | None = None
    line, shown_s = "", 0.0

    def show(row: dict[str, Any] | None) -> None:
        nonlocal best, line, shown_s
        if row is not None:
            value = row["scores"][metric.name]
            best = value if metric.is_better(value, best) else best
            text = "-" if best is None else f"{best:.4g}"
            line = (
                f"version {row['version']:,} of {versions:,}, {row['time_s']:.1f} "
                f"virtual s, {metric.name} {value:.4g}, best {text}"
            )
        now = time.monotonic()
        if row is None or now > shown_s + _EVERY_S:
            shown_s = now
            end = "\n" if row is None else ""
            print(f"\r{line:<78}", end=end, file=sys.stderr, flush=True)

    return show
