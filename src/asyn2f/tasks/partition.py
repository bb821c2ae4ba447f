"""Federated partitioners: IID, sizes, class shares, Dirichlet, label shards, files.

All in NumPy, as JAX's Dirichlet draws other bits from version to version. Each function
returns one array of row numbers per worker, none empty, and draws only from the given
generator.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

Shards = tuple[np.ndarray, ...]


def iid(labels: np.ndarray, workers: int, rng: np.random.Generator) -> Shards:
    """A random partition into equal shards; sizes differ by at most one.

    Args:
      labels: i32 [N].
      workers: number of shards, <= N.
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
    """Disjoint random shards of exactly these sizes; remaining examples are unused.

    Raises:
      ValueError: a size below 1, or a sum above the number of examples.
    """
    _check_sizes(sizes)
    if sum(sizes) > len(labels):
        raise ValueError(
            f"sizes: found a sum of {sum(sizes)}, allowed at most {len(labels)}, the "
            "size of the data set; or use the overlapping partition"
        )
    order = rng.permutation(len(labels))
    return _finish(np.split(order, np.cumsum(sizes))[: len(sizes)])


def overlapping(
    labels: np.ndarray, sizes: Sequence[int], rng: np.random.Generator
) -> Shards:
    """Random shards of exactly these sizes, each drawn independently from the whole:
    an example may be in several shards, at most once in each.

    Raises:
      ValueError: a size below 1 or above the number of examples.
    """
    _check_sizes(sizes)
    if max(sizes) > len(labels):
        raise ValueError(
            f"sizes: found {max(sizes)}, allowed at most {len(labels)}, the size of "
            "the data set"
        )
    return _finish([rng.permutation(len(labels))[:size] for size in sizes])


def normal_sizes(
    labels: np.ndarray, workers: int, spread: float, rng: np.random.Generator
) -> Shards:
    """Disjoint random shards with sizes from Normal(1, spread^2) times N / workers, at
    least 1 and normalised so that every example is used.

    Args:
      labels: i32 [N].
      workers: number of shards, <= N.
      spread: standard deviation of a size over the mean size, >= 0; 0 = all equal.
      rng: numpy generator.

    Raises:
      ValueError: a negative spread, or more workers than examples.
    """
    if not spread >= 0:
        raise ValueError(f"size_spread: found {spread}, must be at least 0")
    _check_workers(len(labels), workers)
    drawn = np.maximum(rng.normal(1.0, spread, size=workers), 0.0)
    if drawn.sum() == 0:  # all below zero
        drawn += 1.0
    # One for each; the rest by rounded cumulative sums, which end at the total.
    rest = len(labels) - workers
    cuts = np.round(np.cumsum(drawn / drawn.sum()) * rest).astype(int)
    sizes = np.diff(cuts, prepend=0) + 1
    return by_sizes(labels, sizes.tolist(), rng)


def by_class_shares(
    labels: np.ndarray,
    sizes: Sequence[int],
    shares: Sequence[float],
    rng: np.random.Generator,
) -> Shards:
    """Disjoint random shards of exactly these sizes and mixtures of classes.

    Args:
      labels: i32 [N].
      sizes: of each worker.
      shares: of the classes, worker by worker: `len(sizes)` times the number of
        classes; each worker's are normalised. Counts are rounded so that the size is
        exact.
      rng: numpy generator.

    Raises:
      ValueError: a wrong number of shares, a negative one, only zeros for a worker, or
        more examples of a class than the data set has.
    """
    _check_sizes(sizes)
    classes = int(labels.max()) + 1
    least = min(shares, default=0.0)
    if len(shares) != len(sizes) * classes or least < 0:
        raise ValueError(
            f"class_shares: found {len(shares)} numbers, the smallest {least:g}; "
            f"needed: {len(sizes)} workers x {classes} classes = "
            f"{len(sizes) * classes}, none below 0"
        )
    mixtures = np.reshape(np.asarray(shares, float), (len(sizes), classes))
    if not mixtures.sum(axis=1).all():
        raise ValueError("class_shares: the shares of each worker must not all be 0")
    mixtures /= mixtures.sum(axis=1, keepdims=True)
    # Halves upwards, not to the nearest even.
    cuts = np.cumsum(mixtures, axis=1) * np.reshape(sizes, (-1, 1)) + 0.5
    counts = np.diff(cuts.astype(int), axis=1, prepend=0)
    parts: list[list[np.ndarray]] = [[] for _ in sizes]
    for label in range(classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        wanted = counts[:, label]
        if wanted.sum() > len(rows):
            raise ValueError(
                f"class_shares: found {wanted.sum()} examples of class {label}, "
                f"allowed at most {len(rows)}; make the sizes or its shares smaller"
            )
        for part, piece in zip(
            parts, np.split(rows, np.cumsum(wanted))[: len(sizes)], strict=True
        ):
            part.append(piece)
    return _finish([np.concatenate(part) for part in parts])


def from_file(labels: np.ndarray, workers: int, path: Path) -> Shards:
    """The shards of a JSON file: a list of row numbers for each worker. A row may be in
    several shards, at most once in each.

    Raises:
      ValueError: an unreadable file, a wrong number of lists, or an invalid list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"indices: cannot read {path}: {error}") from None
    if not isinstance(found, list) or len(found) != workers:
        count = len(found) if isinstance(found, list) else "no"
        raise ValueError(f"indices: {path} has {count} lists, needed: {workers}")
    for worker, rows in enumerate(found):
        is_sound = isinstance(rows, list) and all(
            type(row) is int and 0 <= row < len(labels) for row in rows
        )
        if not is_sound or not rows or len(set(rows)) < len(rows):
            raise ValueError(
                f"indices: the list of worker {worker} in {path} must hold rows from 0 "
                f"to {len(labels) - 1}, at least one, none twice"
            )
    return _finish([np.array(rows) for rows in found])


def dirichlet(
    labels: np.ndarray, workers: int, alpha: float, rng: np.random.Generator
) -> Shards:
    """Label-skewed: each class is divided among the workers by a draw from Dir(alpha).

    Every example is used exactly once. A worker with fewer than two examples is given
    some of the worker that has most: no shard is empty, however small alpha is.

    Args:
      labels: i32 [N].
      workers: number of shards; 2 * workers <= N.
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
    """Sorted by label, cut into equal pieces, each worker given the same number.

    The pathological split of McMahan et al. (2017): with two pieces each, most workers
    have two classes only.

    Raises:
      ValueError: more pieces than examples.
    """
    _check_workers(len(labels), workers)
    pieces, most = workers * shards_per_worker, len(labels) // workers
    if not 1 <= shards_per_worker <= most:
        raise ValueError(
            f"shards_per_worker: found {shards_per_worker}, allowed 1 to {most}: "
            f"{workers} workers share {len(labels)} examples"
        )
    by_label = np.array_split(np.argsort(labels, kind="stable"), pieces)
    dealt = rng.permutation(pieces).reshape(workers, shards_per_worker)
    return _finish([np.concatenate([by_label[p] for p in row]) for row in dealt])


def _check_sizes(sizes: Sequence[int]) -> None:
    if min(sizes, default=0) < 1:
        raise ValueError(f"sizes: found {list(sizes)}, every size must be at least 1")


def _check_workers(available: int, wanted: int) -> None:
    if not 1 <= wanted <= available:
        raise ValueError(
            f"workers: found {wanted} shards for the data, allowed 1 to {available}"
        )


def _finish(shards: Sequence[np.ndarray]) -> Shards:
    return tuple(np.sort(shard).astype(np.int32) for shard in shards)
