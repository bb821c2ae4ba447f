"""The six scores of a worker's data, against cases worked by hand."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from absl import flags
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import config_flags
from sklearn.ensemble import RandomForestClassifier

from asyn2f.cli import tools
from asyn2f.config import build
from asyn2f.tasks.quality import (
    Quality,
    class_parity,
    feature_correlation,
    feature_relevance,
    quality_of,
)

ROOT = Path(__file__).parents[2]
NAN = np.nan

fast = mock.patch.object(RandomForestClassifier.__init__, "__defaults__", (5,))
"""A forest of five trees, where it matters little."""


def on_a_line(points: Sequence[float], classes: str | Sequence[int]) -> Quality:
    """Of examples with one feature; classes by letters or numbers."""
    labels = np.array([ord(c) if isinstance(c, str) else c for c in classes])
    return quality_of(np.array(points, float)[:, None], labels)


def drawn(seed: int, count: int = 30, classes: int = 3) -> tuple[np.ndarray, ...]:
    """Three features that tell a little of the class; 1/6, 1/3 and 1/2 of the examples
    are of three classes, each another number."""
    rng = np.random.default_rng(seed)
    labels = np.sqrt(np.arange(count) / count * classes**2).astype(int)
    features = rng.normal(size=(count, 3)) + labels[:, None] * [1.0, 0.5, 0.0]
    order = rng.permutation(count)
    return features[order], labels[order].astype(np.int32)


def approx(quality: Quality):
    return pytest.approx(quality, rel=1e-9, abs=1e-9)


# ------------------------------------------------------------- the mean


def test_the_score_is_the_plain_mean_of_the_six():
    """(1 + 0.5 + 0.25 + 0.75 + 0 + 0.5) / 6."""
    assert Quality(1.0, 0.5, 0.25, 0.75, 0.0, 0.5).score == 0.5


# ------------------------------------------------------------- class parity


@pytest.mark.parametrize(
    ("counts", "parity"),
    [
        ([7], 1.0),
        ([5, 5, 5], 1.0),
        # r = 1, 1/2; mean 3/4; off by 1/4 and 1/4.
        ([6, 3], 3 / 4),
        # r = 1, 1/2, 1/4; mean 7/12; off by 5/12, 1/12, 4/12, in the mean 5/18.
        ([4, 2, 1], 13 / 18),
        # r = 1, 1, 0; mean 2/3; off by 1/3, 1/3, 2/3, in the mean 4/9.
        ([3, 3, 0], 5 / 9),
        # r = 1, 0, 0, 0; mean 1/4; off by 3/4 and thrice 1/4, in the mean 3/8.
        ([9, 0, 0, 0], 5 / 8),
    ],
)
def test_class_parity_worked_by_hand(counts, parity):
    assert class_parity(np.array(counts)) == pytest.approx(parity)
    assert class_parity(np.array(counts[::-1])) == pytest.approx(parity)


@pytest.mark.parametrize(
    ("labels", "num_classes", "parity"),
    [
        ([0, 1, 0, 1, 0, 1], 0, 1.0),
        ([0, 1, 0, 1, 0, 1], 2, 1.0),
        ([0, 2, 0, 2, 0, 2], 3, 5 / 9),
        ([1, 1, 1], 4, 5 / 8),
        ([1, 1, 1], 0, 1.0),
        ([0, 0, 0, 0, 1, 1, 5], 0, 13 / 18),
    ],
)
@fast
def test_missing_classes_count_if_their_number_is_given(labels, num_classes, parity):
    features = np.random.default_rng(0).normal(size=(len(labels), 2))
    found = quality_of(features, np.array(labels), num_classes)
    assert found.class_parity == pytest.approx(parity)


# ------------------------------------------------------------- class overlap

LINKS = {
    # 1 and 1.4 are each other's nearest. So are 7 and 7.5, of one class; the nearest of
    # 4 is 6, but that of 6 is 7. Of A (3) and B (4) the larger loses its linked: 1.4.
    "one of the larger class": ([0, 1, 1.4, 4, 6, 7, 7.5], "AABABBB", 6 / 7),
    # The other way round, A (4) loses 1.
    "one of the larger class, on the left": ([0, 0.5, 1, 1.4, 9, 0.2], "AAABBA", 5 / 6),
    # The nearest of 0 is 2, that of 2 is 3, and that of 3 is 2: of A (2) and B (3) the
    # larger loses 2; 0 is in no link.
    "nearest on one side alone": ([0, 2, 3, 9, 9.5], "ABABB", 4 / 5),
    # Links 0-1 (A B), 10-11 (A C); C (1) is the smallest: 0, 1 and 10 go of 8.
    "three classes": ([0, 1, 10, 11, 30, 31, 40, 41], "ABACAABB", 5 / 8),
    # Links 0-1 (A B), 10-11 (B C), 20-21 (C A); A 2, B 3, C 4: 1, 10, 11 and 20 go.
    "three classes in a ring": (
        [0, 1, 10, 11, 20, 21, 30, 30.1, 30.2],
        "ABBCCABCC",
        5 / 9,
    ),
    "no link": ([0, 1, 10, 11], "AABB", 1.0),
    # Equal points of two classes are linked. A 3, B 4: one of B goes.
    "equal points": ([0, 0, 10, 10.5, 20, 21, 21.5], "ABAABBB", 6 / 7),
    # Both classes are as large, one of each link goes.
    "all in links": ([0, 1, 10, 11, 20, 21], "ABBAAB", 1 / 2),
}


@pytest.mark.parametrize(
    ("points", "classes", "overlap"), LINKS.values(), ids=LINKS.keys()
)
@fast
def test_class_overlap_worked_by_hand(points, classes, overlap):
    assert on_a_line(points, classes).class_overlap == pytest.approx(overlap)
    backwards = on_a_line(points[::-1], classes[::-1])
    assert backwards.class_overlap == pytest.approx(overlap)


# ------------------------------------------------------------- label purity

# Two classes far apart, of twenty each.
APART = [*np.arange(20.0), *np.arange(100.0, 120.0)]
OF_APART = [0] * 20 + [1] * 20


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wrong_label_in_a_link_counts_once(seed):
    """9.6 among the first class is labelled as of the second. With 10 it is a link,
    but all others say that 10 is right."""
    points, labels = np.array([*APART, 9.6]), np.array([*OF_APART, 1])
    order = np.random.default_rng(seed).permutation(41)
    found = quality_of(points[order, None], labels[order], seed=seed)
    assert found.label_purity == pytest.approx(40 / 41)
    assert found.class_overlap == pytest.approx(40 / 41)


def test_a_wrong_label_counts_in_the_smaller_class_too():
    """Where the link takes 10 away, of the larger one."""
    found = on_a_line([*APART[:-5], 9.6], [*OF_APART[:-5], 1])
    assert found.label_purity == pytest.approx(35 / 36)
    assert found.class_overlap == pytest.approx(35 / 36)


def test_wrong_labels_in_no_link_do_not_count():
    """9.4 and 9.6 are each other's nearest, and of one class."""
    found = on_a_line([*APART, 9.4, 9.6], [*OF_APART, 1, 1])
    assert found.label_purity == 1.0
    assert found.class_overlap == 1.0


