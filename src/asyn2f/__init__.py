"""Asynchronous federated learning with bidirectional aggregation, in JAX.

For research in a notebook: the kernels on any pytree, the strategies, the records they
are made of, and whole runs under a virtual clock. The programs that train are the
subcommands of `asyn2f`; see the README.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyn2f.api import Simulation as Simulation
    from asyn2f.api import replay as replay
    from asyn2f.api import simulate as simulate
    from asyn2f.config.default import default_config as default_config
    from asyn2f.config.default import load_config as load_config
    from asyn2f.kernels.aggregation import coefficients as coefficients
    from asyn2f.kernels.aggregation import weighted_sum as weighted_sum
    from asyn2f.kernels.merging import directional_merge as directional_merge
    from asyn2f.kernels.merging import linear_merge as linear_merge
    from asyn2f.kernels.merging import local_share as local_share
    from asyn2f.strategies import Strategy as Strategy
    from asyn2f.strategies import asafl as asafl
    from asyn2f.strategies import asyn2f as asyn2f
    from asyn2f.strategies import ca2fl as ca2fl
    from asyn2f.strategies import fadas as fadas
    from asyn2f.strategies import fedasmu as fedasmu
    from asyn2f.strategies import fedasync as fedasync
    from asyn2f.strategies import fedavg as fedavg
    from asyn2f.strategies import fedbuff as fedbuff
    from asyn2f.strategies import fedprox as fedprox
    from asyn2f.strategies import kafl as kafl
    from asyn2f.tasks.base import Task as Task
    from asyn2f.timing import Timing as Timing
    from asyn2f.types import GlobalModel as GlobalModel
    from asyn2f.types import ServerState as ServerState
    from asyn2f.types import UpdateInfo as UpdateInfo
    from asyn2f.types import WorkerUpdate as WorkerUpdate

__version__ = "0.2.0"

# Imported on first use: `import asyn2f` takes milliseconds, and JAX is loaded later.
_HOMES = {
    "Simulation": "asyn2f.api",
    "replay": "asyn2f.api",
    "simulate": "asyn2f.api",
    "default_config": "asyn2f.config.default",
    "load_config": "asyn2f.config.default",
    "coefficients": "asyn2f.kernels.aggregation",
    "weighted_sum": "asyn2f.kernels.aggregation",
    "directional_merge": "asyn2f.kernels.merging",
    "linear_merge": "asyn2f.kernels.merging",
    "local_share": "asyn2f.kernels.merging",
    "Strategy": "asyn2f.strategies",
    "asafl": "asyn2f.strategies",
    "asyn2f": "asyn2f.strategies",
    "ca2fl": "asyn2f.strategies",
    "fadas": "asyn2f.strategies",
    "fedasmu": "asyn2f.strategies",
    "fedasync": "asyn2f.strategies",
    "fedavg": "asyn2f.strategies",
    "fedbuff": "asyn2f.strategies",
    "fedprox": "asyn2f.strategies",
    "kafl": "asyn2f.strategies",
    "Task": "asyn2f.tasks.base",
    "Timing": "asyn2f.timing",
    "GlobalModel": "asyn2f.types",
    "ServerState": "asyn2f.types",
    "UpdateInfo": "asyn2f.types",
    "WorkerUpdate": "asyn2f.types",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
