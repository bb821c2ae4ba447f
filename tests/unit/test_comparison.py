"""Comparisons of methods: numbers worked by hand, and what holds for any trials."""

import base64
import itertools
import json
import math
import re

import numpy as np
import plotly.graph_objects as go
import plotly.offline
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from asyn2f.report import comparison, comparison_page, comparison_table
from asyn2f.report.comparison import Trial
from asyn2f.tasks.classification import ACCURACY
from asyn2f.types import Metric
from tests.unit.test_report import Page, unpacked

OF = ("digits", "3 workers, dirichlet(0.5) split")
# Quantiles 0.975 of Student's t, from its table: by degrees of freedom.
T = {1: 12.7062, 2: 4.30265, 3: 3.18245}


def trial_of(strategy: str, seed: int, accuracy, **more) -> Trial:
    """A trial looked at once per second; ten updates and a megabyte in each."""
    count = len(accuracy)
    made = Trial(
        strategy=strategy,
        settings={},
        seed=seed,
        phase="result",
        key=f"{strategy}-{seed}",
        time_s=[float(i) for i in range(count)],
        values=list(accuracy),
        updates=[10 * i for i in range(count)],
        num_bytes=[1_000_000 * i for i in range(count)],
        broadcast_bytes=[3_000_000 * i for i in range(count)],
        staleness=[3, 1],
        versions=4,
        incomplete_versions=0,
        local_steps=100,
        wall_s=1.0,
        params_sha256="0" * 64,
    )
    return made._replace(**more)


def ends_of(**accuracies: list[float]) -> list[Trial]:
    """Trials of which only the accuracy at the end matters, by method and seed."""
    return [
        trial_of(name, seed, [0.0, end])
        for name, ends in accuracies.items()
        for seed, end in enumerate(ends)
    ]


def chained(**steps: list[float]) -> list[Trial]:
    """The same: the first method's accuracies, then how much each next one has more."""
    ends = np.cumsum(list(steps.values()), axis=0)
    named = dict(zip(steps, ends.tolist(), strict=True))
    return ends_of(**{name: named[name] for name in sorted(named)})


# ------------------------------------------------------------- estimates


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([0.5, 0.7], 0.6, T[1] * 0.1),  # half of what lies between
        ([0.9, 0.92, 0.94], 0.92, T[2] * 0.02 / math.sqrt(3)),
        ([0.1, 0.1, 0.5, 0.5], 0.3, T[3] * math.sqrt(0.16 / 3) / 2),
        ([0.8, 0.8, 0.8], 0.8, 0.0),
    ],
)
def test_an_interval_is_that_of_the_t_distribution(values, mean, half):
    found = comparison.estimate(values)
    assert found.mean == pytest.approx(mean)
    assert found.half == pytest.approx(half, rel=1e-5, abs=1e-12)


def test_one_seed_has_no_interval():
    found = comparison.estimate([0.9137])
    assert found.mean == 0.9137
    assert math.isnan(found.half)
    assert found.text(ACCURACY) == "91.37"
    assert comparison.Estimate(0.9137, 0.0042).text(ACCURACY) == "91.37 ± 0.42"


def test_nineteen_of_twenty_intervals_hold_the_mean():
    """Of 2,000; three standard deviations of their number are 0.015."""
    drawn = np.random.default_rng(0).normal(0.9, 0.02, (2_000, 3)).tolist()
    found = [comparison.estimate(values) for values in drawn]
    held = np.mean([abs(one.mean - 0.9) <= one.half for one in found])
    assert held == pytest.approx(0.95, abs=0.015)


# ------------------------------------------------------------- on a curve


@pytest.mark.parametrize("axis", ["time_s", "updates", "num_bytes"])
@pytest.mark.parametrize(
    ("limit", "accuracy"),
    [
        (0, 0.2),  # before the first: there is nothing earlier
        (1, 0.2),  # exactly on the first
        (3, 0.3),
        (4, 0.3),  # between two
        (6, 0.5),  # the later of two that are equal
        (8.9, 0.5),
        (9, 0.6),  # exactly on the last
        (99, 0.6),
    ],
)
def test_accuracy_is_what_it_was_when_the_limit_was_reached(axis, limit, accuracy):
    trial = trial_of("fedavg", 0, [0.2, 0.3, 0.4, 0.5, 0.6], **{axis: [1, 3, 6, 6, 9]})
    assert comparison.value_at(trial, axis, limit) == accuracy


