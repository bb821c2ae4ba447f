"""The kernels: merging a model in, and aggregating updates, against memory's speed.

The floor is what has to be read and written, at the best speed at which two threads
copy in the same run. The other yardstick is the obvious way in numpy: a list of
arrays, one after the other, with temporaries.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.aggregation import weighted_sum
from asyn2f.merging import directional_merge
from asyn2f.strategies.fedasync import fedasync
from asyn2f.tasks.models import build_model
from asyn2f.types import Params, WorkerUpdate
from tests.bench.figures import Figure, compared, in_turns

ROUNDS = 15
K = 10
SMALL = [(64, 32), (32,), (32, 10), (10,)]  # the digits MLP: 2,410 parameters
HALF = jnp.float32(0.5)
