import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyn2f.strategies import asyn2f
from asyn2f.tasks.base import Aux, Metric, Task, mean_evaluation
from asyn2f.tasks.classification import make_classification_task
from asyn2f.tasks.data import Dataset
from asyn2f.tasks.models import CNN, MLP
from asyn2f.timing import Stop
from asyn2f.training.batches import shard_of, steps_per_epoch
from asyn2f.training.experiment import initial_server_state, make_experiment
from asyn2f.training.settings import Training, annealed
from tests.support.compilation import nothing_compiles


def data(count=50, classes=3, seed=0) -> Dataset:
    rng = np.random.default_rng(seed)
    arrays = {
        "input": rng.normal(size=(count, 4, 4, 1)).astype(np.float32),
        "label": rng.integers(0, classes, count).astype(np.int32),
    }
    return Dataset(train=arrays, test=arrays, num_classes=classes)


@functools.cache  # each one compiles anew
def experiment(model=None, cuts=(30,), is_shared=False, **training):
    settings = {"batch_size": 8, "learning_rate": 0.1} | training
    cuts = [0, *cuts, 50]
    shards = [np.arange(a, b) for a, b in itertools.pairwise(cuts)]
    if is_shared:
        shards = [np.arange(50)] * len(shards)
    task = make_classification_task(
        "t", model or MLP((5,), 3), data(), shards, [1.0, 0.5]
    )
    return make_experiment(task, asyn2f(), Training(**settings), Stop(), seed=1)


def started(made, worker=0):
    model = initial_server_state(made).model
    shard = shard_of(made.task, worker)
    return made.trainer.start(model, worker, int(shard.num_examples), 1.0), shard


def run(made, steps, worker=0):
    state, shard = started(made, worker)
    for _ in range(steps):
        state, _ = made.trainer.advance(state, shard)
    return state


