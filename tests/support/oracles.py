"""Oracles of the kernels: the paper's formulas in plain loops and float64.

Written from the formulas alone and sharing nothing with `asyn2f` but the names, so that
the two can be held against each other. Slow, and meant to be read.
"""

from typing import Any

import jax
import numpy as np


def coefficients(num_examples, loss, quality, staleness, mask, epsilon=1e-7):
    """a_k = Q_k s_k / ((L_k + epsilon) (1 + tau_k)), divided by their sum."""
    raw = []
    for k in range(len(mask)):
        if mask[k]:
            numerator = float(quality[k]) * float(num_examples[k])
            denominator = (float(loss[k]) + epsilon) * (1 + float(staleness[k]))
            raw.append(numerator / denominator)
        else:
            raw.append(0.0)
    total = sum(raw)
    return np.array([value / total if total else 0.0 for value in raw])


def cap(shares, mask, max_share):
    """No share above `max_share`; what is cut off goes to the others in proportion.

    Fills from above: each share over the limit is fixed at it, until there is none.
    """
    real = [k for k in range(len(mask)) if mask[k]]
    if not real:
        return np.zeros(len(mask))
    limit = max(max_share, 1 / len(real))
    capped: set[int] = set()
    while True:
        free = [k for k in real if k not in capped]
        left = 1.0 - limit * len(capped)
        total = sum(float(shares[k]) for k in free)
        result = np.zeros(len(mask))
        for k in capped:
            result[k] = limit
        for k in free:
            result[k] = left * float(shares[k]) / total
        over = {k for k in free if result[k] > limit * (1 + 1e-12)}
        if not over:
            return result
        capped |= over


def weighted_sum(models: list[Any], shares) -> Any:
    """G = sum_k alpha_k W_k; rows without a share do not take part."""

    def leaf_sum(*leaves):
        total = np.zeros(np.shape(leaves[0]), np.float64)
        for share, leaf in zip(shares, leaves, strict=True):
            if share > 0:
                total = total + float(share) * np.asarray(leaf).astype(np.float64)
        return total

    return jax.tree.map(leaf_sum, *models)


def share(
    *,
    local_examples,
    local_quality,
    local_loss,
    global_examples,
    global_quality,
    global_loss,
    beta,
    convention,
):
    """alpha of D = Q_k s_k / (Q_k s_k + Q S) and R = L / (L_k + L)."""
    mine = local_quality * local_examples
    theirs = global_quality * global_examples
    data_part = mine / (mine + theirs)
    loss_part = global_loss / (local_loss + global_loss)
    if convention == "appendix":
        return beta * data_part + (1 - beta) * loss_part
    if convention == "reference_code":
        return (1 - beta) * data_part + beta * loss_part
    raise ValueError(convention)


def merge(previous, current, global_params, alpha):
    """G where the last local step points towards it, (1 - alpha) G + alpha W else."""

    def merge_leaf(before, after, target):
        shape = np.shape(after)
        before = np.asarray(before).astype(np.float64).reshape(-1)
        after = np.asarray(after).astype(np.float64).reshape(-1)
        target = np.asarray(target).astype(np.float64).reshape(-1)
        merged = np.zeros(after.shape, np.float64)
        for i in range(after.size):
            if (after[i] - before[i]) * (target[i] - after[i]) > 0:
                merged[i] = target[i]
            else:
                merged[i] = (1 - alpha) * target[i] + alpha * after[i]
        return merged.reshape(shape)

    return jax.tree.map(merge_leaf, previous, current, global_params)


def odd_model(seed: int) -> Any:
    """A model with every kind of leaf that a kernel must stand: shapes and dtypes."""
    random = np.random.default_rng(seed)

    def draw(*shape):
        return random.normal(size=shape)

    return {
        "params": {
            "conv": {
                "kernel": draw(3, 3, 2, 5).astype(np.float32),
                "bias": draw(5).astype(np.float32),
            },
            "temperature": np.array(draw(), np.float32),
            "empty": np.zeros((0, 3), np.float32),
            "layers": [
                draw(7, 1).astype(jax.numpy.bfloat16),
                draw(1, 1, 1).astype(np.float32),
            ],
        },
        "batch_stats": {
            "mean": draw(5).astype(np.float16),
            "var": np.abs(draw(5)).astype(np.float32) + np.float32(0.1),
            "count": np.array(random.integers(0, 1000), np.int32),
            "histogram": random.integers(-100, 100, size=(2, 3), dtype=np.int8),
        },
    }


def assert_agrees(actual: Any, expected: Any, sources: list[Any]) -> None:
    """`actual` is `expected` (float64) but for the rounding of each leaf's own dtype.

    `sources` are the models that went in: they say which dtypes, and how large the
    numbers were that were added up.
    """

    def check(path, got, want, *inputs):
        where = jax.tree_util.keystr(path)
        dtype = np.asarray(inputs[0]).dtype
        got = np.asarray(got)
        assert got.dtype == dtype, where
        assert got.shape == np.shape(want), where
        wide = np.stack([np.asarray(source).astype(np.float64) for source in inputs])
        size = float(np.max(np.abs(wide), initial=0.0))
        if jax.numpy.issubdtype(dtype, jax.numpy.integer):
            step = 0.5
        else:
            limits = jax.numpy.finfo(dtype)
            step = float(limits.eps) * size + float(limits.smallest_subnormal)
        arithmetic = 1e-7 * (len(inputs) + 4) * size
        np.testing.assert_allclose(
            got.astype(np.float64), want, rtol=0, atol=step + arithmetic, err_msg=where
        )

    jax.tree_util.tree_map_with_path(check, actual, expected, *sources)
