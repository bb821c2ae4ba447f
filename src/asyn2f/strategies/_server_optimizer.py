"""An optimizer of optax on the server, around any strategy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyn2f.kernels.deltas import moved, trained, with_trained
from asyn2f.kernels.promotion import promoting
from asyn2f.kernels.staleness import versions_behind
from asyn2f.strategies.base import Strategy
from asyn2f.types import Params, ServerState, WorkerUpdate


class Memory(NamedTuple):
    """What the server keeps of a strategy with an optimizer."""

    strategy: Any  # its own memory
    optimizer: Any  # the optimizer's state


def with_server_optimizer(
    strategy: Strategy, optimizer: optax.GradientTransformation
) -> Strategy:
    """The strategy, its aggregate taken as a step of an optimizer.

        g = W_t - aggregate of the strategy,    W_{t+1} = W_t + optimizer(g, W_t)

    for the trained parameters; statistics become those of the aggregate. With
    `optax.sgd(1.0)` nothing changes; `optax.adam` or `optax.yogi` around `fedavg` is
    FedAdam or FedYogi (Reddi et al., arXiv 2003.00295), `optax.sgd(0.7, momentum=0.9,
    nesterov=True)` the outer optimizer of DiLoCo (Douillard et al., arXiv 2311.08105).

    The optimizer works in float32, whatever the dtype of the model. Its state is in
    `ServerState.memory`: saved with every version, and restored on a resume. One that
    takes extra arguments is given `staleness` f32 [], that of the stalest update since
    the start of its cycle.

    Args:
      strategy: any.
      optimizer: with its own learning rate. `training.learning_rate` is that of the
        workers.

    >>> from asyn2f.strategies import fedavg
    >>> diloco = with_server_optimizer(fedavg(), optax.sgd(0.7, 0.9, nesterov=True))
    >>> diloco.name, diloco.timing.quorum
    ('fedavg', 'all')
    """

    def init(params: Params, workers: int) -> ServerState:
        state = strategy.init(params, workers)
        opt_state = init_optimizer(optimizer, params)
        return state._replace(memory=Memory(state.memory, opt_state))

    def aggregate(state: ServerState, updates: WorkerUpdate, mask: jax.Array):
        memory, before = state.memory, state.model
        made, metrics = strategy.aggregate(
            state._replace(memory=memory.strategy), updates, mask
        )
        change = jax.tree.map(
            lambda after, w: after.astype(jnp.float32) - w.astype(jnp.float32),
            trained(made.model.params),
            trained(before.params),
        )
        tau = versions_behind(before.version, updates.info.start_version)
        params, opt_state = moved_by(
            optimizer,
            before.params,
            with_trained(made.model.params, change),
            memory.optimizer,
            staleness=jnp.max(jnp.where(mask, tau, 0)).astype(jnp.float32),
        )
        model = made.model._replace(params=params)
        return ServerState(model, Memory(made.memory, opt_state)), metrics

    return strategy._replace(init=init, aggregate=aggregate)


def init_optimizer(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """The initial state of a server's optimizer, for `moved_by`."""
    return promoting(optimizer).init(_as_f32(trained(params)))


def moved_by(
    optimizer: optax.GradientTransformation,
    params: Params,
    change: Params,
    opt_state: Any,
    **extra: Any,
) -> tuple[Params, Any]:
    """The step of an optimizer whose gradient is the opposite of a change.

    Args:
      optimizer: of the server.
      params: of the present version.
      change: of the trained parameters, and new statistics, as from `mean_change`.
      opt_state: of `init_optimizer`, or the last step.
      **extra: arguments for optimizers that take them.

    Returns:
      The parameters in the dtype of each leaf, with the statistics of `change`; and the
      state after.
    """
    gradient = jax.tree.map(jnp.negative, _as_f32(trained(change)))
    before = _as_f32(trained(params))
    step, opt_state = promoting(optimizer).update(gradient, opt_state, before, **extra)
    return moved(params, with_trained(change, step), 1.0), opt_state


def _as_f32(params: Params) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)
