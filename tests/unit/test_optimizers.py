"""Optimizers of local training, against optax alone and hand-worked numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyn2f.kernels.codecs import PLAIN, update_codec
from asyn2f.kernels.promotion import promoting
from asyn2f.strategies import asyn2f
from asyn2f.strategies.samples import f32
from asyn2f.tasks.base import Aux
from asyn2f.timing import Stop
from asyn2f.training.batches import shard_of
from asyn2f.training.computation import compiled_for
from asyn2f.training.experiment import initial_server_state, make_experiment
from asyn2f.training.optimizers import check_optimizer
from asyn2f.training.settings import Training, annealed
from asyn2f.training.trainer import make_trainer
from asyn2f.types import GlobalModel
from tests.support.compilation import nothing_compiles
from tests.unit.test_trainer import experiment as sgd_experiment

RATE = 0.02
BEGIN = {"w": jnp.array([[0.5, -1.0, 2.0], [0.1, 0.7, -0.3]]), "b": jnp.array([0.2])}
# Each does something else with its learning rate: scales its update by it, puts it
# before a momentum or a trust ratio, applies it beside a decay without it, or takes a
# square root of it.
OPTIMIZERS = {
    "adamw": functools.partial(optax.adamw, weight_decay=0.1),
    "lars": functools.partial(optax.lars, weight_decay=0.1),
    "rmsprop": functools.partial(optax.rmsprop, momentum=0.9),
    "adafactor": functools.partial(
        optax.adafactor, weight_decay_rate=0.01, momentum=0.9, min_dim_size_to_factor=2
    ),
    "fromage": optax.fromage,
    "lion": optax.lion,
    "sgd": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "schedule-free": optax.contrib.schedule_free_sgd,
    "chain": lambda learning_rate: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adaptive_grad_clip(0.1),
        optax.adam(learning_rate, b1=0.8),
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def value_of(params, batch):
    """A loss whose gradient is easy to follow: 0.5 |w - x|^2 + 0.5 |b + 1|^2."""
    return 0.5 * jnp.sum((params["w"] - batch) ** 2) + 0.5 * jnp.sum(
        (params["b"] + 1.0) ** 2
    )


def trainer_of(optimizer=None, **settings):
    """A trainer of `value_of`, whose `step` takes a batch of any shape."""
    training = Training(**({"batch_size": 1, "learning_rate": RATE} | settings))

    def loss(params, carry, batch, key):
        return value_of(params["params"], batch), Aux()

    shapes = jax.eval_shape(lambda: {"params": BEGIN})
    codec = update_codec(PLAIN, shapes, pushes_models=True, keeps_model=True)
    key = jax.random.key(0)
    return make_trainer(loss, asyn2f(), training, key, codec, own=optimizer)


def model_of(params=BEGIN, version=0, rate=RATE):
    zero = jnp.float32(0.0)
    return GlobalModel(
        {"params": params}, jnp.int32(version), zero, zero, zero, jnp.float32(rate)
    )


def batches(count, seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=(2, 3)), jnp.float32) for _ in range(count)]


def assert_near(one, other, tolerance=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=tolerance)


def by_optax(transformation, count):
    """The parameters after each step of a plain loop over optax."""
    params, found = BEGIN, []
    transformation = promoting(transformation)
    state = transformation.init(params)
    for batch in batches(count):
        value, gradient = jax.value_and_grad(value_of)(params, batch)
        updates, state = transformation.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


# ------------------------------------------------------------- as optax has it


@pytest.mark.parametrize("schedule", ["fixed", "cosine"])
@every_optimizer
def test_steps_are_those_of_optax_with_the_same_schedule(name, schedule):
    length, rate = 12, RATE
    settings = {"schedule": schedule, "schedule_length": length}
    settings["learning_rate_min"] = 0.004
    trainer = trainer_of(OPTIMIZERS[name], **settings)
    state = trainer.start(model_of(), 0, 1, 1.0)
    if schedule == "cosine":
        annealing = Training(
            learning_rate=RATE, learning_rate_min=0.004, schedule_length=length
        )
        rate = functools.partial(annealed, annealing)
    expected = by_optax(OPTIMIZERS[name](rate), 20)
    step = jax.jit(trainer.step)
    for batch, params in zip(batches(20), expected, strict=True):
        state, _ = step(state, batch)
        assert_near(state.params["params"], params)


def test_a_rate_that_comes_with_a_version_acts_at_the_next_step():
    """adamw: p <- p - lr (m / (sqrt(v) + eps) + wd p), the decay with the new rate."""
    rates = [0.02, 0.02, 0.005, 0.005, 0.1]
    schedule = lambda count: jnp.asarray(rates)[count]
    expected = by_optax(optax.adamw(schedule, weight_decay=0.3), len(rates))
    own = functools.partial(optax.adamw, weight_decay=0.3)
    trainer = trainer_of(own)
    state = trainer.start(model_of(), 0, 1, 1.0)
    for batch, rate, params in zip(batches(5), rates, expected, strict=True):
        state = state._replace(learning_rate=jnp.float32(rate))
        state, _ = trainer.step(state, batch)
        assert_near(state.params["params"], params)


def test_two_steps_of_adamw_worked_by_hand():
    # Gradient w, from 2; b1 = 0.5, b2 = 0.75, eps = 0, wd = 0.1, lr = 0.1.
    # 1: g = 2, m^ = 2, v^ = 4: step 1 + 0.2; w = 2 - 0.12 = 1.88
    # 2: g = 1.88, m = 0.5 * 1 + 0.5 * 1.88 = 1.44, m^ = 1.44 / 0.75 = 1.92
    #    v = 0.75 * 1 + 0.25 * 3.5344 = 1.6336, v^ = 1.6336 / 0.4375 = 3.734
    #    step 1.92 / 1.932357 + 0.188 = 1.181605; w = 1.88 - 0.1181605 = 1.7618395
    own = functools.partial(optax.adamw, b1=0.5, b2=0.75, eps=0.0, weight_decay=0.1)
    trainer = trainer_of(own, learning_rate=0.1)
    params = {"w": jnp.array([[2.0]]), "b": jnp.array([-2.0])}
    state = trainer.start(model_of(params, rate=0.1), 0, 1, 1.0)
    for expected in (1.88, 1.7618395):
        state, _ = trainer.step(state, jnp.zeros((1, 1)))
        assert float(state.params["params"]["w"][0, 0]) == pytest.approx(
            expected, abs=1e-6
        )


def test_an_optimizer_may_ask_for_the_loss():
    """Polyak's step is the loss, over the squared norm of the gradient."""
    own = lambda learning_rate: optax.polyak_sgd(1e9, scaling=learning_rate)
    trainer = trainer_of(own)
    state = trainer.start(model_of(), 0, 1, 1.0)
    for batch, expected in zip(batches(4), by_optax(own(RATE), 4), strict=True):
        state, _ = trainer.step(state, batch)
        assert_near(state.params["params"], expected)


