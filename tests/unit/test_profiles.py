"""Profiles: listed and drawn; and the presence of workers."""

import math

import numpy as np
import pytest

from asyn2f.sim.profiles import Profiles, draw_profiles, profiles_of
from asyn2f.sim.settings import SimSettings
from asyn2f.sim.virtual_worker import Presence

COLUMNS = [name for name in Profiles._fields if name != "outages"]


def test_what_a_row_leaves_out_has_a_default():
    profiles = profiles_of([{}, {"step_s": None, "jitter": ""}], workers=2)
    assert profiles.workers == 2
    found = {name: getattr(profiles, name).tolist() for name in COLUMNS}
    forever, none = [math.inf] * 2, [0.0] * 2
    assert found == {
        "step_s": [0.01] * 2,
        "jitter": none,
        "upload_s": none,
        "download_s": none,
        "upload_mbps": forever,
        "download_mbps": forever,
        "join_s": none,
        "leave_s": forever,
        "outage_every_s": forever,
        "outage_s": none,
    }
    assert profiles.outages == {}
    assert not profiles.has_outages(0)


def test_every_column_is_read():
    row = {name: 1.0 + number for number, name in enumerate(COLUMNS)}
    profiles = profiles_of([row], workers=1)
    assert {name: getattr(profiles, name).item() for name in COLUMNS} == row


def test_rows_are_repeated_over_the_workers():
    rows = [{"step_s": 1.0, "outages": [[2, 3]]}, {"step_s": 4.0}]
    profiles = profiles_of(rows, workers=5)
    assert profiles.step_s.tolist() == [1.0, 4.0, 1.0, 4.0, 1.0]
    assert profiles.outages == {k: ((2.0, 3.0),) for k in (0, 2, 4)}
    assert [profiles.has_outages(k) for k in range(5)] == [True, False] * 2 + [True]


def test_rows_that_are_too_many_are_left_out():
    rows = [{"step_s": 1.0}, {"step_s": 4.0}]
    assert profiles_of(rows, workers=1).step_s.tolist() == [1.0]


def test_a_worker_has_outages_if_some_are_drawn():
    assert profiles_of([{"outage_every_s": 5.0}], workers=1).has_outages(0)


def words_of(rows):
    with pytest.raises(ValueError, match="profiles") as caught:
        profiles_of(rows, workers=1)
    return str(caught.value)


def test_no_rows_are_refused():
    assert words_of([]) == "profiles: found no rows, at least one is needed"


def test_an_unknown_column_is_refused():
    allowed = ", ".join([*COLUMNS, "outages"])
    words = f"profiles, row 2: found a column 'steps', allowed: {allowed}"
    assert words_of([{}, {"steps": 1.0}]) == words


ALLOWED = dict.fromkeys(("step_s", "upload_mbps", "download_mbps"), "above 0")
ALLOWED |= {"outage_every_s": "at least 0.001", "jitter": "at least 0, at most 10"}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("found", [-1.0, math.nan, "much", [1.0]])
def test_what_is_out_of_range_is_refused(name, found):
    allowed = ALLOWED.get(name, "at least 0")
    words = f"profiles, row 3, {name}: found {found!r}, allowed: a number {allowed}"
    assert words_of([{}, {}, {name: found}]) == words


@pytest.mark.parametrize("name", COLUMNS)
def test_zero_is_allowed_where_it_means_something(name):
    if name in ALLOWED and name != "jitter":
        assert f"found 0.0, allowed: a number {ALLOWED[name]}" in words_of(
            [{name: 0.0}]
        )
    else:
        assert getattr(profiles_of([{name: 0.0}], workers=1), name).item() == 0.0


