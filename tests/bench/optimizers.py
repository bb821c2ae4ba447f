"""What does an optimizer cost beyond the memory traffic of its state?

A step on a loss whose gradient costs next to nothing, over the parameters of ResNet-18,
by the trainer as a worker calls it: the state is donated. Plain SGD reads and writes
the parameters; a moment is read and written besides. The limit is plain SGD, plus the
copying of as many passes. On the server: an aggregation with an optimizer, likewise.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asyn2f.kernels.codecs import PLAIN, update_codec
from asyn2f.strategies import fedavg, with_server_optimizer
from asyn2f.strategies.base import Strategy, push_params
from asyn2f.tasks.base import Aux
from asyn2f.training.optimizers import Optimizer
from asyn2f.training.settings import Training
from asyn2f.training.trainer import make_trainer
from asyn2f.types import GlobalModel, UpdateInfo, WorkerUpdate
from tests.bench.figures import Figure, Turns, compared, in_turns
from tests.bench.kernels import ROUNDS, copier, resnet18_params

RATE = jnp.float32(1e-3)
MOMENT = 2  # passes over the model: it is read and written


def measure() -> Iterator[Figure]:
    params = {"params": resnet18_params(0)["params"]}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    yield from _inside(params, size)
    yield from _outside(params, size)


def _inside(params: Any, size: int) -> Iterator[Figure]:
    """Of a worker's step."""
    momentum, adamw = "SGD with momentum", "AdamW"
    steps = {
        "plain SGD": _step(params, momentum=0.0),
        momentum: _step(params),
        adamw: _step(params, own=partial(optax.adamw, weight_decay=0.1)),
    }
    for name, moments in ((momentum, 1), (adamw, 2)):
        yield _beyond("a step, ResNet-18", steps, "plain SGD", name, moments, size)


def _outside(params: Any, size: int) -> Iterator[Figure]:
    """Of the aggregation of two updates."""
    plain, adam = "an average of two", "FedAdam"
    calls = {
        plain: _aggregation(params, fedavg()),
        adam: _aggregation(params, with_server_optimizer(fedavg(), optax.adam(0.01))),
    }
    yield _beyond("aggregation, ResNet-18", calls, plain, adam, 2, size)


def _beyond(
    what: str,
    calls: dict[str, Callable[[], Any]],
    plain: str,
    name: str,
    moments: int,
    size: int,
) -> Figure:
    passes = moments * MOMENT
    copies = f"{passes} passes over {size / 1e6:.1f} MB"
    chosen = {plain: calls[plain], name: calls[name], copies: copier(size, passes)}
    turns: Turns = in_turns(chosen, ROUNDS)
    limit = f"{plain}, and {copies} copied by two threads"
    turns[limit] = [a + b for a, b in zip(turns[plain], turns[copies], strict=True)]
    return compared(f"{name}: {what}", turns, name, limit, 1.0)


def _step(params: Any, own: Optimizer | None = None, **settings: float) -> Any:
    def loss(params, carry, batch, key):
        squares = [jnp.sum(x * x) for x in jax.tree.leaves(params["params"])]
        return 0.5 * batch * sum(squares), Aux()

    codec = update_codec(PLAIN, params, pushes_models=True, keeps_model=False)
    training = Training(weight_decay=0.0, **settings)
    trainer = make_trainer(loss, fedavg(), training, jax.random.key(0), codec, own=own)
    zero = jnp.float32(0.0)
    model = GlobalModel(params, jnp.int32(0), zero, zero, zero, RATE)
    step = jax.jit(trainer.step, donate_argnums=0)
    state = jax.jit(trainer.start)(model, 0, 32.0, 1.0)

    def once() -> None:
        nonlocal state
        state, _ = step(state, RATE)
        jax.block_until_ready(state)

    return once


def _aggregation(params: Any, strategy: Strategy) -> Callable[[], None]:
    assert strategy.push is push_params
    one, zero = jnp.ones(2, jnp.float32), jnp.zeros(2, jnp.int32)
    info = UpdateInfo(zero, zero, zero, one, one, one, one, one)
    rows = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    updates = WorkerUpdate(rows, jnp.arange(2, dtype=jnp.int32), info)
    aggregate = jax.jit(strategy.aggregate, donate_argnums=0)
    state = strategy.init(jax.tree.map(jnp.copy, params), 2)

    def once() -> None:
        nonlocal state
        state, _ = aggregate(state, updates, jnp.array([True, True]))
        jax.block_until_ready(state)

    return once
