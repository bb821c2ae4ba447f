"""Local training: what a worker computes, as pure functions of its state.

Every random draw uses a key folded from the root, the worker and the epoch or step. No
key evolves in a state, so the numbers do not depend on how the steps are cut into calls
or on the process that runs them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyn2f.kernels.codecs import Codec
from asyn2f.privacy import ALL, NEUTRAL
from asyn2f.strategies import Strategy
from asyn2f.tasks.base import Batch, InitCarry, Loss, no_carry, same_shapes
from asyn2f.training.batches import batch_places, epoch_order, steps_per_epoch
from asyn2f.training.optimizers import Optimizer, optimizer_of
from asyn2f.training.progress import after_push, after_step, means_of
from asyn2f.training.settings import Training, local_learning_rate
from asyn2f.training.sharing import EVERYTHING, Sharing
from asyn2f.types import (
    GlobalModel,
    Metrics,
    Params,
    Shard,
    UpdateInfo,
    WorkerState,
    WorkerUpdate,
)

Decode = Callable[[Any, Params], Params]
"""The `params` of a pushed update, decoded with the model of its base version; pass ()
if the codec does not use a base."""


class Trainer(NamedTuple):
    """A worker's computation: pure functions of its state. A cycle ends with a push.

    Attributes:
      start: (model, worker, num_examples, quality[, kept part]) -> state of a worker
        that has adopted its first model, with a carry of its own.
      advance: (state, shard) -> (state, metrics): one local step on the next batch;
        metrics are `loss` and `metric` f32 [], of this batch.
      step: (state, batch) -> (state, metrics): `advance` on a given batch, whose rows
        are those that `epoch_order` and `batch_places` name.
      merge: (state, model) -> (state, metrics): a global version merged in.
      adopt: (state, model) -> state with its model replaced by a global version, and
        its optimizer's state reset or kept.
      report: state -> the update that the worker would push now.
      push: state -> (update, state): its `params` encoded, and the state after; the
        next cycle starts from the present model.
      decode: see `Decode`.

    Once jitted, `advance`, `merge` and `adopt` donate the state.
    """

    start: Callable[..., WorkerState]
    advance: Callable[[WorkerState, Shard], tuple[WorkerState, Metrics]]
    step: Callable[[WorkerState, Batch], tuple[WorkerState, Metrics]]
    merge: Callable[[WorkerState, GlobalModel], tuple[WorkerState, Metrics]]
    adopt: Callable[[WorkerState, GlobalModel], WorkerState]
    report: Callable[[WorkerState], WorkerUpdate]
    push: Callable[[WorkerState], tuple[WorkerUpdate, WorkerState]]
    decode: Decode


def make_trainer(
    loss: Loss,
    strategy: Strategy,
    training: Training,
    key: jax.Array,
    codec: Codec,
    init_carry: InitCarry = no_carry,
    reveal: frozenset[str] = ALL,
    sharing: Sharing = EVERYTHING,
    init_kept: Callable[[], Params] = tuple,
    own: Optimizer | None = None,
) -> Trainer:
    """The trainer of a task under a strategy, as pure functions that are not jitted.

    Args:
      loss: the task's.
      strategy: its `merge`, `push`, `signal`, `proximal` and timing.
      training: settings; the learning rates and the schedule's length may be traced.
      key: root of the workers' randomness; may be traced.
      codec: of updates.
      init_carry: the task's.
      reveal: the numbers that updates have; the others are neutral ones.
      sharing, init_kept: what travels; and a function that makes the rest, initially.
      own: another optimizer than SGD.
    """
    merges = strategy.timing.while_training != "ignore"
    optimizer = optimizer_of(training, own)
    local = _Local(
        *(loss, init_carry, strategy, training, key, codec, optimizer, merges, reveal),
        *(sharing, init_kept),
    )
    return Trainer(
        start=local.start,
        advance=local.advance,
        step=local.step,
        merge=local.merge,
        adopt=local.adopt,
        report=local.report,
        push=local.push,
        decode=codec.decode,
    )


@dataclass(frozen=True)
class _Local:
    """The functions of a `Trainer`, and what they close over."""

    loss: Loss
    init_carry: InitCarry
    strategy: Strategy
    training: Training
    key: jax.Array
    codec: Codec
    optimizer: Optimizer
    merges: bool  # else there is no use for `WorkerState.previous`
    reveal: frozenset[str]
    sharing: Sharing
    init_kept: Callable[[], Params]

    def start(self, model, worker, num_examples, quality, kept=None):
        zero, none = jnp.int32(0), jnp.float32(0.0)
        state = WorkerState(
            params=model.params,
            previous=model.params if self.merges else (),
            start=model.params if self.strategy.needs_start else (),
            opt_state=(),
            learning_rate=none,
            worker=jnp.asarray(worker, jnp.int32),
            num_examples=jnp.asarray(num_examples, jnp.float32),
            quality=jnp.asarray(quality, jnp.float32),
            base_version=zero,
            start_version=zero,
            step=zero,
            loss_sum=none,
            metric_sum=none,
            epoch_steps=zero,
            carry=self._first_carry(worker),
            base=model.params if self.codec.needs_base else (),
            memory=self.codec.blank(),
            kept=self.init_kept() if kept is None else kept,
        )
        return self._reset(self._adopted(state, model))

    def _first_carry(self, worker):
        # Counted down from -1: never the key of a worker, which are 0, 1, 2, ...
        worker = jnp.asarray(worker, jnp.int32)
        carry = self.init_carry(jax.random.fold_in(self.key, -1 - worker), worker)
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), carry)

    def adopt(self, state, model):
        state = self._adopted(state, model)
        is_kept = self.training.optimizer_at_adopt == "keep"
        return state if is_kept else self._reset(state)

    def _reset(self, state):
        """A new state of the optimizer; copied as in `_adopted`."""
        trained = self.sharing.whole(state.params, state.kept)["params"]
        opt_state = jax.tree.map(jnp.copy, self._optimizer(state).init(trained))
        return state._replace(opt_state=opt_state)

    def _optimizer(self, state):
        return self.optimizer(self._learning_rate(state))

    def _adopted(self, state, model):
        needs_start, needs_base = self.strategy.needs_start, self.codec.needs_base
        return state._replace(
            # Copied, so that no two fields share a buffer that `advance` donates.
            params=jax.tree.map(jnp.copy, model.params),
            previous=jax.tree.map(jnp.copy, model.params) if self.merges else (),
            start=jax.tree.map(jnp.copy, model.params) if needs_start else (),
            learning_rate=jnp.copy(model.learning_rate),
            base_version=jnp.copy(model.version),
            start_version=jnp.copy(model.version),
            base=jax.tree.map(jnp.copy, model.params) if needs_base else (),
        )

    def advance(self, state, shard):
        num_examples, batch_size = shard.num_examples, self.training.batch_size
        epoch = state.step // steps_per_epoch(num_examples, batch_size)
        length = shard.indices.shape[0]
        order = epoch_order(self.key, state.worker, epoch, num_examples, length)
        places = batch_places(state.step, num_examples, batch_size)
        rows = shard.indices[order[places]]
        batch = {name: array[rows] for name, array in shard.arrays.items()}
        return self.step(state, batch)

    def step(self, state, batch):
        trained, statistics, grads, value, aux = self._gradient(state, batch)
        metric, timing = jnp.asarray(aux.metric, jnp.float32), self.strategy.timing
        optimizer, opt_state = self._optimizer(state), state.opt_state
        updates, opt_state = optimizer.update(grads, opt_state, trained, value=value)
        trained = optax.apply_updates(trained, updates)
        params = {**statistics, **aux.statistics, "params": trained}
        state = state._replace(
            params=self.sharing.shared(params),
            kept=self.sharing.kept(params),
            previous=state.params if self.merges else (),
            opt_state=opt_state,
            carry=same_shapes(state.carry, aux.carry),
            **after_step(state, value, metric, timing, self.training.batch_size),
        )
        return state, {"loss": value, "metric": metric}

    def _gradient(self, state, batch):
        worker_key = jax.random.fold_in(self.key, state.worker)
        # Counted down from -1: never the key of an epoch, which are 0, 1, 2, ...
        step_key = jax.random.fold_in(worker_key, -1 - state.step)

        def loss_of(trained, statistics):
            params = {**statistics, "params": trained}
            return self.loss(params, state.carry, batch, step_key)

        params = self.sharing.whole(state.params, state.kept)
        trained = params["params"]
        statistics = {k: v for k, v in params.items() if k != "params"}
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (value, aux), grads = gradient(trained, statistics)
        if proximal := self.strategy.proximal:
            # The gradient of the term, which the reported loss is without. A leaf that
            # stays with the worker is pulled nowhere.
            start = self.sharing.whole(state.start, state.kept)["params"]
            grads = jax.tree.map(
                lambda g, p, s: g + proximal * (p - s), grads, trained, start
            )
        return trained, statistics, grads, value, aux

    def _learning_rate(self, state):
        sent, examples, step = state.learning_rate, state.num_examples, state.step
        return local_learning_rate(self.training, sent, examples, step)

    def report(self, state):
        loss, metric = means_of(state)
        metric, signal = self._revealed("metric", metric), self.strategy.signal
        return WorkerUpdate(
            params=self.strategy.push(state.params, state.start),
            worker=state.worker,
            info=UpdateInfo(
                base_version=state.base_version,
                start_version=state.start_version,
                step=state.step,
                num_examples=self._revealed("size", state.num_examples),
                loss=self._revealed("loss", loss),
                quality=self._revealed("quality", state.quality),
                metric=metric,
                signal=metric if signal is None else signal(state.params, state.start),
            ),
        )

    def _revealed(self, name, value):
        return value if name in self.reveal else jnp.float32(NEUTRAL[name])

    def push(self, state):
        needs_start = self.strategy.needs_start
        # Copied: `advance` donates every buffer of the state.
        update = self.report(state)
        coded, memory = self.codec.encode(update.params, state.base, state.memory)
        update = jax.tree.map(jnp.copy, update._replace(params=coded))
        begun = state._replace(
            memory=memory,
            start_version=jnp.copy(state.base_version),
            start=jax.tree.map(jnp.copy, state.params) if needs_start else (),
        )
        return update, after_push(begun, self.strategy.timing)

    def merge(self, state, model):
        previous = state.previous if self.merges else state.params
        local = self.report(state)._replace(params=state.params)
        params, metrics = self.strategy.merge(local, previous, model)
        state = state._replace(
            params=params,
            learning_rate=jnp.copy(model.learning_rate),
            base_version=jnp.copy(model.version),
            base=jax.tree.map(jnp.copy, model.params) if self.codec.needs_base else (),
        )
        if self.training.optimizer_at_merge == "reset":
            state = self._reset(state)
        return state, metrics
