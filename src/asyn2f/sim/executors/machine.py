"""The state of a plan on the devices, and the calls that advance it."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asyn2f.sim.executors import calls, lanes, packing
from asyn2f.sim.executors.calls import Carry, Limits, Notes, Own, Waves
from asyn2f.sim.executors.packing import write_row
from asyn2f.sim.executors.plan import Plan
from asyn2f.sim.executors.stretches import MERGE
from asyn2f.sim.order import Numbers
from asyn2f.training.batches import batch_places, make_orders, steps_per_epoch
from asyn2f.training.computation import Computation, functions_of
from asyn2f.training.experiment import Experiment, published
from asyn2f.types import Params


class Progress(NamedTuple):
    """The progress of an execution, from which it can be resumed."""

    wave: int  # the next one
    carry: Carry  # on the host
    numbers: Numbers


class Call(NamedTuple):
    """Waves `begin` up to `end` of a plan, in one call."""

    begin: int
    end: int


class Drawn(NamedTuple):
    """Batches that are being drawn, of T ticks and workers [T, ...] of any shape."""

    worker: np.ndarray  # i32 [T, ...]
    step: np.ndarray  # i32 [T, ...]: the worker's, of this batch
    epoch: np.ndarray  # i64 [T, ...]: index into the orders
    orders: Callable[[], np.ndarray]  # i32 [number of epochs, n_max]


class Batches:
    """The batches of all workers, as rows of the training set."""

    def __init__(self, experiment: Experiment) -> None:
        shards = experiment.task.shards
        self.sizes = np.array([len(rows) for rows in shards], np.int32)
        self._rows = np.zeros((len(shards), max(self.sizes)), np.int32)
        for worker, rows in enumerate(shards):
            self._rows[worker, : len(rows)] = rows
        self._batch_size = experiment.training.batch_size
        key = jax.random.wrap_key_data(experiment.hyperparams.train_key)
        self._orders = make_orders(key, self._rows.shape[1])

    def draw(self, worker: np.ndarray, step: np.ndarray) -> Drawn:
        """Starts computing the random bits of these epochs' orders, without waiting."""
        epoch = step // steps_per_epoch(self.sizes[worker], self._batch_size)
        pairs = worker.astype(np.int64) << 32 | epoch
        unique, index = np.unique(pairs, return_inverse=True)
        workers, epochs = (unique >> 32).astype(np.int32), unique.astype(np.int32)
        orders = self._orders(workers, epochs, self.sizes[workers])
        return Drawn(worker, step, index.reshape(worker.shape), orders)

    def rows(self, drawn: Drawn) -> np.ndarray:
        """The rows of the training set, i32 [T, ..., B]."""
        worker, step, epoch, orders = drawn
        if not worker.size:
            return np.zeros((*worker.shape, self._batch_size), np.int32)
        places = batch_places(step, self.sizes[worker], self._batch_size)
        return self._rows[worker[..., None], orders()[epoch[..., None], places]]


