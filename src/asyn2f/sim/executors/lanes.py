"""The compiled program of a plan: hundreds of waves of lanes in one jitted call.

All decisions are made on the host. The device runs loops of known shape and traced
length, so nothing is compiled twice and no lane computes masked steps. Each device
holds its own workers and their pending updates; versions and the server's state are
replicated, and each device computes every version from the updates that all exchange.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from asyn2f.serialization import all_finite
from asyn2f.sim.executors.calls import (
    AXIS,
    CARRY_SPECS,
    NOTE_SPECS,
    WAVE_SPECS,
    Carry,
    Limits,
    Notes,
    Waves,
)
from asyn2f.sim.executors.packing import (
    Packing,
    packings,
    read_row,
    write_row,
    write_rows,
)
from asyn2f.sim.executors.stretches import ADOPT, KEEP, MERGE, START
from asyn2f.training.computation import (
    Computation,
    Functions,
    Hyperparams,
    functions_of,
)
from asyn2f.training.experiment import published


@lru_cache(maxsize=32)
def make_run(
    computation: Computation,
    mesh: Mesh,
    lanes: int,
    widest: int,
    limits: Limits,
) -> Callable[[Hyperparams, Carry, Any, Waves], tuple[Carry, Notes]]:
    """The program of one call's waves.

    Args:
      computation: of the experiment.
      mesh: the devices.
      lanes: L, of each device.
      widest: K, the most updates of one version.
      limits: of a call.

    Returns:
      A jitted function of hyperparameters, carry (donated), training set and waves.
    """

    def run(hyperparams, carry, data, waves):
        functions = functions_of(computation, hyperparams)
        device = _Device(
            functions, *packings(computation), mesh.size, lanes, widest, limits
        )
        return device.run(carry, data, waves)

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


@dataclass(frozen=True)
class _Device:
    """One device's part of a call, traced under `shard_map`."""

    functions: Functions
    state_packing: Packing
    update_packing: Packing
    model_packing: Packing
    devices: int
    lanes: int
    widest: int
    limits: Limits

    def run(self, carry: Carry, data: Any, waves: Waves) -> tuple[Carry, Notes]:
        shape = (self.limits.waves, 1, self.lanes)
        members = (self.limits.versions, self.widest)
        notes = Notes(
            loss=jnp.zeros(shape),
            metric=jnp.zeros(shape),
            share=jnp.zeros(shape),
            coefficients=jnp.zeros(members),
            staleness=jnp.zeros(members, jnp.int32),
            model_loss=jnp.zeros(self.limits.versions),
            learning_rate=jnp.zeros(self.limits.versions),
            finite=jnp.zeros(self.limits.versions, bool),
        )
        # Made once, and not in each wave in which some worker begins.
        kept = self.functions.init_kept()
        body = partial(self._wave, data=data, waves=waves, kept=kept)
        return jax.lax.fori_loop(0, waves.num_waves, body, (carry, notes))

    def _wave(self, n, loop, data, waves, kept):
        carry, notes = loop
        row, push_slot = waves.row[n, 0], waves.push_slot[n, 0]
        states = self._each(self.state_packing.unpack, read_row(carry.workers, row))
        states, share = self._take_in(
            *(states, waves.take[n, 0], waves.slot[n, 0], waves.takes[n]),
            *(jax.tree.map(lambda x: x[n, 0], waves.own), carry.versions, kept),
        )

        def step(i, states):
            rows = waves.batches[waves.tick[n] + i, 0]
            batches = {name: array[rows] for name, array in data.items()}
            step_of = self.functions.trainer.step
            return self._each(lambda *x: step_of(*x)[0], states, batches)

        states = jax.lax.fori_loop(0, waves.steps[n], step, states)
        states, updates, *note = self._each(self._report, states, waves.pushes[n, 0])
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
        make = partial(self._make, waves=waves)
        loop = carry, notes
        return jax.lax.fori_loop(waves.made[n], waves.made[n + 1], make, loop)

    def _each(self, function, *arguments):
        """The function of each lane's arguments; of one lane without `vmap`, whose
        matrix products have other bits."""
        if self.lanes > 1:
            return jax.vmap(function)(*arguments)
        one = jax.tree.map(lambda x: x[0], arguments)
        return jax.tree.map(lambda x: x[None], function(*one))

    def _take_in(self, states, take, slot, takes, own, versions, kept):
        """The states after their lanes have taken in versions; and shares."""
        keep, start, adopt, merge = self._choices(kept)

        def choose(choices, index):
            def one(state, index, slot, own):
                model = self.model_packing.unpack(read_row(versions, slot))
                return jax.lax.switch(index, choices, state, model, own)

            return self._each(one, states, index, slot, own)

        take_ins: list[Any] = [None] * 4
        take_ins[KEEP], take_ins[START] = keep, start
        take_ins[ADOPT], take_ins[MERGE] = adopt, merge
        return jax.lax.switch(
            takes,
            [
                lambda: (states, jnp.full(self.lanes, jnp.nan)),
                lambda: choose([keep, merge], (take == MERGE).astype(jnp.int32)),
                lambda: choose(take_ins, take),
            ],
        )

    def _choices(self, kept):
        trainer, nothing = self.functions.trainer, jnp.float32(jnp.nan)

        def keep(state, model, own):
            return state, nothing

        def start(state, model, own):
            worker, step, num_examples, quality = own
            state = trainer.start(model, worker, num_examples, quality, kept)
            return state._replace(step=step), nothing

        def adopt(state, model, own):
            return trainer.adopt(state, model), nothing

        def merge(state, model, own):
            state, metrics = trainer.merge(state, model)
            return state, metrics["share"]

        return keep, start, adopt, merge

    def _report(self, state, pushes):
        trainer = self.functions.trainer
        update, begun = trainer.push(state)
        update = update._replace(params=trainer.decode(update.params, state.base))
        state = jax.tree.map(
            lambda after, before: (
                before if after is before else jnp.where(pushes, after, before)
            ),
            begun,
            state,
        )
        rows = self.state_packing.pack(state), self.update_packing.pack(update)
        return *rows, update.info.loss, update.info.metric

    def _make(self, a, loop, waves):
        """Makes the next version of its updates."""
        carry, notes = loop
        rows = read_row(carry.updates, waves.member_slot[a, 0])
        if self.devices > 1:
            rows = {n: jax.lax.psum(values, AXIS) for n, values in rows.items()}
        updates = jax.vmap(self.update_packing.unpack)(rows)
        server, metrics = self.functions.advance_server(
            carry.server, updates, waves.member[a]
        )
        versions = write_row(
            carry.versions,
            waves.made_slot[a],
            self.model_packing.pack(published(self.functions, server.model)),
        )
        notes = notes._replace(
            coefficients=notes.coefficients.at[a].set(metrics["coefficients"]),
            staleness=notes.staleness.at[a].set(metrics["staleness"]),
            model_loss=notes.model_loss.at[a].set(server.model.loss),
            learning_rate=notes.learning_rate.at[a].set(server.model.learning_rate),
            finite=notes.finite.at[a].set(all_finite(server)),
        )
        return carry._replace(versions=versions, server=server), notes