def test_right_labels_in_a_link_do_not_count():
    """19 and 19.9 are where the classes meet."""
    points = [*np.arange(20.0), *(19.9 + np.arange(20.0))]
    found = on_a_line(points, OF_APART)
    assert found.label_purity == 1.0
    assert found.class_overlap == pytest.approx(39 / 40)


def test_a_class_with_one_example_hides_no_other_wrong_label():
    """70 is alone in its class; the wrong label is 9.6 as before."""
    points, labels = [*APART, 9.6, 70.0], [*OF_APART, 1, 2]
    assert on_a_line(points, labels).label_purity == pytest.approx(41 / 42)


@pytest.mark.parametrize(
    "classes",
    ["AAAAAAA", "AAABAAA", "AAABACA", "ABCDEFG"],
    ids=["one class", "one of another", "one of two others", "one of each"],
)
def test_nothing_speaks_against_one_class_or_a_class_with_one_example(classes):
    """3 would be in a link with 2.9, and 5.5 with 5."""
    found = on_a_line([0, 0.1, 2.9, 3, 5, 5.5, 9], classes)
    assert found.label_purity == 1.0
    assert (found.class_overlap == 1.0) == (classes == "AAAAAAA")


# ------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("columns", "score"),
    [
        # Thrice the other, also upside down and moved.
        ([[1, 2, 3], [3, 6, 9]], 0.0),
        ([[1, 2, 3], [9, 6, 3]], 0.0),
        # (-1, 0, 1) . (-1, 1, 0) over 2: 1/2.
        ([[1, 2, 3], [1, 3, 2]], 0.5),
        ([[1, 2, 3], [-1, -3, -2]], 0.5),
        # Pairs 1-2: 1; 1-3 and 2-3: (-3, -1, 1, 3) . (1, -1, -1, 1) = 0.
        ([[1, 2, 3, 4], [2, 4, 6, 8], [1, -1, -1, 1]], 2 / 3),
        # Pairs 1-2: 1/2; what never changes is correlated with none.
        ([[1, 2, 3], [1, 3, 2], [7, 7, 7]], 5 / 6),
        ([[0.1] * 7, [1, 2, 3, 4, 5, 6, 7]], 1.0),
        ([[1, 2, 3]], 1.0),
    ],
)
def test_feature_correlation_worked_by_hand(columns, score):
    features = np.array(columns, float).T
    assert feature_correlation(features) == pytest.approx(score)