class Machine:
    """An experiment's workers on the devices of a mesh, executing a plan."""

    def __init__(self, experiment: Experiment, mesh: Mesh, plan: Plan, limits: Limits):
        self.plan = plan
        self.limits = limits
        self._experiment = experiment
        self._mesh = mesh
        self._qualities = np.array(experiment.task.qualities, np.float32)
        self._batches = Batches(experiment)
        self._data = jax.device_put(experiment.task.train, NamedSharding(mesh, P()))
        computation = experiment.computation
        slots = Slots(plan.rows, plan.update_slots, plan.version_slots)
        self._start = _make_start(computation, mesh, slots)
        self._kept = _make_kept(computation, mesh)
        self._run = lanes.make_run(
            computation, mesh, plan.row.shape[2], plan.max_members, limits
        )
        self.reset()

    def reset(self) -> None:
        """Returns to the beginning of the run."""
        self.carry: Carry = self._start(self._experiment.hyperparams)

    def restore(self, carry: Carry) -> None:
        """Resumes from the carry, on the host, of a machine for the same plan."""
        self.carry = jax.tree.map(
            lambda host, here: jax.device_put(host, here.sharding), carry, self.carry
        )

    def kept_of(self, worker: int) -> Params:
        """The part of the model that a worker keeps now; see `plan`."""
        if worker not in self.plan.row_of:
            return self._experiment.init_kept()
        device, row = worker % self._mesh.size, self.plan.row_of[worker]
        number = np.int32(device * (self.plan.rows + 1) + row)
        return self._kept(self.carry.workers, number)

    def execute(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Notes]]:
        """Executes calls in turn; yields each with its notes, padded to the limits.

        A call is still running when its notes are yielded. The next call's batches are
        gathered meanwhile; their random bits are requested one call ahead, as they
        queue behind the calls.
        """
        coming = iter(calls)
        call = next(coming, None)
        drawn = self._draw(call) if call else None
        while call is not None and drawn is not None:
            waves = self._waves(call, drawn)
            following = next(coming, None)
            drawn = self._draw(following) if following else None
            self.carry, notes = self._run(
                self._experiment.hyperparams, self.carry, self._data, waves
            )
            yield call, notes
            call = following

    def _draw(self, call: Call) -> Drawn:
        """Whose batches the call's ticks need, [ticks, D, L]."""
        plan, span = self.plan, slice(*call)
        steps = plan.steps[span]
        worker = np.maximum(np.repeat(plan.worker[span], steps, axis=0), 0)
        first = np.repeat(plan.first[span], steps, axis=0)
        tick = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
        step = np.maximum(first, 0) + tick[:, None, None].astype(np.int32)
        return self._batches.draw(worker, step)

    def _waves(self, call: Call, drawn: Drawn) -> Waves:
        plan, limits, span = self.plan, self.limits, slice(*call)
        steps = plan.steps[span]
        made = plan.made_starts[call.begin : call.end + 1]
        nodes = slice(made[0], made[-1])
        member, member_slot = self._members(plan.made_node[nodes])
        row = _or_last(plan.row[span], plan.rows)
        worker = np.maximum(plan.worker[span], 0)
        own = Own(
            worker=worker,
            step=np.maximum(plan.first[span], 0),
            num_examples=self._batches.sizes[worker],
            quality=self._qualities[worker],
        )
        push_slot = _or_last(plan.push_slot[span], plan.update_slots)
        made_slot = _or_last(plan.made_slot[nodes], plan.version_slots)
        waves, versions = limits.waves, limits.versions
        on_host = Waves(
            num_waves=np.array(call.end - call.begin, np.int32),
            steps=_padded(steps, waves),
            tick=_padded(np.cumsum(steps, dtype=np.int32) - steps, waves),
            takes=_padded(_takes(plan.take[span]), waves),
            row=_padded(row, waves),
            own=jax.tree.map(partial(_padded, length=waves), own),
            take=_padded(np.maximum(plan.take[span], 0), waves),
            slot=_padded(np.maximum(plan.slot[span], 0), waves),
            pushes=_padded(plan.push_event[span] >= 0, waves),
            push_slot=_padded(push_slot, waves),
            batches=_padded(self._batches.rows(drawn), limits.ticks),
            made=_padded(made - made[0], waves + 1, made[-1] - made[0]),
            made_slot=_padded(made_slot, versions),
            member=_padded(member, versions),
            member_slot=_padded(member_slot, versions),
        )
        shardings = jax.tree.map(partial(NamedSharding, self._mesh), calls.WAVE_SPECS)
        return jax.device_put(on_host, shardings)

    def _members(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of K rows are real, and their slots on each device: the last one, of
        zeros, where an update is on another device."""
        plan = self.plan
        begins = plan.member_starts[nodes]
        column = np.arange(plan.max_members)
        member = column < (plan.member_starts[nodes + 1] - begins)[:, None]
        where = np.where(member, begins[:, None] + column, 0)
        device = np.arange(self._mesh.size)[:, None]
        here = member[:, None] & (plan.member_device[where][:, None] == device)
        return member, np.where(
            here, plan.member_slot[where][:, None], plan.update_slots + 1
        )


class Slots(NamedTuple):
    """The number of models of each kind on one device."""

    workers: int  # that are training
    updates: int  # pending
    versions: int


@lru_cache(maxsize=32)
def _make_start(
    computation: Computation, mesh: Mesh, slots: Slots
) -> Callable[..., Carry]:
    """The program that starts a run: a jitted function of the hyperparameters."""
    state, update, model = packing.packings(computation)
    specs = jax.tree.map(partial(NamedSharding, mesh), calls.CARRY_SPECS)

    def start(hyperparams):
        functions = functions_of(computation, hyperparams)
        server = functions.init_server()
        # Nobody's, so that idle lanes compute with finite numbers, too.
        one = state.pack(functions.trainer.start(server.model, 0, 1, 1.0))
        rows = (slots.workers + 1) * mesh.size
        first = model.pack(published(functions, server.model))
        return Carry(
            workers={k: jnp.broadcast_to(x, (rows, *x.shape)) for k, x in one.items()},
            updates=update.empty((slots.updates + 2) * mesh.size),
            versions=write_row(model.empty(slots.versions + 1), jnp.int32(0), first),
            server=server,
        )

    return jax.jit(start, out_shardings=specs)


@lru_cache(maxsize=32)
def _make_kept(computation: Computation, mesh: Mesh) -> Callable[..., Params]:
    """A jitted function from the states of all workers and a row to the part of the
    model that this worker keeps."""
    state, _, _ = packing.packings(computation)

    def kept(workers, row):
        return state.unpack(packing.read_row(workers, row)).kept

    return jax.jit(kept, out_shardings=NamedSharding(mesh, P()))


def _or_last(slots: np.ndarray, last: int) -> np.ndarray:
    """The slots, with -1 replaced by the last one, which is unused."""
    return np.where(slots < 0, np.int32(last), slots)


def _padded(values: np.ndarray, length: int, fill: int = 0) -> np.ndarray:
    rest = np.full((length - len(values), *values.shape[1:]), fill, values.dtype)
    return np.concatenate([values, rest])


def _takes(take: np.ndarray) -> np.ndarray:
    """The branches that each wave needs, i32 [N], of what its lanes take in."""
    merges, others = take == MERGE, (take > 0) & (take != MERGE)
    least = np.where(merges.any(axis=(1, 2)), calls.MERGES, calls.NOTHING)
    return np.where(others.any(axis=(1, 2)), calls.ANY, least).astype(np.int32)
