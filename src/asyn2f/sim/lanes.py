"""Executing a plan: waves of lanes, in one jitted call for hundreds of waves.

Everything that is decided has been decided on the host; the device runs loops of known
shape and unknown length, so nothing compiles twice and no lane is ever idle for a mask.
On several devices each holds its own workers and their pending updates; versions and
the server's state are everywhere, and each device computes every version anew from the
updates that all send to all.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asyn2f.experiment import Experiment, initial_server_state
from asyn2f.sim.packing import (
    Packed,
    Packing,
    packing_of,
    read_row,
    write_row,
    write_rows,
)
from asyn2f.sim.plan import ADOPT, KEEP, MERGE, START, Plan
from asyn2f.trainer import batch_places, begin_cycle, steps_per_epoch
from asyn2f.types import ServerState

_AXIS = "devices"
_NOTHING, _MERGES, _ANY = 0, 1, 2
_EVERYWHERE, _SPLIT, _SPLIT_SECOND = P(), P(_AXIS), P(None, _AXIS)


class Limits(NamedTuple):
    """The shape of one call: at most so many ..."""

    waves: int = 256
    ticks: int = 512  # local steps of a lane
    versions: int = 256


class Carry(NamedTuple):
    """What stays on the devices from call to call."""

    # Each has one row more, the last, for what nobody needs.
    workers: Packed  # [D * (rows + 1), n] WorkerState, split over devices
    updates: Packed  # [D * (slots + 1), n] WorkerUpdate, split over devices
    versions: Packed  # [slots + 1, n] GlobalModel, everywhere
    server: ServerState  # everywhere


class Waves(NamedTuple):
    """One call's part of the plan, padded to `Limits`; D devices, L lanes."""

    count: jax.Array  # i32 []: waves that are real
    steps: jax.Array  # i32 [waves]
    tick: jax.Array  # i32 [waves]: where the wave's batches begin in `batches`
    takes: jax.Array  # i32 [waves]: what its lanes do first: _NOTHING, _MERGES, _ANY
    row: jax.Array  # i32 [waves, D, L]; the last row = idle
    take: jax.Array  # i32 [waves, D, L]
    slot: jax.Array  # i32 [waves, D, L]
    pushes: jax.Array  # bool [waves, D, L]: a cycle ends
    push_slot: jax.Array  # i32 [waves, D, L]; the last = nowhere
    batches: jax.Array  # i32 [ticks, D, L, B]: rows of the training set
    made: jax.Array  # i32 [waves + 1]: where each wave's versions begin
    made_slot: jax.Array  # i32 [versions]; the last = nobody needs it
    member: jax.Array  # bool [versions, K]
    member_slot: jax.Array  # i32 [versions, D, K]; -1 = on another device


class Notes(NamedTuple):
    """What a call wants known."""

    loss: jax.Array  # f32 [waves, D, L]: of the epoch, after the lane's steps
    metric: jax.Array  # f32 [waves, D, L]
    share: jax.Array  # f32 [waves, D, L]
    coefficients: jax.Array  # f32 [versions, K]
    staleness: jax.Array  # i32 [versions, K]
    model_loss: jax.Array  # f32 [versions]
    learning_rate: jax.Array  # f32 [versions]


