"""Local to global: coefficients of updates, and the weighted sum of their models.

The server's side of Asyn2F (Cao et al., arXiv 2403.01417, and its appendix).
"""

from functools import partial

import jax
import jax.numpy as jnp

from asyn2f.types import Params

EPSILON = 1e-7
"""Keeps a loss of exactly 0 from dividing by zero (the reference implementation's)."""

_MAX_UNROLLED = 32  # above this many updates one matrix product beats a chain of sums


@partial(jax.jit, static_argnames=("max_share", "epsilon"))
def coefficients(
    num_examples: jax.Array,
    loss: jax.Array,
    quality: jax.Array,
    staleness: jax.Array,
    mask: jax.Array,
    *,
    max_share: float = 1.0,
    epsilon: float = EPSILON,
) -> jax.Array:
    """The normalised coefficient of each update in the next global model.

        a_k = Q_k s_k / ((L_k + epsilon) (1 + tau_k)),    alpha_k = a_k / sum_j a_j

    with s_k `num_examples`, L_k `loss`, Q_k `quality` and tau_k `staleness` (Asyn2F,
    appendix, global aggregation; `1 + tau` is the reference implementation's "next
    version - version used"). The old global model has no share.

    `max_share` below 1 departs from the paper, as a_k grows without bound when L_k goes
    to 0: coefficients are capped, and the excess goes to the others in proportion. A
    cap that m updates cannot meet (below 1/m) acts as 1/m.

    Args:
      num_examples: f32 [K], > 0.
      loss: f32 [K], >= 0.
      quality: f32 [K], in (0, 1].
      staleness: i32 or f32 [K], >= 0.
      mask: bool [K]; rows that are False get 0, whatever their values.
      max_share: largest coefficient allowed, in (0, 1].
      epsilon: added to every loss.

    Returns:
      f32 [K], each >= 0; their sum is 1, or 0 if no row is real.

    Raises:
      ValueError: `max_share` outside (0, 1].

    >>> import jax.numpy as jnp
    >>> a = coefficients(jnp.array([100.0, 300.0]), jnp.array([0.5, 0.5]),
    ...                  jnp.ones(2), jnp.array([0, 1]), jnp.array([True, True]))
    >>> print(a.round(3))
    [0.4 0.6]
    """
    if not 0.0 < max_share <= 1.0:
        raise ValueError(f"max_share: found {max_share}, allowed (0, 1]")
    f32 = jnp.float32
    loss = jnp.where(mask, loss, 1.0).astype(f32)
    examples = jnp.where(mask, num_examples, 1.0).astype(f32)
    quality = jnp.where(mask, quality, 1.0).astype(f32)
    staleness = jnp.where(mask, staleness, 0).astype(f32)
    raw = quality * examples / ((loss + epsilon) * (1.0 + staleness))
    raw = jnp.where(mask, raw, 0.0)
    # Divided by the largest first: billions of examples over a loss of 0 stay finite.
    raw = raw / jnp.maximum(jnp.max(raw), jnp.finfo(f32).tiny)
    shares = _normalise(raw)
    return shares if max_share == 1.0 else _cap(shares, mask, max_share)


def _normalise(raw: jax.Array) -> jax.Array:
    return raw / jnp.maximum(jnp.sum(raw), jnp.finfo(jnp.float32).tiny)


def _cap(shares: jax.Array, mask: jax.Array, max_share: float) -> jax.Array:
    """`shares` with none above `max_share`, the excess spread over the others.

    Spreading may lift another share over the cap; each pass settles at least one, so
    K passes settle all. If none is above, they keep their bits.
    """
    count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    limit = jnp.maximum(jnp.float32(max_share), 1.0 / count)

    def settle(_, state):
        current, held = state
        held = held | (current > limit)
        free = jnp.where(held, 0.0, shares)
        rest = 1.0 - limit * jnp.sum(held).astype(jnp.float32)
        return jnp.where(held, limit, _normalise(free) * rest), held

    start = (shares, jnp.zeros_like(mask))
    capped, _ = jax.lax.fori_loop(0, shares.shape[0], settle, start)
    return jnp.where(jnp.any(shares > limit), jnp.where(mask, capped, 0.0), shares)


@jax.jit
def weighted_sum(params: Params, coefficients: jax.Array) -> Params:
    """`sum_k coefficients[k] * params[k]`, leaf by leaf: the new global parameters.

        G_{v+1} = sum_{k in P} alpha_k W_k       (Asyn2F, appendix, global aggregation)

    Sums are taken in float32 and returned in each leaf's own dtype; integers are
    rounded, and exact up to 2^24.
    A row whose coefficient is 0 is not read: padding may hold anything, NaN included.

    Args:
      params: pytree with leaves [K, ...]: K models stacked.
      coefficients: f32 [K].

    Returns:
      The same pytree without the leading axis.

    Raises:
      ValueError: a leaf whose leading axis is not K.

    >>> import jax.numpy as jnp
    >>> two = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
    >>> print(weighted_sum(two, jnp.array([0.75, 0.25]))["w"])
    [1.5 3. ]
    """
    count = coefficients.shape[0]

    def reduce(path, leaf):
        if leaf.ndim == 0 or leaf.shape[0] != count:
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "params"
            raise ValueError(
                f"{name}: found {leaf.shape}, expected a leading axis of {count}: "
                "one row per coefficient"
            )
        return cast(_sum_rows(leaf, coefficients), leaf.dtype)

    return jax.tree_util.tree_map_with_path(reduce, params)


