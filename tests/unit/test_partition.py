import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f.tasks import partition
from configs.paper import ember


def labels_of(count: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count).astype(np.int32)


def labels_among(count: int, present: set[int], seed: int) -> np.ndarray:
    """Of these classes alone: the others up to the largest have no example."""
    rng = np.random.default_rng(seed)
    return rng.choice(sorted(present), count).astype(np.int32)


def rows(shards) -> list[int]:
    return sorted(int(row) for shard in shards for row in shard)


def check_sound(shards: partition.Shards, workers: int, count: int) -> None:
    """One shard for each, none empty, of rows there are, none twice with one worker."""
    assert len(shards) == workers
    for shard in shards:
        assert shard.ndim == 1
        assert len(shard) >= 1
        assert np.issubdtype(shard.dtype, np.integer)
        assert 0 <= shard.min() <= shard.max() < count
        assert len(set(shard.tolist())) == len(shard)


seeds = st.integers(0, 2**32 - 1)
sizes_lists = st.lists(st.integers(1, 30), min_size=1, max_size=8)
some_classes = st.sets(st.integers(0, 9), min_size=1)


@given(st.integers(1, 40), st.integers(40, 200), seeds)
def test_iid_uses_every_example_once_in_nearly_equal_shards(workers, count, seed):
    shards = partition.iid(
        labels_of(count, 10, seed), workers, np.random.default_rng(seed)
    )
    assert rows(shards) == list(range(count))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), seeds)
def test_sizes_are_exact_and_shards_disjoint(sizes, seed):
    shards = partition.by_sizes(
        labels_of(240, 10, seed), sizes, np.random.default_rng(seed)
    )
    assert [len(shard) for shard in shards] == sizes
    assert len(set(rows(shards))) == sum(sizes)


@given(
    st.integers(1, 30),
    st.integers(60, 300),
    st.sampled_from([1e-6, 0.1, 1, 100]),
    seeds,
)
def test_dirichlet_uses_every_example_once_and_leaves_no_worker_empty(
    workers, count, alpha, seed
):
    labels = labels_of(count, 7, seed)
    shards = partition.dirichlet(labels, workers, alpha, np.random.default_rng(seed))
    assert rows(shards) == list(range(count))
    assert min(len(shard) for shard in shards) >= 2


def test_dirichlet_survives_a_class_without_examples():
    labels = np.repeat([0, 2], 30)
    shards = partition.dirichlet(labels, 5, 0.1, np.random.default_rng(0))
    assert rows(shards) == list(range(60))


@given(
    st.integers(1, 20),
    st.integers(40, 80),
    some_classes,
    st.sampled_from([5e-324, 1e-300, 1e-12, 0.01, 1e6]),
    seeds,
)
def test_dirichlet_survives_any_empty_classes_at_any_alpha(
    workers, count, present, alpha, seed
):
    labels = labels_among(count, present, seed)
    shards = partition.dirichlet(labels, workers, alpha, np.random.default_rng(seed))
    check_sound(shards, workers, count)
    assert rows(shards) == list(range(count))
    assert min(len(shard) for shard in shards) >= 2


def test_a_smaller_alpha_makes_more_skew():
    labels = labels_of(5000, 10, 0)

    def skew(alpha):
        shards = partition.dirichlet(labels, 10, alpha, np.random.default_rng(1))
        shares = [np.bincount(labels[s], minlength=10) / len(s) for s in shards]
        return np.mean([share.max() for share in shares])

    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(100.0) < 0.2


@given(st.integers(1, 10), st.integers(1, 4), seeds)
def test_label_shards_use_every_example_once(workers, pieces, seed):
    labels = labels_of(200, 10, seed)
    shards = partition.by_label_shards(
        labels, workers, pieces, np.random.default_rng(seed)
    )
    assert rows(shards) == list(range(200))