class Lanes:
    """An experiment's workers on the devices of a mesh, ready to execute waves."""

    def __init__(self, experiment: Experiment, mesh: Mesh, plan: Plan, limits: Limits):
        self._experiment = experiment
        self._mesh = mesh
        self.plan = plan
        self.limits = limits
        self._devices = mesh.size
        self._rows = -(-experiment.workers // self._devices)
        self._sizes = np.array([len(shard) for shard in experiment.task.shards])
        self._places = _places(experiment)
        self._data = jax.device_put(experiment.task.train, self._everywhere)
        self.reset()
        self._run = _make_run(experiment, mesh, plan, limits)

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self._mesh, _EVERYWHERE)

    def reset(self) -> None:
        """Back to the beginning of the run."""
        self.carry = self._start()

    def _start(self) -> Carry:
        experiment, plan, devices = self._experiment, self.plan, self._devices
        state, update, model = packings(experiment)
        split = NamedSharding(self._mesh, _SPLIT)
        server = initial_server_state(experiment)
        # Worker r * D + d is row r of device d; rows beyond the last hold anything.
        rows = self._rows + 1
        number = np.arange(rows * devices)
        worker = (number % rows) * devices + number // rows
        worker = np.minimum(worker, experiment.workers - 1)
        qualities = np.float32(experiment.task.qualities)[worker]

        @partial(jax.jit, out_shardings=split)
        def begin(model, worker, num_examples, quality):
            def one(worker, num_examples, quality):
                return state.pack(
                    experiment.trainer.start(model, worker, num_examples, quality)
                )

            return jax.vmap(one)(worker, num_examples, quality)

        versions = model.empty(plan.version_slots + 1)
        versions = write_row(versions, jnp.int32(0), model.pack(server.model))
        updates = update.empty((plan.update_slots + 1) * devices)
        return Carry(
            workers=begin(server.model, worker, self._sizes[worker], qualities),
            updates=jax.device_put(updates, split),
            versions=jax.device_put(versions, self._everywhere),
            server=jax.device_put(server, self._everywhere),
        )

    def execute(self, begin: int, end: int) -> Notes:
        """Executes waves `begin` up to `end` of the plan; their notes, padded."""
        waves = self._waves(begin, end)
        self.carry, notes = self._run(self.carry, self._data, waves)
        return notes

    def _waves(self, begin: int, end: int) -> Waves:
        plan, limits = self.plan, self.limits
        span = slice(begin, end)
        made = plan.made_starts[begin : end + 1]
        nodes = slice(made[0], made[-1])

        def padded(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
            rest = np.full(
                (length - len(values), *values.shape[1:]), fill, values.dtype
            )
            return np.concatenate([values, rest])

        steps = plan.steps[span]
        member, member_slot = self._members(plan.made_node[nodes])

        def or_last(slots: np.ndarray, last: int) -> np.ndarray:
            return np.where(slots < 0, np.int32(last), slots)

        waves = Waves(
            count=np.int32(end - begin),
            steps=padded(steps, limits.waves),
            tick=padded(np.cumsum(steps, dtype=np.int32) - steps, limits.waves),
            takes=padded(_takes(plan.take[span]), limits.waves),
            row=padded(or_last(plan.row[span], self._rows), limits.waves),
            take=padded(np.maximum(plan.take[span], 0), limits.waves),
            slot=padded(np.maximum(plan.slot[span], 0), limits.waves),
            pushes=padded(plan.push_event[span] >= 0, limits.waves),
            push_slot=padded(
                or_last(plan.push_slot[span], plan.update_slots), limits.waves
            ),
            batches=padded(self._batches(span), limits.ticks),
            made=padded(made - made[0], limits.waves + 1, int(made[-1] - made[0])),
            made_slot=padded(
                or_last(plan.made_slot[nodes], plan.version_slots), limits.versions
            ),
            member=padded(member, limits.versions),
            member_slot=padded(member_slot, limits.versions, -1),
        )
        specs = _wave_specs()
        return jax.tree.map(
            lambda values, spec: jax.device_put(
                values, NamedSharding(self._mesh, spec)
            ),
            waves,
            specs,
        )

    def _members(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of K rows are real, and where each lies."""
        plan, widest = self.plan, self.plan.max_members
        begins = plan.member_starts[nodes]
        sizes = plan.member_starts[nodes + 1] - begins
        column = np.arange(widest)
        member = column < sizes[:, None]
        where = np.minimum(begins[:, None] + column, len(plan.member_slot) - 1)
        device = np.arange(self._devices)[:, None]
        here = member[:, None] & (plan.member_device[where][:, None] == device)
        return member, np.where(here, plan.member_slot[where][:, None], -1)

    def _batches(self, span: slice) -> np.ndarray:
        """The training set's rows for each lane's every step, i32 [ticks, D, L, B]."""
        plan, batch_size = self.plan, self._experiment.training.batch_size
        steps = plan.steps[span]
        tick = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
        device = np.arange(self._devices)[:, None]
        row = np.repeat(plan.row[span], steps, axis=0)
        worker = np.where(row < 0, 0, row * self._devices + device)
        step = np.repeat(np.maximum(plan.first[span], 0), steps, axis=0)
        step = step + tick[:, None, None]
        size = self._sizes[worker]
        epoch = step // steps_per_epoch(size, batch_size)
        orders, index = self._orders(worker, epoch)
        places = batch_places(step, size, batch_size)
        return self._places[worker[..., None], orders[index[..., None], places]]

    def _orders(self, worker: np.ndarray, epoch: np.ndarray):
        """The epochs' orders that are needed, and which of them each entry needs."""
        pairs = worker.astype(np.int64) << 32 | epoch
        unique, index = np.unique(pairs, return_inverse=True)
        numbers, epochs = (unique >> 32).astype(np.int32), unique.astype(np.int32)
        parts = []
        for begin in range(0, len(unique), _ORDERS_PER_CALL):
            part = np.arange(begin, begin + _ORDERS_PER_CALL)
            part = np.minimum(part, len(unique) - 1)
            k = numbers[part]
            sizes = self._sizes[k].astype(np.int32)
            found = self._experiment.trainer.orders(k, epochs[part], sizes)
            parts.append(np.asarray(found))
        if not parts:
            return np.zeros((1, 1), np.int32), index.reshape(worker.shape)
        return np.concatenate(parts)[: len(unique)], index.reshape(worker.shape)


_ORDERS_PER_CALL = 256


def _takes(take: np.ndarray) -> np.ndarray:
    """What the lanes of each wave do first: under `vmap` a choice computes everything
    there is to choose from, so the fewer the better."""
    lanes = (1, 2)
    merges, others = (take == MERGE).any(lanes), (take > 0) & (take != MERGE)
    return np.where(others.any(lanes), _ANY, np.where(merges, _MERGES, _NOTHING))


def _places(experiment: Experiment) -> np.ndarray:
    """The training set's row for each place of each worker's shard, i32 [W, n_max]."""
    shards = experiment.task.shards
    places = np.zeros((len(shards), max(len(shard) for shard in shards)), np.int32)
    for k, shard in enumerate(shards):
        places[k, : len(shard)] = shard
    return places


def packings(experiment: Experiment) -> tuple[Packing, Packing, Packing]:
    """Of a worker's state, of an update and of a version."""
    trainer = experiment.trainer

    def shapes():
        server = initial_server_state(experiment)
        state = trainer.start(server.model, 0, 1, 1.0)
        return state, trainer.report(state), server.model

    state, update, model = jax.eval_shape(shapes)
    return packing_of(state), packing_of(update), packing_of(model)


def _wave_specs() -> Waves:
    return Waves(
        count=_EVERYWHERE,
        steps=_EVERYWHERE,
        tick=_EVERYWHERE,
        takes=_EVERYWHERE,
        row=_SPLIT_SECOND,
        take=_SPLIT_SECOND,
        slot=_SPLIT_SECOND,
        pushes=_SPLIT_SECOND,
        push_slot=_SPLIT_SECOND,
        batches=_SPLIT_SECOND,
        made=_EVERYWHERE,
        made_slot=_EVERYWHERE,
        member=_EVERYWHERE,
        member_slot=_SPLIT_SECOND,
    )


def _make_run(
    experiment: Experiment, mesh: Mesh, plan: Plan, limits: Limits
) -> Callable[[Carry, Any, Waves], tuple[Carry, Notes]]:
    state_packing, update_packing, model_packing = packings(experiment)
    trainer, devices = experiment.trainer, mesh.size
    lanes, widest = plan.row.shape[2], plan.max_members

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

    take_ins = [None] * 4
    take_ins[KEEP], take_ins[START] = keep, start
    take_ins[ADOPT], take_ins[MERGE] = adopt, merge

    def ride(row, take, slot, pushes, takes, steps, tick, batches, data, versions):
        """One lane of one wave; `batches` i32 [ticks, B]."""
        state = state_packing.unpack(row)

        def any_of(choices):
            model = model_packing.unpack(read_row(versions, slot))
            if choices is take_ins:
                return jax.lax.switch(take, take_ins, state, model)
            return jax.lax.cond(take == MERGE, merge, keep, state, model)

        state, share = jax.lax.switch(
            takes,
            [lambda: (state, nothing), lambda: any_of(None), lambda: any_of(take_ins)],
        )

        def step(i, state):
            rows = batches[tick + i]
            batch = {name: array[rows] for name, array in data.items()}
            return trainer.step(state, batch)[0]

        state = jax.lax.fori_loop(0, steps, step, state)
        update = trainer.report(state)
        begun = begin_cycle(state)
        state = state._replace(
            start_version=jnp.where(pushes, begun.start_version, state.start_version)
        )
        note = (update.loss, update.metric, share)
        return state_packing.pack(state), update_packing.pack(update), note

    def wave(n, loop, data, waves):
        carry, notes = loop
        row, push_slot = waves.row[n, 0], waves.push_slot[n, 0]
        states = read_row(carry.workers, row)
        mine = (states, waves.take[n, 0], waves.slot[n, 0], waves.pushes[n, 0])
        ours = (waves.takes[n], waves.steps[n], waves.tick[n])
        if lanes == 1:
            mine = jax.tree.map(lambda x: x[0], mine)
            out = ride(*mine, *ours, waves.batches[:, 0, 0], data, carry.versions)
            states, updates, note = jax.tree.map(lambda x: x[None], out)
        else:
            axes = (0, 0, 0, 0, None, None, None, 1, None, None)
            states, updates, note = jax.vmap(ride, in_axes=axes)(
                *mine, *ours, waves.batches[:, 0], data, carry.versions
            )
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
        slot, member = waves.member_slot[a, 0], waves.member[a]
        rows = read_row(carry.updates, jnp.maximum(slot, 0))
        if devices > 1:
            here = slot >= 0
            rows = {
                name: jax.lax.psum(jnp.where(here[:, None], values, 0), _AXIS)
                for name, values in rows.items()
            }
        updates = jax.vmap(update_packing.unpack)(rows)
        server, metrics = experiment.advance_server(carry.server, updates, member)
        versions = write_row(
            carry.versions, waves.made_slot[a], model_packing.pack(server.model)
        )
        notes = notes._replace(
            coefficients=notes.coefficients.at[a].set(metrics["coefficients"]),
            staleness=notes.staleness.at[a].set(metrics["staleness"]),
            model_loss=notes.model_loss.at[a].set(server.model.loss),
            learning_rate=notes.learning_rate.at[a].set(server.model.learning_rate),
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
        )
        body = partial(wave, data=data, waves=waves)
        return jax.lax.fori_loop(0, waves.count, body, (carry, notes))

    carry_specs = Carry(_SPLIT, _SPLIT, _EVERYWHERE, _EVERYWHERE)
    split = [_SPLIT_SECOND] * 3
    note_specs = Notes(*split, *[_EVERYWHERE] * 4)
    return jax.jit(
        jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(carry_specs, _EVERYWHERE, _wave_specs()),
            out_specs=(carry_specs, note_specs),
            check_vma=False,
        ),
        donate_argnums=0,
    )
