"""The record `Strategy`: pure functions and a timing; helpers to write one."""

import math
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

from asyn2f.kernels.aggregation import weighted_sum
from asyn2f.kernels.staleness import versions_behind
from asyn2f.privacy import ALL
from asyn2f.timing import Timing
from asyn2f.types import GlobalModel, Metrics, Params, ServerState, WorkerUpdate


class Init(Protocol):
    def __call__(self, params: Params, workers: int) -> ServerState:
        """The server's state at version 0, for workers numbered from 0."""


class Aggregate(Protocol):
    def __call__(
        self, state: ServerState, updates: WorkerUpdate, mask: jax.Array
    ) -> tuple[ServerState, Metrics]:
        """Local to global: the state one version on.

        Args:
          state: the server's; `state.model` is version v.
          updates: leaves [K, ...]; padding rows hold anything.
          mask: bool [K], True = real; at least one is.

        Returns:
          The state with version v + 1, and metrics with at least `coefficients`
          f32 [K] (>= 0, sum 1 over the real rows; equal where the method has none) and
          `staleness` i32 [K] (v - base version). Other metrics have a row per update or
          are scalars.
        """


class Merge(Protocol):
    def __call__(
        self, local: WorkerUpdate, previous: Params, model: GlobalModel
    ) -> tuple[Params, Metrics]:
        """Global to local, in mid-training.

        Args:
          local: the update that the worker would push now, with its model in `params`
            whatever `Strategy.push` is.
          previous: its parameters before its last local step.
          model: the version to merge.

        Returns:
          The parameters to continue with, and metrics with at least `share` f32 [], the
          share of the local model.
        """


class Push(Protocol):
    def __call__(self, params: Params, start: Params) -> Params:
        """The content of an update of a worker that trained from `start` to `params`: a
        pytree of the same structure, shapes and dtypes."""


class Signal(Protocol):
    def __call__(self, params: Params, start: Params) -> jax.Array:
        """f32 []: a value that is sent with each update, and on which the push may
        depend (`Timing.push_below_mean`); of training from `start` to `params`."""


def adopt(
    local: WorkerUpdate, previous: Params, model: GlobalModel
) -> tuple[Params, Metrics]:
    """A merge that keeps nothing of the local model."""
    return model.params, {"share": jnp.float32(0.0)}


def push_params(params: Params, start: Params) -> Params:
    """The push of methods that average models."""
    return params


class Strategy(NamedTuple):
    """A method of federated learning, as pure functions that can be jitted.

    The server calls `aggregate` on pending updates to make its next version; a worker
    calls `merge` where `timing` lets it take a new version into the model that it is
    training, and `push` to make an update of what it has trained. The same record runs
    in processes, in a simulation and in a replay: none of them adds mathematics of its
    own. Fields with a default are for methods that need them.

    Attributes:
      name: as in a config.
      init: the server's initial state.
      aggregate: local to global.
      merge: global to local.
      timing: when workers merge, push and wait, and when the server aggregates.
      push: the content of an update: the model, or its difference from the start.
      signal: see `Signal`; None = the training metric.
      proximal: mu of the term `(mu / 2) ||w - w_start||^2` in a worker's loss.
      uses: the numbers of workers on which aggregate and merge depend, of
        `privacy.NUMBERS`; unless they are revealed, the strategy is refused.
    """

    name: str
    init: Init
    aggregate: Aggregate
    timing: Timing
    merge: Merge = adopt
    push: Push = push_params
    signal: Signal | None = None
    proximal: float = 0.0
    uses: frozenset[str] = ALL

    @property
    def needs_start(self) -> bool:
        """Whether a worker has to keep the parameters its cycle started from."""
        is_plain = self.push is push_params and self.signal is None
        return not is_plain or self.proximal > 0


BUFFERED = Timing(
    while_training="ignore",
    after_push="adopt",
    quorum="some",
    pending="all",
    min_updates=10,
)
"""That of methods with a buffer of updates: workers adopt the newest version after each
push, and the server aggregates as soon as there are `min_updates`."""


def initial_state(params: Params, workers: int) -> ServerState:
    """Version 0 with `params`, without a memory."""
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
    """The version after `model`: `params` with the sum of the updates' examples (S) and
    the means of their losses (L) and qualities (Q), over rows where `mask` is True."""
    count = count_of(mask)

    def total(values):
        return jnp.sum(jnp.where(mask, values, 0.0).astype(jnp.float32))

    return model._replace(
        params=params,
        version=model.version + 1,
        num_examples=total(updates.info.num_examples),
        loss=total(updates.info.loss) / count,
        quality=total(updates.info.quality) / count,
    )


def check_range(
    name: str, value: float, low: float, high: float = math.inf, *, open_low=False
) -> None:
    """Raises ValueError unless `low <= value <= high`; `low < value` if `open_low`."""
    if not (low < value <= high if open_low else low <= value <= high):
        begin = f"{'(' if open_low else '['}{low:g}"
        end = "inf)" if high == math.inf else f"{high:g}]"
        raise ValueError(f"{name}: found {value}, allowed {begin}, {end}")


def check_choice(name: str, value: str, allowed: Any) -> None:
    """Raises ValueError unless the value is one of a `Literal`'s."""
    if value not in get_args(allowed):
        raise ValueError(f"{name}: found {value!r}, allowed {list(get_args(allowed))}")


def count_of(mask: jax.Array) -> jax.Array:
    """The number of real rows, f32 []; at least 1."""
    return jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)


def shares_of(weights: jax.Array, mask: jax.Array) -> jax.Array:
    """Weights >= 0 as coefficients: 0 where `mask` is False, and their sum 1."""
    weights = jnp.where(mask, weights, 0.0).astype(jnp.float32)
    return weights / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)


def advanced(
    state: ServerState,
    params: Params,
    updates: WorkerUpdate,
    mask: jax.Array,
    coefficients: jax.Array,
    memory: Any = (),
) -> tuple[ServerState, Metrics]:
    """The result of `Aggregate`: the next version, with these parameters."""
    behind = versions_behind(state.model.version, updates.info.base_version)
    model = next_model(state.model, params, updates, mask)
    metrics = {"coefficients": coefficients, "staleness": jnp.where(mask, behind, 0)}
    return ServerState(model=model, memory=memory), metrics


def blended(
    params: Params, rows: Params, kept: jax.Array | float, weights: jax.Array
) -> Params:
    """`kept * params + sum_k weights[k] * rows[k]`, as in `weighted_sum`."""
    stacked = jax.tree.map(
        lambda own, others: jnp.concatenate([own[None], others]), params, rows
    )
    return weighted_sum(stacked, jnp.append(jnp.float32(kept), weights))


def mixed_one_by_one(
    state: ServerState, updates: WorkerUpdate, mask: jax.Array, shares: jax.Array
) -> tuple[ServerState, Metrics]:
    """Each update mixed into the global model in order of arrival:

        W <- (1 - a_k) W + a_k W_k

    Usually there is one; several still make one version.

    Args:
      state: the server's.
      updates: leaves [K, ...]; models.
      mask: bool [K].
      shares: f32 [K], a_k in [0, 1].
    """
    shares = jnp.where(mask, shares, 0.0).astype(jnp.float32)
    # What remains of the k-th after all behind it have been mixed in.
    kept = jnp.cumprod(jnp.append(1.0 - shares, 1.0)[::-1])[::-1]
    weights = shares * kept[1:]
    params = blended(state.model.params, updates.params, kept[0], weights)
    return advanced(state, params, updates, mask, shares_of(weights, mask))
