"""FedBuff: a buffer of differences (Nguyen et al., arXiv 2106.06639).

Under this name, public libraries compute different things: see `VARIANTS`.
"""

from typing import Any, Literal

import jax

from asyn2f.kernels.deltas import difference, mean_change, moved
from asyn2f.kernels.staleness import Discount, discount, versions_behind
from asyn2f.strategies.base import (
    BUFFERED,
    Strategy,
    advanced,
    check_choice,
    check_range,
    count_of,
    initial_state,
    push_params,
    shares_of,
)
from asyn2f.types import ServerState, WorkerUpdate

Divisor = Literal["count", "weights", "one"]
Origin = Literal["start", "current"]
Variant = Literal[
    "paper", "flsim", "appfl", "nvflare", "federatedscope", "fedscale", "plato"
]

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "flsim": {"divisor": "one"},
    "appfl": {"divisor": "one"},
    "nvflare": {"staleness": "one_plus_power"},
    "federatedscope": {"power": 1.0, "by_examples": True},
    "fedscale": {"divisor": "weights"},
    "plato": {"staleness": "constant", "origin": "current"},
}
"""What libraries call FedBuff, as arguments of `fedbuff` that differ from the paper.

Three updates of size 1, stale by 0, 1 and 4, equal examples, eta_g = 1 move the server

    variant          as that library has it                         by
    paper            (1 / K) sum s Delta                            0.718
    flsim, appfl     sum s Delta, undivided                         2.154
    nvflare          (1 / K) sum Delta / (1 + sqrt(1 + tau))        0.408
    federatedscope   sum (n_k / sum n) Delta / (1 + tau)            0.567
    fedscale         sum s Delta / sum s                            1.0
    plato            (1 / K) sum (W_k - W_t), no s                  1.0

read in FLSim 7311f2d, APPFL 100d7f2, NVFlare f3b7c1b (2.9.0dev0; until 2.8 it averaged
within each staleness and summed those), FederatedScope 480b67d, FedScale of mid-2022
and Plato 60d6779, with staleness weighting on and its usual exponent. Their server
rates differ: FLSim 0.001, APPFL 0.9, NVFlare 0.01 or 1; set `server_rate` for those.
"""


def fedbuff(
    *,
    server_rate: float = 1.0,
    staleness: Discount = "polynomial",
    power: float = 0.5,
    hinge_slope: float = 10.0,
    hinge_after: float = 4.0,
    divisor: Divisor = "count",
    origin: Origin = "start",
    by_examples: bool = False,
    variant: Variant = "paper",
) -> Strategy:
    """The FedBuff strategy.

        W_{t+1} = W_t + eta_g (1 / K) sum_k s(tau_k) Delta_k,    tau_k = t - o_k

    (Nguyen et al., Algorithm 1), K = `timing.min_updates`. Workers push Delta_k = W_k -
    W_{o_k} and then adopt the newest version; see `deltas`.

    Args:
      server_rate: eta_g > 0.
      staleness: s, see `staleness.discount`.
      power, hinge_slope, hinge_after: of s.
      divisor: of the sum: the "count" K, the sum of the "weights", or "one".
      origin: whether Delta_k is taken from the version that the worker "start"ed from,
        or from the server's "current" one; workers then push W_k.
      by_examples: whether s is multiplied by n_k / mean(n).
      variant: any but "paper" sets the arguments listed in `VARIANTS`.

    Raises:
      ValueError: a number out of range, an unknown choice.

    >>> assert fedbuff().timing.min_updates == 10
    """
    check_choice("variant", variant, Variant)
    chosen = VARIANTS[variant]
    divisor, origin = chosen.get("divisor", divisor), chosen.get("origin", origin)
    by_examples = chosen.get("by_examples", by_examples)
    check_range("server_rate", server_rate, 0.0, open_low=True)
    check_choice("divisor", divisor, Divisor)
    check_choice("origin", origin, Origin)
    kind, power = chosen.get("staleness", staleness), chosen.get("power", power)
    weigh = discount(kind, power, hinge_slope, hinge_after)

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        model, count = state.model, count_of(mask)
        weights = weigh(versions_behind(model.version, updates.info.start_version))
        if by_examples:
            weights = weights * shares_of(updates.info.num_examples, mask) * count
        shares = shares_of(weights, mask)
        if divisor != "count":
            weights = (shares if divisor == "weights" else weights) * count
        pushed = updates.params
        if origin == "current":
            pushed = jax.vmap(difference, in_axes=(0, None))(pushed, model.params)
        change = mean_change(pushed, weights, mask)
        params = moved(model.params, change, server_rate)
        return advanced(state, params, updates, mask, shares)

    push = difference if origin == "start" else push_params
    uses = frozenset({"size"} if by_examples else ())
    return Strategy("fedbuff", initial_state, aggregate, BUFFERED, push=push, uses=uses)