@pytest.mark.parametrize(
    ("target", "first"), [(0.0, 0), (0.3, 1), (0.31, 3), (0.6, 3), (0.61, None)]
)
def test_a_target_counts_from_where_it_is_reached_first(target, first):
    trial = trial_of("fedavg", 0, [0.1, 0.3, 0.2, 0.6, 0.5])
    assert comparison.first_at(trial, target, ACCURACY) == first


def test_what_is_no_number_reaches_no_target():
    trial = trial_of("fedavg", 0, [math.nan, 0.3, math.nan])
    assert comparison.first_at(trial, 0.2, ACCURACY) == 1
    assert comparison.first_at(trial, 0.4, ACCURACY) is None


# ------------------------------------------------------------- the table

TWO = [
    # 12 updates are the smallest total, 2 MB the smallest traffic.
    trial_of("slow", 0, [0.0, 0.5, 0.6], updates=[0, 5, 12], num_bytes=[0, 3e6, 9e6]),
    trial_of("slow", 1, [0.0, 0.3, 0.7], updates=[0, 8, 16], num_bytes=[0, 2e6, 8e6]),
    trial_of(
        "fast", 1, [0.0, 0.6, 0.9], num_bytes=[0, 1.5e6, 3e6], versions=7
    )._replace(staleness=[1, 0, 5]),
    trial_of("fast", 0, [0.0, 0.4, 0.8]),
]


def test_a_table_worked_by_hand():
    fast, slow = comparison.rows_of(TWO, 0.7, ACCURACY)
    assert (fast.strategy, slow.strategy) == ("fast", "slow")
    assert (fast.seeds, slow.seeds) == (2, 2)
    assert fast.at_time == pytest.approx((0.85, T[1] * 0.05), rel=1e-5)
    assert slow.at_time == pytest.approx((0.65, T[1] * 0.05), rel=1e-5)
    assert fast.at_updates == pytest.approx((0.5, T[1] * 0.1), rel=1e-5)
    assert slow.at_updates == pytest.approx((0.45, T[1] * 0.15), rel=1e-5)
    assert fast.at_bytes == pytest.approx((0.7, T[1] * 0.1), rel=1e-5)
    assert slow.at_bytes == pytest.approx((0.15, T[1] * 0.15), rel=1e-5)
    # Trapezia: (0.2 + 0.6) / 2 and (0.3 + 0.75) / 2.
    assert fast.area == pytest.approx((0.4625, T[1] * 0.0625), rel=1e-5)
    assert (fast.versions, slow.versions) == (5.5, 4.0)
    # Four fresh, one 1 behind, five 2 behind; and six fresh, two 1 behind.
    assert (fast.staleness, slow.staleness) == (1.1, 0.25)


@pytest.mark.parametrize(
    ("target", "fast", "slow"),
    [
        (0.6, (2, 1.5, 1.75e6), (2, 2.0, 8.5e6)),
        (0.7, (2, 2.0, 2.5e6), (1, 2.0, 8e6)),  # of those that reached it
        (0.85, (1, 2.0, 3e6), (0, math.nan, math.nan)),
        (0.95, (0, math.nan, math.nan), (0, math.nan, math.nan)),
    ],
)
def test_times_and_bytes_to_a_target_are_medians_of_those_that_reached_it(
    target, fast, slow
):
    for row, expected in zip(
        comparison.rows_of(TWO, target, ACCURACY), (fast, slow), strict=True
    ):
        found = (row.reached, row.time_to_target_s, row.bytes_to_target)
        assert found == pytest.approx(expected, nan_ok=True)


def test_one_seed_that_takes_very_long_does_not_move_a_median():
    curves = ([0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 1])
    trials = [trial_of("one", seed, curve) for seed, curve in enumerate(curves)]
    (row,) = comparison.rows_of(trials, 0.5, ACCURACY)
    assert (row.time_to_target_s, row.bytes_to_target) == (2.0, 2e6)


def test_the_best_at_equal_time_comes_first_whatever_else_it_is_worse_at():
    trials = [
        trial_of("before_save", 0, [0.0, 0.8, 0.8]),
        trial_of("late", 0, [0.0, 0.1, 0.9]),
        trial_of("never", 0, [0.0, 0.1, 0.2]),
    ]
    rows = comparison.rows_of(trials, 0.8, ACCURACY)
    assert [row.strategy for row in rows] == ["late", "before_save", "never"]
    assert rows[0].area.mean < rows[1].area.mean


