"""Local training: what a worker computes, as pure functions of its state.

Randomness: every draw comes from a key folded anew from the root, the worker and the
epoch or step. No key evolves in a state, so cutting the steps into other chunks, or
running them in another process, gives the same numbers.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyn2f.kernels.codecs import Codec
from asyn2f.settings import setting
from asyn2f.strategies import Strategy
from asyn2f.tasks.base import Batch, Loss, Task
from asyn2f.training.batches import batch_places, epoch_order, steps_per_epoch
from asyn2f.types import (
    GlobalModel,
    Metrics,
    Params,
    Shard,
    UpdateInfo,
    WorkerState,
    WorkerUpdate,
)

Schedule = Literal["fixed", "cosine", "synchronous"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Local training: SGD with momentum, weight decay and a learning-rate schedule."""

    batch_size: int = setting(
        32, "examples per step (the paper: 128)", unit="examples", at_least=1
    )
    learning_rate: float = setting(0.1, "lr_0 (the paper's)", above=0)
    momentum: float = setting(0.9, "of SGD (the paper's)", at_least=0, below=1)
    weight_decay: float = setting(
        5e-4,
        "L2 penalty of the trained parameters, not part of the reported loss (the "
        "paper's)",
        at_least=0,
    )
    schedule: Schedule = setting(
        "fixed",
        "of the learning rate. `cosine`: over each worker's own steps; `synchronous`: "
        "over global versions, computed by the server and sent with each model",
    )
    learning_rate_min: float = setting(
        0.005, "where the two schedules end (the paper's)", at_least=0
    )
    schedule_length: int = setting(
        500, "steps (`cosine`) or versions (`synchronous`) until then", at_least=1
    )
    schedule_epochs: int = setting(
        0,
        "of `cosine`: worker k is there after this many times s_k / batch_size of its "
        "own steps; 0 = after `schedule_length`",
        unit="epochs",
        at_least=0,
    )
    momentum_at_merge: Literal["keep", "reset"] = setting(
        "keep", "whether a merge keeps or resets the momentum"
    )


def annealed(training: Training, position: jax.Array) -> jax.Array:
    """`max(lr_min, lr_0 (1 + cos(pi x / X)) / 2)`, and lr_min from X on; never above
    lr_0.

    The regimes of the paper's experiments differ in what x counts: see `Training`.

    Args:
      training: lr_0, lr_min and X.
      position: i32 [], x >= 0: local steps or global versions.

    Returns:
      f32 [].

    >>> print(annealed(Training(learning_rate=0.1, schedule_length=10), 10).round(4))
    0.005
    """
    position = jnp.asarray(position, jnp.float32)
    progress = jnp.minimum(position / training.schedule_length, 1.0)
    cosine = 0.5 * training.learning_rate * (1.0 + jnp.cos(jnp.pi * progress))
    floored = jnp.maximum(training.learning_rate_min, cosine)
    return jnp.minimum(training.learning_rate, floored).astype(jnp.float32)


def length_for(training: Training, num_examples: jax.Array) -> Any:
    """Local steps after which a worker's `cosine` is at its end, a number.

    >>> print(length_for(Training(schedule_epochs=600, batch_size=128), 17450))
    81796.875
    """
    if not training.schedule_epochs:
        return training.schedule_length
    return training.schedule_epochs * num_examples / training.batch_size


def global_learning_rate(training: Training, version: jax.Array) -> jax.Array:
    """The learning rate, f32 [], that the server sends with a version."""
    if training.schedule == "synchronous":
        return annealed(training, version)
    return jnp.float32(training.learning_rate)


class Start(Protocol):
    def __call__(
        self, model: GlobalModel, worker: int, num_examples: int, quality: float
    ) -> WorkerState:
        """A worker that has just adopted its first model."""


class Advance(Protocol):
    def __call__(self, state: WorkerState, shard: Shard) -> tuple[WorkerState, Metrics]:
        """One local step on the next batch; `state` is given up (its memory is reused).
        Metrics: `loss` and `metric` f32 [], of this batch."""


