"""Asynchronous federated learning with bidirectional aggregation, in JAX.

For research in a notebook: the kernels on any pytree, the strategies, and the records
they are made of. Programs that train are under `launch/`; see the README.
"""

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

__version__ = "0.1.0"

__all__ = [
    "GlobalModel",
    "ServerState",
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
    "weighted_sum",
]
