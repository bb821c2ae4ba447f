"""Formats numbers for reports and the live view; None and NaN become a dash."""

import math
from typing import TypeGuard

from asyn2f.types import Metric

NONE = "–"


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether it is a finite number.

    >>> is_known(0.0), is_known(None), is_known(math.nan)
    (True, False, False)
    """
    return value is not None and math.isfinite(value)


def as_bytes(num_bytes: float | None) -> str:
    """Bytes with a decimal prefix.

    >>> as_bytes(999), as_bytes(44_700_000)
    ('999 B', '44.7 MB')
    """
    if not is_known(num_bytes):
        return NONE
    value, unit = scaled(num_bytes, num_bytes)
    if unit == "B":
        return f"{value:.0f} B"
    digits = max(0, 2 - int(math.log10(max(value, 1.0))))
    return f"{value:.{digits}f} {unit}"


def scaled(num_bytes: float, largest: float) -> tuple[float, str]:
    """`num_bytes` in the unit that fits `largest`, and that unit.

    >>> scaled(500_000, largest=2_000_000)
    (0.5, 'MB')
    """
    unit, size = "B", 1.0
    for bigger in ("kB", "MB", "GB", "TB", "PB"):
        # 999.5, not 1000: 1.00 MB rather than 1000 kB.
        if largest < 999.5 * size:
            break
        unit, size = bigger, size * 1000.0
    return num_bytes / size, unit


def as_duration(seconds: float | None) -> str:
    """Seconds in a suitable unit.

    >>> as_duration(0.25), as_duration(42.04), as_duration(134), as_duration(7_384)
    ('0.25 s', '42.0 s', '2 min 14 s', '2 h 03 min')
    """
    if not is_known(seconds):
        return NONE
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def as_clock(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds, at constant width.

    >>> as_clock(134.6)
    '00:02:14'
    """
    whole = int(seconds) if is_known(seconds) else 0
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def as_percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction in percent.

    >>> as_percent(0.93415), as_percent(0.5, digits=0)
    ('93.42 %', '50 %')
    """
    return NONE if not is_known(fraction) else f"{100 * fraction:.{digits}f} %"


def digits_of(value: float) -> int:
    """Digits after the point at which a number has four significant ones, 0 to 6.

    >>> digits_of(0.01234), digits_of(1.234), digits_of(475.0)
    (5, 3, 1)
    """
    if not math.isfinite(value) or value == 0:
        return 3
    return min(max(3 - math.floor(math.log10(abs(value))), 0), 6)


def as_score(value: float | None, metric: Metric) -> str:
    """A value of the headline: in percent if it is a fraction, and shown also where it
    is not finite; None becomes a dash.

    >>> as_score(0.9342, Metric("accuracy", is_fraction=True))
    '93.42 %'
    >>> as_score(475.0, Metric("return")), as_score(math.nan, Metric("return"))
    ('475.0', 'nan')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return str(value)
    if metric.is_fraction:
        return as_percent(value)
    return f"{value:,.{digits_of(value)}f}"


def in_words(metric: Metric) -> str:
    """What the numbers of a table are, in a sentence."""
    better = "higher" if metric.higher_is_better else "lower"
    return f"Values are of {metric.name} on the test set; {better} is better."


def capitalized(name: str) -> str:
    """A name as the first word of a sentence.

    >>> capitalized("mean IoU")
    'Mean IoU'
    """
    return name[:1].upper() + name[1:]


def points_of(metric: Metric) -> str:
    """The unit of differences."""
    return f"points of {metric.name}" if metric.is_fraction else metric.name


def difference_text(gap: float, metric: Metric, digits: int = 2) -> str:
    """A difference with its sign, of a fraction in points.

    >>> difference_text(-0.0123, Metric("accuracy", is_fraction=True))
    '-1.23'
    """
    if metric.is_fraction:
        return f"{100 * gap:+.{digits}f}"
    return f"{gap:+.{digits_of(gap)}f}"


def target_text(target: float, metric: Metric) -> str:
    """A target as a person gives it."""
    return f"{target * 100:g}%" if metric.is_fraction else f"{target:g}"


def with_interval(mean: float, half: float, metric: Metric, sign: str = "") -> str:
    """A mean and half of its interval, a fraction in percent with that sign; both ends
    of an interval that goes beyond what a fraction can be, clipped.

    >>> with_interval(0.92, 0.0497, Metric("accuracy", is_fraction=True))
    '92.00 ± 4.97'
    >>> with_interval(1.23456, 0.01, Metric("loss", higher_is_better=False))
    '1.235 ± 0.010'
    >>> with_interval(0.85, 0.6353, Metric("accuracy", is_fraction=True))
    '85.00 [21.47, 100.00]'
    """
    if math.isnan(mean):
        return NONE
    scale, digits = 1.0, digits_of(mean)
    if metric.is_fraction:
        scale, digits = 100.0, 2
    text = f"{scale * mean:.{digits}f}"
    low, high = mean - half, mean + half
    if metric.is_fraction and (low < 0.0 or high > 1.0):
        text += f" [{100 * max(low, 0.0):.2f}, {100 * min(high, 1.0):.2f}]"
    elif not math.isnan(half):
        text += f" ± {scale * half:.{digits}f}"
    return text + (sign if metric.is_fraction else "")


def as_number(value: float | None, digits: int = 0) -> str:
    """A number with commas between its thousands.

    >>> as_number(12345), as_number(0.31234, digits=3)
    ('12,345', '0.312')
    """
    return NONE if not is_known(value) else f"{value:,.{digits}f}"


def as_rate(per_s: float | None) -> str:
    """A rate per second in three digits.

    >>> as_rate(0.01234), as_rate(1.0234), as_rate(1234.5)
    ('0.0123', '1.02', '1,234')
    """
    if not is_known(per_s):
        return NONE
    if per_s <= 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(per_s)))
    return f"{per_s:,.{min(digits, 6)}f}"