def _sum_rows(leaf: jax.Array, coefficients: jax.Array) -> jax.Array:
    """A chain of sums is one pass over memory, and a stack that feeds it costs nothing:
    XLA takes the slices of a stack from the arrays it was made of."""

    def row(k):
        return jnp.where(coefficients[k] != 0, leaf[k].astype(jnp.float32), 0.0)

    if leaf.shape[0] > _MAX_UNROLLED:
        used = (coefficients != 0).reshape((-1,) + (1,) * (leaf.ndim - 1))
        rows = jnp.where(used, leaf.astype(jnp.float32), 0.0)
        highest = jax.lax.Precision.HIGHEST
        return jnp.tensordot(coefficients, rows, axes=1, precision=highest)
    total = coefficients[0] * row(0)
    for k in range(1, leaf.shape[0]):
        total = total + coefficients[k] * row(k)
    return total


@jax.jit
def coordinate_median(params: Params, mask: jax.Array) -> Params:
    """The median over the real rows, element by element; of an even number of them the
    mean of the two in the middle.

    Fewer than half of the rows, however far off, move no element out of the range of
    the others (Yin et al., arXiv 1803.01498). Not in the Asyn2F paper.

    Args:
      params: pytree with leaves [K, ...].
      mask: bool [K]; rows that are False are not read. At least one is True.

    Returns:
      The same pytree without the leading axis, in each leaf's own dtype; of whole
      numbers, exact up to 2^24.

    >>> three = {"w": jnp.array([[1.0, 5.0], [2.0, -9.0], [99.0, 6.0]])}
    >>> print(coordinate_median(three, jnp.array([True, True, True]))["w"])
    [2. 5.]
    """
    count = jnp.maximum(jnp.sum(mask), 1)

    def middle(leaf):
        rows = _ascending(leaf, mask)
        lower, upper = _of_rank(rows, (count - 1) // 2), _of_rank(rows, count // 2)
        # Halved before they are added: their sum could overflow.
        value = jnp.where(count % 2 == 1, lower, lower / 2 + upper / 2)
        return cast(value, leaf.dtype)

    return jax.tree.map(middle, params)


@partial(jax.jit, static_argnames="trim")
def trimmed_mean(params: Params, mask: jax.Array, trim: float) -> Params:
    """The mean over the real rows without the largest and smallest, element by element.

    Of m rows `ceil(trim * m)` are left out at either end, but at most so that one or
    two remain. (Yin et al. leave out `trim * m`.) Not in the Asyn2F paper.

    Args:
      params: pytree with leaves [K, ...].
      mask: bool [K]; rows that are False are not read. At least one is True.
      trim: in [0, 0.5); 0 = the plain mean.

    Returns:
      As `coordinate_median`.

    Raises:
      ValueError: `trim` outside [0, 0.5).

    >>> four = {"w": jnp.array([1.0, 2.0, 4.0, 99.0])}
    >>> print(trimmed_mean(four, jnp.array([True] * 4), 0.25)["w"])
    3.0
    """
    if not 0.0 <= trim < 0.5:
        raise ValueError(f"trim: found {trim}, allowed [0, 0.5)")
    count = jnp.maximum(jnp.sum(mask), 1)
    # Rounding may put 0.2 * 5 above 1.
    wanted = jnp.ceil(trim * count.astype(jnp.float32) - 1e-4).astype(count.dtype)
    cut = jnp.minimum(wanted, (count - 1) // 2)
    left = (count - 2 * cut).astype(jnp.float32)

    def mean(leaf):
        rows = _ascending(leaf, mask)
        value = jnp.zeros(leaf.shape[1:], jnp.float32)
        for place, row in enumerate(rows):
            kept = (place >= cut) & (place < count - cut)
            # Divided first: a sum of large values could overflow.
            value = value + jnp.where(kept, row / left, 0.0)
        # Rounding must not lead out of the averaged range.
        lowest, highest = _of_rank(rows, cut), _of_rank(rows, count - cut - 1)
        return cast(jnp.clip(value, lowest, highest), leaf.dtype)

    return jax.tree.map(mean, params)


def _ascending(leaf: jax.Array, mask: jax.Array) -> list[jax.Array]:
    """The rows in ascending order, element by element, the real ones first; f32.

    Few rows are sorted by odd-even transposition: XLA fuses minima and maxima, and its
    sort along a short axis is a hundred times slower. Subnormal numbers count as 0, as
    in sums.
    """
    count = leaf.shape[0]
    rows = [
        jnp.where(mask[k], leaf[k].astype(jnp.float32), jnp.inf) for k in range(count)
    ]
    if count > _MAX_UNROLLED:
        return list(jnp.sort(jnp.stack(rows), axis=0))
    for first in (k % 2 for k in range(count)):
        for k in range(first, count - 1, 2):
            low, high = rows[k], rows[k + 1]
            rows[k], rows[k + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
    return rows


def _of_rank(rows: list[jax.Array], rank: jax.Array) -> jax.Array:
    """The row of a traced number."""
    found = rows[0]
    for k, row in enumerate(rows[1:], start=1):
        found = jnp.where(rank == k, row, found)
    return found


def cast(value: jax.Array, dtype) -> jax.Array:
    """The value in another dtype; rounded for integers."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        value = jnp.round(value)
    return value.astype(dtype)