@pytest.mark.parametrize(
    ("importances", "score"),
    [
        # Mean 1/4; off by 0.35, 0.05, -0.15, -0.25: variance 0.21 / 4. The three
        # largest: 1/3. 0.9 (1 - 0.0525) + 0.1 / 3.
        ([0.0, 0.6, 0.1, 0.3], 0.886083333333),
        # Variance 0.04, mean 1/2: 0.9 * 0.96 + 0.05.
        ([0.7, 0.3], 0.914),
        ([1.0], 1.0),
        # Five alike: 0.9 + 0.1 / 5.
        ([0.2] * 5, 0.92),
    ],
)
def test_feature_relevance_worked_by_hand(importances, score):
    assert feature_relevance(np.array(importances)) == pytest.approx(score)
    assert feature_relevance(np.array(importances[::-1])) == pytest.approx(score)


# ------------------------------------------------------------- missing cells


@pytest.mark.parametrize(
    ("features", "share"),
    [
        ([[1, 2], [3, 4], [5, 6]], 1.0),
        ([[1, NAN], [3, 4], [5, 6]], 5 / 6),
        ([[NAN, 2], [NAN, 4], [NAN, NAN]], 2 / 6),
        ([[NAN, NAN], [NAN, NAN], [NAN, NAN]], 0.0),
    ],
)
@fast
def test_completeness_worked_by_hand(features, share):
    found = quality_of(np.array(features, float), np.array([0, 1, 1]))
    assert found.completeness == pytest.approx(share)


@fast
def test_a_missing_cell_takes_the_median_of_its_feature():
    """Of 1, 2 and 9: 2. So the features are alike: correlation 1, score 0; with the
    mean in its place, 4, they would not be."""
    features = np.array([[1, 1], [2, 2], [9, 9], [2, NAN]])
    found = quality_of(features, np.array([0, 1, 0, 1]))
    assert found.feature_correlation == pytest.approx(0.0, abs=1e-9)
    assert found.completeness == 7 / 8


# ------------------------------------------------------------- all of it


@given(
    st.integers(1, 25),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@example(4, 2, 1, 0.0, True, 720783)  # a correlation of more than 1, by rounding
@settings(max_examples=40)
def test_every_score_is_between_0_and_1(count, width, classes, missing, whole, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)) * 10.0 ** rng.integers(-6, 7, width)
    if whole:  # many are equal
        features = rng.integers(0, 3, (count, width)).astype(float)
    features[rng.random((count, width)) < missing] = NAN
    labels = rng.integers(0, classes, count)
    with fast:
        found = quality_of(features, labels, num_classes=int(rng.choice([0, 4])))
    assert all(0.0 <= score <= 1.0 for score in found)
    assert 0.0 <= found.score <= 1.0
    assert found.score == pytest.approx(np.mean(found))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("names", [(2, 0, 1), (1, 0, 2), (50, 7, 9), (-3, 0, -8)])
