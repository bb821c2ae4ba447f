"""Settings of local training, and its learning-rate schedules."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from asyn2f.settings import setting

Schedule = Literal["fixed", "cosine", "synchronous"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Local training: an optimizer and the schedule of its learning rate."""

    batch_size: int = setting(
        32, "examples per step (the paper: 128)", unit="examples", at_least=1
    )
    optimizer: str = setting(
        "sgd",
        "`sgd`, with the momentum and weight decay below; one of optax, `optax:adamw`; "
        "or a user-defined function of the learning rate. Arguments of the latter two "
        "are `training.optimizer_args.*`",
        allowed="sgd; MODULE:FUNCTION; or FILE.py:FUNCTION",
        holds=lambda x: x == "sgd" or ":" in x,
    )
    learning_rate: float = setting(0.1, "lr_0 (the paper's)", above=0)
    momentum: float = setting(
        0.9, "of `sgd` (the paper's); without effect elsewhere", at_least=0, below=1
    )
    weight_decay: float = setting(
        5e-4,
        "of `sgd`: L2 penalty of the trained parameters, not part of the reported loss "
        "(the paper's); without effect elsewhere",
        at_least=0,
    )
    clip_norm: float = setting(
        0.0,
        "gradients are scaled down to at most this global norm, before anything else; "
        "0 = never",
        at_least=0,
    )
    schedule: Schedule = setting(
        "fixed",
        "of the learning rate. `cosine`: over each worker's own steps; `synchronous`: "
        "over global versions, computed by the server and sent with each model",
    )
    learning_rate_min: float = setting(
        0.005, "at the end of the two schedules (the paper's)", at_least=0
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
    optimizer_at_merge: Literal["keep", "reset"] = setting(
        "keep", "whether a merge keeps or resets the optimizer's state"
    )
    optimizer_at_adopt: Literal["keep", "reset"] = setting(
        "reset",
        "the same where a worker replaces its model by a version; its first one always "
        "begins with a new state",
    )


def annealed(training: Training, position: jax.Array) -> jax.Array:
    """`max(lr_min, lr_0 (1 + cos(pi x / X)) / 2)`, and lr_min from X on; never above
    lr_0.

    The regimes of the paper's experiments differ in x: see `Training`.

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
    """The length of a worker's `cosine` schedule in local steps, a number.

    >>> print(length_for(Training(schedule_epochs=600, batch_size=128), 17450))
    81796.875
    """
    if not training.schedule_epochs:
        return training.schedule_length
    return training.schedule_epochs * num_examples / training.batch_size


def local_learning_rate(
    training: Training, sent: jax.Array, num_examples: jax.Array, step: jax.Array
) -> jax.Array:
    """The learning rate, f32 [], of a worker's step; `sent` came with its version."""
    if training.schedule != "cosine":
        return sent
    length = length_for(training, num_examples)
    return annealed(replace(training, schedule_length=length), step)


def global_learning_rate(training: Training, version: jax.Array) -> jax.Array:
    """The learning rate, f32 [], that the server sends with a version."""
    if training.schedule == "synchronous":
        return annealed(training, version)
    return jnp.float32(training.learning_rate)
