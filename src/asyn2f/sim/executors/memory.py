"""The memory that an execution in lanes needs on each device."""

from typing import NamedTuple

import jax
import psutil

from asyn2f.errors import TooLargeError
from asyn2f.sim.executors.calls import Limits
from asyn2f.sim.executors.packing import packings
from asyn2f.sim.executors.plan import Plan
from asyn2f.training.experiment import Experiment


class Need(NamedTuple):
    """Bytes on one device."""

    workers: int  # states
    updates: int  # pending
    versions: int
    lanes: int  # copied by a wave: states, gradients, aggregated updates
    data: int


def need_of(experiment: Experiment, planned: Plan, limits: Limits) -> Need:
    """The memory of a plan on each device, without a network's residuals for its
    backward pass."""
    state, update, model = (
        packing.num_bytes for packing in packings(experiment.computation)
    )
    *_, lanes = planned.row.shape
    batches = 4 * limits.ticks * lanes * experiment.training.batch_size
    return Need(
        workers=(planned.rows + 1) * state,
        updates=(planned.update_slots + 2) * update,
        versions=(planned.version_slots + 3) * model,
        lanes=lanes * (2 * state + 2 * update) + planned.max_members * update,
        data=sum(a.nbytes for a in experiment.task.train.values()) + batches,
    )


def free_bytes() -> int | None:
    """The free memory of one of JAX's devices; None if unknown."""
    device = jax.devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if device.platform == "cpu":
        return psutil.virtual_memory().available // len(jax.devices())
    return None


def check_fits(need: Need, free: int | None) -> None:
    """Raises TooLargeError unless this fits; None = unknown.

    >>> check_fits(Need(10, 20, 30, 40, 50), free=200)
    """
    total = sum(need)
    if free is None or total <= 0.9 * free:
        return
    parts = ", ".join(
        f"{name} {value / 2**20:,.0f} MiB" for name, value in need._asdict().items()
    )
    raise TooLargeError(
        f"the execution needs {total / 2**20:,.0f} MiB on each device ({parts}), but "
        f"{free / 2**20:,.0f} MiB are free: take fewer lanes (--config.sim.lanes), "
        "more devices (--config.sim.executor=sharded) or fewer workers"
    )
