"""Asynchronous federated learning with bidirectional aggregation, in JAX.

>>> import asyn2f
>>> run = asyn2f.simulate(asyn2f.default_config(stop__max_versions=3))
>>> [row["version"] for row in run.history()]
[0, 1, 2, 3]

Whole runs under a virtual clock (`simulate`, `replay`, `verify`), the strategies, the
kernels on any pytree, and the records they are made of. Runs of real processes are the
subcommands of the command `asyn2f`; see the README.
"""

import importlib
from typing import TYPE_CHECKING, Any

from asyn2f.errors import AddressError as AddressError
from asyn2f.errors import Asyn2fError as Asyn2fError
from asyn2f.errors import ConfigError as ConfigError
from asyn2f.errors import ContractError as ContractError
from asyn2f.errors import DataError as DataError
from asyn2f.errors import DescriptorError as DescriptorError
from asyn2f.errors import DeviceError as DeviceError
from asyn2f.errors import ExecutionError as ExecutionError
from asyn2f.errors import FencedError as FencedError
from asyn2f.errors import IncompleteTraceError as IncompleteTraceError
from asyn2f.errors import KeysError as KeysError
from asyn2f.errors import OptimizerError as OptimizerError
from asyn2f.errors import OrderError as OrderError
from asyn2f.errors import OutputError as OutputError
from asyn2f.errors import PlanError as PlanError
from asyn2f.errors import RunDirError as RunDirError
from asyn2f.errors import ShareError as ShareError
from asyn2f.errors import StoreError as StoreError
from asyn2f.errors import TaskError as TaskError
from asyn2f.errors import TooLargeError as TooLargeError
from asyn2f.errors import TraceFormatError as TraceFormatError
from asyn2f.errors import WireError as WireError
from asyn2f.errors import WriteAheadError as WriteAheadError

if TYPE_CHECKING:
    from asyn2f.api import Simulation as Simulation
    from asyn2f.api import config_of as config_of
    from asyn2f.api import load_params as load_params
    from asyn2f.api import replay as replay
    from asyn2f.api import simulate as simulate
    from asyn2f.api import verify as verify
    from asyn2f.config.default import default_config as default_config
    from asyn2f.config.default import load_config as load_config
    from asyn2f.kernels.aggregation import coefficients as coefficients
    from asyn2f.kernels.aggregation import weighted_sum as weighted_sum
    from asyn2f.kernels.codecs import Coding as Coding
    from asyn2f.kernels.guards import Guards as Guards
    from asyn2f.kernels.merging import directional_merge as directional_merge
    from asyn2f.kernels.merging import linear_merge as linear_merge
    from asyn2f.kernels.merging import local_share as local_share
    from asyn2f.settings import Range as Range
    from asyn2f.sim.profiles import Profiles as Profiles
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
    from asyn2f.strategies import with_server_optimizer as with_server_optimizer
    from asyn2f.tasks import partition as partition
    from asyn2f.tasks.base import Aux as Aux
    from asyn2f.tasks.base import Evaluation as Evaluation
    from asyn2f.tasks.base import Task as Task
    from asyn2f.tasks.base import mean_evaluation as mean_evaluation
    from asyn2f.tasks.classification import (
        make_classification_task as make_classification_task,
    )
    from asyn2f.tasks.data import Dataset as Dataset
    from asyn2f.tasks.supervised import supervised as supervised
    from asyn2f.timing import Stop as Stop
    from asyn2f.timing import Timing as Timing
    from asyn2f.trace.causality import CausalityError as CausalityError
    from asyn2f.training.experiment import Experiment as Experiment
    from asyn2f.training.experiment import make_experiment as make_experiment
    from asyn2f.training.settings import Training as Training
    from asyn2f.types import Best as Best
    from asyn2f.types import GlobalModel as GlobalModel
    from asyn2f.types import Metric as Metric
    from asyn2f.types import ServerState as ServerState
    from asyn2f.types import UpdateInfo as UpdateInfo
    from asyn2f.types import WorkerUpdate as WorkerUpdate

__version__ = "0.2.0"

# Imported on first use: `import asyn2f` takes milliseconds, and JAX is loaded later.
_HOMES = {
    "Simulation": "asyn2f.api",
    "replay": "asyn2f.api",
    "simulate": "asyn2f.api",
    "config_of": "asyn2f.api",
    "load_params": "asyn2f.api",
    "default_config": "asyn2f.config.default",
    "load_config": "asyn2f.config.default",
    "verify": "asyn2f.api",
    "coefficients": "asyn2f.kernels.aggregation",
    "weighted_sum": "asyn2f.kernels.aggregation",
    "Coding": "asyn2f.kernels.codecs",
    "Guards": "asyn2f.kernels.guards",
    "directional_merge": "asyn2f.kernels.merging",
    "linear_merge": "asyn2f.kernels.merging",
    "local_share": "asyn2f.kernels.merging",
    "Profiles": "asyn2f.sim.profiles",
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
    "with_server_optimizer": "asyn2f.strategies",
    "partition": "asyn2f.tasks",
    "Aux": "asyn2f.tasks.base",
    "Evaluation": "asyn2f.tasks.base",
    "Range": "asyn2f.settings",
    "Task": "asyn2f.tasks.base",
    "mean_evaluation": "asyn2f.tasks.base",
    "make_classification_task": "asyn2f.tasks.classification",
    "Dataset": "asyn2f.tasks.data",
    "supervised": "asyn2f.tasks.supervised",
    "Stop": "asyn2f.timing",
    "Timing": "asyn2f.timing",
    "CausalityError": "asyn2f.trace.causality",
    "Experiment": "asyn2f.training.experiment",
    "make_experiment": "asyn2f.training.experiment",
    "Training": "asyn2f.training.settings",
    "Best": "asyn2f.types",
    "GlobalModel": "asyn2f.types",
    "Metric": "asyn2f.types",
    "ServerState": "asyn2f.types",
    "UpdateInfo": "asyn2f.types",
    "WorkerUpdate": "asyn2f.types",
}
_ERRORS = sorted(name for name in globals() if name.endswith("Error"))
__all__ = sorted([*_HOMES, *_ERRORS])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    if not hasattr(home, name):
        return importlib.import_module(f"{_HOMES[name]}.{name}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