@pytest.mark.parametrize(
    ("outages", "found"),
    [
        ([[1.0, 3.0], [2.0, 4.0]], "[2.0, 4.0]"),  # overlapping
        ([[5.0, 6.0], [1.0, 2.0]], "[1.0, 2.0]"),  # not in order
        ([[3.0, 3.0]], "[3.0, 3.0]"),  # no time at all
        ([[4.0, 3.0]], "[4.0, 3.0]"),
        ([[-1.0, 3.0]], "[-1.0, 3.0]"),
        ([[1.0]], "[1.0]"),
        ([[1.0, 2.0, 3.0]], "[1.0, 2.0, 3.0]"),
        ([["soon", 3.0]], "['soon', 3.0]"),
        ("1-3;2-4", "['2', '4']"),
        ("1-3;4", "['4']"),
        ("often", "['often']"),
    ],
)
def test_outages_that_cannot_be_are_refused(outages, found):
    words = words_of([{}, {"outages": outages}])
    assert words.startswith(f"profiles, row 2, outages: found {found}, allowed: pairs")
    assert "in CSV 10-20;35-40" in words


@pytest.mark.parametrize("outages", [[10.0, 20.0], 10.0, {"from": 1.0, "to": 2.0}])
def test_outages_that_are_no_pairs_are_refused_in_words(outages):
    words = words_of([{"outages": outages}])
    assert words.startswith("profiles, row 1, outages: found")


def test_outages_may_follow_each_other_at_once():
    profiles = profiles_of([{"outages": [[1, 2], [2, 3]]}], workers=1)
    assert profiles.outages == {0: ((1.0, 2.0), (2.0, 3.0))}
    assert Presence(profiles, 0, seed=0).after(0.5, 1.0) == 3.5


# ------------------------------------------------------------- drawn

HABITS = {
    "step_s": (0.1, 0.2),
    "step_spread": 3.0,
    "jitter": 0.25,
    "upload_s": 1.0,
    "download_s": 2.0,
    "upload_mbps": 10.0,
    "download_mbps": 20.0,
    "link_spread": 5.0,
    "join_window_s": 7.0,
    "mean_session_s": 100.0,
    "outage_every_s": 50.0,
    "outage_s": 4.0,
}


def drawn(seed, workers=1000, **changes):
    rng = np.random.default_rng(seed)
    return draw_profiles(workers, rng, SimSettings(**(HABITS | changes)))


def assert_equal(one, other):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.outages == other.outages


def test_what_is_drawn_is_within_its_bounds_and_fills_them():
    profiles = drawn(seed=0)
    slower = profiles.step_s / np.resize([0.1, 0.2], 1000)
    for found, least, most in [
        (slower, 1.0, 3.0),
        (profiles.upload_s, 1.0, 5.0),
        (profiles.download_s, 2.0, 10.0),
        (profiles.upload_mbps, 2.0, 10.0),
        (profiles.download_mbps, 4.0, 20.0),
        (profiles.join_s, 0.0, 7.0),
    ]:
        assert found.min() == pytest.approx(least, rel=0.02, abs=0.05)
        assert found.max() == pytest.approx(most, rel=0.02)
        assert least - 1e-12 <= found.min() <= found.max() <= most + 1e-12
    stays = profiles.leave_s - profiles.join_s
    assert stays.min() >= 0.0
    assert stays.mean() == pytest.approx(100.0, rel=0.1)
    # Log-uniformly: as many below the geometric mean as above it.
    assert np.mean(slower < math.sqrt(3.0)) == pytest.approx(0.5, abs=0.05)
    assert set(profiles.jitter) == {0.25}
    assert set(profiles.outage_every_s) == {50.0}
    assert set(profiles.outage_s) == {4.0}


def test_a_slow_link_is_slow_in_everything():
    profiles = drawn(seed=0)
    np.testing.assert_allclose(profiles.download_s, 2.0 * profiles.upload_s)
    np.testing.assert_allclose(profiles.upload_mbps * profiles.upload_s, 10.0)
    np.testing.assert_allclose(profiles.download_mbps * profiles.upload_s, 20.0)


def test_without_spreads_nothing_is_left_to_chance():
    settings = SimSettings(step_s=(0.1, 0.2))
    plain = draw_profiles(3, np.random.default_rng(0), settings)
    rows = [{"step_s": 0.1}, {"step_s": 0.2}]
    assert_equal(plain, profiles_of(rows, workers=3))


def test_the_same_generator_draws_the_same_profiles():
    assert_equal(drawn(seed=3), drawn(seed=3))
    assert (drawn(seed=3).step_s != drawn(seed=4).step_s).any()