def test_a_step_is_torchs_sgd_with_l2_and_the_loss_is_without_it():
    made = experiment(momentum=0.9, weight_decay=0.01, learning_rate=0.05)
    state, shard = started(made)
    before = state.params["params"]
    batches, velocity = [], jax.tree.map(jnp.zeros_like, before)
    expected = jax.tree.map(jnp.copy, before)
    for _ in range(3):
        copied = jax.tree.map(jnp.copy, state)
        state, metrics = made.trainer.advance(state, shard)
        batches.append(metrics["loss"])

        def loss(params, rows):
            logits = MLP((5,), 3).apply(
                {"params": params}, shard.arrays["input"][rows], train=True
            )
            labels = shard.arrays["label"][rows]
            entropy = optax.softmax_cross_entropy_with_integer_labels
            return entropy(logits, labels).mean()

        rows = _rows_of(made, copied, shard)
        value, gradient = jax.value_and_grad(loss)(expected, rows)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        gradient = jax.tree.map(lambda g, p: g + 0.01 * p, gradient, expected)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        expected = jax.tree.map(lambda p, v: p - 0.05 * v, expected, velocity)
    for a, b in zip(
        jax.tree.leaves(state.params["params"]), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(
        made.trainer.report(state).info.loss, np.mean(batches), rtol=1e-6
    )


def _rows_of(made, state, shard):
    """The rows of the next batch, found out by marking every example in turn."""
    count = int(shard.num_examples)

    def loss_with(labels):
        marked = shard._replace(arrays={**shard.arrays, "label": labels})
        copied = jax.tree.map(jnp.copy, state)
        return made.trainer.advance(copied, marked)[1]["loss"]

    labels = shard.arrays["label"]
    usual = loss_with(labels)
    rows = []
    for row in range(count):
        if loss_with(labels.at[row].set((labels[row] + 1) % 3)) != usual:
            rows.append(row)
    return jnp.array(rows)


def test_an_epoch_shows_every_example_and_the_next_one_another_order():
    seen: list[set[int]] = []
    made = experiment(cuts=(16,))
    state, shard = started(made)
    for _ in range(4):
        seen.append({int(r) for r in _rows_of(made, state, shard)})
        state, _ = made.trainer.advance(state, shard)
    assert seen[0] | seen[1] == seen[2] | seen[3] == set(range(16))
    assert seen[0] & seen[1] == set()
    assert seen[0] != seen[2]


def test_previous_is_the_model_before_the_last_step():
    made = experiment()
    four, five = run(made, 4), run(made, 5)
    for a, b in zip(
        jax.tree.leaves(five.previous), jax.tree.leaves(four.params), strict=True
    ):
        assert jnp.array_equal(a, b)


def test_workers_draw_different_batches_from_one_key():
    made = experiment(is_shared=True)
    assert float(run(made, 1, 0).loss_sum) != float(run(made, 1, 1).loss_sum)


def test_padding_of_a_shorter_shard_is_never_read():
    made = experiment(cuts=(10,))
    state, shard = started(made, 0)
    assert len(shard.indices) == 40
    spoiled = shard._replace(
        arrays={k: jnp.concatenate([v, v * 0 + 99]) for k, v in shard.arrays.items()},
        indices=shard.indices.at[10:].set(15),
    )
    clean, spoilt = state, jax.tree.map(jnp.copy, state)
    for _ in range(5):
        clean, _ = made.trainer.advance(clean, shard)
        spoilt, _ = made.trainer.advance(spoilt, spoiled)
    assert jnp.array_equal(
        clean.params["params"]["Dense_0"]["kernel"],
        spoilt.params["params"]["Dense_0"]["kernel"],
    )


def test_the_loss_reported_is_that_of_the_present_epoch_only():
    made = experiment()
    state, shard = started(made)
    epoch = steps_per_epoch(30, 8)
    losses = []
    for _ in range(epoch + 2):
        state, metrics = made.trainer.advance(state, shard)
        losses.append(float(metrics["loss"]))
    assert int(state.epoch_steps) == 2
    report = made.trainer.report(state)
    np.testing.assert_allclose(report.info.loss, np.mean(losses[-2:]), rtol=1e-6)


def test_a_merge_takes_base_version_and_learning_rate_and_keeps_momentum():
    made = experiment()
    state = run(made, 6)
    momentum = jax.tree.map(jnp.copy, state.opt_state)
    model = initial_server_state(made).model._replace(
        version=jnp.int32(7), learning_rate=jnp.float32(0.01)
    )
    state, metrics = made.trainer.merge(state, model)
    assert int(state.base_version) == 7
    assert int(state.start_version) == 0
    assert float(state.learning_rate) == pytest.approx(0.01)
    assert 0 <= float(metrics["share"]) <= 1
    same = jax.tree.map(lambda a, b: bool((a == b).all()), momentum, state.opt_state)
    assert all(jax.tree.leaves(same))


def test_a_merge_can_reset_momentum():
    made = experiment(optimizer_at_merge="reset")
    state, _ = made.trainer.merge(run(made, 3), initial_server_state(made).model)
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state))


def test_after_a_push_the_cycle_starts_from_the_base_version():
    made = experiment()
    model = initial_server_state(made).model._replace(version=jnp.int32(3))
    state, shard = started(made)
    state, _ = made.trainer.advance(state, shard)
    state, _ = made.trainer.merge(state, model)
    _, state = made.trainer.push(state)
    assert int(made.trainer.report(state).info.start_version) == 3
    state, _ = made.trainer.advance(state, shard)  # no buffer is shared


def test_batch_norm_statistics_are_trained_along_and_merged():
    model = CNN((4,), 3, batch_norm=True)
    made = experiment(model=model)
    state = run(made, 5)
    assert set(state.params) == {"params", "batch_stats"}
    variances = state.params["batch_stats"]["BatchNorm_0"]["var"]
    assert (variances > 0).all()
    assert not jnp.allclose(variances, 1.0)
    model_0 = initial_server_state(made).model
    state, _ = made.trainer.merge(state, model_0)
    assert (state.params["batch_stats"]["BatchNorm_0"]["var"] > 0).all()