def test_a_method_that_made_no_version_is_in_the_table():
    trial = trial_of("fedavg", 0, [0.1, 0.1], updates=[0, 0], num_bytes=[0, 0])
    (row,) = comparison.rows_of(
        [trial._replace(staleness=[], versions=0)], 0.9, ACCURACY
    )
    assert (row.versions, row.staleness, row.reached) == (0.0, 0.0, 0)
    assert row.at_bytes.mean == row.at_updates.mean == 0.1


# ------------------------------------------------------------- differences


def test_a_difference_is_that_of_a_paired_t_test():
    """Gaps 0.01, 0.02, 0.03: t = 2 √3, and with two degrees of freedom
    p = 1 - t / √(t² + 2)."""
    trials = ends_of(one=[0.81, 0.62, 0.93], other=[0.8, 0.6, 0.9])
    (found,) = comparison.differences(trials)
    assert found[:2] == ("one", "other")
    assert found.mean == pytest.approx(0.02)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    # What is not paired tells nothing of it.
    assert stats.ttest_ind([0.81, 0.62, 0.93], [0.8, 0.6, 0.9]).pvalue > 0.8


def test_two_seeds_are_compared_by_the_arcus_tangent():
    """Gaps 0.1 and 0.3: t = 2, and with one degree of freedom
    p = 1 - 2 / π · arctan t."""
    (found,) = comparison.differences(ends_of(one=[0.5, 0.8], other=[0.4, 0.5]))
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(2))


def test_pairs_are_of_one_seed_in_whatever_order_they_were_made():
    trials = ends_of(one=[0.81, 0.62, 0.93], other=[0.8, 0.6, 0.9])
    stray = [trial_of("one", 7, [0.0, 0.1]), trial_of("other", 8, [0.0, 0.9])]
    (found,) = comparison.differences(trials)
    mixed = [trials[i] for i in (2, 4, 0, 1, 5, 3)]
    assert comparison.differences([stray[0], *mixed, stray[1]]) == [found]


def test_holm_worked_by_hand():
    """Gaps of a and b as above; of b and c 0.08, 0.075, 0.07, so t² = 675; of a and c
    0.09, 0.095, 0.1, so t² = 1083. The smallest of three counts three times, the next
    twice."""
    trials = chained(c=[0.1, 0.3, 0.2], b=[0.08, 0.075, 0.07], a=[0.01, 0.02, 0.03])
    found = {(d.first, d.second): d.p for d in comparison.differences(trials)}
    assert found == {
        ("a", "b"): pytest.approx(1 - math.sqrt(12 / 14)),
        ("a", "c"): pytest.approx(3 * (1 - math.sqrt(1083 / 1085)), rel=1e-6),
        ("b", "c"): pytest.approx(2 * (1 - math.sqrt(675 / 677)), rel=1e-6),
    }


def test_a_larger_p_never_becomes_a_smaller_one():
    """Raw they are 0.074, 0.082 and 0.095; three times the first is more than twice
    the second, and than the third."""
    trials = chained(c=[0.1, 0.3, 0.2], b=[0.02, 0.02, 0.05], a=[0.01, 0.02, 0.03])
    expected = 3 * (1 - math.sqrt(12 / 14))
    found = comparison.differences(trials)
    assert [d.p for d in found] == pytest.approx([expected] * 3)


def test_no_p_is_above_one():
    trials = ends_of(a=[0.5, 0.6], b=[0.6, 0.5], c=[0.7, 0.4], d=[0.4, 0.7])
    assert {d.p for d in comparison.differences(trials)} == {1.0}


@pytest.mark.parametrize(
    ("other", "mean", "p"),
    [([0.5, 0.25, 0.75], 0.0, 1.0), ([0.25, 0.0, 0.5], 0.25, 0.0)],
)
def test_gaps_that_are_equal_are_told_apart_from_none(other, mean, p):
    trials = ends_of(one=[0.5, 0.25, 0.75], other=other)
    assert comparison.differences(trials) == [("one", "other", mean, p)]


