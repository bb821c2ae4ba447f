"""As many seeds again, beside the others where tests run two by two."""

from tests.test_simulation import SEEDS, check_seeds


def test_whatever_happens_nothing_is_lost_and_the_run_goes_on():
    check_seeds(range(SEEDS, 2 * SEEDS))