def test_the_second_call_of_everything_compiles_nothing():
    made = experiment()

    first = initial_server_state(made)
    shards = [shard_of(made.task, worker) for worker in (0, 1)]

    def everything(worker):
        shard = shards[worker]
        size = int(shard.num_examples)
        state = made.trainer.start(first.model, worker, size, 0.5)
        for _ in range(3):
            state, _ = made.trainer.advance(state, shard)
        state, _ = made.trainer.merge(state, first.model)
        state = made.trainer.adopt(made.trainer.push(state)[1], first.model)
        made.aggregate(first, [made.trainer.report(state)] * (worker + 1))

    everything(0)
    everything(1)
    with nothing_compiles():
        everything(1)


@pytest.mark.parametrize(("schedule", "later"), [("fixed", 0.1), ("cosine", 0.05)])
def test_learning_rate_regimes_of_the_worker(schedule, later):
    made = experiment(
        schedule=schedule, schedule_length=6, momentum=1e-9, weight_decay=0.0
    )
    state, shard = started(made)
    for _ in range(3):
        state, _ = made.trainer.advance(state, shard)
    before = jax.tree.map(jnp.copy, state)
    state, _ = made.trainer.advance(state, shard)
    # With next to no momentum a step is rate * gradient, and the trace holds that.
    moved = (
        before.params["params"]["Dense_1"]["bias"]
        - (state.params["params"]["Dense_1"]["bias"])
    )
    gradient = jax.tree.leaves(state.opt_state)[2]
    np.testing.assert_allclose(moved, later * gradient, rtol=1e-4)


def test_annealing_follows_the_formula_and_stays_at_its_minimum():
    training = Training(learning_rate=0.1, learning_rate_min=0.005, schedule_length=500)
    assert float(annealed(training, jnp.int32(0))) == pytest.approx(0.1)
    # lr_0 / 2 (1 + cos(pi 250 / 500)) = 0.05
    assert float(annealed(training, jnp.int32(250))) == pytest.approx(0.05)
    assert float(annealed(training, jnp.int32(480))) == pytest.approx(0.005)
    assert float(annealed(training, jnp.int32(9000))) == pytest.approx(0.005)


@pytest.mark.parametrize("position", [0, 5, 10, 10**9])
def test_annealing_never_exceeds_its_own_start(position):
    training = Training(learning_rate=0.001, learning_rate_min=0.5, schedule_length=10)
    assert float(annealed(training, jnp.int32(position))) == pytest.approx(0.001)


def test_the_synchronous_rate_travels_with_the_version():
    made = experiment(schedule="synchronous", schedule_length=4)
    state = initial_server_state(made)
    update = made.trainer.report(run(made, 1))
    rates = [float(state.model.learning_rate)]
    for _ in range(2):
        state, _ = made.aggregate(state, [update])
        rates.append(float(state.model.learning_rate))
    # versions 0, 1, 2 of 4: 0.1 * (1 + cos(pi v / 4)) / 2
    assert rates == pytest.approx([0.1, 0.0853553, 0.05], rel=1e-5)


def test_an_unknown_schedule_is_refused_with_the_list():
    with pytest.raises(ValueError, match="allowed: one of fixed, cosine"):
        experiment(schedule="linear")


def test_there_is_no_shard_for_a_worker_too_many():
    with pytest.raises(ValueError, match="allowed 0 to 1"):
        shard_of(experiment().task, 2)


def test_too_many_updates_are_refused():
    made = experiment()
    update = made.trainer.report(run(made, 1))
    with pytest.raises(ValueError, match="found 3, allowed 1 to 2"):
        made.aggregate(initial_server_state(made), [update] * 3)


# ------------------------------------------------------------- carry


class Counted(NamedTuple):
    steps: jax.Array  # i32 []
    mean: jax.Array  # f32 []: of the inputs so far, half forgotten at each step


