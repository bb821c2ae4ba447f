"""Who gets which examples.

Everything here is numpy: JAX's Dirichlet draws other bits from version to version, and
a split must not. Each function returns one array of row numbers per worker, none empty,
and draws only from the generator it is given.
"""

from collections.abc import Sequence

import numpy as np

Shards = tuple[np.ndarray, ...]


def iid(labels: np.ndarray, workers: int, rng: np.random.Generator) -> Shards:
    """Shuffled and dealt out evenly; sizes differ by at most one.

    Args:
      labels: i32 [N].
      workers: how many shards, <= N.
      rng: numpy generator.

    Raises:
      ValueError: more workers than examples.

    >>> import numpy as np
    >>> shards = iid(np.zeros(10), 3, np.random.default_rng(0))
    >>> [len(shard) for shard in shards]
    [4, 3, 3]
    """
    _check_workers(len(labels), workers)
    return _finish(np.array_split(rng.permutation(len(labels)), workers))


def by_sizes(
    labels: np.ndarray, sizes: Sequence[int], rng: np.random.Generator
) -> Shards:
    """Disjoint random shards of exactly these sizes; what is left over is unused.

    Raises:
      ValueError: a size below 1, or more asked for than there is.
    """
    if min(sizes, default=0) < 1:
        raise ValueError(f"sizes: found {list(sizes)}, every size must be at least 1")
    if sum(sizes) > len(labels):
        raise ValueError(
            f"sizes: they ask for {sum(sizes)} examples, the data set has "
            f"{len(labels)}; make them smaller or use the overlapping partition"
        )
    order = rng.permutation(len(labels))
    return _finish(np.split(order, np.cumsum(sizes))[: len(sizes)])


def dirichlet(
    labels: np.ndarray, workers: int, alpha: float, rng: np.random.Generator
) -> Shards:
    """Label-skewed: each class is spread over the workers by a draw from Dir(alpha).

    Every example is used exactly once. A worker left with fewer than two examples is
    given some by the worker that has most: none is empty, however small alpha is.

    Args:
      labels: i32 [N].
      workers: how many shards; 2 * workers <= N.
      alpha: concentration > 0; 0.1 is extreme skew, 100 nearly none.
      rng: numpy generator.

    Raises:
      ValueError: alpha not above 0, or too few examples.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: found {alpha}, must be above 0")
    _check_workers(len(labels) // 2, workers)
    parts: list[list[np.ndarray]] = [[] for _ in range(workers)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # At tiny alpha every draw can underflow to 0: then one worker gets all.
        shares = rng.gamma(alpha, size=workers)
        if shares.sum() == 0:
            shares[rng.integers(workers)] = 1.0
        cuts = np.round(np.cumsum(shares / shares.sum()) * len(rows)).astype(int)
        for part, piece in zip(parts, np.split(rows, cuts[:-1]), strict=True):
            part.append(piece)
    shards = [np.concatenate(part) for part in parts]
    for k in range(workers):
        while len(shards[k]) < 2:
            rich = max(range(workers), key=lambda j: len(shards[j]))
            shards[rich], given = shards[rich][:-1], shards[rich][-1:]
            shards[k] = np.concatenate([shards[k], given])
    return _finish(shards)


def by_label_shards(
    labels: np.ndarray, workers: int, shards_per_worker: int, rng: np.random.Generator
) -> Shards:
    """Sorted by label, cut into equal pieces, each worker given so many of them.

    The pathological split of McMahan et al. (2017): with two pieces each, most workers
    see two classes only.

    Raises:
      ValueError: more pieces than examples.
    """
    pieces = workers * shards_per_worker
    _check_workers(len(labels), pieces)
    by_label = np.array_split(np.argsort(labels, kind="stable"), pieces)
    dealt = rng.permutation(pieces).reshape(workers, shards_per_worker)
    return _finish([np.concatenate([by_label[p] for p in row]) for row in dealt])


def _check_workers(available: int, wanted: int) -> None:
    if not 1 <= wanted <= available:
        raise ValueError(
            f"workers: found {wanted} shards for the data, allowed 1 to {available}"
        )


def _finish(shards: Sequence[np.ndarray]) -> Shards:
    return tuple(np.sort(shard).astype(np.int32) for shard in shards)
