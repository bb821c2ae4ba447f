"""The staleness of updates, and discounts of their weight by it."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

Discount = Literal["constant", "polynomial", "hinge", "one_plus_power"]


def versions_behind(version: jax.Array, since: jax.Array) -> jax.Array:
    """The staleness of updates with respect to `version`, >= 0.

    Args:
      version: i32 [], the server's before the aggregation.
      since: i32 [K]: `updates.info.base_version` or `updates.info.start_version`.

    Returns:
      i32 [K].
    """
    return jnp.maximum(version - since, 0)


def discount(
    kind: Discount,
    power: float = 0.5,
    hinge_slope: float = 10.0,
    hinge_after: float = 4.0,
) -> Callable[[jax.Array], jax.Array]:
    """The weight of an update of staleness tau, relative to a fresh one.

        constant:    1
        polynomial:  (1 + tau)^-p
        hinge:       1 where tau <= b, 1 / (q (tau - b) + 1) beyond
        one_plus_power:  1 / (1 + (1 + tau)^p)

    The first three are those of Xie et al., arXiv 1903.03934, section 5.2, with p, q, b
    for their a, a, b. NVFlare has the last one instead of the second.

    Args:
      kind: which of them.
      power: p >= 0.
      hinge_slope: q > 0.
      hinge_after: b >= 0.

    Returns:
      A function from i32 or f32 [K], >= 0, to f32 [K] in (0, 1].

    Raises:
      ValueError: an unknown kind, or a number out of range.

    >>> print(discount("polynomial")(jnp.array([0, 1, 3])).round(3))
    [1.    0.707 0.5  ]
    >>> print(discount("hinge", hinge_slope=2.0)(jnp.array([4, 5, 6])).round(3))
    [1.    0.333 0.2  ]
    """
    if kind not in get_args(Discount):
        raise ValueError(
            f"staleness: found {kind!r}, allowed {list(get_args(Discount))}"
        )
    if power < 0:
        raise ValueError(f"power: found {power}, allowed at least 0")
    if hinge_slope <= 0:
        raise ValueError(f"hinge_slope: found {hinge_slope}, allowed above 0")
    if hinge_after < 0:
        raise ValueError(f"hinge_after: found {hinge_after}, allowed at least 0")

    def weigh(tau: jax.Array) -> jax.Array:
        tau = jnp.asarray(tau, jnp.float32)
        if kind == "constant":
            return jnp.ones_like(tau)
        if kind == "polynomial":
            return (1.0 + tau) ** -power
        if kind == "one_plus_power":
            return 1.0 / (1.0 + (1.0 + tau) ** power)
        return 1.0 / (hinge_slope * jnp.maximum(tau - hinge_after, 0.0) + 1.0)

    return weigh
