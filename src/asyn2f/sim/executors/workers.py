"""The workers of a serial execution, each with its state and its data."""

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.training.batches import shard_of
from asyn2f.training.experiment import Experiment
from asyn2f.types import (
    GlobalModel,
    OwnPart,
    Params,
    Shard,
    WorkerState,
    WorkerUpdate,
)


class Workers:
    """All workers of a run, each with its state and its data."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._states: dict[int, WorkerState] = {}
        self._shards: dict[int, Shard] = {}
        self._kept: dict[int, OwnPart] = {}  # by number
        self._begins: dict[int, int | None] = {}  # by worker, with which of them
        self.base: dict[int, int] = {}  # the node that each took in last

    def begin(self, worker: int, kept: int | None = None) -> None:
        """The worker begins with nothing, or with an own part that was kept."""
        self._states.pop(worker, None)
        self._begins[worker] = kept

    def keep(self, worker: int, number: int) -> None:
        """Keeps the worker's own part under a number."""
        # Copied, as the next step donates it.
        self._kept[number] = jax.tree.map(jnp.copy, self._states[worker].own)

    def adopt(self, worker: int, model: GlobalModel, node: int) -> None:
        self.base[worker] = node
        trainer, state = self._experiment.trainer, self._states.get(worker)
        if state is not None:
            self._states[worker] = trainer.adopt(state, model)
            return
        shard = self._shard(worker)
        # As float32, like the runtime's.
        quality = float(np.float32(self._experiment.task.qualities[worker]))
        count = int(shard.num_examples)
        state = trainer.start(model, worker, count, quality)
        if (kept := self._begins.get(worker)) is not None:
            own = jax.tree.map(jnp.copy, self._kept[kept])
            state = state._replace(**own._asdict())
        self._states[worker] = state

    def kept_of(self, worker: int) -> Params:
        """The part of the model that it keeps; without a state, the initial one's."""
        if worker in self._states:
            return self._states[worker].kept
        return self._experiment.init_kept()

    def merge(self, worker: int, model: GlobalModel, node: int) -> jax.Array:
        """The share that the local model kept, f32 []."""
        self.base[worker] = node
        state, metrics = self._experiment.trainer.merge(self._states[worker], model)
        self._states[worker] = state
        return metrics["share"]

    def train(self, worker: int, steps: int) -> None:
        state, shard = self._states[worker], self._shard(worker)
        for _ in range(steps):
            state, _ = self._experiment.trainer.advance(state, shard)
        self._states[worker] = state

    def report(self, worker: int) -> WorkerUpdate:
        """What the worker would push now; valid until its next step."""
        return self._experiment.trainer.report(self._states[worker])

    def push(self, worker: int) -> WorkerUpdate:
        """What the server makes of the worker's push; its next cycle begins."""
        trainer, before = self._experiment.trainer, self._states[worker]
        update, self._states[worker] = trainer.push(before)
        return update._replace(params=trainer.decode(update.params, before.base))

    def _shard(self, worker: int) -> Shard:
        if worker not in self._shards:
            self._shards[worker] = shard_of(self._experiment.task, worker)
        return self._shards[worker]
