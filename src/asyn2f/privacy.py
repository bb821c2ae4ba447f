"""What may leave a worker beside its parameters."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from asyn2f.settings import setting

NEUTRAL: Mapping[str, float] = {"loss": 0.0, "metric": 0.0, "size": 1.0, "quality": 1.0}
"""The numbers of a worker that can be withheld, and what stands in their place."""
NUMBERS = tuple(NEUTRAL)
ALL = frozenset(NUMBERS)
SCORES = "scores"
"""Of a version on a worker's own held-out rows, and their number."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Data that each worker has of its own, and what may leave it."""

    max_examples: int = setting(
        10_000_000,
        "the most rows that a worker's own data may have",
        unit="examples",
        at_least=1,
    )
    reveal: tuple[str, ...] = setting(
        (*NUMBERS, SCORES),
        "the numbers that leave a worker: training loss and metric, the number of its "
        "examples, its quality, and the scores of versions on its held-out rows; what "
        "is left out is in no message, log or trace",
        options=(*NUMBERS, SCORES),
        may_be_empty=True,
    )


def withheld(needed: Collection[str], reveal: Collection[str]) -> list[str]:
    """The numbers that are needed and not revealed.

    >>> withheld({"size", "loss"}, ("loss",))
    ['size']
    """
    return [name for name in NUMBERS if name in needed and name not in reveal]
