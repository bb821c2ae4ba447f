"""A model, data, a loss and metrics of the user's make a task like any other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import asyn2f
from asyn2f.errors import DataError, TaskError
from asyn2f.tasks.base import class_counts
from asyn2f.tasks.networks import network_of
from asyn2f.training.batches import make_evaluate
from tests.support.compilation import nothing_compiles

KEY = jax.random.key(0)
STRATEGY = asyn2f.fedbuff(server_rate=1.0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3)).astype(np.float32)
CLASSES = (X[:, 0] > X[:, 1]).astype(np.int32) + (X[:, 2] > 1)
NUMBERS = X @ np.array([1.0, -2.0, 0.5]) + 1.0


class Net(nn.Module):
    outputs: int
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        return nn.Dense(self.outputs)(x)


class NnxNet(nnx.Module):
    def __init__(self, outputs, *, rngs, rate=0.0):
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.blocks = nnx.List(
            [nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)]
        )
        self.out = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.hidden(x))))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.out(x)


def init(key, x):
    return {"w": 0.1 * jax.random.normal(key, (x.shape[-1], 2)), "b": jnp.zeros(2)}


def apply(params, x):
    return x @ params["w"] + params["b"][None]


MODELS = {
    "linen": Net(3),
    "nnx": lambda rngs: NnxNet(3, rngs=rngs),
    "nnx one": NnxNet(3, rngs=nnx.Rngs(0)),
    "functions": (
        lambda key, x: init(key, x) | {"v": jnp.ones((2, 3))},
        lambda params, x: apply(params, x) @ params["v"],
    ),
}


def split(task, workers=3):
    rows = np.array_split(np.arange(len(task.train["x"]), dtype=np.int32), workers)
    return task._replace(shards=tuple(rows), qualities=(1.0,) * workers)


def simulated(task, **settings):
    experiment = asyn2f.make_experiment(
        task,
        STRATEGY,
        asyn2f.Training(batch_size=16, learning_rate=0.1),
        asyn2f.Stop(max_versions=12),
        seed=0,
    )
    config = asyn2f.config_of(experiment, sim__step_s=(0.01, 0.02, 0.04), **settings)
    return asyn2f.simulate(config, experiment)


# ------------------------------------------------------------- models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("executor", ["serial", "vectorised"])
def test_every_kind_of_model_trains(name, executor):
    task = split(asyn2f.supervised(MODELS[name], (X, CLASSES), test=0.2))
    run = simulated(task, sim__executor=executor)
    scores = list(run.scores.values())
    assert set(scores[0]) == {"accuracy", "loss"}
    assert scores[-1]["loss"] < 0.98 * scores[0]["loss"]


def test_an_nnx_module_is_a_dict_of_collections():
    network = network_of(lambda rngs: NnxNet(3, rngs=rngs, rate=0.5))
    params = network.init(KEY, None)
    assert set(params) == {"params", "batch_stats"}
    assert set(params["params"]) == {"hidden", "norm", "blocks", "out"}
    assert set(params["params"]["blocks"]) == {"0", "1"}
    other = network.init(jax.random.key(1), None)["params"]["out"]["kernel"]
    assert not jnp.array_equal(params["params"]["out"]["kernel"], other)
    module = NnxNet(3, rngs=nnx.Rngs(KEY), rate=0.5)
    module.eval()
    outputs, statistics = network.apply(params, X, None)
    np.testing.assert_array_equal(outputs, module(X))
    assert statistics == {}


def test_an_nnx_module_draws_anew_at_each_key_and_keeps_its_statistics():
    network = network_of(lambda rngs: NnxNet(3, rngs=rngs, rate=0.5))
    params = network.init(KEY, None)
    first, statistics = network.apply(params, X, KEY)
    again, _ = network.apply(params, X, KEY)
    other, _ = network.apply(params, X, jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert not jnp.array_equal(first, other)
    assert set(statistics) == {"batch_stats"}
    hidden = (
        X @ params["params"]["hidden"]["kernel"]
        + params["params"]["hidden"]["bias"][None]
    )
    mean = statistics["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-7)
    assert not params["batch_stats"]["norm"]["mean"].any()


def test_a_module_as_it_is_begins_with_its_own_variables():
    module = NnxNet(3, rngs=nnx.Rngs(5))
    network = network_of(module)
    for seed in (0, 1):
        params = network.init(jax.random.key(seed), None)
        np.testing.assert_array_equal(
            params["params"]["out"]["kernel"], module.out.kernel[...]
        )


@pytest.mark.parametrize(
    ("apply", "evaluated"),
    [
        (lambda params, x: params, False),
        (lambda params, x, train: params + train, False),
        (lambda params, x, deterministic: params - deterministic, False),
        (lambda params, rng, x: params + jax.random.uniform(rng), True),  # Haiku's
        (lambda params, x, key: params + jax.random.uniform(key), True),
    ],
)
def test_functions_may_ask_for_the_key_and_for_the_mode(apply, evaluated):
    network = network_of((lambda key, x: 1.0, apply))
    params = network.init(KEY, None)
    trained, evaluation = (network.apply(params, None, key)[0] for key in (KEY, None))
    draws = network.apply(params, None, jax.random.key(1))[0] != trained
    assert draws == evaluated
    if evaluated:
        assert network.apply(params, None, None)[0] == evaluation


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


def test_a_linen_module_may_ask_for_its_mode_as_it_likes():
    network = network_of(Plain())
    np.testing.assert_array_equal(network.apply({}, X, None)[0], X)
    assert not jnp.array_equal(network.apply({}, X, KEY)[0], X)
    one = network_of(nn.Dense(2))
    params = one.init(KEY, X)
    assert one.apply(params, X, KEY)[0].shape == (120, 2)


# ------------------------------------------------------------- programs


def mae(outputs, batch):
    return jnp.abs(outputs[:, 0] - batch["y"])


def test_tasks_of_one_kind_share_compiled_programs():
    def make(seed, scale):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(120, 3))
        return split(
            asyn2f.supervised(
                lambda rngs: NnxNet(1, rngs=rngs),
                (x, x[:, 0]),
                test=0.2,
                loss=lambda outputs, batch: scale * mae(outputs, batch) ** 2,
                metrics={"mae": mae},
                metric="loss",
            )
        )

    simulated(make(0, 2.0))
    with nothing_compiles():
        task = make(1, 2.0)
        simulated(task)
    assert task.loss is make(2, 2.0).loss
    assert task.loss is not make(2, 2).loss
    assert task.loss is not make(2, 3.0).loss


def test_a_model_that_cannot_be_hashed_is_traced_each_time():
    class Listed(nn.Module):
        sizes: object

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.sizes["out"].size)(x)

    model = Listed({"out": np.zeros(3)})
    task = asyn2f.supervised(model, (X, CLASSES), test=0.2)
    assert task.init(KEY)["params"]["Dense_0"]["bias"].shape == (3,)


# ------------------------------------------------------------- losses and metrics


def scored(task):
    return make_evaluate(task, batch_size=7)(task.init(KEY))


@pytest.mark.parametrize("outputs", [1, None])
def test_losses_of_numbers_worked_by_numpy(outputs):
    model = (
        lambda key, x: jnp.float32(0.5) * jnp.ones(3),
        lambda w, x: x @ w if outputs is None else (x @ w)[:, None],
    )
    task = asyn2f.supervised(
        model, (X, NUMBERS), test=(X, NUMBERS), loss="mse", metrics=["mae", "huber"]
    )
    error = X.astype(np.float64) @ [0.5, 0.5, 0.5] - NUMBERS
    huber = np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5)
    expected = {"mae": np.abs(error), "huber": huber, "loss": error**2}
    found = scored(task)
    assert list(found) == list(expected)
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows.mean(), rtol=1e-5)
    assert task.metric == asyn2f.Metric("mae", higher_is_better=False)
    value, aux = task.loss(
        task.init(KEY), (), {k: v[:4] for k, v in task.train.items()}, KEY
    )
    np.testing.assert_allclose(value, (error[:4] ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.metric, np.abs(error[:4]).mean(), rtol=1e-5)


def test_losses_of_classes_worked_by_numpy():
    w = RNG.normal(size=(3, 3)).astype(np.float32)
    model = lambda key, x: jnp.asarray(w), lambda w, x: x @ w
    task = asyn2f.supervised(model, (X, CLASSES), test=(X, CLASSES))
    logits = X.astype(np.float64) @ w
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    right = logits.argmax(1) == CLASSES
    found = scored(task)
    np.testing.assert_allclose(
        found["loss"], -log_p[np.arange(120), CLASSES].mean(), rtol=1e-5
    )
    assert found["accuracy"] == pytest.approx(right.mean())
    assert task.labels is task.train["y"]

    binary = (CLASSES > 0).astype(np.int64)
    model = lambda key, x: jnp.asarray(w[:, 0]), lambda w, x: x @ w
    task = asyn2f.supervised(
        model, (X, binary), test=(X, binary), loss="binary_cross_entropy"
    )
    logit = X.astype(np.float64) @ w[:, 0]
    losses = np.log1p(np.exp(-np.where(binary == 1, logit, -logit)))
    found = scored(task)
    np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-5)
    assert found["accuracy"] == pytest.approx(((logit > 0) == binary).mean())
    assert task.labels is task.train["y"]


def test_the_loss_of_a_sequence_is_the_mean_over_its_places():
    y = RNG.integers(0, 4, (20, 6))
    x = RNG.integers(0, 4, (20, 6))
    table = RNG.normal(size=(4, 4)).astype(np.float32)
    model = lambda key, x: jnp.asarray(table), lambda w, x: w[x]
    task = asyn2f.supervised(model, (x, y), test=(x, y))
    log_p = table - np.log(np.exp(table.astype(np.float64)).sum(1, keepdims=True))
    found = scored(task)
    np.testing.assert_allclose(found["loss"], -log_p[x, y].mean(), rtol=1e-5)
    assert found["accuracy"] == pytest.approx((table.argmax(1)[x] == y).mean())
    assert task.labels is None


def test_a_loss_that_is_one_number_is_that_of_each_row_in_evaluation():
    def loss(outputs, batch):
        return jnp.mean(jnp.square(outputs[:, 0] - batch["y"]) * batch["weight"])

    data = {"x": X, "y": NUMBERS, "weight": np.arange(120.0)}
    model = lambda key, x: jnp.ones((3, 1)), lambda w, x: x @ w
    task = asyn2f.supervised(
        model, data, test=data, loss=loss, inputs="x", extras=["weight"]
    )
    rows = np.square(X.sum(1) - NUMBERS) * np.arange(120.0)
    np.testing.assert_allclose(scored(task)["loss"], rows.mean(), rtol=1e-5)
    assert task.metric == asyn2f.Metric("loss", higher_is_better=False)


def test_several_inputs_reach_the_model_by_name_and_no_target_is_needed():
    data = {"image": np.ones((8, 2, 2), np.uint8), "noise": np.zeros(8)}
    seen = {}

    def apply(w, x):
        seen.update(x)
        return w * x["image"].astype(jnp.float32)

    task = asyn2f.supervised(
        (lambda key, x: jnp.float32(2.0), apply),
        data,
        test=data,
        loss=lambda outputs, batch: jnp.square(outputs).mean((1, 2)),
        target=None,
    )
    assert scored(task) == {"loss": 4.0}
    assert {name: x.shape[1:] for name, x in seen.items()} == {
        "image": (2, 2),
        "noise": (),
    }


# ------------------------------------------------------------- splits


def test_a_column_of_owners_splits_the_data():
    data = {"a": X[:, 0], "b": X[:, 1], "site": np.arange(120) % 4, "y": CLASSES}
    task = asyn2f.supervised(
        Net(3), data, test=0.25, split_by="site", workers=4, inputs=["b", "a"]
    )
    assert [len(rows) for rows in task.shards] == [23, 23, 23, 23] or sum(
        map(len, task.shards)
    ) == len(task.train["x"])
    where = {tuple(row): k for k, row in enumerate(X[:, 1::-1].tolist())}
    for worker, rows in enumerate(task.shards):
        owners = {where[tuple(row)] % 4 for row in task.train["x"][rows].tolist()}
        assert owners == {worker}
    assert task.qualities == (1.0,) * 4
    seen = {tuple(row) for row in task.train["x"].tolist()}
    assert not seen & {tuple(row) for row in task.test["x"].tolist()}


def test_the_test_set_has_the_columns_of_the_training_set():
    train = {"b": X[:, 0], "a": X[:, 1], "y": NUMBERS}
    test = {"more": X[:, 2], "a": X[:9, 1], "b": X[:9, 0], "y": np.arange(9)}
    test["more"] = test["more"][:9]
    task = asyn2f.supervised(Net(1), train, test, loss="mse")
    np.testing.assert_array_equal(task.test["x"], X[:9, :2])
    assert task.test["y"].dtype == np.float32
    del test["a"]
    with pytest.raises(
        DataError, match="test: the column 'a' is missing; found b, more"
    ):
        asyn2f.supervised(Net(1), train, test, loss="mse")


def test_inputs_are_normalised_where_asked():
    task = asyn2f.supervised(Net(3), (100 * X, CLASSES), test=0.2, normalise=True)
    np.testing.assert_allclose(task.train["x"].std(0), 1.0, rtol=1e-4)
    assert 0.5 < task.test["x"].std() < 1.5


# ------------------------------------------------------------- errors

GOOD = {"model": Net(3), "train": (X, CLASSES), "test": 0.2}


def test_a_gradient_of_ones_own_is_taken_as_one():
    @jax.custom_vjp
    def hits(outputs, target):
        return (outputs.argmax(-1) != target).astype(outputs.dtype)

    hits.defvjp(
        lambda outputs, target: (hits(outputs, target), outputs),
        lambda outputs, cotangent: (cotangent[:, None] * outputs, None),
    )
    task = asyn2f.supervised(**GOOD | {"loss": lambda o, b: hits(o, b["y"])})
    assert task.metric.name == "loss"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, r"model: found int 3, allowed: a Flax Linen module, an NNX"),
        ({"model": lambda x: x}, "model: found function"),
        ({"model": Net(2)}, r"found 2 outputs .* targets go up to 2; needed: .* 3"),
        (
            {"model": nn.Dense(1, use_bias=False), "loss": "mse", "train": (X, X)},
            "outputs",
        ),
        ({"model": lambda rngs: nnx.Dropout(0.1)}, "found no parameters"),
        (
            {"model": (lambda key, x: jnp.zeros(3, jnp.bfloat16), apply)},
            "allowed: float32",
        ),
        (
            {"model": (init, lambda w, x: x @ w["b"])},
            r"model: failed on x = float32 \[2, 3\]: test_supervised.py, line \d+: "
            r"TypeError: dot_general",
        ),
        (
            {"model": (init, apply), "train": (X, np.ones((120, 2), int))},
            "outputs float32",
        ),
        (
            {"loss": "hinge"},
            "loss: found 'hinge', allowed: cross_entropy, .* huber, or",
        ),
        (
            {"metrics": ["f1"]},
            "metrics: found 'f1', allowed: .*accuracy, or a function",
        ),
        ({"metrics": {"loss": "mse"}}, "'loss' is the name of the loss"),
        ({"metric": "mae"}, "metric: found 'mae', allowed: accuracy, loss"),
        (
            {"metrics": {"gap": lambda outputs, batch: batch["y"]}},
            r"'gap' is a function; state its direction by metric=asyn2f.Metric\('gap'",
        ),
        (
            {"metrics": {"m": lambda o, b: o}, "metric": asyn2f.Metric("m")},
            r"metrics: 'm' returned float32 \[2, 3\] of a batch of 2 examples, allowed",
        ),
        (
            {"loss": lambda outputs, batch: outputs},
            r"loss returned float32 \[2, 3\] .*, allowed: f32 \[2\] or \[\]",
        ),
        (
            {"loss": lambda outputs, batch: batch["weight"]},
            r"loss: failed on outputs float32 \[2, 3\] and a batch of x: float32 "
            r"\[2, 3\], y: int32 \[2\]: test_supervised.py, line \d+: KeyError: "
            "'weight'",
        ),
        (
            {"metrics": {"m": lambda outputs, batch: batch["site"]}, "metric": "loss"},
            r"metrics: 'm': failed on .*, y: int32 \[2\]: test_.* KeyError: 'site'",
        ),
        (
            {"loss": lambda outputs, batch: outputs.argmax(-1) != batch["y"]},
            "loss: returned bool, allowed: floating point",
        ),
        (
            {"loss": lambda outputs, batch: outputs.argmax(-1) - batch["y"]},
            "loss: returned int32, allowed: floating point",
        ),
        (
            {"loss": lambda o, b: (o.argmax(-1) != b["y"]).astype(o.dtype)},
            "loss: found one whose gradient is zero for all parameters",
        ),
        (
            {"train": (X, np.eye(3, dtype=int)[CLASSES])},
            r"of one-hot targets give the class numbers, np.argmax\(y, axis=-1\)",
        ),
        ({"test": None}, "train: found no test set; give one by test=..., or"),
        ({"test": 1.5}, r"test: found 1.5, allowed: data, or a fraction in \(0, 1\)"),
        ({"test": 0.001}, "test: found 0.001, which is not a single row of 120"),
        (
            {"test": (X[:, :2], CLASSES)},
            r"test: found float32 \[120, 2\] for x, needed: float32 \[N, 3\], as in",
        ),
        (
            {
                "train": {"a": X[:, 0], "b": X[:, 1], "y": CLASSES},
                "test": {"a": X, "b": X[:, 1], "y": CLASSES},
            },
            "test: found a, b, y, needed: x, y, as in training",
        ),
        ({"target": None}, "target: found None, but this loss needs a target"),
        (
            {"train": (X, NUMBERS)},
            r"train, target: found .* in row 0 .* an integer from 0",
        ),
        ({"shards": [np.arange(5)]}, "shards: these are rows of train: leave split_by"),
        ({"split_by": "site"}, "column 'site' is missing; found x, y"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(changes, message):
    with pytest.raises((TaskError, DataError), match=message) as caught:
        asyn2f.supervised(**GOOD | changes)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- labels


def spread(outputs, batch):
    return (outputs[:, 0] - batch["y"].astype(outputs.dtype)) ** 2


@pytest.mark.parametrize(
    ("target", "metrics", "has_labels"),
    [
        (CLASSES, None, True),
        (CLASSES.astype(np.uint8), None, True),
        (CLASSES > 0, None, True),
        (CLASSES.astype(float), None, False),
        (CLASSES.astype(float), ["accuracy"], True),
        (CLASSES + 1000, None, False),
        (CLASSES + 1000, "accuracy", True),
        (CLASSES - 1, "accuracy", False),
        (NUMBERS, None, False),
        (np.stack([CLASSES, CLASSES], 1), None, False),
    ],
)
def test_targets_that_are_class_numbers_are_labels(target, metrics, has_labels):
    def loss(outputs, batch):
        return jnp.square(outputs).mean()

    model = nn.Dense(1)
    if target.ndim > 1:
        model, metrics = nn.Dense(2), None
    task = asyn2f.supervised(
        model, (X, target), (X, target), loss=loss, metrics=metrics, metric="loss"
    )
    if has_labels:
        np.testing.assert_array_equal(task.labels, target.astype(np.int32))
        assert task.labels.dtype == np.int32
    else:
        assert task.labels is None


def test_a_loss_of_ones_own_has_skewed_labels():
    task = asyn2f.supervised(Net(3), (X, CLASSES), (X, CLASSES), loss=spread)
    config = asyn2f.default_config(
        workers=4, task__partition="dirichlet", task__alpha=0.1, stop__max_versions=1
    )
    run = asyn2f.simulate(config, task=task, strategy=STRATEGY)
    shares = np.array(class_counts(run.experiment.task))
    assert shares.sum(0).tolist() == np.bincount(CLASSES).tolist()
    assert (shares.max(1) > 0.7 * shares.sum(1)).any()


def test_metrics_that_are_functions_have_their_names():
    task = asyn2f.supervised(**GOOD | {"metrics": ["accuracy", spread]})
    assert task.metric.name == "accuracy"
    scores = make_evaluate(task)(task.init(KEY))
    assert [*scores] == ["accuracy", "spread", "loss"]
    alone = asyn2f.supervised(**GOOD | {"metrics": spread, "metric": "loss"})
    assert make_evaluate(alone)(alone.init(KEY))["spread"] == scores["spread"]
    with pytest.raises(TaskError, match=r"has no name; give functions by name, as"):
        asyn2f.supervised(**GOOD | {"metrics": [lambda outputs, batch: batch["y"]]})


def test_an_argument_that_is_not_known_is_named():
    with pytest.raises(TypeError, match="'normalize'; did you mean normalise"):
        asyn2f.supervised(**GOOD, normalize=True)
