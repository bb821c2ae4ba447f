"""FADAS: an adaptive step along the buffered mean difference (Wang et al., 2024)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyn2f.kernels.deltas import difference, mean_change
from asyn2f.kernels.staleness import versions_behind
from asyn2f.strategies._server_optimizer import init_optimizer, moved_by
from asyn2f.strategies.base import (
    BUFFERED,
    Strategy,
    advanced,
    check_choice,
    check_range,
    initial_state,
    shares_of,
)
from asyn2f.types import Params, ServerState, WorkerUpdate

LateRate = Literal["minimum", "divided"]


class Moments(NamedTuple):
    """The server's moments; pytrees of f32 like the trained parameters."""

    first: Params  # m
    second: Params  # v
    largest: Params  # v_max


def fadas(
    *,
    server_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    epsilon: float = 1e-8,
    delay: float = 1.0,
    late: LateRate = "minimum",
    bias_correction: bool = False,
) -> Strategy:
    """The FADAS strategy, with its delay-adaptive rate (Wang et al., 2024).

        D = (1 / M) sum_k Delta_k
        m <- beta1 m + (1 - beta1) D,    v <- beta2 v + (1 - beta2) D^2
        v_max <- max(v_max, v),          W <- W + eta m / (sqrt(v_max) + epsilon)

    eta is `server_rate`, and at most the inverse of the largest staleness where that is
    above `delay` (Algorithm 1 of arXiv 2407.18365). M = `timing.min_updates`.

    Args:
      server_rate: > 0.
      beta1, beta2: in [0, 1].
      epsilon: > 0.
      delay: tau_c >= 0.
      late: eta above `delay`: the "minimum" of `server_rate` and the inverse of the
        largest staleness, or `server_rate` "divided" by that.
      bias_correction: whether the step of version t has m / (1 - beta1^t) and
        v_max / (1 - beta2^t), as in the authors' code and not in the paper.

    Raises:
      ValueError: a number out of range.

    >>> assert fadas().timing.pending == "all"
    """
    _check(server_rate, beta1, beta2, epsilon, delay, late, bias_correction)
    optimizer = _amsgrad(beta1, beta2, epsilon, bias_correction)

    def init(params: Params, workers: int) -> ServerState:
        memory = init_optimizer(optimizer, params)
        return initial_state(params, workers)._replace(memory=memory)

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        model, ones = state.model, jnp.ones(mask.shape, jnp.float32)
        change = mean_change(updates.params, ones, mask)
        tau = versions_behind(model.version, updates.info.start_version)
        slowest = jnp.max(jnp.where(mask, tau, 0)).astype(jnp.float32)
        params, memory = moved_by(
            optimizer,
            model.params,
            change,
            state.memory,
            rate=_delayed(server_rate, slowest, delay, late),
            version=model.version.astype(jnp.float32) + 1.0,
        )
        return advanced(state, params, updates, mask, shares_of(ones, mask), memory)

    return Strategy(
        "fadas", init, aggregate, BUFFERED, push=difference, uses=frozenset()
    )


def _check(
    server_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    delay: float,
    late: LateRate,
    bias_correction: bool,
) -> None:
    """Raises ValueError if a number is out of range."""
    check_range("server_rate", server_rate, 0.0, open_low=True)
    check_range("beta1", beta1, 0.0, 1.0)
    check_range("beta2", beta2, 0.0, 1.0)
    check_range("epsilon", epsilon, 0.0, open_low=True)
    check_range("delay", delay, 0.0)
    check_choice("late", late, LateRate)
    if bias_correction and max(beta1, beta2) == 1.0:
        raise ValueError(
            f"bias_correction: found beta1 = {beta1:g} and beta2 = {beta2:g}, allowed: "
            "below 1, as it divides by 1 - beta^t"
        )


def _amsgrad(
    beta1: float, beta2: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad with the rate and the number of the step as extra arguments; that of
    optax corrects the second moment before it takes the largest."""

    def init(params: Params) -> Moments:
        return Moments(*[jax.tree.map(jnp.zeros_like, params) for _ in range(3)])

    def update(gradient, moments, params=None, *, rate, version, **extra):
        mean = jax.tree.map(jnp.negative, gradient)
        memory = _next_moments(moments, mean, beta1, beta2)
        first, second = memory.first, memory.largest
        if bias_correction:
            first = jax.tree.map(lambda m: m / (1.0 - beta1**version), first)
            second = jax.tree.map(lambda v: v / (1.0 - beta2**version), second)
        step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), first, second)
        return jax.tree.map(lambda x: rate * x, step), memory

    return optax.GradientTransformationExtraArgs(init, update)


def _next_moments(before: Moments, mean: Params, beta1: float, beta2: float) -> Moments:
    first = _decayed(before.first, mean, beta1)
    second = _decayed(before.second, jax.tree.map(jnp.square, mean), beta2)
    largest = jax.tree.map(jnp.maximum, before.largest, second)
    return Moments(first, second, largest)


def _delayed(
    rate: float, slowest: jax.Array, delay: float, late: LateRate
) -> jax.Array:
    """The delay-adaptive rate eta, f32 []; `slowest` is the largest staleness."""
    least = jnp.maximum(slowest, 1.0)
    lower = rate / least if late == "divided" else jnp.minimum(rate, 1.0 / least)
    return jnp.where(slowest > delay, lower, rate)


def _decayed(average: Params, value: Params, decay: float) -> Params:
    return jax.tree.map(lambda a, x: decay * a + (1.0 - decay) * x, average, value)