def averaging(params, carry, batch, key):
    """A loss whose target is the carry: the mean of the worker's own past batches."""
    mean = 0.5 * carry.mean + 0.5 * batch["x"].mean()
    loss = (params["params"] - carry.mean) ** 2
    return loss, Aux(carry=Counted(carry.steps + 1, mean))


def averaging_experiment(loss=averaging, init_carry=None, strategy=None, **training):
    def first(key, worker):
        return Counted(jnp.int32(0), jnp.float32(100) * worker.astype(jnp.float32))

    x = np.arange(8, dtype=np.float32)
    task = Task(
        name="averaging",
        init=lambda key: {"params": jnp.float32(0.0)},
        loss=loss,
        evaluation=mean_evaluation({"loss": lambda params, batch: batch["x"]}),
        metric=Metric("loss", higher_is_better=False),
        train={"x": x},
        test={"x": x},
        shards=(np.arange(4), np.arange(4, 8)),
        qualities=(1.0, 1.0),
        init_carry=init_carry or first,
    )
    settings = {"momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.25} | training
    training = Training(batch_size=4, **settings)
    return make_experiment(task, strategy or asyn2f(), training, Stop(), seed=1)


def test_a_loss_sees_the_carry_of_the_step_before():
    """Worker 0 has 0 1 2 3: means 0, 0.75, 1.125; p <- p - 0.5 (p - mean)."""
    made = averaging_experiment()
    state = run(made, 3)
    assert state.carry.steps == 3
    np.testing.assert_allclose(state.carry.mean, 1.5 * (1 - 0.5**3))
    np.testing.assert_allclose(state.params["params"], (0.375 + 1.125) / 2)


def test_each_worker_begins_with_a_carry_of_its_own():
    made = averaging_experiment()
    assert [float(started(made, k)[0].carry.mean) for k in range(2)] == [0.0, 100.0]
    drawn = averaging_experiment(
        init_carry=lambda key, worker: Counted(0, jax.random.normal(key))
    )
    means = [started(drawn, k)[0].carry.mean for k in (0, 0, 1)]
    assert means[0] == means[1] != means[2]


def test_a_carry_is_kept_by_adopt_merge_and_push():
    made = averaging_experiment()
    state, carry = run(made, 2), jax.device_get(run(made, 2).carry)
    model = initial_server_state(made).model
    state, _ = made.trainer.merge(state, model)
    assert jax.device_get(state.carry) == carry
    _, state = made.trainer.push(state)
    assert jax.device_get(state.carry) == carry
    assert jax.device_get(made.trainer.adopt(state, model).carry) == carry


def test_a_step_with_a_carry_compiles_once():
    made = averaging_experiment(init_carry=lambda key, worker: Counted(0, 0.0))
    state, shard = started(made)
    state, _ = made.trainer.advance(state, shard)
    with nothing_compiles():
        made.trainer.advance(state, shard)


@pytest.mark.parametrize(
    ("carry", "found"),
    [((), r"\(\)"), (Counted(jnp.int32(1), jnp.ones(2)), r"float32\[2\]")],
)
def test_a_loss_that_changes_the_form_of_the_carry_is_an_error(carry, found):
    made = averaging_experiment(
        lambda p, c, b, k: (jnp.sum(p["params"]), Aux(carry=carry))
    )
    state, shard = started(made)
    with pytest.raises(ValueError, match=f"Aux.carry = .*{found}.*allowed"):
        made.trainer.advance(state, shard)


def test_statistics_that_a_loss_leaves_out_stay_as_they_are():
    def loss(params, carry, batch, key):
        return params["params"] ** 2, Aux(statistics={"seen": params["seen"] + 1})

    made = averaging_experiment(loss, lambda key, worker: ())
    first = {"params": jnp.float32(1), "seen": jnp.int32(3), "kept": jnp.ones(2)}
    task = made.task._replace(init=lambda key: first)
    made = make_experiment(task, asyn2f(), made.training, Stop(), seed=1)
    params = run(made, 2).params
    assert params["seen"] == 5
    np.testing.assert_array_equal(params["kept"], [1, 1])