# ------------------------------------------------------------- clipping


def test_gradients_are_clipped_by_their_global_norm():
    # g = (w - x, b + 1) = ((3, 4), 12): its norm is 13; clipped to 6.5, it is halved.
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([11.0])}
    trainer = trainer_of(
        clip_norm=6.5, momentum=0.0, weight_decay=0.0, learning_rate=1.0
    )
    state = trainer.start(model_of(params, rate=1.0), 0, 1, 1.0)
    state, metrics = trainer.step(state, jnp.zeros((1, 2)))
    assert_near(state.params["params"], {"w": f32([[1.5, 2.0]]), "b": f32([5.0])})
    assert float(metrics["loss"]) == pytest.approx(0.5 * 169)


def test_what_is_clipped_is_the_gradient_and_not_the_decay():
    # A gradient of norm 13, clipped to 1.3, and L2 0.5: g / 10 + 0.5 p.
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([11.0])}
    trainer = trainer_of(clip_norm=1.3, momentum=0.0, weight_decay=0.5)
    state = trainer.start(model_of(params, rate=1.0), 0, 1, 1.0)
    state, _ = trainer.step(state, jnp.zeros((1, 2)))
    assert_near(
        state.params["params"],
        {"w": f32([[3 - 0.3 - 1.5, 4 - 0.4 - 2.0]]), "b": f32([11 - 1.2 - 5.5])},
    )


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_clipping_comes_before_any_optimizer(name):
    made = OPTIMIZERS[name]
    trainer = trainer_of(made, clip_norm=0.5)
    state = trainer.start(model_of(), 0, 1, 1.0)
    chain = optax.chain(optax.clip_by_global_norm(0.5), made(RATE))
    for batch, expected in zip(batches(6), by_optax(chain, 6), strict=True):
        state, _ = trainer.step(state, batch)
        assert_near(state.params["params"], expected)


# ------------------------------------------------------------- keep and reset


def counts_of(state):
    """The numbers of steps in an optimizer's state."""
    leaves = jax.tree.leaves(state.opt_state)
    return [int(leaf) for leaf in leaves if leaf.dtype == jnp.int32]