def test_gaps_that_are_equal_but_for_rounding_are_told_without_a_warning():
    """28 images of 60 in each, but 0.95 - 29/60 is not 49/60 - 21/60 in float64;
    warnings are errors here."""
    trials = ends_of(one=[57 / 60, 49 / 60], other=[29 / 60, 21 / 60])
    (found,) = comparison.differences(trials)
    assert found.p < 1e-9
    assert found.mean == pytest.approx(28 / 60)


@pytest.mark.parametrize(
    "trials",
    [
        [],
        ends_of(one=[0.5, 0.6]),
        ends_of(one=[0.5], other=[0.6]),
        ends_of(one=[0.5, 0.6], other=[0.6]),
        [trial_of(name, i, [0.0, 0.5]) for i, name in enumerate("abab")][:3],
    ],
    ids=["nothing", "one method", "one seed", "one common seed", "no common seed"],
)
def test_what_has_nothing_to_be_compared_with_has_no_difference(trials):
    assert comparison.differences(trials) == []


# ------------------------------------------------------------- as Markdown


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as lines of cells, without the dashes."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if not line.startswith("|"):
            tables.append([])
        elif set(line) != {"|", "-"}:
            cells = line.removeprefix("|").removesuffix("|").split("|")
            tables[-1].append([cell.strip() for cell in cells])
    return [table for table in tables if table]


def test_the_table_reads_back():
    rows, found = comparison.rows_of(TWO, 0.85, ACCURACY), comparison.differences(TWO)
    text = comparison_table.to_markdown(rows, found, 0.85, ACCURACY)
    table, differences = tables_of(text)
    assert {len(line) for line in table} == {11}
    assert [line[0] for line in table] == ["method", "fast", "slow"]
    assert "85% reached" in table[0]
    assert table[1][1:] == [
        "**85.00 [21.47, 100.00]**",
        "50.00 [0.00, 100.00]",
        "70.00 [0.00, 100.00]",
        "46.25 [0.00, 100.00]",
        "1 of 2",
        "2.0",
        "3.00",
        "6.00",
        "6",
        "1.10",
    ]
    # One that never reached the target has dashes, not "nan".
    assert table[2][5:9] == ["0 of 2", "–", "–", "–"]
    assert "nan" not in text
    assert differences[1:] == [["slow", "fast", "-20.00", "0.000"]]


def test_two_seeds_are_told_that_an_interval_needs_more():
    three = ends_of(one=[0.5, 0.51, 0.52], other=[0.6, 0.61, 0.62])
    for trials, is_told in ((TWO, True), (three, False)):
        rows = comparison.rows_of(trials, 0.85, ACCURACY)
        text = comparison_table.to_markdown(rows, [], 0.85, ACCURACY)
        assert (comparison_table.FEW_SEEDS in text) == is_told
        assert comparison_table.legend(0.85, ACCURACY) in text


def leaders_of(**accuracies: list[float]) -> set[str]:
    trials = chained(**accuracies)
    rows, found = (
        comparison.rows_of(trials, 0.5, ACCURACY),
        comparison.differences(trials),
    )
    bold = comparison.leaders(rows, found)
    text = comparison_table.to_markdown(rows, found, 0.5, ACCURACY)
    assert (comparison_table.HOW_BOLD in text) == bool(found)
    assert {line[0] for line in tables_of(text)[0] if "**" in line[1]} == bold
    return bold


def test_bold_are_the_best_and_those_that_nothing_tells_apart_from_it():
    steady = [0.2, 0.21, 0.19, 0.2]
    unsure = [0.06, -0.05, 0.05, -0.04]
    # The second is as good as the first, more or less; the third is well below both.
    assert leaders_of(low=[0.3] * 4, mid=steady, top=unsure) == {"mid", "top"}


def test_nothing_is_bold_where_the_best_is_told_apart_from_nobody():
    unsure = [0.06, -0.05, 0.05, -0.04]
    assert leaders_of(one=[0.3] * 4, two=unsure, three=unsure) == set()
    assert leaders_of(one=[0.3]) == set()


def test_every_method_has_a_dash_and_a_symbol_of_its_own(page_of):
    names = [f"m{i}" for i in range(10)]
    trials = [trial_of(name, seed, [0.1, 0.5, 0.8, 0.9]) for name in names
              for seed in (0, 1)]  # fmt: skip
    figure = page_of(trials).figures["headline"]
    shown = [p for p in figure["data"] if p.get("name") and "markers" in p["mode"]]
    assert [part["name"] for part in shown] == names
    assert len({part["marker"]["symbol"] for part in shown}) == 10
    looks = {(part["line"]["color"], part["line"]["dash"]) for part in shown}
    assert len(looks) == 10


