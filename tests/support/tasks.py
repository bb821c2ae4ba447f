"""Tasks that are no classification, as a user would write them."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f import Aux, Metric, Stop, Task, Training, make_experiment, mean_evaluation
from asyn2f.kernels.codecs import PLAIN, Coding
from asyn2f.strategies import Strategy, asyn2f
from asyn2f.training.experiment import Experiment

TRAINING = Training(
    batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=0.0, schedule="fixed"
)


def split(count: int, workers: int) -> dict[str, tuple]:
    """The fields of a task on the split."""
    rows = np.array_split(np.arange(count), workers)
    return {"shards": tuple(rows), "qualities": (1.0,) * workers}


# ------------------------------------------------------------- a regression


def errors(params, batch):
    line = params["params"]
    return line["slope"] * batch["x"] + line["offset"] - batch["y"]


def line_loss(params, carry, batch, key):
    loss = jnp.mean(errors(params, batch) ** 2)
    return loss, Aux(metric=loss)


LINE = mean_evaluation(
    {
        "bias": errors,
        "mse": lambda params, batch: errors(params, batch) ** 2,
    }
)


def no_line(key):
    return {"params": {"slope": jnp.float32(0), "offset": jnp.float32(0)}}


def regression(*, workers: int = 3) -> Task:
    """y = 3 x + 1 on 48 points in [-1, 1]; version 0 has an mse of 4.13."""
    x = np.linspace(-1, 1, 48, dtype=np.float32)
    data = {"x": x, "y": 3 * x + 1}
    return Task(
        name="line",
        init=no_line,
        loss=line_loss,
        evaluation=LINE,
        metric=Metric("mse", higher_is_better=False),
        train=data,
        test={name: array[::4] for name, array in data.items()},
        **split(48, workers),
    )


# ------------------------------------------------------------- returns up to 500


class Walk(NamedTuple):
    """An environment of a worker's own: a place that is drawn anew at every step."""

    key: jax.Array  # u32 [2]
    place: jax.Array  # f32 [2]
    steps: jax.Array  # i32 []


def first_walk(key, worker):
    return Walk(jax.random.key_data(key), jnp.zeros(2), jnp.int32(0))


def score_of(action):
    return 500 * jnp.exp(-((action - 2.0) ** 2))


def policy_loss(params, walk, batch, key):
    here, following = jax.random.split(jax.random.wrap_key_data(walk.key))
    place = 0.5 * walk.place + jax.random.normal(here, (2,))
    action = params["params"] + 0.05 * place.mean()
    walk = Walk(jax.random.key_data(following), place, walk.steps + 1)
    loss = (action - 2.0) ** 2
    return loss, Aux(metric=score_of(action), carry=walk)


def counted_loss(params, walk, batch, key):
    """As `policy_loss`; its metric is the number of steps before, an exact number."""
    loss, aux = policy_loss(params, walk, batch, key)
    return loss, aux._replace(metric=walk.steps.astype(jnp.float32))


RETURNS = mean_evaluation(
    {"return": lambda params, batch: score_of(params["params"]) * batch["weight"]}
)


def no_policy(key):
    return {"params": jnp.float32(0)}


def returns(*, workers: int = 3) -> Task:
    """A policy of one number whose return is 9.2 at first, and 500 at best."""
    return Task(
        name="walk",
        init=no_policy,
        loss=policy_loss,
        evaluation=RETURNS,
        metric=Metric("return"),
        train={"episode": np.arange(48, dtype=np.int32)},
        test={"weight": np.ones(5, np.float32)},
        init_carry=first_walk,
        **split(48, workers),
    )


def counting(*, workers: int = 3) -> Task:
    return returns(workers=workers)._replace(loss=counted_loss)


# ------------------------------------------------------------- a body and heads

BODY = ("params/body/**",)


def guess(params, batch):
    model = params["params"]
    x = batch["x"] - params["statistics"]["mean"][None]
    return jnp.tanh(x @ model["body"]["w"]) @ model["head"]["w"] + model["head"]["b"]


def personal_loss(params, carry, batch, key):
    loss = jnp.mean((guess(params, batch) - batch["y"]) ** 2)
    mean = 0.9 * params["statistics"]["mean"] + 0.1 * batch["x"].mean(0)
    return loss, Aux(metric=loss, statistics={"statistics": {"mean": mean}})


PERSONAL = mean_evaluation(
    {"mse": lambda params, batch: (guess(params, batch) - batch["y"]) ** 2}
)


def first_personal(key):
    body, head = jax.random.split(key)
    return {
        "params": {
            "body": {"w": jax.random.normal(body, (3, 8))},
            "head": {"w": jax.random.normal(head, (8,)), "b": jnp.float32(0)},
        },
        "statistics": {"mean": jnp.zeros(3)},
    }


def personal(*, workers: int = 3) -> Task:
    """Each worker wants another multiple of one function, of inputs elsewhere; it has
    16 rows, and 4 more held out."""
    x = np.random.default_rng(0).normal(size=(20 * workers, 3)).astype(np.float32)
    owner = np.repeat(np.arange(workers), 20)
    y = np.tanh(x.sum(1)) * (owner - 1)
    data = {"x": x + owner[:, None].astype(np.float32), "y": y.astype(np.float32)}
    is_test = np.arange(20 * workers) % 5 == 4
    return Task(
        name="personal",
        init=first_personal,
        loss=personal_loss,
        evaluation=PERSONAL,
        metric=Metric("mse", higher_is_better=False),
        train={name: array[~is_test] for name, array in data.items()},
        test={name: array[is_test] for name, array in data.items()},
        held_out=tuple(np.array_split(np.arange(4 * workers), workers)),
        **split(16 * workers, workers),
    )


def experiment_of(
    task: Task,
    versions: int = 8,
    strategy: Strategy | None = None,
    share: tuple[str, ...] = (),
    coding: Coding = PLAIN,
    **timing,
) -> Experiment:
    strategy = asyn2f() if strategy is None else strategy
    timing = {"min_updates": 2, "min_workers": len(task.shards)} | timing
    strategy = strategy._replace(timing=replace(strategy.timing, **timing))
    stop = Stop(max_versions=versions)
    return make_experiment(
        *(task, strategy, TRAINING, stop, 0), coding=coding, share=share
    )
