"""One experiment, whole: everything that its numbers depend on, and no I/O."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.codecs import PLAIN, Codec, Coding, update_codec, version_codec
from asyn2f.guards import Guards, clamp_losses
from asyn2f.strategies import Strategy
from asyn2f.strategies.base import params_themselves
from asyn2f.tasks.base import Task
from asyn2f.timing import Stop
from asyn2f.trainer import Trainer, Training, global_learning_rate, make_trainer
from asyn2f.trees import Template, template_of
from asyn2f.types import GlobalModel, Metrics, Params, ServerState, WorkerUpdate

NO_GUARDS = Guards(mode="off")


class AggregateUpdates(Protocol):
    def __call__(
        self, state: ServerState, updates: Sequence[WorkerUpdate]
    ) -> tuple[ServerState, Metrics]:
        """The next version, learning rate included, of at least one update and at most
        `Timing.most_updates`, in this order; metrics have one row per update."""


class AdvanceServer(Protocol):
    def __call__(
        self, state: ServerState, updates: WorkerUpdate, mask: jax.Array
    ) -> tuple[ServerState, Metrics]:
        """`AggregateUpdates` on updates stacked to leaves [K, ...], bool [K] of them
        real: `Strategy.aggregate`, and then the learning rate of the new version.
        Where guards are enforced, its losses have been clamped before."""


class Publication(NamedTuple):
    """How versions travel; both functions are jitted. The server keeps its own model
    in float32."""

    encode: Callable[[Params], Any]
    decode: Callable[[Any], Params]
    template: Template  # of what travels
    is_plain: bool


class Experiment(NamedTuple):
    """A task, a strategy and their settings, made into functions."""

    task: Task
    strategy: Strategy  # its timing holds the experiment's settings
    training: Training
    trainer: Trainer
    stop: Stop
    seed: int
    guards: Guards
    coding: Coding
    template: Template  # of the model
    update_template: Template  # of what a worker pushes
    update_needs_base: bool  # whether that is a change since the base version
    publication: Publication
    advance_server: AdvanceServer
    aggregate: AggregateUpdates

    @property
    def workers(self) -> int:
        return len(self.task.shards)


def make_experiment(
    task: Task,
    strategy: Strategy,
    training: Training,
    stop: Stop,
    seed: int,
    guards: Guards = NO_GUARDS,
    coding: Coding = PLAIN,
) -> Experiment:
    """The experiment; the model's shape is found without computing anything.

    The cap of `guards` is not its business: the strategy has been built with it.
    """
    key = jax.random.key(seed)
    shapes = jax.eval_shape(task.init, key)

    def advance_server(state, updates, mask):
        if guards.mode == "enforce":
            loss = clamp_losses(updates.loss, mask, guards.loss_factor)
            updates = updates._replace(loss=loss)
        state, metrics = strategy.aggregate(state, updates, mask)
        return _with_learning_rate(state, training), metrics

    codec = update_codec(
        coding,
        shapes,
        pushes_models=strategy.push is params_themselves,
        keeps_model=strategy.timing.after_push == "continue",
    )
    trainer_key = jax.random.fold_in(key, 1)
    return Experiment(
        task=task,
        strategy=strategy,
        training=training,
        trainer=make_trainer(task, strategy, training, trainer_key, codec),
        stop=stop,
        seed=seed,
        guards=guards,
        coding=coding,
        template=template_of(shapes),
        update_template=template_of(_coded_shapes(codec, shapes)),
        update_needs_base=codec.needs_base,
        publication=_publication(version_codec(coding, shapes), shapes),
        advance_server=advance_server,
        aggregate=_make_aggregate(
            advance_server, strategy.timing.most_updates(len(task.shards))
        ),
    )


def initial_server_state(experiment: Experiment) -> ServerState:
    """Version 0, drawn from the experiment's seed."""

    def init(key):
        params = experiment.task.init(key)
        state = experiment.strategy.init(params, experiment.workers)
        return _with_learning_rate(state, experiment.training)

    key = jax.random.fold_in(jax.random.key(experiment.seed), 0)
    return jax.jit(init)(key)


def published(experiment: Experiment, model: GlobalModel) -> GlobalModel:
    """A version as workers and evaluators see it, once it has been coded."""
    publication = experiment.publication
    if publication.is_plain:
        return model
    return model._replace(params=publication.decode(publication.encode(model.params)))


def _publication(codec: Codec, shapes: Params) -> Publication:
    template = template_of(_coded_shapes(codec, shapes))
    if codec.is_plain:
        return Publication(lambda x: x, lambda x: x, template, is_plain=True)
    return Publication(
        encode=jax.jit(lambda params: codec.encode(params, (), ())[0]),
        decode=jax.jit(lambda coded: codec.decode(coded, ())),
        template=template,
        is_plain=False,
    )


def _coded_shapes(codec: Codec, shapes: Params) -> Any:
    base = shapes if codec.needs_base else ()
    memory = jax.eval_shape(codec.blank)
    return jax.eval_shape(codec.encode, shapes, base, memory)[0]


def _with_learning_rate(state: ServerState, training: Training) -> ServerState:
    rate = global_learning_rate(training, state.model.version)
    return state._replace(model=state.model._replace(learning_rate=rate))


def _make_aggregate(advance_server: AdvanceServer, most: int) -> AggregateUpdates:
    @jax.jit
    def run(state, updates, mask):
        # Stacked inside the program: a strategy that takes the rows one by one then
        # reads them where they are, and nothing is copied.
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *updates)
        return advance_server(state, stacked, mask)

    def aggregate(state, updates):
        count = len(updates)
        if not 1 <= count <= most:
            raise ValueError(f"updates: found {count}, allowed 1 to {most}")
        # Padded to one shape, so that one program serves every number of updates.
        rows = (*updates, *[updates[0]] * (most - count))
        state, metrics = run(state, rows, np.arange(most) < count)
        metrics = jax.device_get(metrics)
        # Of a metric that is one number there is nothing to cut off.
        return state, jax.tree.map(lambda x: x[:count] if x.ndim else x, metrics)

    return aggregate
