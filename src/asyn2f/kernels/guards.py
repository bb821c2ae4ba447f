"""Guards against Byzantine updates: bounds on their losses, shares and distances.

They depart from the paper and are off by default. `enforce` raises small losses, caps
shares and rejects distant models. `observe` is a dry run: it changes no bit and logs
what `enforce` would have done. Raised losses and capped shares are functions of the
updates, so a replay computes the same; rejections are in the trace.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.kernels.deltas import trained, with_trained
from asyn2f.settings import setting
from asyn2f.types import Params

GuardMode = Literal["off", "observe", "enforce"]
Kind = Literal["rejected", "loss raised", "share held"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The actions of guards, the gravest first."""

REMEMBERED = 64
"""The number of accepted distances in the median."""

_ENOUGH = 5  # distances for a median
_ROUNDING = 1e-6  # of shares in float32


@dataclass(frozen=True, kw_only=True)
class Guards:
    """Guards against Byzantine updates: departures from the paper's formulas."""

    mode: GuardMode = setting(
        "off", "`observe` changes no bit and records what `enforce` would have done"
    )
    max_norm_ratio: float = setting(
        10.0,
        "an update is rejected if its distance to the global model exceeds the median "
        "distance of the accepted ones by more than this factor, see `norm_limit`",
        at_least=1,
    )
    min_loss_ratio: float = setting(
        2.0,
        "a loss counts as at least the median of its aggregation divided by this, see "
        "`clamp_losses`",
        at_least=1,
    )
    max_share: float = setting(
        0.5,
        "the largest coefficient, of strategies that have the parameter `max_share`; "
        "others have rules of their own",
        above=0,
        at_most=1,
    )


def clamp_losses(loss: jax.Array, mask: jax.Array, factor: float) -> jax.Array:
    """Each loss, or the median of the real rows / factor, whichever is larger.

        L_k' = max(L_k, median(L) / factor)

    A loss near 0 would give its update any coefficient: a_k grows as 1 / L_k. A large
    loss is kept, as it lowers the coefficient of its own update. Not in the paper.

    Args:
      loss: f32 [K].
      mask: bool [K]; rows that are False are not read and come back as they are.
      factor: >= 1.

    Returns:
      f32 [K]; a loss that is large enough keeps its bits.

    >>> import jax.numpy as jnp
    >>> real = jnp.array([True, True, True, False])
    >>> print(clamp_losses(jnp.array([0.0, 0.5, 9.0, 7.0]), real, 2.0))
    [0.25 0.5  9.   7.  ]
    """
    least = _least(jnp.sort(jnp.where(mask, loss, jnp.inf)), jnp.sum(mask), factor)
    return jnp.where(mask, jnp.maximum(loss, least), loss)


def _least(ascending, count, factor):
    """The lower bound, of losses in ascending order with the real ones first."""
    lower, upper = ascending[(count - 1) // 2], ascending[count // 2]
    return (lower / 2 + upper / 2) / factor  # halved first: their sum could overflow


def findings(
    guards: Guards, losses: Sequence[float], shares: Sequence[float]
) -> list[str]:
    """The actions of guards, done or only observed, on the updates of an aggregation.

    Args:
      guards: the settings.
      losses: as reported, in the order of the updates.
      shares: their coefficients.

    Returns:
      A line per update, "" for no action; [] if there is no action at all.

    >>> findings(Guards(mode="observe"), [0.5, 0.001, 0.4], [0.1, 0.7, 0.2])
    ['', 'loss 0.001 would be 0.2; share 0.7 would be 0.5', '']
    """
    if guards.mode == "off" or not losses:
        return []
    is_done, count = guards.mode == "enforce", len(losses)
    would = "" if is_done else "would be "
    reported = np.asarray(losses, np.float32)
    least_loss = _least(np.sort(reported), count, np.float32(guards.min_loss_ratio))
    # A cap below 1 / m acts as 1 / m.
    cap = max(guards.max_share, 1.0 / count)
    lines = []
    for loss, share in zip(reported, shares, strict=True):
        parts = []
        if loss < least_loss:
            parts.append(f"loss {loss:.3g} {would or 'taken as '}{least_loss:.3g}")
        least = cap * (1 - _ROUNDING if is_done else 1 + _ROUNDING)
        if cap < 1 and share >= least:
            held = f"share held at {cap:.3g}"
            parts.append(held if is_done else f"share {share:.3g} {would}{cap:.3g}")
        lines.append("; ".join(parts))
    return lines if any(lines) else []


def kinds_of(line: str) -> tuple[Kind, ...]:
    """The actions that a line of `trace.Aggregated.guards` names.

    >>> kinds_of("loss 0 taken as 0.2; share held at 0.5")
    ('loss raised', 'share held')
    >>> kinds_of("would be rejected: " + too_far(12.0, 7.0)), kinds_of("")
    (('rejected',), ())
    """
    heads = {
        "rejected": "would be rejected",
        "loss raised": "loss",
        "share held": "share",
    }
    parts = line.split("; ")
    return tuple(k for k in KINDS if any(part.startswith(heads[k]) for part in parts))


def too_far(far: float, limit: float) -> str:
    """The reason of a rejection by distance from the global model."""
    return f"{far:.3g} from the global model, allowed {limit:.3g}"


@jax.jit
def size_of(params: Params) -> jax.Array:
    """f32 []: the Euclidean norm of all arrays together."""
    squares = [
        jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        for leaf in jax.tree.leaves(params)
    ]
    return jnp.sqrt(sum(squares, jnp.float32(0.0)))


def distance(pushed: Params, model: Params, *, is_difference: bool) -> jax.Array:
    """f32 []: the distance of an update from a global model; inf where it overflows.

    Args:
      pushed: the update's params.
      model: the global model's.
      is_difference: whether `pushed` holds a difference of the trained parameters (see
        `deltas`), whose own norm is the distance then.
    """
    return _distance(pushed, model) if not is_difference else _length(pushed, model)


@jax.jit
def _distance(pushed: Params, model: Params) -> jax.Array:
    return size_of(_apart(pushed, model))


@jax.jit
def _length(pushed: Params, model: Params) -> jax.Array:
    return size_of(with_trained(_apart(pushed, model), trained(pushed)))


def _apart(pushed: Params, model: Params) -> Params:
    return jax.tree.map(
        lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), pushed, model
    )


def norm_limit(accepted: Sequence[float], size: float, factor: float) -> float:
    """The largest allowed distance of the next update from the newest global model.

    Not from the update's base, which is its worker's claim. The first few updates are
    compared with the global model's own norm instead of a median, which the first one
    would set otherwise. A model of zeros sets no limit.

    Args:
      accepted: distances of the updates accepted last.
      size: norm of the global model.
      factor: >= 1.

    >>> norm_limit([], size=3.0, factor=10.0)
    30.0
    >>> norm_limit([1.0, 2.0, 2.5, 2.0, 1.5], size=3.0, factor=10.0)
    20.0
    """
    usual = median(accepted) if len(accepted) >= _ENOUGH else size
    return factor * usual if usual > 0 else math.inf
