"""FedAsync: each update is mixed in on arrival (Xie et al., arXiv 1903.03934)."""

import jax

from asyn2f.kernels.staleness import Discount, discount, versions_behind
from asyn2f.strategies.base import (
    Strategy,
    check_range,
    initial_state,
    mixed_one_by_one,
)
from asyn2f.timing import Timing
from asyn2f.types import ServerState, WorkerUpdate


def fedasync(
    *,
    mixing: float = 0.6,
    staleness: Discount = "polynomial",
    power: float = 0.5,
    hinge_slope: float = 10.0,
    hinge_after: float = 4.0,
    proximal: float = 0.005,
) -> Strategy:
    """The FedAsync strategy.

        W_{t+1} = (1 - a_t) W_t + a_t W_k,    a_t = a s(tau),    tau = t - o_k

    (Xie et al., Algorithm 1), with s as in `staleness.discount`. A worker's loss has
    the term `(rho / 2) ||w - W_o||^2`; after a push it waits for a newer version.

    Args:
      mixing: a, in (0, 1]; the paper tries 0.6 and 0.9.
      staleness: s.
      power: of "polynomial"; the paper's a = 0.5.
      hinge_slope: of "hinge"; the paper's a = 10.
      hinge_after: of "hinge"; the paper's b = 4.
      proximal: rho >= 0; the paper's 0.005.

    Raises:
      ValueError: a number out of range, an unknown discount.

    >>> fedasync().timing.quorum
    'each'
    """
    check_range("mixing", mixing, 0.0, 1.0, open_low=True)
    check_range("proximal", proximal, 0.0)
    weigh = discount(staleness, power, hinge_slope, hinge_after)

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        tau = versions_behind(state.model.version, updates.info.start_version)
        return mixed_one_by_one(state, updates, mask, mixing * weigh(tau))

    return Strategy(
        name="fedasync",
        init=initial_state,
        aggregate=aggregate,
        uses=frozenset(),
        timing=Timing(while_training="ignore", after_push="wait", quorum="each"),
        proximal=proximal,
    )