def test_two_label_shards_each_show_a_worker_at_most_four_classes():
    labels = np.repeat(np.arange(10), 20)
    shards = partition.by_label_shards(labels, 10, 2, np.random.default_rng(3))
    assert all(len(np.unique(labels[shard])) <= 4 for shard in shards)
    assert np.mean([len(np.unique(labels[shard])) for shard in shards]) <= 2


# ------------------------------------------------------------- overlapping


@given(sizes_lists, some_classes, seeds)
def test_overlapping_shards_have_exactly_these_sizes(sizes, present, seed):
    labels = labels_among(30, present, seed)
    shards = partition.overlapping(labels, sizes, np.random.default_rng(seed))
    check_sound(shards, len(sizes), 30)
    assert [len(shard) for shard in shards] == sizes


def test_overlapping_shards_may_each_be_the_whole():
    shards = partition.overlapping(np.zeros(7), [7, 7, 7], np.random.default_rng(0))
    assert [rows([shard]) for shard in shards] == [list(range(7))] * 3


def test_overlapping_shards_are_drawn_without_looking_at_each_other():
    """Of two random halves of 1000, as many are in both as in none: 250, deviation
    500 / sqrt(4 * 999) = 7.9."""
    one, other = partition.overlapping(
        np.zeros(1000), [500, 500], np.random.default_rng(0)
    )
    assert 250 - 40 < len(set(one.tolist()) & set(other.tolist())) < 250 + 40


# ------------------------------------------------------------- normal sizes


@given(
    st.integers(1, 40),
    st.integers(40, 200),
    st.sampled_from([0.0, 0.25, 1.0, 30.0, 1e6, 1e300]),
    some_classes,
    seeds,
)
def test_normal_sizes_use_every_example_once_and_leave_no_worker_empty(
    workers, count, spread, present, seed
):
    labels = labels_among(count, present, seed)
    rng = np.random.default_rng(seed)
    shards = partition.normal_sizes(labels, workers, spread, rng)
    check_sound(shards, workers, count)
    assert rows(shards) == list(range(count))


@pytest.mark.parametrize("spread", [0.0, 0.25, 1e300])
def test_normal_sizes_give_as_many_workers_as_examples_one_each(spread):
    shards = partition.normal_sizes(np.zeros(9), 9, spread, np.random.default_rng(0))
    assert [len(shard) for shard in shards] == [1] * 9


@given(st.integers(1, 40), st.integers(40, 200), seeds)
def test_without_a_spread_sizes_are_all_alike(workers, count, seed):
    rng = np.random.default_rng(seed)
    shards = partition.normal_sizes(np.zeros(count), workers, 0.0, rng)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("spread", [0.05, 0.25])
def test_sizes_spread_as_a_normal_distribution_does(spread):
    """Of 1000 sizes around 1000 each: their deviation is known to 1 in sqrt(2000), and
    68 % and 95 % of them are within one and two deviations."""
    labels = np.zeros(1_000_000, np.int32)
    shards = partition.normal_sizes(labels, 1000, spread, np.random.default_rng(0))
    off = (np.array([len(shard) for shard in shards]) - 1000) / 1000 / spread
    assert abs(off.std() - 1) < 0.1
    assert abs(np.mean(np.abs(off) < 1) - 0.683) < 0.06
    assert abs(np.mean(np.abs(off) < 2) - 0.954) < 0.03
    assert 0.4 < np.mean(off < 0) < 0.6


def test_normal_sizes_deal_out_rows_at_random():
    labels = np.repeat([0, 1], 500)
    shards = partition.normal_sizes(labels, 4, 0.1, np.random.default_rng(0))
    assert all(0.35 < labels[shard].mean() < 0.65 for shard in shards)


# ------------------------------------------------------------- shares of classes


def counts_of(labels: np.ndarray, shards: partition.Shards) -> list[list[int]]:
    classes = int(labels.max()) + 1
    return [np.bincount(labels[s], minlength=classes).tolist() for s in shards]


