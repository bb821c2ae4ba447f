"""The compiled programs of an experiment.

Seeds and learning rates are arguments of the programs: experiments that differ in these
alone share them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from asyn2f.kernels.codecs import Codec, Coding, update_codec, version_codec
from asyn2f.kernels.guards import Guards, clamp_losses
from asyn2f.privacy import ALL, SCORES
from asyn2f.serialization import Template, template_of
from asyn2f.strategies import Strategy
from asyn2f.strategies.base import push_params
from asyn2f.tasks.base import Init, InitCarry, Loss
from asyn2f.training.optimizers import Optimizer
from asyn2f.training.settings import Training, global_learning_rate
from asyn2f.training.sharing import Sharing, sharing_of
from asyn2f.training.trainer import Decode, Trainer, make_trainer
from asyn2f.types import Metrics, Params, ServerState, WorkerUpdate


class AdvanceServer(Protocol):
    def __call__(
        self, state: ServerState, updates: WorkerUpdate, mask: jax.Array
    ) -> tuple[ServerState, Metrics]:
        """The next version of updates stacked to leaves [K, ...], with a mask bool [K]
        of the real ones: `Strategy.aggregate`, on clamped losses where guards are
        enforced, and the learning rate of the new version."""


class Publication(NamedTuple):
    """The coding of versions. The server keeps its own model in float32."""

    encode: Callable[[Params], Any]
    decode: Callable[[Any], Params]
    template: Template  # of encoded versions
    is_plain: bool


class Hyperparams(NamedTuple):
    """The arguments of the compiled programs: other values compile nothing."""

    init_key: jax.Array  # u32 [...]: raw bits of the key of the initial model ...
    train_key: jax.Array  # ... and of the workers' randomness
    learning_rate: jax.Array  # f32 []
    learning_rate_min: jax.Array  # f32 []
    schedule_length: jax.Array  # f32 []


def hyperparams_of(training: Training, seed: int) -> Hyperparams:
    """Those of an experiment. Raises as `root_key`."""
    key = root_key(seed)
    return Hyperparams(
        init_key=jax.random.key_data(jax.random.fold_in(key, 0)),
        train_key=jax.random.key_data(jax.random.fold_in(key, 1)),
        learning_rate=jnp.float32(training.learning_rate),
        learning_rate_min=jnp.float32(training.learning_rate_min),
        schedule_length=jnp.float32(training.schedule_length),
    )


def root_key(seed: int) -> jax.Array:
    """The root key of an experiment, of all 64 bits of its seed.

    Raises:
      ValueError: a seed outside [0, 2^64).

    >>> import jax
    >>> bool((root_key(0) == root_key(2**32)).all())
    False
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed: found {seed}, allowed: 0 to 2**64 - 1")
    # JAX takes the lower 32 bits of a Python integer.
    key, above = jax.random.key(seed & 0xFFFFFFFF), seed >> 32
    return jax.random.fold_in(key, above) if above else key


def any_hyperparams() -> Hyperparams:
    """Arbitrary ones, for shapes."""
    key, one = jax.random.key_data(jax.random.key(0)), jnp.float32(1.0)
    return Hyperparams(key, key, one, one, one)


class Computation(NamedTuple):
    """The key of compiled programs; hashable. Experiments with equal computations and
    shapes share them."""

    init: Init
    loss: Loss
    init_carry: InitCarry
    strategy: Strategy
    training: Training  # without the values of `Hyperparams`
    guards: Guards
    coding: Coding
    workers: int
    reveal: frozenset[str] = frozenset((*ALL, SCORES))  # see `privacy.Privacy`
    share: tuple[str, ...] = ()  # patterns: see `sharing_of`
    optimizer: Optimizer | None = None  # another than SGD


class Functions(NamedTuple):
    """A computation as pure functions that are not jitted."""

    trainer: Trainer
    init_server: Callable[[], ServerState]
    advance_server: AdvanceServer
    publication: Publication
    codec: Codec  # of updates
    sharing: Sharing  # what of the model travels; everything above has that part alone
    init_kept: Callable[[], Params]  # the other part, of the initial model
    shapes: Params  # of the whole model, without values


