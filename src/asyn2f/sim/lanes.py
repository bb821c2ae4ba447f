"""Executing a plan: waves of lanes, in one jitted call for hundreds of waves.

Everything that is decided has been decided on the host; the device runs loops of known
shape and unknown length, so nothing compiles twice and no lane is ever idle for a mask.
On several devices each holds its own workers and their pending updates; versions and
the server's state are everywhere, and each device computes every version anew from the
updates that all send to all.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from asyn2f.serialization import all_finite
from asyn2f.sim.cuts import ADOPT, KEEP, MERGE, START
from asyn2f.sim.packing import (
    Packed,
    Packing,
    packing_of,
    read_row,
    write_row,
    write_rows,
)
from asyn2f.training.computation import (
    Computation,
    Functions,
    Hyperparams,
    any_hyperparams,
    functions_of,
)
from asyn2f.training.experiment import published
from asyn2f.types import ServerState

AXIS = "devices"
# What the lanes of a wave do first: under `vmap` a choice computes everything there is
# to choose from, so the fewer the better.
NOTHING, MERGES, ANY = 0, 1, 2


Array = jax.Array | np.ndarray


class Limits(NamedTuple):
    """The shape of one call: at most so many ..."""

    waves: int = 256
    ticks: int = 512  # local steps of a lane
    versions: int = 256


class Carry(NamedTuple):
    """What stays on the devices from call to call."""

    # Each has one row more for what nobody needs, and updates one more that is zero.
    workers: Packed  # [D * (rows + 1), n] WorkerState, split over devices
    updates: Packed  # [D * (slots + 2), n] WorkerUpdate, split over devices
    versions: Packed  # [slots + 1, n] GlobalModel, everywhere
    server: ServerState  # everywhere


class Waves(NamedTuple):
    """One call's part of the plan, padded to `Limits`; D devices, L lanes."""

    num_waves: Array  # i32 []: waves that are real
    steps: Array  # i32 [waves]
    tick: Array  # i32 [waves]: where the wave's batches begin in `batches`
    takes: Array  # i32 [waves]: what its lanes do first: NOTHING, MERGES, ANY
    row: Array  # i32 [waves, D, L]; the last row = idle
    take: Array  # i32 [waves, D, L]
    slot: Array  # i32 [waves, D, L]
    pushes: Array  # bool [waves, D, L]: a cycle ends
    push_slot: Array  # i32 [waves, D, L]; the last but one = nowhere
    batches: Array  # i32 [ticks, D, L, B]: rows of the training set
    made: Array  # i32 [waves + 1]: where each wave's versions begin
    made_slot: Array  # i32 [versions]; the last = nobody needs it
    member: Array  # bool [versions, K]
    member_slot: Array  # i32 [versions, D, K]; the last, zero = on another device


class Notes(NamedTuple):
    """What a call wants known."""

    loss: jax.Array  # f32 [waves, D, L]: of the epoch, after the lane's steps
    metric: jax.Array  # f32 [waves, D, L]
    share: jax.Array  # f32 [waves, D, L]
    coefficients: jax.Array  # f32 [versions, K]
    staleness: jax.Array  # i32 [versions, K]
    model_loss: jax.Array  # f32 [versions]
    learning_rate: jax.Array  # f32 [versions]
    finite: jax.Array  # bool [versions]


# Which of them are split over the devices, and along which axis.
_ALL: Any = P()
_SPLIT: Any = P(AXIS)
_SPLIT_SECOND: Any = P(None, AXIS)
CARRY_SPECS: Any = Carry(workers=_SPLIT, updates=_SPLIT, versions=_ALL, server=_ALL)
WAVE_SPECS: Any = Waves(
    *[
        _ALL
        if name
        in ("num_waves", "steps", "tick", "takes", "made", "made_slot", "member")
        else _SPLIT_SECOND
        for name in Waves._fields
    ]
)
NOTE_SPECS: Any = Notes(*[_SPLIT_SECOND] * 3, *[_ALL] * 5)


Packings = tuple[Packing, Packing, Packing]
"""Of a worker's state, of an update and of a version."""


@lru_cache(maxsize=32)
def packings(computation: Computation) -> Packings:
    """How a computation's are laid out."""

    def shapes():
        functions = functions_of(computation, any_hyperparams())
        server = functions.init_server()
        state = functions.trainer.start(server.model, 0, 1, 1.0)
        return state, functions.trainer.report(state), server.model

    state, update, model = jax.eval_shape(shapes)
    return packing_of(state), packing_of(update), packing_of(model)


@lru_cache(maxsize=32)
def make_run(
    computation: Computation,
    mesh: Mesh,
    lanes: int,
    widest: int,
    limits: Limits,
) -> Callable[[Hyperparams, Carry, Any, Waves], tuple[Carry, Notes]]:
    """The program that executes one call's waves.

    Args:
      computation: of the experiment.
      mesh: the devices.
      lanes: L, of each device.
      widest: K, the most updates that one version is made of.
      limits: of a call.

    Returns:
      A jitted function of the hyperparameters, the carry, which is given up, the
      training set, and waves.
    """

    def run(hyperparams, carry, data, waves):
        functions = functions_of(computation, hyperparams)
        packed = packings(computation)
        on_device = _waves_of(functions, packed, mesh.size, lanes, widest, limits)
        return on_device(carry, data, waves)

    return jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(), CARRY_SPECS, P(), WAVE_SPECS),
            out_specs=(CARRY_SPECS, NOTE_SPECS),
            check_vma=False,
        ),
        donate_argnums=1,
    )


