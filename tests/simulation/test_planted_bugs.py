"""The simulation finds classic errors, each within so many seeds."""

import pytest

from tests.simulation.planted import PLANTED, Planted
from tests.simulation.sweep import simulate

_names = [planted.name for planted in PLANTED]
WORLDS = sorted({planted.world for planted in PLANTED}, key=lambda w: w.__name__)


@pytest.mark.parametrize("planted", PLANTED, ids=_names)
def test_a_planted_bug_is_found(planted, monkeypatch):
    planted.plant(monkeypatch)
    seeds, problem = first_found(planted)
    print(f"{planted.name}: {seeds} seeds, {problem}")


def first_found(planted: Planted) -> tuple[int, str]:
    """How many seeds it takes until one of the error's own invariants is broken, and
    how. A run that breaks only others says too little: its last word can be a symptom
    that many errors have in common."""
    others: list[str] = []
    for seed in range(planted.most_seeds):
        for problem in simulate(seed, planted.world(seed)).problems:
            if problem.startswith(planted.found_by):
                return seed + 1, problem
            others.append(problem)
    seeds = f"in {planted.most_seeds} seeds; of others, {others[:3]}"
    raise AssertionError(f"{planted.name}: {planted.found_by} not broken {seeds}")


@pytest.mark.parametrize("world", WORLDS)
def test_where_nothing_is_planted_nothing_is_found(world):
    for seed in range(25):
        assert simulate(seed, world(seed)).problems == [], f"seed {seed}"