def test_class_shares_worked_by_hand():
    """83 % and 17 % of 100; 1 to 4 of 50; one class alone; 1 : 1 of 11, rounded."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], 150))
    shares = [0.83, 0.17, 1, 4, 0, 0.5, 2, 2]
    rng = np.random.default_rng(1)
    shards = partition.by_class_shares(labels, [100, 50, 7, 11], shares, rng)
    assert counts_of(labels, shards)[:3] == [[83, 17], [10, 40], [0, 7]]
    assert sorted(counts_of(labels, shards)[3]) == [5, 6]


@st.composite
def mixtures(draw) -> tuple[list[int], np.ndarray]:
    """Sizes, and the shares of each worker, none without any."""
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=5))
    classes = draw(st.integers(1, 6))
    share = st.sampled_from([0.0, 0.0, 0.1, 0.25, 1.0, 3.0, 1e-9, 1e9])
    each = st.lists(share, min_size=classes, max_size=classes).filter(any)
    return sizes, np.array([draw(each) for _ in sizes])


@given(mixtures(), seeds)
def test_sizes_are_exact_and_counts_of_classes_within_rounding(mixture, seed):
    sizes, shares = mixture
    classes = shares.shape[1]
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), sum(sizes)))
    shards = partition.by_class_shares(labels, sizes, shares.ravel().tolist(), rng)
    check_sound(shards, len(sizes), len(labels))
    assert [len(shard) for shard in shards] == sizes
    assert len(set(rows(shards))) == sum(sizes)
    wanted = shares / shares.sum(axis=1, keepdims=True) * np.reshape(sizes, (-1, 1))
    counts = np.array(counts_of(labels, shards))
    assert (np.abs(counts - wanted) <= 1 + 1e-6).all()
    assert not counts[shares == 0].any()


def test_a_share_that_is_a_whole_number_of_examples_gives_that_number():
    """Of 4 examples shares of 1/8, 1/4, 1/4, 3/8 are 0.5, 1, 1 and 1.5 examples."""
    labels, rng = np.repeat(np.arange(4), 9), np.random.default_rng(0)
    shards = partition.by_class_shares(labels, [4], [1, 2, 2, 3], rng)
    assert counts_of(labels, shards)[0][1:3] == [1, 1]


def test_only_the_ratios_of_a_workers_shares_matter():
    labels = labels_of(200, 2, 0)
    one, other = (
        partition.by_class_shares(labels, [20, 30], shares, np.random.default_rng(0))
        for shares in ([3, 1, 1, 1], [0.75, 0.25, 8, 8])
    )
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_of_each_class_all_there_is_can_be_asked_for_and_no_more():
    labels = np.repeat([0, 1], [6, 4])
    shards = partition.by_class_shares(
        labels, [5, 5], [3, 2, 3, 2], np.random.default_rng(0)
    )
    assert rows(shards) == list(range(10))
    with pytest.raises(ValueError, match="5 examples of class 1, allowed at most 4"):
        partition.by_class_shares(
            labels, [5, 5], [3, 2, 2, 3], np.random.default_rng(0)
        )


def test_which_examples_of_a_class_a_worker_gets_is_drawn():
    labels = np.zeros(1000, np.int32)
    (shard,) = partition.by_class_shares(labels, [500], [1], np.random.default_rng(0))
    assert 200 < (shard < 500).sum() < 300


def test_the_papers_shards_can_be_cut_from_ember():
    """It has 300,000 benign files and as many of malware (Anderson and Roth, 2018)."""
    task = ember.get_config().task
    labels = np.repeat([0, 1], 300_000)
    shards = partition.by_class_shares(
        labels, task.sizes, task.class_shares, np.random.default_rng(0)
    )
    assert [len(shard) for shard in shards] == list(task.sizes)


# ------------------------------------------------------------- from a file


def file_with(folder: Path, content: Any) -> Path:
    path = folder / "rows.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_each_worker_the_rows_it_lists(tmp_path):
    """Rows may be with several workers or with none."""
    listed = [[4, 0, 7], [7], [1, 2, 4, 9]]
    shards = partition.from_file(np.zeros(10), 3, file_with(tmp_path, listed))
    check_sound(shards, 3, 10)
    assert [rows([shard]) for shard in shards] == [sorted(part) for part in listed]


def test_what_one_partition_has_cut_a_file_gives_again(tmp_path):
    labels = labels_of(50, 3, 0)
    shards = partition.dirichlet(labels, 6, 0.3, np.random.default_rng(0))
    path = file_with(tmp_path, [shard.tolist() for shard in shards])
    again = partition.from_file(labels, 6, path)
    assert all((a == b).all() for a, b in zip(shards, again, strict=True))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[[0], [1]", "cannot read .*rows.json: Expecting"),
        ("", "cannot read .*rows.json: Expecting value"),
        ({"0": [0], "1": [1]}, "rows.json has no lists, needed: 2"),
        (3, "rows.json has no lists, needed: 2"),
        ([], "rows.json has 0 lists, needed: 2"),
        ([[0]], "rows.json has 1 lists, needed: 2"),
        ([[0], [1], [2]], "rows.json has 3 lists, needed: 2"),
        ([[0], []], "worker 1 .* rows from 0 to 9, at least one, none twice"),
        ([[0], 1], "worker 1 .* rows from 0 to 9"),
        ([[10], [1]], "worker 0 .* rows from 0 to 9"),
        ([[0], [-1]], "worker 1 .* rows from 0 to 9"),
        ([[0], [3, 4, 3]], "worker 1 .* none twice"),
        ([[0], [1.0]], "worker 1 .* rows from 0 to 9"),
        ([[0], [True]], "worker 1 .* rows from 0 to 9"),
        ([["0"], [1]], "worker 0 .* rows from 0 to 9"),
        ([[[0]], [1]], "worker 0 .* rows from 0 to 9"),
        ([None, [1]], "worker 0 .* rows from 0 to 9"),
    ],
)
def test_a_file_of_other_things_is_refused_with_its_name(tmp_path, content, words):
    path = file_with(tmp_path, content)
    with pytest.raises(ValueError, match=words) as caught:
        partition.from_file(np.zeros(10), 2, path)
    message = str(caught.value)
    assert message.startswith("indices: ")
    assert str(path) in message
    assert message.splitlines() == [message]


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xff\xfe[[0]]")
    with pytest.raises(ValueError, match=r"^indices: cannot read .*rows.json"):
        partition.from_file(np.zeros(10), 1, path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "nowhere.json"
    with pytest.raises(ValueError, match=r"^indices: cannot read .*nowhere.json"):
        partition.from_file(np.zeros(10), 1, path)


# ------------------------------------------------------------- all of them

Split = Callable[[np.ndarray, np.random.Generator], partition.Shards]

# Each cuts six shards.
WAYS: dict[str, Split] = {
    "iid": lambda y, g: partition.iid(y, 6, g),
    "sizes": lambda y, g: partition.by_sizes(y, [9, 3, 20, 1, 5, 7], g),
    "overlapping": lambda y, g: partition.overlapping(y, [50, 9, 60, 1, 5, 7], g),
    "normal": lambda y, g: partition.normal_sizes(y, 6, 0.4, g),
    "class_shares": lambda y, g: partition.by_class_shares(
        y, [3, 4, 5, 6, 7, 8], [0.2, 0.5, 0.3] * 6, g
    ),
    "dirichlet": lambda y, g: partition.dirichlet(y, 6, 0.3, g),
    "shards": lambda y, g: partition.by_label_shards(y, 6, 2, g),
}
every_way = pytest.mark.parametrize("split", WAYS.values(), ids=WAYS.keys())


@every_way
def test_the_same_generator_gives_the_same_split_and_another_another(split):
    labels = np.arange(120) % 3
    first, second, other = (split(labels, np.random.default_rng(s)) for s in (9, 9, 8))
    check_sound(first, 6, 120)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert [rows([shard]) for shard in first] != [rows([shard]) for shard in other]


@every_way
def test_nothing_is_drawn_but_from_the_generator_given(split):
    def state():
        kind, keys, *rest = np.random.get_state()
        return kind, keys.tolist(), *rest

    before, rng = state(), np.random.default_rng(0)
    untouched = rng.bit_generator.state
    split(np.arange(120) % 3, rng)
    assert state() == before
    assert rng.bit_generator.state != untouched


@every_way
def test_labels_are_left_as_they_are(split):
    labels = labels_of(120, 3, 0)
    before = labels.copy()
    split(labels, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (lambda y, g: partition.iid(y, 11, g), "allowed 1 to 10"),
        (lambda y, g: partition.by_sizes(y, [6, 6], g), "a sum of 12"),
        (lambda y, g: partition.by_sizes(y, [6, 0], g), "at least 1"),
        (lambda y, g: partition.dirichlet(y, 3, 0.0, g), "above 0"),
        (lambda y, g: partition.dirichlet(y, 6, 1.0, g), "allowed 1 to 5"),
        (
            lambda y, g: partition.by_label_shards(y, 6, 2, g),
            "shards_per_worker: found 2, allowed 1 to 1",
        ),
        (
            lambda y, g: partition.by_label_shards(y, 11, 1, g),
            "workers: found 11 shards",
        ),
        (lambda y, g: partition.iid(y, 0, g), "found 0 .* allowed 1 to 10"),
        (lambda y, g: partition.by_sizes(y, [], g), r"found \[\], .* at least 1"),
        (
            lambda y, g: partition.overlapping(y, [6, 11, 3], g),
            "sizes: found 11, allowed at most 10, ",
        ),
        (
            lambda y, g: partition.overlapping(y, [6, 0], g),
            r"sizes: found \[6, 0\], every size must be at least 1",
        ),
        (lambda y, g: partition.overlapping(y, [], g), r"found \[\], .* at least 1"),
        (
            lambda y, g: partition.normal_sizes(y, 11, 0.2, g),
            "workers: found 11 .* allowed 1 to 10",
        ),
        (lambda y, g: partition.normal_sizes(y, 0, 0.2, g), "found 0 .* 1 to 10"),
        (
            lambda y, g: partition.normal_sizes(y, 2, -0.2, g),
            "size_spread: found -0.2, must be at least 0",
        ),
        (
            lambda y, g: partition.normal_sizes(y, 2, float("nan"), g),
            "size_spread: found nan, must be at least 0",
        ),
        (
            lambda y, g: partition.by_class_shares(y, [2, 2], [1, 1, 1], g),
            "class_shares: found 3 numbers, .* 2 workers x 3 classes = 6",
        ),
        (
            lambda y, g: partition.by_class_shares(y, [2], [1, 1, 1, 1], g),
            "class_shares: found 4 numbers, .* 1 workers x 3 classes = 3",
        ),
        pytest.param(
            lambda y, g: partition.by_class_shares(y, [2], [], g),
            "class_shares: found 0 numbers",
        ),
        (
            lambda y, g: partition.by_class_shares(y, [2], [1, -0.5, 1], g),
            "class_shares: .* the smallest -0.5; .* none below 0",
        ),
        (
            lambda y, g: partition.by_class_shares(y, [2, 2], [1, 1, 1, 0, 0, 0], g),
            "class_shares: .* must not all be 0",
        ),
        (
            lambda y, g: partition.by_class_shares(y, [5], [0, 1, 0], g),
            "class_shares: found 5 examples of class 1, allowed at most 3",
        ),
        (
            lambda y, g: partition.by_class_shares(y, [2, 0], [1] * 6, g),
            r"sizes: found \[2, 0\], every size must be at least 1",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_numbers(split, words):
    with pytest.raises(ValueError, match=words) as caught:
        split(np.arange(10) % 3, np.random.default_rng(0))
    assert len(str(caught.value).splitlines()) == 1
