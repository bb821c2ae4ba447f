"""A comparison of methods: means, intervals, and tests of their differences."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from asyn2f.report import units
from asyn2f.types import Metric

CONFIDENCE = 0.95


class Trial(NamedTuple):
    """One simulated run of one method, sampled at G equally spaced times."""

    strategy: str
    settings: dict[str, Any]  # by dotted key, where they differ from the config
    seed: int
    phase: str  # "choice" (of settings) or "result"
    key: str  # identifies everything that its numbers depend on
    time_s: list[float]  # [G], virtual, from the start of training
    values: list[float]  # [G], of the newest version's headline; NaN = none
    updates: list[int]  # [G]: pushed so far
    num_bytes: list[int]  # [G]: up and down so far
    broadcast_bytes: list[int]  # [G]: the same, if every version went to every worker
    staleness: list[int]  # number of updates by staleness 0, 1, ...
    versions: int
    incomplete_versions: int  # made without all updates that they wait for
    local_steps: int
    wall_s: float
    params_sha256: str
    # Of the workers at the end, where each has a model or a test set of its own: the
    # worst headline, and the 10th percentile from it; else NaN.
    worst: float = math.nan
    p10: float = math.nan


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95 % interval (t distribution)."""

    mean: float
    half: float  # NaN for a single seed

    def text(self, metric: Metric) -> str:
        """The estimate in words, of a fraction in percent without its sign."""
        return units.with_interval(*self, metric)


class Row(NamedTuple):
    """One method in the table."""

    strategy: str
    settings: dict[str, Any]
    seeds: int
    at_time: Estimate
    at_updates: Estimate
    at_bytes: Estimate
    area: Estimate  # mean value over the time of the run
    reached: int  # seeds that reached the target
    time_to_target_s: float  # median of those
    bytes_to_target: float
    broadcast_to_target: float  # if every version went to every worker
    versions: float  # mean
    incomplete: float  # share of all versions
    staleness: float  # mean of all updates


class Difference(NamedTuple):
    """The difference of two methods in the headline at equal time, paired by seed."""

    first: str
    second: str
    mean: float  # first - second
    p: float  # two-sided paired t-test with Holm's correction


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval.

    >>> found = estimate([0.9, 0.92, 0.94])
    >>> Estimate(round(found.mean, 4), round(found.half, 4))
    Estimate(mean=0.92, half=0.0497)
    """
    from scipy.special import stdtrit  # takes 60 ms, which most programs can save

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error)


def default_target(trials: Sequence[Trial], metric: Metric) -> float:
    """0.98 of the way from the initial model's value to the best final mean; of a
    fraction that is to rise, from 0."""
    groups = by_strategy(trials).values()
    ends = [estimate([trial.values[-1] for trial in own]).mean for own in groups]
    best = max(ends, key=metric.worth)
    if metric.is_fraction and metric.higher_is_better:
        return round(0.98 * best, 3)
    begins = [trial.values[0] for trial in trials if math.isfinite(trial.values[0])]
    begin = float(np.mean(begins)) if begins else best
    target = begin + 0.98 * (best - begin)
    return round(target, units.digits_of(best)) if math.isfinite(target) else target


def value_at(trial: Trial, axis: str, limit: float) -> float:
    """The headline of a trial at the last time at which `axis` ("time_s", "updates" or
    "num_bytes") was at most `limit`."""
    found = np.searchsorted(getattr(trial, axis), limit, side="right") - 1
    return trial.values[max(int(found), 0)]


def first_at(trial: Trial, target: float, metric: Metric) -> int | None:
    """The index of the first time at which the target was reached."""
    reached = (i for i, x in enumerate(trial.values) if metric.reaches(x, target))
    return next(reached, None)


def rows_of(trials: Sequence[Trial], target: float, metric: Metric) -> list[Row]:
    """The rows of the table, best at equal time first.

    Equal updates and bytes are those of the trial that ends with the fewest.
    """
    updates = min(trial.updates[-1] for trial in trials)
    num_bytes = min(trial.num_bytes[-1] for trial in trials)
    rows = []
    for strategy, own in by_strategy(trials).items():
        firsts = [(trial, first_at(trial, target, metric)) for trial in own]
        reached = [(trial, first) for trial, first in firsts if first is not None]
        behind = np.zeros(max(len(trial.staleness) for trial in own))
        for trial in own:
            behind[: len(trial.staleness)] += trial.staleness
        rows.append(
            Row(
                strategy=strategy,
                settings=own[0].settings,
                seeds=len(own),
                at_time=estimate([trial.values[-1] for trial in own]),
                at_updates=estimate(
                    [value_at(trial, "updates", updates) for trial in own]
                ),
                at_bytes=estimate(
                    [value_at(trial, "num_bytes", num_bytes) for trial in own]
                ),
                area=estimate([_area(trial) for trial in own]),
                reached=len(reached),
                time_to_target_s=_median([t.time_s[i] for t, i in reached]),
                bytes_to_target=_median([t.num_bytes[i] for t, i in reached]),
                broadcast_to_target=_median([t.broadcast_bytes[i] for t, i in reached]),
                versions=float(np.mean([trial.versions for trial in own])),
                incomplete=sum(trial.incomplete_versions for trial in own)
                / max(sum(trial.versions for trial in own), 1),
                staleness=float(behind @ np.arange(len(behind)) / max(behind.sum(), 1)),
            )
        )
    return sorted(rows, key=lambda row: -metric.worth(row.at_time.mean))


def differences(trials: Sequence[Trial]) -> list[Difference]:
    """The differences of all pairs of methods with at least two common seeds, and with
    a value for each of them.

    Trials of one seed share data, split and workers, hence the pairing.
    """
    from scipy.special import stdtr

    found = []
    for (first, own), (second, other) in combinations(by_strategy(trials).items(), 2):
        ours, theirs = ({t.seed: t.values[-1] for t in part} for part in (own, other))
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) < 2:
            continue
        gaps = np.array([ours[seed] - theirs[seed] for seed in seeds])
        if not np.isfinite(gaps).all():
            continue
        if np.ptp(gaps) < 1e-9:  # the test would divide by zero
            p = 1.0 if abs(gaps[0]) < 1e-9 else 0.0
        else:
            t = gaps.mean() / (gaps.std(ddof=1) / np.sqrt(len(gaps)))
            p = float(2 * stdtr(len(gaps) - 1, -abs(t)))
        found.append(Difference(first, second, float(gaps.mean()), p))
    # Holm: the smallest of m times m, the next times m - 1, and never decreasing.
    order = np.argsort([difference.p for difference in found])
    least = 0.0
    for place, index in enumerate(order.tolist()):
        least = max(least, min(1.0, found[index].p * (len(found) - place)))
        found[index] = found[index]._replace(p=least)
    return found


def leaders(rows: Sequence[Row], found: Sequence[Difference]) -> set[str]:
    """The methods printed bold: see `comparison_table.HOW_BOLD`."""
    best = rows[0].strategy
    behind = {
        name
        for difference in found
        if difference.p < 1 - CONFIDENCE and best in difference[:2]
        for name in difference[:2]
        if name != best
    }
    valued = {row.strategy for row in rows if math.isfinite(row.at_time.mean)}
    return valued - behind if behind else set()


def by_strategy(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Trials by method, in order of seeds; methods in order of appearance."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.strategy, []).append(trial)
    return {name: sorted(own, key=lambda t: t.seed) for name, own in found.items()}


def _area(trial: Trial) -> float:
    time_s = np.asarray(trial.time_s)
    return float(np.trapezoid(trial.values, time_s) / (time_s[-1] - time_s[0]))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else math.nan
