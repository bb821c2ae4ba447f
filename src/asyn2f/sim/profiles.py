"""Speeds, links and presence of the workers: drawn, listed, or read from a file."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyn2f.sim.settings import SimSettings


class Profiles(NamedTuple):
    """W workers; every column has one entry per worker.

    During an outage a worker neither computes nor sends nor receives; it resumes where
    it was. Seconds count from the start of the simulation.
    """

    step_s: np.ndarray  # f64 [W]: one local step
    jitter: np.ndarray  # f64 [W]: sigma of the log-normal factor of a stretch of steps
    upload_s: np.ndarray  # f64 [W]: latency of a push
    download_s: np.ndarray  # f64 [W]: latency of a version
    upload_mbps: np.ndarray  # f64 [W]: megabit per second; inf = no limit
    download_mbps: np.ndarray  # f64 [W]
    join_s: np.ndarray  # f64 [W]
    leave_s: np.ndarray  # f64 [W]; inf = stays
    outage_every_s: np.ndarray  # f64 [W]: mean time between drawn outages; inf = none
    outage_s: np.ndarray  # f64 [W]: their mean length
    outages: dict[int, tuple[tuple[float, float], ...]]  # listed: from-to, by worker

    @property
    def workers(self) -> int:
        return len(self.step_s)

    def has_outages(self, worker: int) -> bool:
        return worker in self.outages or math.isfinite(self.outage_every_s[worker])


STEP_S = 0.01
"""The time of a step of a worker whose speed is unknown."""

_DEFAULTS = {
    "step_s": STEP_S,
    "jitter": 0.0,
    "upload_s": 0.0,
    "download_s": 0.0,
    "upload_mbps": math.inf,
    "download_mbps": math.inf,
    "join_s": 0.0,
    "leave_s": math.inf,
    "outage_every_s": math.inf,
    "outage_s": 0.0,
}
_ABOVE_ZERO = {"step_s", "upload_mbps", "download_mbps"}
# A bound on the number of drawn outages; a factor of e^10 either way.
_LEAST, _MOST = {"outage_every_s": 1e-3}, {"jitter": 10.0}
_MAY_BE_INFINITE = {"upload_mbps", "download_mbps", "leave_s", "outage_every_s"}


def profiles_of(rows: Sequence[dict[str, Any]], workers: int) -> Profiles:
    """The profiles of rows, repeated over the workers.

    Args:
      rows: each has any of the columns of `Profiles`; the defaults are 10 ms per step,
        no latency, no limit of bandwidth, present from the start to the end. `outages`
        is a list of [from, to].
      workers: W.

    Raises:
      ValueError: an unknown column, or a value out of range; names row and column.

    >>> profiles = profiles_of([{"step_s": 0.1}, {"step_s": 0.4}], workers=3)
    >>> profiles.step_s.tolist()
    [0.1, 0.4, 0.1]
    """
    if not rows:
        raise ValueError("profiles: found no rows, at least one is needed")
    columns = {name: np.empty(len(rows)) for name in _DEFAULTS}
    given: list[tuple[tuple[float, float], ...]] = []
    for number, row in enumerate(rows, start=1):
        for name in row:
            if name not in _DEFAULTS and name != "outages":
                raise ValueError(
                    f"profiles, row {number}: found a column {name!r}, allowed: "
                    f"{', '.join([*_DEFAULTS, 'outages'])}"
                )
        for name, default in _DEFAULTS.items():
            found = row.get(name)
            value = default if found in (None, "") else _number(found)
            least, most = _LEAST.get(name, 0.0), _MOST.get(name, math.inf)
            fits = value > 0 if name in _ABOVE_ZERO else least <= value <= most
            if name not in _MAY_BE_INFINITE:
                fits = fits and math.isfinite(value)
            if not fits:
                allowed = "above 0" if name in _ABOVE_ZERO else f"at least {least:g}"
                allowed += f", at most {most:g}" if most < math.inf else ""
                raise ValueError(
                    f"profiles, row {number}, {name}: found {found!r}, "
                    f"allowed: a number {allowed}"
                )
            columns[name][number - 1] = value
        if not columns["join_s"][number - 1] <= columns["leave_s"][number - 1]:
            raise ValueError(
                f"profiles, row {number}, leave_s: found {row['leave_s']!r}, allowed: "
                f"not before join_s, which is {columns['join_s'][number - 1]:g}"
            )
        given.append(_outages(row.get("outages") or [], number))
    turn = np.arange(workers) % len(rows)
    return Profiles(
        **{name: column[turn] for name, column in columns.items()},
        outages={k: given[i] for k, i in enumerate(turn) if given[i]},
    )


def _number(found: Any) -> float:
    # Python reads True as 1 and "1_000" as 1000; in a table these are mistakes.
    if isinstance(found, bool) or (isinstance(found, str) and "_" in found):
        return math.nan
    try:
        return float(found)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _outages(found: Any, number: int) -> tuple[tuple[float, float], ...]:
    if isinstance(found, str):  # "10-20;35-40", in a CSV file
        found = [part.split("-") for part in found.split(";") if part.strip()]
    spans: list[tuple[float, float]] = []
    before_s = 0.0
    for span in found if isinstance(found, list | tuple) else [found]:
        try:
            start_s, end_s = (_number(x) for x in span)
        except (TypeError, ValueError):
            start_s = end_s = math.nan
        if not before_s <= start_s < end_s < math.inf:
            raise ValueError(
                f"profiles, row {number}, outages: found {span!r}, allowed: pairs "
                "from, to, in order and apart; in CSV 10-20;35-40"
            )
        spans.append((start_s, end_s))
        before_s = end_s
    return tuple(spans)


def read_profiles(path: Path, workers: int) -> Profiles:
    """The profiles in a file: CSV with a line of column names, or JSON lines.

    Every row needs a `step_s`. Empty lines, lines of commas (from spreadsheets) and a
    byte-order mark are skipped.

    Raises:
      ValueError: not readable, or see `profiles_of`; names the file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows = _csv_rows(text)
        elif path.suffix in (".jsonl", ".json"):
            rows = _json_rows(text)
        else:
            raise ValueError("its name must end with .csv or .jsonl")
        profiles = profiles_of(rows, workers)
        for number, row in enumerate(rows, start=1):
            if row.get("step_s") in (None, ""):
                raise ValueError(
                    f"profiles, row {number}, step_s: found nothing, allowed: a number "
                    "above 0, the seconds that one local step takes"
                )
        return profiles
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text ({error}); save it as CSV UTF-8"
        ) from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _csv_rows(text: str) -> list[dict[str, Any]]:
    """The rows of a CSV file by column; cells are stripped."""
    lines = csv.reader(io.StringIO(text, newline=""))
    cells = [[cell.strip() for cell in line] for line in lines]
    cells = [line for line in cells if any(line)]
    names = cells[0] if cells else []
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"found the column {name!r} twice, allowed: once")
    rows = []
    for number, line in enumerate(cells[1:], start=1):
        for place, cell in enumerate(line):
            if cell and not (place < len(names) and names[place]):
                raise ValueError(
                    f"profiles, row {number}: found {cell!r} in column {place + 1}, "
                    "which has no name"
                )
        row = dict(zip(names, line, strict=False))
        row.pop("", None)
        rows.append(row)
    return rows


