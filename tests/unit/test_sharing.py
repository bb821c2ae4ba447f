"""Sharing a part of the model: patterns, the partition, and hand-worked numbers."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import Training, make_experiment
from asyn2f.config import build
from asyn2f.errors import ConfigError, ShareError
from asyn2f.strategies import fedavg
from asyn2f.tasks.base import Aux, Task, mean_evaluation
from asyn2f.timing import Stop
from asyn2f.training.batches import shard_of
from asyn2f.training.experiment import initial_server_state
from asyn2f.training.sharing import EVERYTHING, NOTHING, sharing_of
from asyn2f.types import Metric, over_workers
from tests.support.experiments import config_with, experiment_with
from tests.support.tasks import split

PATHS = (
    "batch_stats/norm/mean",
    "params/body/dense_0/bias",
    "params/body/dense_0/kernel",
    "params/body/dense_1/kernel",
    "params/head/kernel",
)


def tree_of(paths, value=lambda path: path):
    """Nested dicts with a leaf at each path."""
    found = {}
    for path in paths:
        *names, last = path.split("/")
        inner = found
        for name in names:
            inner = inner.setdefault(name, {})
        inner[last] = value(path)
    return found


@pytest.mark.parametrize(
    ("patterns", "shared"),
    [
        (("params/body/**",), PATHS[1:4]),
        (("params/**",), PATHS[1:]),
        (("**/kernel",), PATHS[2:]),
        (("params/*/kernel",), PATHS[4:]),
        (("params/body/dense_?/kernel",), PATHS[2:4]),
        (("**/dense_0/*",), PATHS[1:3]),
        (("params/head/kernel",), PATHS[4:]),
        (("params/head/**", "params/body/**"), PATHS[1:]),
        (("**", "!params/head/**"), PATHS[:4]),
        (("!params/head/**", "**"), PATHS[:4]),  # in any order
        (("!params/head/**",), PATHS[:4]),
        (("!**/mean", "!params/head/*"), PATHS[1:4]),
        (("params/body", "params/**"), None),
    ],
)
def test_patterns_choose_leaves_by_their_paths(patterns, shared):
    params = tree_of(PATHS)
    if shared is None:  # a folder is no leaf
        with pytest.raises(ShareError, match="'params/body', which matches none"):
            sharing_of(params, patterns)
        return
    sharing = sharing_of(params, patterns)
    assert jax.tree.leaves(sharing.shared(params)) == list(shared)
    assert jax.tree.leaves(sharing.kept(params)) == sorted({*PATHS} - {*shared})


@pytest.mark.parametrize("patterns", [(), ("**",), ("params/**", "**/mean")])
def test_all_leaves_are_everything(patterns):
    params = tree_of(PATHS)
    sharing = sharing_of(params, patterns)
    assert sharing is EVERYTHING
    assert sharing.shared(params) is params
    assert sharing.kept(params) == ()
    assert sharing.whole(params, ()) is params


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "/params", "params/", "params//body", "params/bo**", "***", "!"),
        *("params/[ab]", "params/{a,b}", "params/!body", "!!params", "a\\b"),
    ],
)
def test_a_malformed_pattern_is_named(pattern):
    with pytest.raises(ShareError) as caught:
        sharing_of(tree_of(PATHS), (pattern,))
    message = str(caught.value)
    assert message.startswith(f"share: found {pattern!r}, allowed: names separated by")
    assert "\n" not in message


def test_what_matches_nothing_lists_the_leaves():
    with pytest.raises(ShareError) as caught:
        sharing_of(tree_of(PATHS), ("params/body/**", "params/tail/**"))
    assert str(caught.value) == (
        "share: found 'params/tail/**', which matches none of the model's 5 leaves: "
        + ", ".join(PATHS)
    )


def test_of_many_leaves_the_first_are_listed():
    params = tree_of(f"params/{number:02}" for number in range(40))
    with pytest.raises(ShareError, match=r"params/11 and 28 more$"):
        sharing_of(params, ("nothing",))


def test_nothing_is_shared_where_that_is_said():
    sharing = sharing_of(tree_of(PATHS), NOTHING)
    assert jax.tree.leaves(sharing.shared(tree_of(PATHS))) == []
    assert jax.tree.leaves(sharing.kept(tree_of(PATHS))) == [*PATHS]


def test_nothing_shared_is_an_error():
    with pytest.raises(ShareError, match="which shares nothing; the model's leaves"):
        sharing_of(tree_of(PATHS), ("params/head/**", "!params/**"))


@pytest.mark.parametrize("share", [("params/bodi/**",), ("params//",)])
def test_a_config_is_refused_in_one_line(share):
    with pytest.raises(ConfigError, match=r"^config\.share: found ") as caught:
        experiment_with(share=share)
    assert "\n" not in str(caught.value)


def test_a_task_is_refused_before_anything_starts():
    """`asyn2f run` builds a task, and then its processes the experiment."""
    with pytest.raises(ConfigError, match=r"^config\.share: found 'params/bodi/\*\*'"):
        build.build_task(config_with(share=("params/bodi/**",)))
    build.build_task(config_with(share=("params/Dense_0/**",)))


# ------------------------------------------------------------- the partition

names = st.sampled_from(["a", "b", "c"])
leaves = st.integers(0, 9)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(names, inner, min_size=1)
        | st.lists(inner, min_size=1, max_size=3)
        | st.tuples(inner, st.none())
    ),
    max_leaves=8,
)


@hypothesis.given(st.dictionaries(names, trees, min_size=1), st.data())
def test_both_parts_make_the_whole(params, data):
    """Of any tree, also with lists, tuples and None."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    hypothesis.assume(paths)
    chosen = data.draw(st.lists(st.sampled_from(paths), min_size=1, unique=True))
    sharing = sharing_of(params, tuple(chosen))
    shared, kept = sharing.shared(params), sharing.kept(params)
    assert sharing.whole(shared, kept) == params
    values = dict(zip(paths, jax.tree.leaves(params), strict=True))
    assert jax.tree.leaves(shared) == [x for p, x in values.items() if p in chosen]
    assert jax.tree.leaves(kept) == [x for p, x in values.items() if p not in chosen]