def test_accuracies_near_one_stay_below_one_hundred_percent(page_of):
    figures = page_of(chained(one=[0.97, 0.99, 0.95], two=[0.02, 0.01, 0.05])).figures
    assert figures["headline"]["layout"]["yaxis"]["range"][1] == 1.0
    ends = figures["ends"]
    assert ends["layout"]["xaxis"]["range"][1] == 1.0
    for part in ends["data"]:
        for error in numbers(part.get("error_x", {}).get("array", [0.0])):
            assert max(numbers(part["x"])) + error <= 1.0 + 1e-9


def test_versions_that_lack_updates_are_told_below_the_table():
    whole = trial_of("fedbuff", 0, [0.1, 0.9])
    cut = trial_of("fedavg", 0, [0.1, 0.8], versions=8, incomplete_versions=6)
    rows = comparison.rows_of([whole, cut], 0.5, ACCURACY)
    text = comparison_table.to_markdown(rows, [], 0.5, ACCURACY)
    page = comparison_page.to_html([whole, cut], rows, [], 0.5, ACCURACY, *OF)
    for written in (text, page):
        assert "a live worker): fedavg 75 %." in written
    assert rows[0].strategy == "fedbuff"
    assert comparison_table.incomplete(rows[:1]) == ""
    assert "made without" not in comparison_table.to_markdown(
        rows[:1], [], 0.5, ACCURACY
    )


def test_one_seed_has_a_table_without_intervals_and_without_differences():
    trials = ends_of(one=[0.5], other=[0.6])
    rows = comparison.rows_of(trials, 0.5, ACCURACY)
    text = comparison_table.to_markdown(
        rows, comparison.differences(trials), 0.5, ACCURACY
    )
    assert len(tables_of(text)) == 1
    assert "±" not in text
    assert "nan" not in text
    assert "Differences" not in text


def test_settings_that_were_chosen_are_said():
    settings = {"training.learning_rate": 0.05, "strategy.kafl.weighting": "plain"}
    one, other = ends_of(kafl=[0.5], fedavg=[0.6])
    rows = comparison.rows_of([one._replace(settings=settings), other], 0.5, ACCURACY)
    lines = comparison_table.to_markdown(rows, [], 0.5, ACCURACY).splitlines()
    assert [line for line in lines if line.startswith("*")] == [
        "* fedavg: as in the config",
        "* kafl: training.learning_rate = 0.05, strategy.kafl.weighting = plain",
    ]


# ------------------------------------------------------------- any trials


@st.composite
def several(draw) -> list[Trial]:
    """Trials of some methods and seeds, accuracies as of a test set of 64 images: their
    differences are without rounding."""
    count = draw(st.integers(2, 5))

    def climbing(most: int) -> list[int]:
        steps = st.lists(st.integers(0, most), min_size=count - 1, max_size=count - 1)
        return [0, *np.cumsum(draw(steps)).tolist()]

    images = st.lists(st.integers(0, 64), min_size=count, max_size=count)
    return [
        trial_of(
            name,
            seed,
            [right / 64 for right in draw(images)],
            updates=climbing(20),
            num_bytes=climbing(10**6),
            staleness=draw(st.lists(st.integers(0, 9), max_size=4)),
            versions=draw(st.integers(0, 50)),
        )
        for name in "abcd"[: draw(st.integers(1, 4))]
        for seed in range(draw(st.integers(1, 4)))
    ]


targets = st.floats(0, 1)


def raw_p(trials: list[Trial], first: str, second: str) -> float:
    ends = comparison.by_strategy(trials)
    ours, theirs = (
        {trial.seed: trial.values[-1] for trial in ends[name]}
        for name in (first, second)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    one, other = [ours[s] for s in seeds], [theirs[s] for s in seeds]
    gaps = {a - b for a, b in zip(one, other, strict=True)}
    if len(gaps) == 1:
        return float(gaps == {0.0})
    return float(stats.ttest_rel(one, other).pvalue)


@given(several())
def test_every_p_is_one_and_no_smaller_than_without_correction(trials):
    found = comparison.differences(trials)
    raw = [raw_p(trials, d.first, d.second) for d in found]
    for difference, p in zip(found, raw, strict=True):
        assert p - 1e-9 <= difference.p <= 1.0
        assert difference.p <= len(found) * p + 1e-9
    if found:
        assert min(d.p for d in found) == pytest.approx(
            min(1.0, len(found) * min(raw)), abs=1e-9
        )
    ordered = [found[i].p for i in np.argsort(raw, kind="stable")]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(ordered))