class Step(Protocol):
    def __call__(self, state: WorkerState, batch: Batch) -> tuple[WorkerState, Metrics]:
        """`advance` on a batch that has been taken from the shard: see `epoch_order`
        and `batch_places` for which rows it has to hold. `state` is kept."""


class TakeIn(Protocol):
    def __call__(
        self, state: WorkerState, model: GlobalModel
    ) -> tuple[WorkerState, Metrics]:
        """The state with a global version merged in; `state` is given up."""


class Adopt(Protocol):
    def __call__(self, state: WorkerState, model: GlobalModel) -> WorkerState:
        """The state with its model dropped for a global version; momentum starts anew;
        `state` is given up."""


class Report(Protocol):
    def __call__(self, state: WorkerState) -> WorkerUpdate:
        """What the worker would push now."""


class Push(Protocol):
    def __call__(self, state: WorkerState) -> tuple[WorkerUpdate, WorkerState]:
        """What the worker pushes, and its state after: what it holds now is what its
        next cycle starts from. The update's `params` are as they travel: `Decode`
        makes a model of them again."""


class Decode(Protocol):
    def __call__(self, coded: Any, base: Params, /) -> Params:
        """What a pushed update's `params` say, with the model of its base version;
        () will do for a codec that needs none."""


class Trainer(NamedTuple):
    """A worker's computation. A cycle ends with a push."""

    start: Start
    advance: Advance
    step: Step
    merge: TakeIn
    adopt: Adopt
    report: Report
    push: Push
    decode: Decode


def shard_of(task: Task, worker: int) -> Shard:
    """Worker `worker`'s data, with only its own rows, padded to the largest shard: a
    step is compiled for shapes, and one program serves all workers.

    Raises:
      ValueError: there is no such shard.
    """
    if not 0 <= worker < len(task.shards):
        raise ValueError(
            f"worker: found {worker}, the data is cut for workers 0 to "
            f"{len(task.shards) - 1}; raise config.workers to have more"
        )
    rows = task.shards[worker]
    longest = max(len(shard) for shard in task.shards)
    # Its own rows come first; those beyond them, the first again, are never trained on.
    padded = np.resize(rows, longest)
    own = np.arange(longest, dtype=np.int32)
    return Shard(
        arrays={name: jnp.asarray(array[padded]) for name, array in task.train.items()},
        indices=jnp.asarray(np.where(own < len(rows), own, 0)),
        num_examples=jnp.int32(len(rows)),
    )


