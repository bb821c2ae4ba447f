"""FedBuff: a buffer of differences (Nguyen et al., arXiv 2106.06639)."""

import jax

from asyn2f.deltas import difference, mean_change, moved
from asyn2f.staleness import Discount, discount, versions_behind
from asyn2f.strategies.base import (
    Strategy,
    advanced,
    check_range,
    initial_state,
    shares_of,
)
from asyn2f.timing import Timing
from asyn2f.types import ServerState, WorkerUpdate


def fedbuff(
    *,
    server_rate: float = 1.0,
    staleness: Discount = "polynomial",
    power: float = 0.5,
    hinge_slope: float = 10.0,
    hinge_after: float = 4.0,
) -> Strategy:
    """The FedBuff strategy.

        W_{t+1} = W_t + eta_g (1 / K) sum_k s(tau_k) Delta_k,    tau_k = t - o_k

    (Nguyen et al., Algorithm 1 and section 5.1, where s(tau) = 1 / sqrt(1 + tau)).
    Delta_k = W_k - W_{o_k} is what workers push. K = `timing.min_updates`, usually 10;
    a worker may stand in the buffer twice. Having pushed, it starts anew from the
    newest version at hand. Statistics are averaged, see `deltas`.

    Args:
      server_rate: eta_g > 0.
      staleness: s, see `staleness.discount`.
      power: of "polynomial".
      hinge_slope: of "hinge".
      hinge_after: of "hinge".

    Raises:
      ValueError: a number out of range, an unknown discount.

    >>> fedbuff().timing.min_updates
    10
    """
    check_range("server_rate", server_rate, 0.0, open_low=True)
    weigh = discount(
        staleness,
        power=power,
        hinge_slope=hinge_slope,
        hinge_after=hinge_after,
    )

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        weights = weigh(versions_behind(state.model.version, updates.start_version))
        change = mean_change(updates.params, weights, mask)
        params = moved(state.model.params, change, server_rate)
        return advanced(state, params, updates, mask, shares_of(weights, mask))

    return Strategy(
        name="fedbuff",
        init=initial_state,
        aggregate=aggregate,
        timing=BUFFERED,
        push=difference,
    )


BUFFERED = Timing(
    while_training="ignore",
    after_push="adopt",
    quorum="some",
    pending="all",
    min_updates=10,
)
