"""The paper's experiments say what the paper does; the reduced one, whole."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.config import schema
from asyn2f.training.batches import shard_of
from asyn2f.training.settings import Training, length_for
from tests.support.experiments import experiment_with

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "tensorflow_datasets"

needs_cifar10 = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(), reason=f"cifar10 is not prepared in {DATA}"
)


METHODS = ("asyn2f", "kafl", "fedavg")
# V of the synchronous regime, and the run's length, by setting and method.
VERSIONS = {
    "cifar10_iid": (700, 1100, 45),
    "cifar100": (700, 1100, 45),
    "cifar10_noniid": (500, 600, 27),
    "cifar10_overlapping": (500, 600, 27),
    "cifar10_20_workers": (1000, 1200, 60),
    "ember": (45, 110, 15),
}


def config_of(name, *words):
    module = importlib.import_module(f"configs.paper.{name}")
    return module.get_config(",".join(words)).to_dict()


@pytest.mark.parametrize("schedule", ["synchronous", "fixed", "cosine"])
@pytest.mark.parametrize("name", VERSIONS)
def test_the_rates_and_lengths_are_the_papers(name, schedule):
    for method, versions in zip(METHODS, VERSIONS[name], strict=True):
        config = config_of(name, method, schedule)
        schema.check_values(config)
        assert config["strategy"]["name"] == method
        assert config["stop"]["max_versions"] == versions
        training = config["training"]
        rates = training["learning_rate"], training["learning_rate_min"]
        if schedule == "fixed":
            assert rates[0] == 0.01
        else:
            assert rates == (0.1, 0.005)
        if schedule == "synchronous":
            assert training["schedule_length"] == versions
        if schedule == "cosine":
            assert training["schedule_epochs"] == 600
        assert config["timing"]["deadline_s"] == 0.0


def test_a_cosine_is_over_as_many_steps_as_a_workers_own_shard_says():
    """600 s_k / 128: the largest and the smallest overlapping shard, 20 workers."""
    for name, examples, steps in [
        ("cifar10_overlapping", 19530, 91546.875),
        ("cifar10_overlapping", 10080, 47250.0),
        ("cifar10_20_workers", 2500, 11718.75),
        ("cifar10_20_workers", 2560, 12000.0),
    ]:
        training = schema.section(config_of(name, "cosine"), Training)
        assert float(length_for(training, jnp.float32(examples))) == steps


@pytest.mark.parametrize(("worker", "length"), [(0, 6), (1, 12)])
def test_every_worker_falls_at_its_own_pace(worker, length):
    """Two epochs of 30 examples are 6 steps of 10, of 60 they are 12."""
    made = experiment_with(
        workers=2,
        task__partition="sizes",
        task__sizes=(30, 60),
        training__batch_size=10,
        training__schedule="cosine",
        training__schedule_epochs=2,
        training__momentum=1e-9,
        training__weight_decay=0.0,
    )
    model, shard = made.init_server().model, shard_of(made.task, worker)
    rates = []
    for step in (0, length // 2, length, 5 * length):
        state = made.trainer.start(model, worker, int(shard.num_examples), 1.0)
        state = state._replace(step=jnp.int32(step))
        before = np.asarray(state.params["params"]["Dense_1"]["bias"])
        state, _ = made.trainer.advance(state, shard)
        # With next to no momentum the trace holds the gradient.
        gradient = np.asarray(jax.tree.leaves(state.opt_state)[2])
        moved = before - np.asarray(state.params["params"]["Dense_1"]["bias"])
        rates.append(float(moved @ gradient / (gradient @ gradient)))
    assert rates == pytest.approx([0.1, 0.05, 0.005, 0.005], rel=1e-3)


@needs_cifar10
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cifar10_small_learns_as_far_as_it_did(tmp_path):
    """0.430 where it was measured, 0.482 with another seed: rounding differs between
    machines, and training carries it on."""
    flags = [
        "--config=configs/paper/cifar10_small.py:asyn2f",
        f"--workdir={tmp_path / 'run'}",
        f"--config.task.data_dir={DATA}",
    ]
    command = [sys.executable, "-m", "launch.simulate", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["versions"] == 150
    assert summary["updates"]["committed"] == 450
    assert 0.36 <= summary["final_scores"]["accuracy"] <= 0.52
