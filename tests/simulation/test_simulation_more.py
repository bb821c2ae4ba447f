"""More seeds of the same simulation."""

import pytest

from tests.simulation.test_simulation import CHUNK, SEEDS, check_floors, check_seeds

pytestmark = pytest.mark.slow
MORE = range(SEEDS, 5 * SEEDS)


@pytest.mark.parametrize("first", MORE[::CHUNK])
def test_whatever_happens_nothing_is_lost_and_the_run_goes_on(first):
    check_seeds(first)


def test_enough_has_happened():
    check_floors(MORE)
