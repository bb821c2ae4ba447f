"""The simulation finds classic errors, each within so many seeds."""

import pytest

from tests.net.planted import PLANTED, Planted
from tests.simulate import simulate

_names = [planted.name for planted in PLANTED]
WORLDS = sorted({planted.world for planted in PLANTED}, key=lambda w: w.__name__)


@pytest.mark.parametrize("planted", PLANTED, ids=_names)
def test_a_planted_bug_is_found(planted, monkeypatch):
    planted.plant(monkeypatch)
    seeds, problems = first_found(planted)
    print(f"{planted.name}: {seeds} seeds, {problems[0]}")
    assert any(problem.startswith(planted.found_by) for problem in problems)


def first_found(planted: Planted) -> tuple[int, list[str]]:
    """How many seeds it takes, and what is found."""
    for seed in range(planted.most_seeds):
        if problems := simulate(seed, planted.world(seed)).problems:
            return seed + 1, problems
    raise AssertionError(f"{planted.name}: not found in {planted.most_seeds} seeds")


@pytest.mark.parametrize("world", WORLDS)
def test_where_nothing_is_planted_nothing_is_found(world):
    for seed in range(25):
        assert simulate(seed, world(seed)).problems == [], f"seed {seed}"