@fast
def test_scores_do_not_depend_on_what_the_classes_are_called(seed, names):
    features, labels = drawn(seed)
    expected = quality_of(features, labels)
    assert len(set(np.bincount(labels))) == 3
    assert quality_of(features, np.array(names)[labels]) == approx(expected)


@pytest.mark.parametrize("seed", range(2))
@fast
def test_scores_do_not_depend_on_the_unit_of_a_feature(seed):
    """Powers of two, by which nothing is rounded otherwise."""
    features, labels = drawn(seed)
    features[seed, 1] = NAN
    expected = quality_of(features, labels)
    units = np.array([2.0**-10, 1.0, 2.0**10])
    assert quality_of(features * units, labels) == approx(expected)


@pytest.mark.parametrize("seed", range(2))
@fast
def test_the_order_of_the_examples_matters_to_the_forest_alone(seed):
    features, labels = drawn(seed)
    features[seed, 1] = NAN
    one, other = quality_of(features, labels), quality_of(features[::-1], labels[::-1])
    forest = {"label_purity": 0.0, "feature_relevance": 0.0}
    assert other._replace(**forest) == approx(one._replace(**forest))


def test_one_class_alone_has_nothing_to_overlap_with():
    """All importances are 0: 0.9 (1 - 0) + 0."""
    features = np.array([[1, 1], [2, 3], [3, 2]])
    found = quality_of(features, np.array([4, 4, 4]))
    assert found == approx(Quality(1.0, 1.0, 1.0, 0.5, 0.9, 1.0))


def test_of_one_example_nothing_bad_is_known():
    """But that no feature tells anything."""
    found = quality_of(np.array([[1.0, 2.0]]), np.array([0]))
    assert found == approx(Quality(1.0, 1.0, 1.0, 1.0, 0.9, 1.0))


@fast
def test_the_seed_decides_what_is_drawn():
    features, labels = drawn(0)
    found = [quality_of(features, labels, seed=seed) for seed in (3, 3, 4, 5)]
    assert found[0] == found[1]
    assert len({each.feature_relevance for each in found}) == 3
    assert len({each.class_overlap for each in found}) == 1


def test_the_forest_has_a_hundred_trees():
    pytest.importorskip("imblearn.ensemble")  # looks at the class when imported
    forests = []

    def remembered(**settings):
        forests.append(RandomForestClassifier(**settings))
        return forests[-1]

    with mock.patch("sklearn.ensemble.RandomForestClassifier", remembered):
        quality_of(np.arange(4.0)[:, None], np.array([0, 0, 1, 1]))
    assert {len(forest.estimators_) for forest in forests} == {100}


# ------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (np.zeros(3), [0, 1, 0], r"found \(3,\) with labels \(3,\)"),
        (np.zeros((3, 2, 2)), [0, 1, 0], r"found \(3, 2, 2\) with labels \(3,\)"),
        (np.zeros((3, 2)), [0, 1], r"found \(3, 2\) with labels \(2,\)"),
        (np.zeros((3, 2)), [[0], [1], [0]], r"found \(3, 2\) with labels \(3, 1\)"),
        (np.zeros((3, 2)), 0, r"found \(3, 2\) with labels \(\)"),
        (np.zeros((0, 2)), [], r"found \(0, 2\) with labels \(0,\)"),
        (np.zeros((3, 0)), [0, 1, 0], r"found \(3, 0\) with labels \(3,\)"),
        ([[1.0], [np.inf], [NAN]], [0, 1, 0], "found an infinite value"),
        ([[1.0], [-np.inf], [NAN]], [0, 1, 0], "found an infinite value"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(features, labels, words):
    with pytest.raises(ValueError, match=f"^features: {words}") as caught:
        quality_of(np.array(features), np.array(labels))
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert "needed: [N, F] and [N]" in message or "missing cells are NaN" in message


@pytest.mark.parametrize("library", ["imblearn", "cleanlab"])
def test_without_the_libraries_it_is_an_import_error(monkeypatch, library):
    for name in list(sys.modules):
        if name.partition(".")[0] == library:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    features, labels = drawn(0)
    with pytest.raises(ImportError, match=library):
        quality_of(features, labels)


# ------------------------------------------------------------- the program

SMALL = [
    "--config=configs/digits.py",
    "--config.workers=3",
    "--config.task.partition=sizes",
    "--config.task.sizes=(12,50,60)",
]


def run(*arguments: str) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True
    )
    return ended.returncode, ended.stdout, ended.stderr


