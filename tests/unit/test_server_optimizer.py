"""An optimizer on the server, around a strategy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyn2f import strategies
from asyn2f.kernels.codecs import PLAIN, update_codec
from asyn2f.kernels.promotion import promoting
from asyn2f.strategies import fedavg, fedbuff, with_server_optimizer
from asyn2f.strategies.contract import PROPERTIES, Subject
from asyn2f.strategies.samples import f32, i32, stack, update
from asyn2f.tasks.base import Aux
from asyn2f.training.settings import Training
from asyn2f.training.trainer import make_trainer

BOTH = np.array([True, True])


def updates_of(*values, **changes):
    """Updates of models {"params": {"w": value}} with statistics 1, 2, ..."""
    rows = [
        update({"params": {"w": f32(value)}, "stats": {"mean": f32([k + 1.0])}})
        for k, value in enumerate(values)
    ]
    stacked = stack(rows)
    return stacked._replace(info=stacked.info._replace(**changes))


def started(strategy, value):
    params = {"params": {"w": f32(value)}, "stats": {"mean": f32([0.0])}}
    return strategy.init(params, 2)


def weights(state):
    return np.asarray(state.model.params["params"]["w"])


# ------------------------------------------------------------- hand-worked numbers


def test_sgd_with_rate_one_is_the_strategy_itself():
    plain, wrapped = fedavg(), with_server_optimizer(fedavg(), optax.sgd(1.0))
    updates = updates_of([1.0, 5.0], [2.0, -7.0])
    one, metrics = plain.aggregate(started(plain, [9.0, 9.0]), updates, BOTH)
    other, same = wrapped.aggregate(started(wrapped, [9.0, 9.0]), updates, BOTH)
    np.testing.assert_allclose(weights(other), weights(one), rtol=1e-6)
    np.testing.assert_array_equal(same["coefficients"], metrics["coefficients"])
    for name in ("version", "num_examples", "loss", "quality", "learning_rate"):
        assert getattr(other.model, name) == getattr(one.model, name)


def test_half_the_rate_goes_half_the_way():
    strategy = with_server_optimizer(fedavg(), optax.sgd(0.5))
    # From 8 to the mean of 2 and 6, 4: half of the way is 6.
    state, _ = strategy.aggregate(started(strategy, [8.0]), updates_of([2], [6]), BOTH)
    assert weights(state).tolist() == [6.0]


def test_statistics_are_those_of_the_aggregate():
    strategy = with_server_optimizer(fedavg(), optax.adam(0.1))
    state, _ = strategy.aggregate(started(strategy, [8.0]), updates_of([2], [6]), BOTH)
    assert state.model.params["stats"]["mean"].tolist() == [1.5]


def test_two_versions_of_fedadam_worked_by_hand():
    # g = W - mean of updates; lr 0.5, b1 0.5, b2 0.75, eps 0.
    # 1: W 8, mean 4: g = 4, m^ = 4, v^ = 16: W = 8 - 0.5 = 7.5
    # 2: W 7.5, mean 5.5: g = 2; m = 0.5 * 2 + 0.5 * 2 = 2, m^ = 2 / 0.75 = 2.666667
    #    v = 0.75 * 4 + 0.25 * 4 = 4, v^ = 4 / 0.4375 = 9.142857, sqrt 3.023716
    #    W = 7.5 - 0.5 * 0.881917 = 7.0590415
    strategy = with_server_optimizer(
        fedavg(), optax.adam(0.5, b1=0.5, b2=0.75, eps=0.0)
    )
    state = started(strategy, [8.0])
    for sent, expected in (((2, 6), 7.5), ((5, 6), 7.0590415)):
        updates = updates_of(*[[value] for value in sent])
        state, _ = strategy.aggregate(state, updates, BOTH)
        assert float(weights(state)[0]) == pytest.approx(expected, abs=1e-6)
    assert int(state.model.version) == 2


def test_two_versions_of_nesterov_outside_worked_by_hand():
    # DiLoCo: lr 0.5, momentum 0.5. t <- g + 0.5 t; W <- W - 0.5 (g + 0.5 t)
    # 1: W 8, mean 4: g = 4, t = 4: W = 8 - 0.5 * 6 = 5
    # 2: mean 3: g = 2, t = 4: W = 5 - 0.5 * 4 = 3
    strategy = with_server_optimizer(fedavg(), optax.sgd(0.5, 0.5, nesterov=True))
    state = started(strategy, [8.0])
    for sent, expected in (((2, 6), 5.0), ((3, 3), 3.0)):
        updates = updates_of(*[[value] for value in sent])
        state, _ = strategy.aggregate(state, updates, BOTH)
        assert float(weights(state)[0]) == pytest.approx(expected, abs=1e-6)


def test_fedyogi_is_that_of_optax_on_pseudo_gradients():
    strategy = with_server_optimizer(fedbuff(), optax.yogi(0.1))
    state = started(strategy, [3.0, -1.0])
    params = {"w": jnp.array([3.0, -1.0])}
    transformation = promoting(optax.yogi(0.1))
    opt_state = transformation.init(params)
    for version in range(4):
        sent = np.random.default_rng(version).normal(size=(2, 2)).astype(np.float32)
        updates = updates_of(
            *sent,
            start_version=i32([version, version]),
            base_version=i32([version, version]),
        )
        state, _ = strategy.aggregate(state, updates, BOTH)
        gradient = {"w": -jnp.asarray(sent.mean(axis=0))}
        step, opt_state = transformation.update(gradient, opt_state, params)
        params = optax.apply_updates(params, step)
        np.testing.assert_allclose(weights(state), params["w"], atol=1e-6)


def test_decay_on_the_server_is_that_of_the_global_model():
    # A change of 0, so that adamw's step is lr wd W = 0.5 * 0.25 * 8 = 1.
    strategy = with_server_optimizer(fedbuff(), optax.adamw(0.5, weight_decay=0.25))
    state, _ = strategy.aggregate(started(strategy, [8.0]), updates_of([0], [0]), BOTH)
    assert weights(state).tolist() == [7.0]


def test_an_optimizer_with_extra_arguments_is_given_the_largest_staleness():
    def step(gradient, state, params=None, *, staleness, **extra):
        return jax.tree.map(lambda g: -g / (1.0 + staleness), gradient), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: (), step)
    strategy = with_server_optimizer(fedbuff(staleness="constant"), optimizer)
    state = started(strategy, [0.0])
    state = state._replace(model=state.model._replace(version=i32(5)))
    # Started from versions 4 and 2, and a padding row from 0: 1 + 3 = 4.
    updates = updates_of([4], [12], [99], start_version=i32([4, 2, 0]))
    state, _ = strategy.aggregate(state, updates, np.array([True, True, False]))
    assert weights(state).tolist() == [2.0]


# ------------------------------------------------------------- dtypes and memory


def test_the_state_is_in_float32_whatever_the_model_is_in():
    strategy = with_server_optimizer(fedavg(), optax.adam(0.1))
    half = {"params": {"w": jnp.ones(3, jnp.bfloat16)}}
    state = strategy.init(half, 2)
    updates = stack([update({"params": {"w": np.zeros(3, jnp.bfloat16)}})] * 2)
    after, _ = strategy.aggregate(state, updates, BOTH)
    assert after.model.params["params"]["w"].dtype == jnp.bfloat16
    floats = [x for x in jax.tree.leaves(after.memory) if x.dtype != jnp.int32]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    for one, other in zip(
        jax.tree.leaves(after.memory), jax.tree.leaves(state.memory), strict=True
    ):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_a_strategy_keeps_its_own_memory_beside_the_optimizers():
    plain = strategies.ca2fl()
    wrapped = with_server_optimizer(plain, optax.sgd(1.0, momentum=0.9))
    updates = updates_of([1.0], [3.0])
    one, _ = plain.aggregate(started(plain, [0.0]), updates, BOTH)
    other, _ = wrapped.aggregate(started(wrapped, [0.0]), updates, BOTH)
    np.testing.assert_array_equal(other.memory.strategy["w"], one.memory["w"])
    # The trace of the momentum is the pseudo-gradient, -2.
    assert [leaf.tolist() for leaf in jax.tree.leaves(other.memory.optimizer)] == [
        [-2.0]
    ]


# ------------------------------------------------------------- the contract

WRAPPED = {
    "asyn2f with yogi": (strategies.asyn2f, optax.yogi(0.1)),
    "fedadam": (strategies.fedavg, optax.adam(0.1)),
    "diloco": (strategies.fedavg, optax.sgd(0.7, 0.9, nesterov=True)),
    "fedbuff with lion": (strategies.fedbuff, optax.lion(0.01, weight_decay=0.0)),
    "kafl with momentum": (strategies.kafl, optax.sgd(1.0, 0.9)),
}


@functools.cache
def subject(name):
    builder, optimizer = WRAPPED[name]
    return Subject(with_server_optimizer(builder(), optimizer))


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("sentence", PROPERTIES)
def test_a_strategy_with_an_optimizer_keeps_the_contract(sentence, name):
    PROPERTIES[sentence](subject(name))


# ------------------------------------------------------------- DiLoCo


def loss_of(params, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["first"])
    return jnp.mean((hidden @ params["second"] - targets) ** 2)


def diloco_batches(worker, count):
    random = np.random.default_rng([worker, 7])
    return [
        (
            jnp.asarray(random.normal(size=(8, 4)), jnp.float32),
            jnp.asarray(random.normal(size=(8, 2)), jnp.float32),
        )
        for _ in range(count)
    ]


def test_diloco_of_two_workers_is_a_plain_loop_over_optax():
    """AdamW inside, its state kept, Nesterov outside; 5 outer steps of 6 inner ones."""
    outer, inner, workers = 5, 6, 2
    random = np.random.default_rng(0)
    begin = {
        "first": jnp.asarray(random.normal(size=(4, 16)), jnp.float32),
        "second": jnp.asarray(random.normal(size=(16, 2)), jnp.float32),
    }
    inside = functools.partial(optax.adamw, b2=0.95, weight_decay=0.1)
    outside = optax.sgd(0.7, momentum=0.9, nesterov=True)
    batches = [diloco_batches(k, outer * inner) for k in range(workers)]

    # The plain loop.
    expected, outer_state = [begin], outside.init(begin)
    transformation = promoting(inside(3e-3))
    inner_states = [transformation.init(begin) for _ in range(workers)]
    for t in range(outer):
        ends = []
        for k in range(workers):
            params = expected[-1]
            for batch in batches[k][t * inner : (t + 1) * inner]:
                gradient = jax.grad(loss_of)(params, batch)
                step, inner_states[k] = transformation.update(
                    gradient, inner_states[k], params
                )
                params = optax.apply_updates(params, step)
            ends.append(params)
        change = jax.tree.map(
            lambda start, *after: start - sum(after) / workers, expected[-1], *ends
        )
        step, outer_state = outside.update(change, outer_state, expected[-1])
        expected.append(optax.apply_updates(expected[-1], step))

    # The same by a trainer and a strategy.
    strategy = with_server_optimizer(fedavg(), outside)
    training = Training(batch_size=8, learning_rate=3e-3, optimizer_at_adopt="keep")

    def loss(params, carry, batch, key):
        return loss_of(params["params"], batch), Aux()

    codec = update_codec(
        PLAIN, {"params": begin}, pushes_models=True, keeps_model=False
    )
    key = jax.random.key(0)
    trainer = make_trainer(loss, strategy, training, key, codec, own=inside)
    state = strategy.init({"params": begin}, workers)
    rated = lambda s: s.model._replace(learning_rate=jnp.float32(3e-3))
    local = [trainer.start(rated(state), k, 8, 1.0) for k in range(workers)]
    aggregate, step = jax.jit(strategy.aggregate), jax.jit(trainer.step)
    for t in range(outer):
        pushed = []
        for k in range(workers):
            for batch in batches[k][t * inner : (t + 1) * inner]:
                local[k], _ = step(local[k], batch)
            update, local[k] = trainer.push(local[k])
            pushed.append(update)
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *pushed)
        state, _ = aggregate(state, stacked, BOTH)
        local = [trainer.adopt(worker, rated(state)) for worker in local]
        for name, array in expected[t + 1].items():
            np.testing.assert_allclose(
                state.model.params["params"][name], array, rtol=0.0, atol=1e-6
            )
    moved = np.abs(np.asarray(expected[-1]["first"] - begin["first"]))
    assert moved.max() > 0.05, "nothing has been learnt: this shows nothing"
