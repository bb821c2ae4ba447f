"""What a benchmark says: each figure beside its limit, and where the last are kept.

A machine is never quiet, so what is compared is measured in turns, and what counts is
the ratio within a turn: `in_turns`, `ratio`.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

RESULTS = Path(__file__).parent / "results.json"
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "pyzmq")


class Figure(NamedTuple):
    """One measured thing.

    Attributes:
      what: in words.
      value: as measured, in `unit`: a median.
      limit: what it is held against, measured in the same run, in `unit`; None = there
        is nothing to hold it against but the bound itself.
      against: what that is, in words.
      ratio: value / limit, or limit / value where the unit is a rate or the figure is a
        speed-up: the median of the turns' ratios. Without a limit the value itself.
      wanted: bound of the ratio.
      is_floor: whether the ratio must be at least `wanted`, not at most.
    """

    what: str
    value: float
    unit: str
    limit: float | None
    against: str
    ratio: float
    wanted: float | None = None
    is_floor: bool = False

    @property
    def is_reached(self) -> bool | None:
        """Whether it is as wanted; None where nothing is."""
        if self.wanted is None:
            return None
        if self.is_floor:
            return self.ratio >= self.wanted
        return self.ratio <= self.wanted


Turns = dict[str, list[float]]
"""Seconds of each candidate, turn by turn."""


def in_turns(
    candidates: dict[str, Callable[[], Any]], rounds: int, least_s: float = 0.0
) -> Turns:
    """The seconds that each takes, one after the other in every round.

    The first round of all is not counted. What takes less than `least_s` is repeated
    until it does, and the time is that of one call.
    """
    found: Turns = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            calls, start_s = 0, time.perf_counter()
            while not calls or time.perf_counter() - start_s < least_s:
                run()
                calls += 1
            if number:
                found[name].append((time.perf_counter() - start_s) / calls)
    return found


def ratio(turns: Turns, name: str, other: str) -> float:
    """The median over the turns of `name`'s time over `other`'s."""
    pairs = zip(turns[name], turns[other], strict=True)
    return statistics.median(one / two for one, two in pairs)


def compared(
    what: str,
    turns: Turns,
    name: str,
    other: str,
    wanted: float | None = None,
    *,
    speedup: bool = False,
    floor: float = 1.0,
) -> Figure:
    """The figure of one candidate against another, in milliseconds.

    Args:
      speedup: the ratio is how many times as fast `name` is.
      floor: what the other's time is multiplied with to be the limit.
    """
    value = 1000 * statistics.median(turns[name])
    limit = 1000 * floor * statistics.median(turns[other])
    times = ratio(turns, name, other) / floor
    times = 1 / times if speedup else times
    return Figure(what, value, "ms", limit, other, times, wanted, speedup)


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if "model name" in x]
        model = names[0].split(":")[1].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "accelerator": _accelerator(),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }


def _accelerator() -> str:
    device = jax.devices()[0]
    return "none" if device.platform == "cpu" else device.device_kind


def keep(bench: str, figures: Sequence[Figure], date: str) -> None:
    """Puts them in the place of this benchmark's last ones of this kind of machine.

    Raises:
      ValueError: a figure is not a finite number: nothing is kept.
    """
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    on = machine()
    kept.setdefault(bench, {})[on["accelerator"]] = {
        "date": date,
        "load": round(os.getloadavg()[0], 1),
        "machine": on,
        "figures": [as_json(figure) for figure in figures],
    }
    text = json.dumps(kept, indent=1, sort_keys=True, allow_nan=False)
    RESULTS.write_text(text + "\n")


def as_json(figure: Figure) -> dict[str, Any]:
    """The line of a figure, rounded to what is worth reading."""
    said = figure._asdict() | {"is_reached": figure.is_reached}
    del said["is_floor"]
    return {
        k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in said.items()
    }


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | measured | against | ratio | wanted |", "|---|---|---|---|---|"]
    for x in figures:
        limit = "" if x.limit is None else f"{x.limit:.3g} {x.unit}, "
        sign = "" if x.wanted is None else f"{'≥' if x.is_floor else '≤'} {x.wanted:g}"
        mark = {True: " ✓", False: " ✗", None: ""}[x.is_reached]
        lines.append(
            f"| {x.what} | {x.value:.3g} {x.unit} | {limit}{x.against} "
            f"| {x.ratio:.3g} | {sign}{mark} |"
        )
    return "\n".join(lines)
