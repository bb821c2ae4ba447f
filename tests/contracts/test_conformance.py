"""Every strategy against conformance vectors, with their working beside them.

The cases are the files in `conformance/`, one for a strategy and its reading of a rule.
Each runs as it stands, with a padding row of NaN behind its updates, and with it in
front and the workers turned round. A worker's own rows keep their order: a cache takes
the last.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import strategies
from asyn2f.types import GlobalModel, UpdateInfo, WorkerUpdate

CASES = [
    pytest.param(case, id=f"{path.stem}/{case['name']}")
    for path in sorted(
        (pathlib.Path(__file__).parents[1] / "conformance").glob("*.json")
    )
    for case in json.loads(path.read_text())
]
cases_with = lambda part: [param for param in CASES if param.values[0].get(part)]

ARRANGEMENTS = {
    "as it stands": lambda workers: [*range(len(workers))],
    "padded": lambda workers: [*range(len(workers)), None],
    "shuffled": lambda workers: [None, *np.argsort(-np.array(workers), kind="stable")],
}


def arrays(tree):
    return jax.tree.map(jnp.float32, tree, is_leaf=lambda node: isinstance(node, list))


def update_of(row, params):
    floats = {"num_examples", "loss", "quality", "signal"}
    info = UpdateInfo(
        base_version=row["base_version"],
        start_version=row["start_version"],
        step=0,
        metric=0.0,
        **{name: float(row[name]) for name in floats},
    )
    return WorkerUpdate(
        params=params,
        worker=jnp.int32(row["worker"]),
        info=jax.tree.map(jnp.asarray, info),
    )


def padding_like(update):
    """NaN in every float and 0, a worker and a version that exist, in every integer."""
    fill = lambda leaf: jnp.nan if leaf.dtype == jnp.float32 else 0
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, fill(leaf)), update)


def assert_close(actual, expected):
    check = lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("case", cases_with("aggregations"))
def test_aggregations_give_the_numbers_worked_by_hand(case, arrangement):
    strategy = strategies.BUILDERS[case["strategy"]](**case["parameters"])
    state = strategy.init(arrays(case["initial"]), case["workers"])
    version = jnp.int32(case["version"])
    state = state._replace(model=state.model._replace(version=version))
    for count, step in enumerate(case["aggregations"], start=1):
        sent = [
            update_of(row, strategy.push(arrays(row["end"]), arrays(row["start"])))
            for row in step["updates"]
        ]
        order = ARRANGEMENTS[arrangement]([row["worker"] for row in step["updates"]])
        mask = np.array([row is not None for row in order])
        rows = [padding_like(sent[0]) if row is None else sent[row] for row in order]
        updates = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)

        state, metrics = strategy.aggregate(state, updates, jnp.asarray(mask))

        assert int(state.model.version) == case["version"] + count
        assert_close(state.model.params, arrays(step["expected"]))
        for name, value in step.get("carried", {}).items():
            assert_close(getattr(state.model, name), np.float32(value))
        coefficients = np.asarray(metrics["coefficients"])
        assert (coefficients >= 0).all()
        assert_close(coefficients[mask].sum(), np.float32(1))
        assert (coefficients[~mask] == 0).all()
        for name in {"coefficients", "staleness"} & set(step):
            expected = [step[name][row] for row in order if row is not None]
            assert_close(np.asarray(metrics[name])[mask], np.asarray(expected))


@pytest.mark.parametrize("case", cases_with("merges"))
def test_merges_give_the_numbers_worked_by_hand(case):
    strategy = strategies.BUILDERS[case["strategy"]](**case["parameters"])
    names = {"loss", "num_examples", "quality"}
    for row in case["merges"]:
        local = update_of(row["local"], arrays(row["local"]["end"]))
        model = GlobalModel(
            params=arrays(row["model"]["params"]),
            version=jnp.int32(row["model"]["version"]),
            learning_rate=jnp.float32(0),
            **{name: jnp.float32(row["model"][name]) for name in names},
        )

        params, metrics = strategy.merge(local, arrays(row["previous"]), model)

        assert_close(params, arrays(row["expected"]))
        assert_close(metrics["share"], np.float32(row["share"]))


def test_every_strategy_has_a_case():
    covered = {param.values[0]["strategy"] for param in CASES}
    assert covered == set(strategies.BUILDERS)


@pytest.mark.parametrize("case", CASES)
def test_every_case_names_its_source_and_shows_its_working(case):
    assert case["working"]
    assert all(line.strip() for line in [case["source"], *case["working"]])