def _waves_of(
    functions: Functions,
    packed: Packings,
    devices: int,
    lanes: int,
    widest: int,
    limits: Limits,
) -> Callable[[Carry, Any, Waves], tuple[Carry, Notes]]:
    """What one device does in a call."""
    state_packing, update_packing, model_packing = packed
    trainer = functions.trainer

    nothing = jnp.float32(jnp.nan)

    def keep(state, model):
        return state, nothing

    def start(state, model):
        worker, examples, quality = state.worker, state.num_examples, state.quality
        return trainer.start(model, worker, examples, quality), nothing

    def adopt(state, model):
        return trainer.adopt(state, model), nothing

    def merge(state, model):
        state, metrics = trainer.merge(state, model)
        return state, metrics["share"]

    take_ins: list[Any] = [None] * 4
    take_ins[KEEP], take_ins[START] = keep, start
    take_ins[ADOPT], take_ins[MERGE] = adopt, merge

    def each(function, *arguments):
        """The function of each lane's arguments; of one lane without `vmap`, whose
        matrix products have other bits."""
        if lanes > 1:
            return jax.vmap(function)(*arguments)
        one = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], function(*one))

    def take_in(states, take, slot, takes, versions):
        def choose(choices, index):
            def one(state, index, slot):
                model = model_packing.unpack(read_row(versions, slot))
                return jax.lax.switch(index, choices, state, model)

            return each(one, states, index, slot)

        return jax.lax.switch(
            takes,
            [
                lambda: (states, jnp.full(lanes, jnp.nan)),
                lambda: choose([keep, merge], (take == MERGE).astype(jnp.int32)),
                lambda: choose(take_ins, take),
            ],
        )

    def report(state, pushes):
        update, begun = trainer.push(state)
        update = update._replace(params=trainer.decode(update.params, state.base))
        start_version, start, memory = jax.tree.map(
            lambda after, before: jnp.where(pushes, after, before),
            (begun.start_version, begun.start, begun.memory),
            (state.start_version, state.start, state.memory),
        )
        state = state._replace(start_version=start_version, start=start, memory=memory)
        rows = state_packing.pack(state), update_packing.pack(update)
        return *rows, update.info.loss, update.info.metric

    def wave(n, loop, data, waves):
        carry, notes = loop
        row, push_slot = waves.row[n, 0], waves.push_slot[n, 0]
        states = each(state_packing.unpack, read_row(carry.workers, row))
        states, share = take_in(
            states, waves.take[n, 0], waves.slot[n, 0], waves.takes[n], carry.versions
        )

        def step(i, states):
            rows = waves.batches[waves.tick[n] + i, 0]
            batches = {name: array[rows] for name, array in data.items()}
            return each(lambda *x: trainer.step(*x)[0], states, batches)

        states = jax.lax.fori_loop(0, waves.steps[n], step, states)
        states, updates, *note = each(report, states, waves.pushes[n, 0])
        note.append(share)
        loss, metric, share = (
            array.at[n, 0].set(values)
            for array, values in zip(notes[:3], note, strict=True)
        )
        carry = carry._replace(
            workers=write_rows(carry.workers, row, states),
            updates=write_rows(carry.updates, push_slot, updates),
        )
        notes = notes._replace(loss=loss, metric=metric, share=share)
        return jax.lax.fori_loop(
            waves.made[n], waves.made[n + 1], partial(make, waves=waves), (carry, notes)
        )

    def make(a, loop, waves):
        """The next version, of the updates that it is made of."""
        carry, notes = loop
        rows = read_row(carry.updates, waves.member_slot[a, 0])
        if devices > 1:
            rows = {n: jax.lax.psum(values, AXIS) for n, values in rows.items()}
        member = waves.member[a]
        updates = jax.vmap(update_packing.unpack)(rows)
        server, metrics = functions.advance_server(carry.server, updates, member)
        versions = write_row(
            carry.versions,
            waves.made_slot[a],
            model_packing.pack(published(functions, server.model)),
        )
        notes = notes._replace(
            coefficients=notes.coefficients.at[a].set(metrics["coefficients"]),
            staleness=notes.staleness.at[a].set(metrics["staleness"]),
            model_loss=notes.model_loss.at[a].set(server.model.loss),
            learning_rate=notes.learning_rate.at[a].set(server.model.learning_rate),
            finite=notes.finite.at[a].set(all_finite(server)),
        )
        return carry._replace(versions=versions, server=server), notes

    def run(carry, data, waves):
        shape = (limits.waves, 1, lanes)
        notes = Notes(
            loss=jnp.zeros(shape),
            metric=jnp.zeros(shape),
            share=jnp.zeros(shape),
            coefficients=jnp.zeros((limits.versions, widest)),
            staleness=jnp.zeros((limits.versions, widest), jnp.int32),
            model_loss=jnp.zeros(limits.versions),
            learning_rate=jnp.zeros(limits.versions),
            finite=jnp.zeros(limits.versions, bool),
        )
        body = partial(wave, data=data, waves=waves)
        return jax.lax.fori_loop(0, waves.num_waves, body, (carry, notes))

    return run
