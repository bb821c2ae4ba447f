"""FADAS: an adaptive step along the buffered mean difference (Wang et al., 2024)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from asyn2f.kernels.deltas import (
    difference,
    mean_change,
    moved,
    trained,
    with_trained,
)
from asyn2f.kernels.staleness import versions_behind
from asyn2f.strategies._fedbuff import BUFFERED
from asyn2f.strategies.base import (
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
    """What the step is made of; pytrees of f32 like what is trained."""

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

    eta is `server_rate`, and no more than the inverse of the buffer's largest staleness
    where that is above `delay` (Algorithm 1 of arXiv 2407.18365). This is AMSGrad
    without bias correction, as in the paper; its authors' code corrects: with
    `bias_correction`, m / (1 - beta1^t) and v_max / (1 - beta2^t) stand in the step of
    version t. M = `timing.min_updates`.

    Args:
      server_rate: > 0.
      beta1, beta2: in [0, 1].
      epsilon: > 0.
      delay: tau_c >= 0.
      late: what eta is above `delay`: the "minimum" of `server_rate` and the inverse of
        the largest staleness, or `server_rate` "divided" by that.
      bias_correction: see above; needs beta1 and beta2 below 1.

    Raises:
      ValueError: a number out of range.

    >>> fadas().timing.pending
    'all'
    """
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

    def init(params: Params, workers: int) -> ServerState:
        def zeros():
            return jax.tree.map(
                lambda x: jnp.zeros(x.shape, jnp.float32), trained(params)
            )

        memory = Moments(zeros(), zeros(), zeros())
        return initial_state(params, workers)._replace(memory=memory)

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        ones = jnp.ones(mask.shape, jnp.float32)
        change = mean_change(updates.params, ones, mask)
        mean, before = trained(change), state.memory
        memory = Moments(
            first=_decayed(before.first, mean, beta1),
            second=_decayed(before.second, jax.tree.map(jnp.square, mean), beta2),
            largest=before.largest,
        )
        largest = jax.tree.map(jnp.maximum, memory.largest, memory.second)
        first, second = memory.first, largest
        if bias_correction:
            version = state.model.version.astype(jnp.float32) + 1.0
            first = jax.tree.map(lambda m: m / (1.0 - beta1**version), first)
            second = jax.tree.map(lambda v: v / (1.0 - beta2**version), second)
        step = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), first, second)
        tau = versions_behind(state.model.version, updates.info.start_version)
        slowest = jnp.max(jnp.where(mask, tau, 0)).astype(jnp.float32)
        least = jnp.maximum(slowest, 1.0)
        if late == "divided":
            late_rate = server_rate / least
        else:
            late_rate = jnp.minimum(server_rate, 1.0 / least)
        rate = jnp.where(slowest > delay, late_rate, server_rate)
        params = moved(state.model.params, with_trained(change, step), rate)
        memory = memory._replace(largest=largest)
        return advanced(state, params, updates, mask, shares_of(ones, mask), memory)

    return Strategy(
        name="fadas",
        init=init,
        aggregate=aggregate,
        timing=BUFFERED,
        push=difference,
    )


def _decayed(average: Params, value: Params, decay: float) -> Params:
    return jax.tree.map(lambda a, x: decay * a + (1.0 - decay) * x, average, value)