def functions_of(computation: Computation, hyperparams: Hyperparams) -> Functions:
    """The functions of a computation; the hyperparameters may be traced."""
    init, loss, init_carry, strategy, training, guards, coding = computation[:7]
    workers, reveal = computation.workers, computation.reveal
    rates: dict[str, Any] = hyperparams._asdict()
    del rates["init_key"], rates["train_key"]
    training = replace(training, **rates)
    init_key, train_key = map(jax.random.wrap_key_data, hyperparams[:2])
    shapes = jax.eval_shape(init, init_key)
    sharing = sharing_of(shapes, computation.share)
    shared = sharing.shared(shapes)
    codec = update_codec(
        coding,
        shared,
        pushes_models=strategy.push is push_params,
        keeps_model=strategy.timing.after_push == "continue",
    )

    def init_server():
        state = strategy.init(sharing.shared(init(init_key)), workers)
        return _with_learning_rate(state, training)

    def init_kept():
        return () if sharing.is_whole else sharing.kept(init(init_key))

    def advance_server(state, updates, mask):
        if guards.mode == "enforce":
            clamped = clamp_losses(updates.info.loss, mask, guards.min_loss_ratio)
            updates = updates._replace(info=updates.info._replace(loss=clamped))
        state, metrics = strategy.aggregate(state, updates, mask)
        return _with_learning_rate(state, training), metrics

    return Functions(
        trainer=make_trainer(
            loss,
            strategy,
            training,
            train_key,
            codec,
            init_carry,
            reveal=reveal,
            sharing=sharing,
            init_kept=init_kept,
            own=computation.optimizer,
        ),
        init_server=init_server,
        advance_server=advance_server,
        publication=_publication(version_codec(coding, shared), shared),
        codec=codec,
        sharing=sharing,
        init_kept=init_kept,
        shapes=shapes,
    )


class Compiled(NamedTuple):
    """The functions of a computation, jitted."""

    steps: dict[str, Callable[..., Any]]  # a trainer's, hyperparameters first
    decode: Decode
    init_server: Callable[[Hyperparams], ServerState]
    aggregate: Callable[..., tuple[ServerState, Metrics]]
    publication: Publication
    init_kept: Callable[[Hyperparams], Params]
    sharing: Sharing
    template: Template  # of the shared part of the model
    whole_template: Template  # of the model
    update_template: Template  # of encoded updates
    update_needs_base: bool  # whether these are changes since the base version


@lru_cache(maxsize=32)
def compiled_for(computation: Computation) -> Compiled:
    """The programs of a computation; the same ones each time."""

    def jitted(name: str, **options: Any) -> Any:
        def call(hyperparams, *arguments):
            trainer = functions_of(computation, hyperparams).trainer
            return getattr(trainer, name)(*arguments)

        return jax.jit(call, **options)

    def init_server(hyperparams):
        return functions_of(computation, hyperparams).init_server()

    def init_kept(hyperparams):
        return functions_of(computation, hyperparams).init_kept()

    def aggregate(hyperparams, state, updates, mask):
        # Stacked inside the program: XLA reads single rows where they are.
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *updates)
        functions = functions_of(computation, hyperparams)
        return functions.advance_server(state, stacked, mask)

    plain = functions_of(computation, any_hyperparams())
    codec, publication = plain.codec, plain.publication
    shared = plain.sharing.shared(plain.shapes)
    if not publication.is_plain:
        publication = publication._replace(
            encode=jax.jit(publication.encode), decode=jax.jit(publication.decode)
        )
    return Compiled(
        steps={
            "start": jitted("start"),
            "advance": jitted("advance", donate_argnums=1),
            "step": jitted("step"),
            "merge": jitted("merge", donate_argnums=1),
            "adopt": jitted("adopt", donate_argnums=1),
            "report": jitted("report"),
            "push": jitted("push"),
        },
        # Compiled apart from the encoding, as the server decodes with this program.
        decode=codec.decode if codec.is_plain else jax.jit(codec.decode),
        init_server=jax.jit(init_server),
        aggregate=jax.jit(aggregate),
        publication=publication,
        init_kept=jax.jit(init_kept),
        sharing=plain.sharing,
        template=template_of(shared),
        whole_template=template_of(plain.shapes),
        update_template=template_of(_coded_shapes(codec, shared)),
        update_needs_base=codec.needs_base,
    )


def _publication(codec: Codec, shapes: Params) -> Publication:
    template = template_of(_coded_shapes(codec, shapes))
    if codec.is_plain:
        return Publication(lambda x: x, lambda x: x, template, is_plain=True)
    return Publication(
        encode=lambda params: codec.encode(params, (), ())[0],
        decode=lambda coded: codec.decode(coded, ()),
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
