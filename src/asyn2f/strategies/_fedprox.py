"""FedProx: FedAvg with a proximal term in the workers' loss (Li et al., 2020)."""

from asyn2f.strategies._fedavg import fedavg
from asyn2f.strategies.base import Strategy, check_range


def fedprox(*, mu: float = 0.01) -> Strategy:
    """The FedProx strategy.

        h_k(w) = F_k(w) + (mu / 2) ||w - W_t||^2     (Li et al., arXiv 1812.06127, (2))

    W_t is the version the cycle started from; the norm is over trained parameters.
    Rounds and aggregation are FedAvg's; the reported loss is without the term. The
    paper also gives stragglers fewer epochs; here `timing.deadline_s` leaves them out.

    Args:
      mu: weight of the term, >= 0; the paper tries 0.001, 0.01, 0.1 and 1.

    Raises:
      ValueError: mu is negative.

    >>> fedprox(mu=0.1).proximal
    0.1
    """
    check_range("mu", mu, 0.0)
    return fedavg()._replace(name="fedprox", proximal=mu)
