"""Whole runs as values: what a notebook gets from `asyn2f.simulate` and `.replay`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asyn2f
from asyn2f.api.results import bytes_by
from asyn2f.api.simulation import check_agrees
from asyn2f.config import build
from asyn2f.errors import ConfigError
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.training.computation import root_key
from asyn2f.training.experiment import initial_server_state, make_experiment
from tests.support import golden_run
from tests.support.compilation import nothing_compiles


def config_with(**sections) -> build.Config:
    config = golden_run.config()
    for name, changes in sections.items():
        config[name] |= changes
    return config


def sha256(run: asyn2f.Simulation) -> str:
    return params_sha256(run.result.state.model.params)


@pytest.fixture(scope="module")
def simulated():
    return asyn2f.simulate(golden_run.config())


def test_what_is_simulated_and_what_is_replayed_are_the_same_bits(simulated):
    replayed = asyn2f.replay(golden_run.FOLDER)
    assert sha256(replayed) == sha256(simulated)
    assert replayed.scores == simulated.scores
    assert np.array_equal(replayed.order.members, simulated.order.members)


@pytest.mark.parametrize("executor", ["serial", "vectorised"])
def test_another_seed_and_other_rates_compile_nothing(executor):
    def run(seed, **training):
        config = config_with(sim={"executor": executor}, training=training)
        return asyn2f.simulate(config | {"seed": seed})

    rates = {"learning_rate": 0.05, "learning_rate_min": 0.01, "schedule_length": 7}
    first, _ = run(0), run(1)  # the other seed's shards are of another length
    with nothing_compiles():
        runs = [run(0), run(1, **rates), run(1)]
    assert sha256(runs[0]) == sha256(first)
    assert len({sha256(run) for run in runs}) == 3


def test_all_bits_of_a_seed_count():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1]
    keys = [np.asarray(jax.random.key_data(root_key(seed))) for seed in seeds]
    assert len({key.tobytes() for key in keys}) == len(seeds)
    models = []
    for seed in (0, 2**32, 2**64 - 1):
        experiment = build.build_experiment(golden_run.config() | {"seed": seed})
        models.append(params_sha256(initial_server_state(experiment).model.params))
    assert len(set(models)) == 3
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match=rf"config.seed: found {seed}.*2\*\*64"):
            build.check(golden_run.config() | {"seed": seed})


def test_versions_are_scored_from_the_first_to_the_last(simulated):
    assert list(simulated.scores) == list(range(11))
    assert simulated.scores[10]["accuracy"] > simulated.scores[0]["accuracy"]
    seldom = asyn2f.simulate(config_with(sim={"evaluate_every": 4}))
    assert list(seldom.scores) == [0, 4, 8, 10]
    assert all(simulated.scores[node] == score for node, score in seldom.scores.items())


def test_a_target_ends_it(simulated):
    target = sorted(score["accuracy"] for score in simulated.scores.values())[5]
    run = asyn2f.simulate(config_with(stop={"target": target}))
    *before, last = run.scores.values()
    assert last["accuracy"] >= target
    assert all(score["accuracy"] < target for score in before)
    assert len(run.order.version) == len(run.scores) < 11
    assert "target accuracy" in run.order.reason
    # A replay executes all that was recorded, also beyond other limits.
    replayed = asyn2f.replay(golden_run.FOLDER, config_with(stop={"target": target}))
    assert sha256(replayed) == sha256(simulated)


def test_an_experiment_of_ones_own(simulated):
    """A server that throws away what it has aggregated; all else happens as before."""
    experiment = build.build_experiment(golden_run.config())

    def aggregate(state, updates, mask):
        after, metrics = experiment.strategy.aggregate(state, updates, mask)
        zeros = jax.tree.map(jnp.zeros_like, after.model.params)
        return after._replace(model=after.model._replace(params=zeros)), metrics

    own = make_experiment(
        experiment.task,
        experiment.strategy._replace(aggregate=aggregate),
        experiment.training,
        experiment.stop,
        experiment.seed,
    )
    run = asyn2f.simulate(golden_run.config(), own)
    assert run.experiment is own
    assert np.array_equal(run.order.time_s, simulated.order.time_s)
    assert not any(np.any(x) for x in jax.tree.leaves(run.result.state.model.params))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("training.learning_rate", 0.2),
        ("timing.epochs_per_push", 3),
        ("timing.min_updates", 3),
        ("stop.max_versions", 4),
        ("workers", 3),
        ("min_workers", 2),
        ("guards.mode", "observe"),
        ("wire.updates", "int8"),
    ],
)
def test_a_config_that_contradicts_the_experiment_is_refused(key, value):
    """Otherwise it would be ignored without a word."""
    config = golden_run.config()
    experiment = build.build_experiment(config)
    section, _, name = key.rpartition(".")
    if section:
        config[section] |= {name: value}
    else:
        config |= {name: value}
    with pytest.raises(ConfigError, match=rf"config\.{key}: found .*experiment"):
        asyn2f.simulate(config, experiment)


def test_bytes_are_those_of_all_that_was_sent_by_then(simulated):
    experiment, order = simulated.experiment, simulated.order
    size = experiment.template.num_bytes
    pushed_s = order.time_s[order.kind == o.PUSH]
    times_s = np.array([order.start_s, pushed_s[0], order.end_s])
    moved = bytes_by(golden_run.config(), experiment, order, times_s)
    assert moved.up.tolist() == [0, size, order.num_updates * size]
    given = [int(order.receivers[:count].sum()) * size for count in (1, 1, None)]
    assert moved.broadcast_down.tolist() == given
    assert (moved.down % size == 0).all()
    assert 0 < moved.down[0] <= moved.down[1] < moved.down[2] <= given[2]


def test_history_has_a_row_for_each_version(simulated):
    rows, numbers = simulated.history(), simulated.result.numbers
    assert [row["version"] for row in rows] == list(range(11))
    order = simulated.order
    made_s = order.time_s[order.kind == o.AGGREGATE] - order.start_s
    assert [row["time_s"] for row in rows] == [0.0, *made_s.tolist()]
    times_s = np.array([row["time_s"] + order.start_s for row in rows])
    moved = bytes_by(golden_run.config(), simulated.experiment, order, times_s)
    assert [row["bytes_up"] for row in rows] == moved.up.tolist()
    assert [row["bytes_down"] for row in rows] == moved.down.tolist()
    for version, row in enumerate(rows):
        score = simulated.scores[version]
        assert row["scores"] == score
        assert score.keys() == {"accuracy", "loss", "f1"}
        members = order.members_of(version)
        assert row["updates"] == len(members)
        if version == 0:
            assert (row["loss"], row["staleness_mean"]) == (None, None)
            continue
        span = slice(order.member_starts[version], order.member_starts[version + 1])
        assert row["staleness_mean"] == pytest.approx(numbers.staleness[span].mean())
        assert row["staleness_max"] == numbers.staleness[span].max()
        assert row["loss"] == numbers.model_loss[version]
    assert asyn2f.replay(golden_run.FOLDER).history() == rows


def test_history_leaves_out_scores_of_versions_that_were_not_evaluated(simulated):
    seldom = asyn2f.simulate(config_with(sim={"evaluate_every": 4}))
    for row, other in zip(seldom.history(), simulated.history(), strict=True):
        if row["version"] in (0, 4, 8, 10):
            assert row == other
        else:
            assert row["scores"] is None
            assert row["loss"] == other["loss"]


def test_a_run_of_processes_publishes_to_all_workers(simulated):
    """Whatever a simulated method has its workers fetch."""
    for row in simulated._replace(is_replay=True).history():
        assert row["bytes_down"] == row["broadcast_bytes_down"]


def test_params_and_summary_are_of_the_newest_version(simulated):
    assert simulated.params is simulated.result.state.model.params
    summary = simulated.summary()
    assert (summary["status"], summary["versions"]) == ("finished", 10)
    assert summary["params_sha256"] == sha256(simulated)
    best = max(simulated.scores.values(), key=lambda score: score["accuracy"])
    assert summary["best_value"] == best["accuracy"]
    assert summary["final_scores"] == simulated.scores[10]
    assert summary["bytes_up"] >= simulated.history()[-1]["bytes_up"]


def test_a_report_is_one_page(simulated, tmp_path):
    path = simulated.report(tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!")
    assert "asyn2f" in page
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_is_verified_by_its_folder():
    found = asyn2f.verify(golden_run.FOLDER)
    assert {x.invariant for x in found.violations} == {"I1"}  # it keeps no versions
    assert found.outcomes["committed"] > 0
    with pytest.raises(asyn2f.RunDirError):
        asyn2f.verify(golden_run.FOLDER / "trace")


def test_an_experiment_is_a_source_of_settings_by_itself(simulated):
    own = simulated.experiment
    config = asyn2f.config_of(own, sim__executor="serial")
    check_agrees(config, own)
    assert config["workers"] == own.workers
    assert config["stop"]["max_versions"] == own.stop.max_versions
    assert config["strategy"]["name"] == own.strategy.name
    run = asyn2f.simulate(experiment=own)
    assert run.experiment is own
    assert run.summary()["versions"] == own.stop.max_versions
    assert {row["workers"] for row in run.history()} == {own.workers}


@pytest.mark.parametrize("workers", [2, 5])
def test_another_number_of_workers_than_the_experiments_is_refused(workers):
    """Not silently left out, and no IndexError."""
    own = build.build_experiment(golden_run.config() | {"workers": 3})
    with pytest.raises(ConfigError, match=rf"config\.workers: found {workers}"):
        asyn2f.simulate(golden_run.config() | {"workers": workers}, own)


def test_a_config_that_is_wrong_is_said():
    with pytest.raises(ConfigError, match=r"config\.workers"):
        asyn2f.simulate(golden_run.config() | {"workers": 0})
    with pytest.raises(AttributeError, match="simulated"):
        _ = asyn2f.simulated