@given(several(), targets, st.randoms(use_true_random=False))
def test_the_order_of_the_trials_is_of_no_matter(trials, target, random):
    mixed = trials.copy()
    random.shuffle(mixed)

    def said(trials: list[Trial]) -> tuple[dict, dict]:
        rows = {
            row.strategy: str(row)
            for row in comparison.rows_of(trials, target, ACCURACY)
        }
        gaps = {}
        for first, second, mean, p in comparison.differences(trials):
            sign = 1 if first < second else -1
            gaps[min(first, second), max(first, second)] = (sign * mean, p)
        return rows, gaps

    (rows, gaps), (other_rows, other_gaps) = said(trials), said(mixed)
    assert other_rows == rows
    assert other_gaps.keys() == gaps.keys()
    for pair, values in gaps.items():
        assert other_gaps[pair] == pytest.approx(values, abs=1e-9)


@given(several(), targets)
def test_a_row_says_what_its_trials_did(trials, target):
    rows = comparison.rows_of(trials, target, ACCURACY)
    ends = [row.at_time.mean for row in rows]
    assert ends == sorted(ends, reverse=True)
    assert len(rows) == len({trial.strategy for trial in trials})
    fewest = min(trial.updates[-1] for trial in trials)
    for row in rows:
        own = [trial for trial in trials if trial.strategy == row.strategy]
        reached = [trial for trial in own if max(trial.values) >= target]
        assert (row.seeds, row.reached) == (len(own), len(reached))
        assert math.isnan(row.time_to_target_s) == (not reached)
        assert math.isnan(row.bytes_to_target) == (not reached)
        low = min(min(trial.values) for trial in own)
        high = max(max(trial.values) for trial in own)
        for mean, half in (row.at_time, row.at_updates, row.at_bytes, row.area):
            assert low - 1e-9 <= mean <= high + 1e-9
            assert math.isnan(half) == (len(own) == 1)
        if all(trial.updates[-1] == fewest for trial in own):
            assert row.at_updates == row.at_time or len(own) == 1
            assert row.at_updates.mean == row.at_time.mean


@given(several(), targets)
def test_every_table_reads_back(trials, target):
    rows, found = (
        comparison.rows_of(trials, target, ACCURACY),
        comparison.differences(trials),
    )
    table, *rest = tables_of(
        comparison_table.to_markdown(rows, found, target, ACCURACY)
    )
    assert [line[0] for line in table[1:]] == [row.strategy for row in rows]
    assert {len(line) for line in table} == {len(table[0])}
    assert all("nan" not in "".join(line) for line in table)
    assert [len(part) for part in rest] == ([1 + len(found)] if found else [])
    assert all(len(line) == 4 for part in rest for line in part)


# ------------------------------------------------------------- other headlines

LOSS = Metric("loss", higher_is_better=False)
RETURN = Metric("return")


def mirrored(trials: list[Trial]) -> list[Trial]:
    """The same methods under a headline that falls from 10."""
    return [t._replace(values=[10 - value for value in t.values]) for t in trials]


def test_a_table_of_losses_worked_by_hand():
    """As `test_a_table_worked_by_hand`, each value subtracted from 10."""
    fast, slow = comparison.rows_of(mirrored(TWO), 9.3, LOSS)
    assert (fast.strategy, slow.strategy) == ("fast", "slow")
    assert fast.at_time == pytest.approx((9.15, T[1] * 0.05), rel=1e-5)
    assert slow.at_bytes == pytest.approx((9.85, T[1] * 0.15), rel=1e-5)
    assert fast.area == pytest.approx((9.5375, T[1] * 0.0625), rel=1e-5)
    assert (fast.reached, fast.time_to_target_s, fast.bytes_to_target) == (
        2,
        2.0,
        2.5e6,
    )
    assert (slow.reached, slow.time_to_target_s, slow.bytes_to_target) == (1, 2.0, 8e6)