# ------------------------------------------------------------- worked by hand


def product_loss(params, carry, batch, key):
    """(body * head - y)^2 / 2 on batches of one value of y."""
    model = params["params"]
    error = model["body"] * model["head"] - batch["y"].mean()
    return error**2 / 2, Aux(metric=error)


def product(*, workers: int) -> Task:
    y = np.arange(1, workers + 1, dtype=np.float32)
    return Task(
        name="product",
        init=lambda key: {"params": {"body": jnp.float32(1), "head": jnp.float32(2)}},
        loss=product_loss,
        evaluation=mean_evaluation({"mse": lambda params, batch: batch["y"]}),
        metric=Metric("mse", higher_is_better=False),
        train={"y": y},
        test={"y": y},
        **split(workers, workers),
    )


def test_an_aggregation_worked_by_hand():
    """Body 1, head 2, rate 0.1; y = 1 and 2. Worker 0 has the error 2 - 1 = 1, so body
    1 - 0.1 * 1 * 2 = 0.8 and head 2 - 0.1 * 1 * 1 = 1.9. Worker 1 has none. The mean
    of the bodies is 0.9; the heads stay apart. On version 1 worker 0 has the error
    0.9 * 1.9 - 1 = 0.71 and makes of it body 0.9 - 0.071 * 1.9 and head
    1.9 - 0.071 * 0.9; worker 1 the error 0.9 * 2 - 2 = -0.2, head 2 + 0.02 * 0.9."""
    plain = Training(batch_size=1, learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    made = make_experiment(
        *(product(workers=2), fedavg(), plain, Stop(max_versions=1), 0),
        share=("params/body",),
    )
    server, trainer = initial_server_state(made), made.trainer
    assert server.model.params == {"params": {"body": 1.0, "head": None}}
    shards = [shard_of(made.task, k) for k in (0, 1)]
    states = [trainer.start(server.model, k, 1, 1.0) for k in (0, 1)]
    for k in (0, 1):
        states[k], _ = trainer.advance(states[k], shards[k])
    updates = [trainer.report(state) for state in states]
    assert jax.tree.leaves(updates[0].params) == pytest.approx([0.8])
    assert jax.tree.leaves(updates[1].params) == pytest.approx([1.0])
    server, _ = made.aggregate(server, updates)
    assert jax.tree.leaves(server.model.params) == pytest.approx([0.9])
    assert [jax.tree.leaves(x.kept)[0] for x in states] == pytest.approx([1.9, 2.0])
    for k in (0, 1):
        states[k] = trainer.adopt(states[k], server.model)
        states[k], metrics = trainer.advance(states[k], shards[k])
        assert metrics["metric"] == pytest.approx([0.71, -0.2][k])
    bodies = [jax.tree.leaves(x.params)[0] for x in states]
    assert bodies == pytest.approx([0.9 - 0.071 * 1.9, 0.9 + 0.02 * 2])
    heads = [jax.tree.leaves(x.kept)[0] for x in states]
    assert heads == pytest.approx([1.9 - 0.071 * 0.9, 2 + 0.02 * 0.9])


def test_scores_over_workers_are_the_mean_the_worst_and_the_tenth_percentile():
    rng = np.random.default_rng(0)
    for higher in (True, False):
        metric = Metric("score", higher_is_better=higher)
        for count in (1, 2, 7, 50):
            values = rng.normal(size=count)
            found = over_workers(
                metric, [{"score": x, "other": -x} for x in values.tolist()]
            )
            low = 10 if higher else 90
            expected = {
                "score": values.mean(),
                "other": -values.mean(),
                "score_worst": values.min() if higher else values.max(),
                "score_p10": np.percentile(values, low),
            }
            assert found == pytest.approx(expected)
