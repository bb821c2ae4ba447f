"""The records of one call: the state between calls, the part of a plan that a call
executes, and the numbers that it returns."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from asyn2f.sim.executors.packing import Packed
from asyn2f.types import ServerState

AXIS = "devices"
# What the lanes of a wave take in: `switch` under `vmap` computes every branch, so that
# waves with fewer branches are cheaper.
NOTHING, MERGES, ANY = 0, 1, 2


Array = jax.Array | np.ndarray


class Limits(NamedTuple):
    """The shape of one call: at most ..."""

    waves: int = 256
    ticks: int = 512  # local steps of a lane
    versions: int = 256


class Carry(NamedTuple):
    """The state on the devices between calls."""

    # Each has a spare row for idle lanes, and updates one more, of zeros.
    workers: Packed  # [D * (rows + 1), n] WorkerState, split over devices
    updates: Packed  # [D * (slots + 2), n] WorkerUpdate, split over devices
    versions: Packed  # [slots + 1, n] GlobalModel, everywhere
    server: ServerState  # everywhere


class Own(NamedTuple):
    """What workers start with."""

    worker: Array  # i32
    step: Array  # i32: local steps done before
    num_examples: Array  # i32
    quality: Array  # f32


class Waves(NamedTuple):
    """One call's part of the plan, padded to `Limits`; D devices, L lanes."""

    num_waves: Array  # i32 []: real waves
    steps: Array  # i32 [waves]
    tick: Array  # i32 [waves]: where the wave's batches begin in `batches`
    takes: Array  # i32 [waves]: NOTHING, MERGES or ANY
    row: Array  # i32 [waves, D, L]; the last row = idle
    own: Own  # [waves, D, L]
    take: Array  # i32 [waves, D, L]
    slot: Array  # i32 [waves, D, L]
    pushes: Array  # bool [waves, D, L]: a cycle ends
    push_slot: Array  # i32 [waves, D, L]; the last but one = nowhere
    batches: Array  # i32 [ticks, D, L, B]: rows of the training set
    made: Array  # i32 [waves + 1]: where each wave's versions begin
    made_slot: Array  # i32 [versions]; the last = unused
    member: Array  # bool [versions, K]
    member_slot: Array  # i32 [versions, D, K]; the last, zero = on another device


class Notes(NamedTuple):
    """The numbers that a call returns."""

    loss: jax.Array  # f32 [waves, D, L]: of the epoch, after the lane's steps
    metric: jax.Array  # f32 [waves, D, L]
    share: jax.Array  # f32 [waves, D, L]
    coefficients: jax.Array  # f32 [versions, K]
    staleness: jax.Array  # i32 [versions, K]
    model_loss: jax.Array  # f32 [versions]
    learning_rate: jax.Array  # f32 [versions]
    finite: jax.Array  # bool [versions]


# The axis along which each is split over the devices.
_ALL: Any = P()
_SPLIT: Any = P(AXIS)
_SPLIT_SECOND: Any = P(None, AXIS)
CARRY_SPECS: Any = Carry(workers=_SPLIT, updates=_SPLIT, versions=_ALL, server=_ALL)
_REPLICATED = ("num_waves", "steps", "tick", "takes", "made", "made_slot", "member")
WAVE_SPECS: Any = Waves(
    *[_ALL if name in _REPLICATED else _SPLIT_SECOND for name in Waves._fields]
)._replace(own=Own(*[_SPLIT_SECOND] * 4))
NOTE_SPECS: Any = Notes(*[_SPLIT_SECOND] * 3, *[_ALL] * 5)