@given(several(), targets)
def test_a_falling_headline_is_the_mirror_of_a_rising_one(trials, target):
    """64ths are subtracted exactly, so that ties stay ties."""
    target = round(64 * target) / 64
    rows = comparison.rows_of(trials, target, RETURN)
    other = comparison.rows_of(mirrored(trials), 10 - target, LOSS)
    assert [row.strategy for row in other] == [row.strategy for row in rows]
    for row, mirror in zip(rows, other, strict=True):
        assert mirror.reached == row.reached
        assert mirror.at_time.mean == pytest.approx(10 - row.at_time.mean)
        for name in ("time_to_target_s", "bytes_to_target"):
            expected = pytest.approx(getattr(row, name), nan_ok=True)
            assert getattr(mirror, name) == expected
    found = comparison.differences(trials)
    gaps = comparison.differences(mirrored(trials))
    for gap, mirror in zip(found, gaps, strict=True):
        assert mirror.mean == pytest.approx(-gap.mean, abs=1e-9)
        assert mirror.p == pytest.approx(gap.p, abs=1e-6)


@pytest.mark.parametrize(
    ("trials", "metric", "target"),
    [
        (ends_of(a=[0.8, 0.9], b=[0.6, 0.8]), ACCURACY, 0.833),  # 0.98 of 0.85
        # 0.98 of the way from 0 to 475, and from 10 to 4.
        (ends_of(a=[500.0, 450.0], b=[7.0, 9.0]), RETURN, 465.5),
        (mirrored(ends_of(a=[8.0, 4.0], b=[5.0, 3.0])), LOSS, 4.12),
        # Also where every method has become worse.
        (mirrored(ends_of(a=[-3.0])), LOSS, 12.94),
    ],
)
def test_the_usual_target_is_most_of_the_way_from_the_initial_model(
    trials, metric, target
):
    assert comparison.default_target(trials, metric) == pytest.approx(target)


def test_a_method_without_a_value_is_last_and_neither_bold_nor_tested():
    trials = ends_of(good=[1.0, 1.1, 1.2], bad=[5.0, 5.1, 5.3])
    trials += ends_of(none=[math.nan] * 3)
    rows, found = comparison.rows_of(trials, 2.0, LOSS), comparison.differences(trials)
    assert [row.strategy for row in rows] == ["good", "bad", "none"]
    assert [difference[:2] for difference in found] == [("good", "bad")]
    assert comparison.leaders(rows, found) == {"good"}
    text = comparison_table.to_markdown(rows, found, 2.0, LOSS)
    assert "| none | – |" in text
    assert "**1.100 ± 0.248**" in text
    assert "| 2 reached |" in text
    assert "Values are of loss on the test set; lower is better." in text


def test_in_a_figure_of_losses_blue_is_the_smaller_one(page_of):
    ends = {"good": [1.0, 1.1, 1.2], "bad": [5.0, 5.1, 5.3]}
    page = page_of(ends_of(**ends), metric=LOSS)
    (part,) = page.figures["differences"]["data"]
    assert part["y"] == ["good", "bad"]
    gaps, text = numbers(part["z"]), part["text"]
    assert gaps[0][1] > 0 > gaps[1][0]
    assert text[0][1].startswith("-4.0")


# ------------------------------------------------------------- the page


