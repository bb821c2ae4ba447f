"""The simulation finds each injected bug within a bounded number of seeds."""

import pytest

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.sweep import simulate

_names = [bug.name for bug in BUGS]
WORLDS = sorted({bug.world for bug in BUGS}, key=lambda w: w.__name__)


@pytest.mark.parametrize("bug", BUGS, ids=_names)
def test_an_injected_bug_is_found(bug, monkeypatch):
    bug.inject(monkeypatch)
    seeds, problem = first_found(bug)
    print(f"{bug.name}: {seeds} seeds, {problem}")


def first_found(bug: Bug) -> tuple[int, str]:
    """How many seeds it takes until one of the error's own invariants is broken, and
    how. A run that breaks only others says too little: its last word can be a symptom
    that many errors have in common."""
    others: list[str] = []
    for seed in range(bug.most_seeds):
        for problem in simulate(seed, bug.world(seed)).problems:
            if problem.startswith(bug.found_by):
                return seed + 1, problem
            others.append(problem)
    seeds = f"in {bug.most_seeds} seeds; of others, {others[:3]}"
    raise AssertionError(f"{bug.name}: {bug.found_by} not broken {seeds}")


@pytest.mark.parametrize("world", WORLDS)
def test_without_a_bug_nothing_is_found(world):
    for seed in range(25):
        assert simulate(seed, world(seed)).problems == [], f"seed {seed}"