@pytest.mark.parametrize("what", ["keep", "reset"])
@pytest.mark.parametrize("when", ["adopt", "merge"])
def test_the_state_is_kept_or_reset_where_a_version_is_taken_in(when, what):
    trainer = trainer_of(OPTIMIZERS["adamw"], **{f"optimizer_at_{when}": what})
    state = trainer.start(model_of(), 0, 1, 1.0)
    assert counts_of(state) == [0]
    for batch in batches(3):
        state, _ = trainer.step(state, batch)
    before = state.opt_state
    other = model_of(jax.tree.map(lambda x: x + 1.0, BEGIN), version=4)
    taken = getattr(trainer, when)(state, other)
    state = taken[0] if when == "merge" else taken
    assert int(state.base_version) == 4
    if what == "keep":
        assert counts_of(state) == [3]
        assert_near(state.opt_state, before, 0.0)
    else:
        assert not any(leaf.any() for leaf in jax.tree.leaves(state.opt_state))
    restarted = trainer.start(other, 0, 1, 1.0)
    assert counts_of(restarted) == [0]


# ------------------------------------------------------------- in an experiment


@functools.cache
def experiment(name):
    task = sgd_experiment().task
    training = Training(batch_size=8, learning_rate=0.01, optimizer_at_adopt="keep")
    made = OPTIMIZERS[name]
    return make_experiment(task, asyn2f(), training, Stop(), seed=1, optimizer=made)


@pytest.mark.parametrize("name", ["adamw", "schedule-free"])
def test_no_buffer_is_donated_twice_and_the_second_call_compiles_nothing(name):
    made = experiment(name)
    model = initial_server_state(made).model
    shard = shard_of(made.task, 0)

    def everything():
        state = made.trainer.start(model, 0, int(shard.num_examples), 1.0)
        for _ in range(3):
            state, metrics = made.trainer.advance(state, shard)
        state, _ = made.trainer.merge(state, model)
        state, _ = made.trainer.advance(state, shard)
        state = made.trainer.adopt(made.trainer.push(state)[1], model)
        return made.trainer.advance(state, shard)[1]["loss"], metrics["loss"]

    first, *_ = everything()
    with nothing_compiles():
        again, *_ = everything()
    assert float(first) == float(again)


def num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_adamw_takes_the_memory_of_two_moments_and_its_state_is_updated_in_place():
    made = experiment("adamw")
    shard = shard_of(made.task, 0)
    state = made.trainer.start(initial_server_state(made).model, 0, 30, 1.0)
    moments = num_bytes(state.opt_state)
    assert moments == 2 * num_bytes(state.params["params"]) + 4  # and a count
    advance = compiled_for(made.computation).steps["advance"]
    compiled = advance.lower(made.hyperparams, state, shard).compile()
    analysis = compiled.memory_analysis()
    donated = num_bytes(state) - num_bytes(state.previous)  # that becomes another
    assert analysis.alias_size_in_bytes >= donated


def test_an_optimizer_lowers_the_loss():
    made = experiment("adamw")
    model = initial_server_state(made).model
    shard = shard_of(made.task, 0)
    state = made.trainer.start(model, 0, int(shard.num_examples), 1.0)
    losses = []
    for _ in range(80):
        state, metrics = made.trainer.advance(state, shard)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


# ------------------------------------------------------------- errors


def grows(learning_rate):
    """Its state is longer after an update."""

    def update(gradient, state, params=None):
        return gradient, jnp.append(state, 1.0)

    return optax.GradientTransformation(lambda params: jnp.zeros(3), update)


@pytest.mark.parametrize(
    ("optimizer", "match"),
    [
        (optax.lbfgs, "optimizer: its update failed: TypeError: .*value_fn"),
        (lambda learning_rate: optax.adam, "construction failed: .* not a Gradient"),
        (lambda: optax.adam(0.1), "construction failed: .*TypeError"),
        (lambda learning_rate: optax.adam("much"), "its update failed"),
        (grows, r"state after an update has \(\(4,\), 'float32'\).*needed: \(\(3,"),
        (
            lambda learning_rate: optax.GradientTransformation(
                lambda params: (), lambda g, s, p=None: ({"w": g["w"]}, s)
            ),
            r"its update has nothing at \['b'\]",
        ),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(optimizer, match):
    with pytest.raises(ValueError, match=match):
        check_optimizer(optimizer, BEGIN)


@every_optimizer
def test_the_optimizers_of_these_tests_can_be_used(name):
    check_optimizer(OPTIMIZERS[name], BEGIN)


def test_an_experiment_refuses_it_before_anything_is_computed():
    task = sgd_experiment().task
    with pytest.raises(ValueError, match="optimizer: its update failed"):
        make_experiment(
            task, asyn2f(), Training(), Stop(), seed=1, optimizer=optax.lbfgs
        )