@pytest.fixture
def page_of(tmp_path, monkeypatch):
    """A function from trials to their page, as a browser reads it."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")

    def make(
        trials: list[Trial],
        target: float = 0.7,
        dataset: str = "digits",
        metric: Metric = ACCURACY,
    ) -> Page:
        rows = comparison.rows_of(trials, target, metric)
        found = comparison.differences(trials)
        text = comparison_page.to_html(
            trials, rows, found, target, metric, dataset, OF[1]
        )
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        page = Page(path)
        # A browser knows no NaN in JSON.
        json.loads(unpacked(page.scripts[1]), parse_constant=pytest.fail)
        for figure in page.figures.values():
            go.Figure(figure)  # plotly finds it valid
        return page

    return make


def names_in(figure: dict) -> set[str]:
    """The methods that a figure has something of."""
    said = re.findall(r'"([a-z]+)"', json.dumps(figure["data"]))
    return {"slow", "fast"} & set(said)


def test_the_page_shows_every_method_in_every_figure(page_of):
    page = page_of(TWO)
    assert page.figures.keys() == {"headline", "ends", "differences", "staleness"}
    for figure in page.figures.values():
        assert names_in(figure) == {"slow", "fast"}
    assert "2 methods on digits" in page.text
    assert "3 workers, dirichlet(0.5) split, 2 seeds" in page.text
    assert "Best at equal time: fast, 85.00 [21.47, 100.00] %." in page.text
    assert "1 of 2" in page.text


def numbers(packed) -> np.ndarray:
    """An array as plotly writes it: a list, or bytes in base64."""
    if isinstance(packed, list):
        return np.array(packed)
    found = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
    shape = packed.get("shape", str(len(found)))
    return found.reshape([int(size) for size in shape.split(",")])


def test_a_curve_is_the_mean_of_its_seeds_on_each_axis(page_of):
    figure = page_of(TWO).figures["headline"]
    own = [part for part in figure["data"] if part.get("name") == "fast"]
    lines = [part for part in own if part["mode"] == "lines"]
    for line, x in zip(lines, ([0, 1, 2], [0, 10, 20], [0, 1.25, 2.5]), strict=True):
        assert numbers(line["x"]) == pytest.approx(x)  # bytes in MB
        assert numbers(line["y"]) == pytest.approx([0, 0.5, 0.85])


def test_a_difference_that_does_not_hold_is_grey(page_of):
    """`fast` is ahead of `near` by 6.5 points on average, but now more, now less."""
    trials = chained(slow=[0.1, 0.3, 0.2], near=[0.0, 0.05, -0.02])
    trials += ends_of(fast=[0.18, 0.375, 0.27])
    (heat,) = page_of(trials).figures["differences"]["data"]
    shown, text = numbers(heat["z"]), np.array(heat["text"])
    assert heat["x"] == heat["y"] == ["fast", "near", "slow"]
    assert shown == pytest.approx(
        np.array([[math.nan, 0, 7.5], [0, math.nan, 0], [-7.5, 0, math.nan]]),
        nan_ok=True,
    )
    assert text[0].tolist() == ["", "+6.5", "+7.5"]


SURVIVED = {
    "one seed": [TWO[0], TWO[3]],
    "one method": TWO[:2],
    "one trial": TWO[:1],
    "no updates": [
        trial_of("fast", 0, [0.1, 0.1], updates=[0, 0], num_bytes=[0, 0])._replace(
            staleness=[], versions=0
        )
    ],
    "no number": [
        trial._replace(values=[*trial.values[:-1], math.nan])
        if trial.strategy == "slow"
        else trial
        for trial in TWO
    ],
    "no number at all": [trial._replace(values=[math.nan] * 3) for trial in TWO],
    "unequal seeds": TWO[:3],
}


@pytest.mark.parametrize("name", SURVIVED)
@pytest.mark.parametrize("target", [0.7, 0.999, math.nan])
def test_the_page_survives(page_of, name, target):
    trials = SURVIVED[name]
    page = page_of(trials, target)
    for strategy in {trial.strategy for trial in trials}:
        assert strategy in page.text
    if len({trial.seed for trial in trials}) == 1 or name == "one method":
        assert "needs two methods and two seeds" in page.text
    if target == 0.999:
        assert "–" in page.text
        assert "99.9%" in page.text


def test_a_method_that_never_reached_the_target_has_dashes(page_of):
    page = page_of(TWO, 0.85)
    assert re.search(r"slow.*0 of 2––", page.text, re.DOTALL)


def test_a_method_whose_accuracy_is_no_number_comes_last():
    trials = ends_of(one=[0.5], none=[math.nan], other=[0.9])
    rows = comparison.rows_of(trials, 0.5, ACCURACY)
    assert [row.strategy for row in rows] == ["other", "one", "none"]


def test_names_cannot_become_elements(page_of):
    evil = '"></script><script>alert(1)</script>'
    trials = [trial._replace(settings={evil: evil}) for trial in TWO]
    page = page_of(trials, dataset=evil)
    assert len(page.scripts) == 3
    assert evil in page.text


def test_the_page_needs_nothing_from_elsewhere():
    rows, found = comparison.rows_of(TWO, 0.7, ACCURACY), comparison.differences(TWO)
    text = comparison_page.to_html(TWO, rows, found, 0.7, ACCURACY, *OF)
    packed = re.search(r'id="library">([^<]*)<', text)[1]
    assert unpacked(packed) == plotly.offline.get_plotlyjs()
    own = text.replace(packed, "")
    assert not re.search(r"""(src|href)\s*=|<link|@import|url\(|\bfetch\(""", own)