def _json_rows(text: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"found the key {twice!r} twice in a line, allowed: once")
        return row

    lines = [line for line in text.splitlines() if line.strip()]
    rows = [json.loads(line, object_pairs_hook=once) for line in lines]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be a JSON object")
    return rows


def draw_profiles(
    workers: int, rng: np.random.Generator, settings: SimSettings
) -> Profiles:
    """Profiles drawn from distributions.

    Args:
      workers: W.
      rng: numpy generator.
      settings: of the distributions; `step_s` above 0.

    >>> settings = SimSettings(step_s=(0.01,), step_spread=4.0)
    >>> profiles = draw_profiles(1000, np.random.default_rng(0), settings)
    >>> bool(profiles.step_s.min() >= 0.01 and profiles.step_s.max() <= 0.04)
    True
    """

    def spread(factor: float) -> np.ndarray:
        return np.exp(rng.uniform(0.0, math.log(factor), workers))

    steps = np.resize(np.asarray(settings.step_s, float), workers)
    steps = steps * spread(settings.step_spread)
    link = spread(settings.link_spread)
    joined = rng.uniform(0.0, settings.join_window_s, workers)
    mean_s = settings.mean_session_s
    stays = rng.exponential(mean_s, workers) if mean_s else np.full(workers, math.inf)

    def all_of(value: float) -> np.ndarray:
        return np.full(workers, float(value))

    return Profiles(
        step_s=steps,
        jitter=all_of(settings.jitter),
        upload_s=settings.upload_s * link,
        download_s=settings.download_s * link,
        upload_mbps=(settings.upload_mbps or math.inf) / link,
        download_mbps=(settings.download_mbps or math.inf) / link,
        join_s=joined,
        leave_s=joined + stays,
        outage_every_s=all_of(settings.outage_every_s or math.inf),
        outage_s=all_of(settings.outage_s),
        outages={},
    )
