import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f.tasks import partition


def labels_of(count: int, classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count).astype(np.int32)


def rows(shards) -> list[int]:
    return sorted(int(row) for shard in shards for row in shard)


seeds = st.integers(0, 2**32 - 1)


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


def test_the_same_seed_gives_the_same_split():
    labels = labels_of(300, 10, 5)
    first, second = (
        partition.dirichlet(labels, 6, 0.3, np.random.default_rng(9)) for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (lambda y, g: partition.iid(y, 11, g), "allowed 1 to 10"),
        (lambda y, g: partition.by_sizes(y, [6, 6], g), "ask for 12"),
        (lambda y, g: partition.by_sizes(y, [6, 0], g), "at least 1"),
        (lambda y, g: partition.dirichlet(y, 3, 0.0, g), "above 0"),
        (lambda y, g: partition.dirichlet(y, 6, 1.0, g), "allowed 1 to 5"),
        (lambda y, g: partition.by_label_shards(y, 6, 2, g), "allowed 1 to 10"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_numbers(split, words):
    with pytest.raises(ValueError, match=words):
        split(np.arange(10) % 3, np.random.default_rng(0))