def make_trainer(
    loss: Loss, strategy: Strategy, training: Training, key: jax.Array, codec: Codec
) -> Trainer:
    """The trainer of a task under a strategy, as pure functions that are not jitted.

    Args:
      loss: the task's.
      strategy: how a global version is merged in.
      training: settings; the learning rates and the schedule's length may be traced.
      key: root of the workers' randomness; may be traced.
      codec: how pushes travel.
    """
    # Torch's SGD: the momentum gathers gradients, the learning rate scales what comes
    # out, so a learning rate that changes acts at once.
    # What is zero is left out: it would cost a pass over memory, and momentum a copy.
    parts = [optax.identity()]
    if training.weight_decay:
        parts.append(optax.add_decayed_weights(training.weight_decay))
    if training.momentum:
        parts.append(optax.trace(decay=training.momentum))
    optimizer = optax.chain(*parts)
    batch_size = training.batch_size
    # Who never merges need not know where it was a step ago.
    merges = strategy.timing.while_training != "ignore"
    needs_start, proximal = strategy.needs_start, strategy.proximal
    needs_base = codec.needs_base

    def start(model, worker, num_examples, quality):
        zero, none = jnp.int32(0), jnp.float32(0.0)
        state = WorkerState(
            params=model.params,
            previous=model.params if merges else (),
            start=model.params if needs_start else (),
            opt_state=optimizer.init(model.params["params"]),
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
            base=model.params if needs_base else (),
            memory=codec.blank(),
        )
        return adopt(state, model)

    def adopt(state, model):
        return state._replace(
            # Copied, so that no two fields share a buffer that `advance` gives up.
            params=jax.tree.map(jnp.copy, model.params),
            previous=jax.tree.map(jnp.copy, model.params) if merges else (),
            start=jax.tree.map(jnp.copy, model.params) if needs_start else (),
            opt_state=optimizer.init(model.params["params"]),
            learning_rate=jnp.copy(model.learning_rate),
            base_version=jnp.copy(model.version),
            start_version=jnp.copy(model.version),
            base=jax.tree.map(jnp.copy, model.params) if needs_base else (),
        )

    def advance(state, shard):
        num_examples = shard.num_examples
        epoch = state.step // steps_per_epoch(num_examples, batch_size)
        length = shard.indices.shape[0]
        order = epoch_order(key, state.worker, epoch, num_examples, length)
        places = batch_places(state.step, num_examples, batch_size)
        rows = shard.indices[order[places]]
        return step(state, {name: array[rows] for name, array in shard.arrays.items()})

    def step(state, batch):
        worker_key = jax.random.fold_in(key, state.worker)
        # Counted down from -1: never the key of an epoch, which are 0, 1, 2, ...
        step_key = jax.random.fold_in(worker_key, -1 - state.step)

        def loss_of(trained, statistics):
            return loss({**statistics, "params": trained}, batch, step_key)

        trained = state.params["params"]
        statistics = {k: v for k, v in state.params.items() if k != "params"}
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (value, (statistics, metric)), grads = gradient(trained, statistics)
        if proximal:  # the gradient of its term; the reported loss is without it
            grads = jax.tree.map(
                lambda g, p, start: g + proximal * (p - start),
                grads,
                trained,
                state.start["params"],
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        if training.schedule == "cosine":
            own = length_for(training, state.num_examples)
            learning_rate = annealed(replace(training, schedule_length=own), state.step)
        else:
            learning_rate = state.learning_rate
        trained = jax.tree.map(lambda p, u: p - learning_rate * u, trained, updates)
        num_examples = state.num_examples.astype(jnp.int32)
        fresh = state.step % steps_per_epoch(num_examples, batch_size) == 0
        state = state._replace(
            params={**statistics, "params": trained},
            previous=state.params if merges else (),
            opt_state=opt_state,
            step=state.step + 1,
            loss_sum=jnp.where(fresh, 0.0, state.loss_sum) + value,
            metric_sum=jnp.where(fresh, 0.0, state.metric_sum) + metric,
            epoch_steps=jnp.where(fresh, 0, state.epoch_steps) + 1,
        )
        return state, {"loss": value, "metric": metric}

    def report(state):
        steps = jnp.maximum(state.epoch_steps, 1).astype(jnp.float32)
        metric = state.metric_sum / steps
        signal = strategy.signal
        return WorkerUpdate(
            params=strategy.push(state.params, state.start),
            worker=state.worker,
            info=UpdateInfo(
                base_version=state.base_version,
                start_version=state.start_version,
                step=state.step,
                num_examples=state.num_examples,
                loss=state.loss_sum / steps,
                quality=state.quality,
                metric=metric,
                signal=metric if signal is None else signal(state.params, state.start),
            ),
        )

    def push(state):
        # Copied: no two may share a buffer, of which `advance` is given all.
        update = report(state)
        coded, memory = codec.encode(update.params, state.base, state.memory)
        update = jax.tree.map(jnp.copy, update._replace(params=coded))
        begun = state._replace(
            memory=memory,
            start_version=jnp.copy(state.base_version),
            start=jax.tree.map(jnp.copy, state.params) if needs_start else (),
        )
        return update, begun

    def merge(state, model):
        previous = state.previous if merges else state.params
        local = report(state)._replace(params=state.params)
        params, metrics = strategy.merge(local, previous, model)
        opt_state = state.opt_state
        if training.momentum_at_merge == "reset":
            opt_state = optimizer.init(params["params"])
        state = state._replace(
            params=params,
            opt_state=opt_state,
            learning_rate=jnp.copy(model.learning_rate),
            base_version=jnp.copy(model.version),
            base=jax.tree.map(jnp.copy, model.params) if needs_base else (),
        )
        return state, metrics

    return Trainer(start, advance, step, merge, adopt, report, push, codec.decode)
