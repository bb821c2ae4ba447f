"""What a strategy is: four fields, three of them pure functions."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, Metrics, Params, ServerState, WorkerUpdate


class Init(Protocol):
    def __call__(self, params: Params) -> ServerState:
        """The server's state before anything has arrived: version 0."""


class Aggregate(Protocol):
    def __call__(
        self, state: ServerState, updates: WorkerUpdate, mask: jax.Array
    ) -> tuple[ServerState, Metrics]:
        """Local to global: the state one version on.

        Args:
          state: the server's; `state.model` is version v.
          updates: leaves [K, ...]; rows beyond the real ones hold anything.
          mask: bool [K], True = real; at least one is.

        Returns:
          The state with version v + 1, and metrics with at least `coefficients`
          f32 [K] (>= 0, sum 1 over the real rows) and `staleness` i32 [K].
        """


class Merge(Protocol):
    def __call__(
        self, local: WorkerUpdate, previous: Params, model: GlobalModel
    ) -> tuple[Params, Metrics]:
        """Global to local, in mid-training.

        Args:
          local: what the worker would push just now.
          previous: its parameters before its last local step.
          model: the arrived version.

        Returns:
          The parameters to train on from, and metrics with at least `share` f32 [],
          the share the local model keeps.
        """


class Strategy(NamedTuple):
    """A method of federated learning.

    All three functions are pure and can be jitted; the same record runs in the
    runtime, and wherever else the programs are interpreted.
    """

    name: str
    init: Init
    aggregate: Aggregate
    merge: Merge
    timing: Timing


def initial_state(params: Params) -> ServerState:
    """Version 0 around `params`, for strategies that keep no memory of their own."""
    zero = jnp.float32(0.0)
    model = GlobalModel(
        params=params,
        version=jnp.int32(0),
        num_examples=zero,
        loss=zero,
        quality=jnp.float32(1.0),
        learning_rate=zero,
    )
    return ServerState(model=model, memory=())


def next_model(
    model: GlobalModel, params: Params, updates: WorkerUpdate, mask: jax.Array
) -> GlobalModel:
    """The version after `model`, with `params` and what the updates say of themselves.

    S is the sum of their examples, L and Q the plain means of their losses and
    qualities (ALGORITHMS, symbols), over the rows where `mask` is True.
    """
    count = jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)

    def total(values):
        return jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32))

    return model._replace(
        params=params,
        version=model.version + 1,
        num_examples=total(updates.num_examples),
        loss=total(updates.loss) / count,
        quality=total(updates.quality) / count,
    )


def staleness(version: jax.Array, since: jax.Array) -> jax.Array:
    """How many versions behind `version` an update is that knows `since`, >= 0.

    Args:
      version: i32 [], the server's before the aggregation.
      since: i32 [K], usually `updates.base_version`.

    Returns:
      i32 [K].
    """
    return jnp.maximum(version - since, 0)
