"""The record `Experiment`: everything that the numbers of a run depend on."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from asyn2f import settings
from asyn2f.errors import Asyn2fError, ExecutionError, OptimizerError
from asyn2f.kernels.codecs import PLAIN, Coding
from asyn2f.kernels.guards import Guards
from asyn2f.privacy import NEUTRAL, NUMBERS, SCORES, withheld
from asyn2f.serialization import Template
from asyn2f.strategies import Strategy
from asyn2f.tasks.base import Task
from asyn2f.timing import Stop, check_cycle
from asyn2f.training.computation import (
    Computation,
    Functions,
    Hyperparams,
    Publication,
    compiled_for,
    hyperparams_of,
)
from asyn2f.training.optimizers import SGD, Optimizer, check_optimizer
from asyn2f.training.settings import Training
from asyn2f.training.sharing import Sharing
from asyn2f.training.trainer import Trainer
from asyn2f.types import (
    GlobalModel,
    Metric,
    Metrics,
    Params,
    ServerState,
    WorkerUpdate,
)

NO_GUARDS = Guards(mode="off")


class AggregateUpdates(Protocol):
    def __call__(
        self, state: ServerState, updates: Sequence[WorkerUpdate]
    ) -> tuple[ServerState, Metrics]:
        """The next version, with its learning rate, of at least one update and at most
        `Timing.most_updates`, in this order; metrics have one row per update."""


class Experiment(NamedTuple):
    """A task, a strategy and their settings, and the functions made of them."""

    task: Task
    strategy: Strategy  # its timing holds the experiment's settings
    training: Training
    stop: Stop
    seed: int
    guards: Guards
    coding: Coding
    computation: Computation
    hyperparams: Hyperparams
    # All jitted; the second call compiles nothing.
    trainer: Trainer
    init_server: Callable[[], ServerState]
    aggregate: AggregateUpdates
    publication: Publication
    sharing: Sharing
    init_kept: Callable[[], Params]  # the part that stays, of the initial model
    template: Template  # of the shared part of the model, which is all that travels
    whole_template: Template  # of the model
    update_template: Template  # of encoded updates
    update_needs_base: bool  # whether these are changes since the base version

    @property
    def reveal(self) -> frozenset[str]:
        """The numbers that may leave a worker."""
        return self.computation.reveal

    @property
    def reveals_scores(self) -> bool:
        """Whether scores on the rows of a worker may leave it."""
        return SCORES in self.reveal

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
    reveal: Collection[str] = (*NUMBERS, SCORES),
    share: tuple[str, ...] = (),
    optimizer: Optimizer | None = None,
) -> Experiment:
    """Makes an experiment, without computing anything.

    Experiments that differ in seed, learning rates, schedule length, limits or data
    share compiled programs, if their functions and the shapes of arrays are the same.

    Args:
      task: model, loss, data.
      strategy: built with the cap of `guards` already.
      training: settings.
      stop: limits of a run.
      seed: of the initial model and of all draws in training; in [0, 2^64).
      guards: see `asyn2f.kernels.guards`.
      coding: of updates and versions.
      reveal: the numbers that may leave a worker, see `asyn2f.privacy`.
      share: patterns of the leaves that travel, the others stay with their worker: see
        `asyn2f.training.sharing.sharing_of`. () = all.
      optimizer: of training, a function of the learning rate, as `optax.adamw`; None =
        SGD, with the momentum and weight decay in `training`.

    Raises:
      ConfigError: the task or the strategy is of another type.
      ValueError: a setting is out of range; begins with its name.
      ShareError: a pattern is malformed or matches nothing.
      OptimizerError: the optimizer cannot be used.
    """
    _check(task, strategy, training, stop, guards, reveal, optimizer)
    strategy = _in_direction(strategy, task.metric)
    computation = Computation(
        init=task.init,
        loss=task.loss,
        init_carry=task.init_carry,
        strategy=strategy,
        training=_without_rates(training),
        guards=guards,
        coding=coding,
        workers=len(task.shards),
        reveal=frozenset(reveal),
        share=tuple(share),
        optimizer=optimizer,
    )
    hyperparams = hyperparams_of(training, seed)
    return Experiment(
        task=task,
        strategy=strategy,
        training=training,
        stop=stop,
        seed=seed,
        guards=guards,
        coding=coding,
        computation=computation,
        hyperparams=hyperparams,
        **_functions(computation, hyperparams),
    )


def _check(
    task: Task,
    strategy: Strategy,
    training: Training,
    stop: Stop,
    guards: Guards,
    reveal: Collection[str],
    optimizer: Optimizer | None,
) -> None:
    """Raises what `make_experiment` raises; patterns of leaves are checked later."""
    settings.check_type("task", task, Task, "asyn2f.supervised makes one")
    settings.check_type("strategy", strategy, Strategy, "asyn2f.fedbuff() makes one")
    for part in (training, stop, guards, strategy.timing):
        settings.check(part)
    check_cycle(strategy.timing)
    if optimizer is None and training.optimizer != SGD:
        raise OptimizerError(
            f"optimizer: found {training.optimizer!r} in the settings, but no "
            "function; pass `optimizer=optax.adamw`, for example"
        )
    if optimizer is not None:
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        check_optimizer(optimizer, shapes["params"])
    if problem := problem_of_reveal(strategy, reveal):
        raise ValueError(f"privacy.reveal: {problem}")


def _functions(computation: Computation, hyperparams: Hyperparams) -> dict[str, Any]:
    """The functions and templates of an experiment, by the name of their field."""
    compiled = compiled_for(computation)
    steps = {name: partial(f, hyperparams) for name, f in compiled.steps.items()}
    return {
        "trainer": Trainer(**steps, decode=compiled.decode),
        "init_server": partial(compiled.init_server, hyperparams),
        "aggregate": partial(_aggregate, compiled.aggregate, computation, hyperparams),
        "publication": compiled.publication,
        "sharing": compiled.sharing,
        "init_kept": partial(compiled.init_kept, hyperparams),
        "template": compiled.template,
        "whole_template": compiled.whole_template,
        "update_template": compiled.update_template,
        "update_needs_base": compiled.update_needs_base,
    }


def problem_of_reveal(strategy: Strategy, reveal: Collection[str]) -> str:
    """Why a strategy cannot do without what is not revealed; "" if it can."""
    needed, why = strategy.uses, strategy.name
    if strategy.timing.depends_on_values and strategy.signal is None:
        needed, why = needed | {"metric"}, f"{why} with timing.push_at_metric"
    missing = withheld(needed, reveal)
    if not missing:
        return ""
    return (
        f"found {', '.join(reveal) or 'nothing'}, but {why} needs {', '.join(missing)} "
        "of each worker; reveal that, or take a strategy that does without, such as "
        "fedbuff"
    )


def registered(experiment: Experiment) -> tuple[tuple[int, float], ...]:
    """The number of examples and the quality that each worker registers with, as far as
    they are revealed. The quality is rounded to float32, as in its updates."""
    task, reveal = experiment.task, experiment.reveal

    def own(rows: np.ndarray, quality: float) -> tuple[int, float]:
        count = len(rows) if "size" in reveal else int(NEUTRAL["size"])
        quality = quality if "quality" in reveal else NEUTRAL["quality"]
        return count, float(np.float32(quality))

    return tuple(map(own, task.shards, task.qualities))


def _in_direction(strategy: Strategy, metric: Metric) -> Strategy:
    """The strategy, whose timing knows which values of a metric are better."""
    timing, higher = strategy.timing, metric.higher_is_better
    if timing.higher_is_better == higher:
        return strategy
    return strategy._replace(timing=replace(timing, higher_is_better=higher))


def _without_rates(training: Training) -> Training:
    """The settings without those that are arguments of the compiled programs."""
    return replace(
        training, learning_rate=0.0, learning_rate_min=0.0, schedule_length=1
    )


@contextlib.contextmanager
def stage(
    experiment: Experiment,
    name: str,
    version: int,
    worker: int | None = None,
    event: int | None = None,
) -> Iterator[None]:
    """Turns whatever the body raises into an `ExecutionError` that names this stage."""
    try:
        yield
    except Asyn2fError:
        raise
    except Exception as error:
        strategy = experiment.strategy.name
        raise ExecutionError(name, strategy, version, worker, event, error) from error


def initial_server_state(experiment: Experiment) -> ServerState:
    """Version 0, drawn from the experiment's seed."""
    return experiment.init_server()


def published(experiment: Experiment | Functions, model: GlobalModel) -> GlobalModel:
    """A version as workers and evaluators receive it: encoded and decoded."""
    publication = experiment.publication
    if publication.is_plain:
        return model
    return model._replace(params=publication.decode(publication.encode(model.params)))


def _aggregate(
    run: Callable[..., tuple[ServerState, Metrics]],
    computation: Computation,
    hyperparams: Hyperparams,
    state: ServerState,
    updates: Sequence[WorkerUpdate],
) -> tuple[ServerState, Metrics]:
    most = computation.strategy.timing.most_updates(computation.workers)
    count = len(updates)
    if not 1 <= count <= most:
        raise ValueError(f"updates: found {count}, allowed 1 to {most}")
    # Padded to one shape, so that one program serves every number of updates.
    rows = (*updates, *[updates[0]] * (most - count))
    state, metrics = run(hyperparams, state, rows, np.arange(most) < count)
    metrics = jax.device_get(metrics)
    # Metrics without a row per update are scalars.
    return state, jax.tree.map(lambda x: x[:count] if x.ndim else x, metrics)
