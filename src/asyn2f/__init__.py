"""Asynchronous federated learning with bidirectional aggregation, in JAX.

For research in a notebook: the kernels on any pytree, the strategies, the records they
are made of, and whole runs under a virtual clock. Programs that train are under
`launch/`; see the README.
"""

from typing import TYPE_CHECKING, Any

from asyn2f.aggregation import coefficients, weighted_sum
from asyn2f.merging import directional_merge, linear_merge, local_share
from asyn2f.strategies import (
    Strategy,
    asafl,
    asyn2f,
    ca2fl,
    fadas,
    fedasmu,
    fedasync,
    fedavg,
    fedbuff,
    fedprox,
    kafl,
)
from asyn2f.tasks.base import Task
from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, ServerState, WorkerUpdate

if TYPE_CHECKING:
    from asyn2f.simulation import Simulation, replay, simulate

__version__ = "0.1.0"

__all__ = [
    "GlobalModel",
    "ServerState",
    "Simulation",
    "Strategy",
    "Task",
    "Timing",
    "WorkerUpdate",
    "asafl",
    "asyn2f",
    "ca2fl",
    "coefficients",
    "directional_merge",
    "fadas",
    "fedasmu",
    "fedasync",
    "fedavg",
    "fedbuff",
    "fedprox",
    "kafl",
    "linear_merge",
    "local_share",
    "replay",
    "simulate",
    "weighted_sum",
]


def __getattr__(name: str) -> Any:
    """What needs all of the package is imported when it is asked for."""
    if name in ("Simulation", "replay", "simulate"):
        from asyn2f import simulation

        return getattr(simulation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