quietly = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """Of the third worker fewer examples than it has are looked at."""
    code, out, err = run("-m", "launch.quality", *SMALL, "--max_examples=50")
    assert (code, err) == (0, "")
    return out.splitlines()


def task_of(monkeypatch, *arguments: str):
    """The task of a config and flags, as a program takes them."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    argv = ["program", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there
    values(argv)
    config = values["config"].value.to_dict()
    build.check(config)
    return build.build_task(config)


@quietly
def test_its_table_has_the_scores_of_every_worker(printed, monkeypatch):
    """The 8 x 8 cells of an image of digits are its pixels. The first worker lacks some
    digits, which counts against its parity."""
    task = task_of(monkeypatch, *SMALL)
    assert len(set(task.train["label"][task.shards[0]])) < 10
    table = [re.split("[│┃]", line)[1:-1] for line in printed if line[:1] in "│┃"]
    header, *rows = [[cell.strip() for cell in line] for line in table]
    names = [name.split("_")[-1] for name in Quality._fields]
    assert header == ["worker", "examples", *names, "quality"]
    assert [row[:2] for row in rows] == [["0", "12"], ["1", "50"], ["2", "60"]]
    for shard, row in zip(task.shards[:2], rows[:2], strict=True):
        pixels = task.train["input"][shard].reshape(len(shard), 64)
        found = quality_of(pixels, task.train["label"][shard], num_classes=10)
        assert row[2:] == [f"{score:.3f}" for score in (*found, found.score)]
    assert all(0 < float(row[-1]) <= 1 for row in rows)


@quietly
def test_its_last_line_is_a_flag_that_builds_with_these_qualities(printed, monkeypatch):
    (flag,) = shlex.split(printed[-1])
    qualities = task_of(monkeypatch, *SMALL, flag).qualities
    assert qualities == tuple(map(float, re.findall(r"\d\.\d+", printed[-1])))
    in_table = [re.split("[│┃]", line)[-2] for line in printed if line[:1] == "│"]
    np.testing.assert_allclose(qualities, [float(x) for x in in_table], atol=6e-4)
    assert len({f"{quality:.4f}" for quality in qualities}) == 3


def test_images_are_looked_at_as_the_brightness_of_8_x_8_cells():
    """Here of 2 x 3 pixels of three channels each; smaller images as their pixels."""
    cells = np.random.default_rng(0).random((5, 8, 8))
    off = np.random.default_rng(1).random((5, 2, 3, 3))
    off -= off.mean(axis=(1, 2, 3), keepdims=True)  # within a cell
    images = cells.repeat(2, axis=1).repeat(3, axis=2)[..., None]
    images = images + np.tile(off, (1, 8, 8, 1))
    found = tools._features(images.astype(np.float32))
    np.testing.assert_allclose(found, cells.reshape(5, 64), atol=1e-6)
    small = images[:, :5, :6, :1]
    np.testing.assert_allclose(tools._features(small), small.reshape(5, 30))


@pytest.mark.parametrize("name", ["x", "signal"])
def test_inputs_of_other_tasks_have_other_names(monkeypatch, name):
    monkeypatch.setattr(tools, "_MOST", SimpleNamespace(value=2000))
    features, labels = drawn(0)
    dataset = {name: features, "y": labels}
    shards = (np.arange(30),)
    task = SimpleNamespace(name="own", train=dataset, labels=labels, shards=shards)
    with fast:
        found = tools._quality_of_worker(task, 0, 0)
        assert found == quality_of(features, labels, num_classes=3)


def test_too_few_examples_are_one_line_and_exit_code_2():
    code, out, err = run("-m", "launch.quality", *SMALL, "--max_examples=9")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "--max_examples=9: 9 is not integer >= 10" in line


@pytest.mark.slow
def test_without_its_libraries_it_names_the_extra():
    lines = "import runpy, sys; sys.modules['imblearn'] = None; "
    lines += "runpy.run_module('launch.quality', run_name='__main__', alter_sys=True)"
    code, out, err = run("-c", lines, *SMALL)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith('; pip install "asyn2f[quality]"')
