"""What a long fault has shown: figures, each with what was promised."""

import json
from typing import NamedTuple


class Figure(NamedTuple):
    """Something measured; it is good up to `at_most`."""

    name: str
    value: float
    at_most: float

    @property
    def is_good(self) -> bool:
        return self.value <= self.at_most


def line_of(name: str, seed: int, found: list[Figure]) -> str:
    """One line of JSON: the figures as [measured, at most], and whether all are good.

    >>> line_of("joins", 1, [Figure("took_s", 3.0, 10.0)])
    '{"fault": "joins", "seed": 1, "took_s": [3.0, 10.0], "outcome": "PASS"}'
    """
    said = {f.name: [round(f.value, 4), f.at_most] for f in found}
    outcome = "PASS" if all(f.is_good for f in found) else "FAIL"
    return json.dumps({"fault": name, "seed": seed, **said, "outcome": outcome})
