"""Workers that lie: trainers whose updates are changed on their way out."""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp

from asyn2f.training.experiment import Experiment
from asyn2f.types import Params, WorkerUpdate
from tests.support.updates import replaced

Lie = Callable[[WorkerUpdate, Params], WorkerUpdate]
"""What is sent in place of an update; the second is the global model that its worker
has taken in last."""


def moved(factor: float) -> Lie:
    """The worker's own movement times a factor; -1 flips its sign."""

    def lie(update: WorkerUpdate, model: Params) -> WorkerUpdate:
        params = jax.tree.map(lambda w, g: g + factor * (w - g), update.params, model)
        return update._replace(params=params)

    return lie


def saying(**fields: float) -> Lie:
    """Something else in its header."""
    values = {name: jnp.float32(value) for name, value in fields.items()}
    return lambda update, model: replaced(update, **values)


def with_liars(experiment: Experiment, liars: Collection[int], lie: Lie) -> Experiment:
    """The experiment with these workers lying; for the runtime's workers and for the
    serial executor, which call a trainer's functions one at a time."""
    honest, held = experiment.trainer, {}

    def start(model, worker, num_examples, quality):
        held[worker] = model.params
        return honest.start(model, worker, num_examples, quality)

    def adopt(state, model):
        held[int(state.worker)] = model.params
        return honest.adopt(state, model)

    def merge(state, model):
        held[int(state.worker)] = model.params
        return honest.merge(state, model)

    def push(state):
        update, state = honest.push(state)
        worker = int(update.worker)
        return (lie(update, held[worker]) if worker in liars else update), state

    trainer = honest._replace(start=start, adopt=adopt, merge=merge, push=push)
    return experiment._replace(trainer=trainer)
