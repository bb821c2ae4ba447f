"""What does a local step of a simulated run cost, beside one of `lax.scan`?

Processor time per local step, of everything that an execution does after compiling:
steps, merges, pushes, aggregations, batches. `merges per step` counts versions that are
merged in mid-training. Against: the same steps of one worker in a `lax.scan` on the
same cores, in the same turn.

    python -m tests.bench steps
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f import strategies
from asyn2f.cli import machine
from asyn2f.sim.executors.execute import choose, default_lanes
from asyn2f.sim.executors.vectorised import execute_in_lanes, prepare
from asyn2f.sim.order import MERGE, Order
from asyn2f.sim.profiles import draw_profiles
from asyn2f.sim.schedule import schedule
from asyn2f.sim.settings import SimSettings
from asyn2f.tasks import models
from asyn2f.tasks.classification import make_classification_task
from asyn2f.tasks.data import Dataset
from asyn2f.timing import Stop, Timing
from asyn2f.training.batches import shard_of
from asyn2f.training.computation import functions_of
from asyn2f.training.experiment import Experiment, make_experiment
from asyn2f.training.settings import Training

BATCH = 32
STEPS_PER_CYCLE = 28
SIZES = {  # inputs, hidden layers, local steps in all at least, numbers of workers
    "2.4 k": (64, (32,), 20_000, (20, 80, 1000)),
    "51 k": (784, (64,), 6_000, (20, 80, 1000)),
    "400 k": (784, (500,), 2_000, (20, 80, 1000)),
    "11 M": (784, (3584, 2304), 200, (20, 80)),  # 1,000 states take 130 GB
}
TURNS = 3
ASYN2F = Timing(while_training="merge", after_push="continue", quorum="some")
BUFFERED = Timing(while_training="ignore", after_push="adopt", quorum="some")


def measure() -> Iterator[dict]:
    machine.use_cores_as_devices()
    machine.prepare_jax()
    for size, (*_, numbers) in SIZES.items():
        for workers in numbers:
            yield from rows_of(size, workers)


def rows_of(size: str, workers: int) -> Iterator[dict[str, Any]]:
    # A version of so many updates: a worker merges 2, or 28, of them in a cycle.
    cases = {
        "none": (strategies.fedbuff(), BUFFERED, max(2, workers // 2)),
        "per 14 steps": (strategies.asyn2f(), ASYN2F, max(2, workers // 2)),
        "before each": (strategies.asyn2f(), ASYN2F, max(1, workers // 28)),
    }
    for merges, (strategy, timing, each) in cases.items():
        experiment, order = case(size, workers, strategy, timing, each)
        steps, cores = order.num_steps, jax.device_count()
        row: dict[str, Any] = {
            "parameters": size,
            "workers": workers,
            "merges": merges,
            "steps": steps,
            "merges_per_step": round(float((order.kind == MERGE).sum()) / steps, 2),
            "auto": "{1} x {0}".format(*_chosen(experiment, order)),
        }
        candidates = {"scan": scanned(experiment, min(steps, 2000))}
        for devices in sorted({1 if workers == 20 else cores, cores}):
            for lanes in sorted({1, default_lanes(workers, devices)}):
                candidates[f"{lanes} x {devices}"] = executed(
                    experiment, order, lanes, devices
                )
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(TURNS):
            for name, run in candidates.items():
                times[name].append(run())
        scan_s = statistics.median(times["scan"])
        row["scan_us"] = round(1e6 * scan_s, 1)
        for name, each_s in times.items():
            if name != "scan":
                pairs = zip(each_s, times["scan"], strict=True)
                row[name] = round(statistics.median(a / b for a, b in pairs), 2)
        yield row


def _chosen(experiment: Experiment, order: Order) -> tuple[int, int]:
    """Devices and lanes of `executor=auto`."""
    executor, lanes, _ = choose(experiment, order, jax.device_count())
    return (jax.device_count() if executor == "sharded" else 0), lanes


def case(size, workers, strategy, timing, each) -> tuple[Experiment, Order]:
    inputs, hidden, steps, _ = SIZES[size]
    rng = np.random.default_rng(0)
    count = BATCH * STEPS_PER_CYCLE
    data = {
        "input": rng.normal(size=(count, inputs)).astype(np.float32),
        "label": rng.integers(0, 10, count).astype(np.int32),
    }
    dataset = Dataset(train=data, test=data, num_classes=10)
    shards = [np.arange(count)] * workers
    task = make_classification_task(
        "random", models.MLP(hidden, 10), dataset, shards, [1.0] * workers
    )
    training = Training(batch_size=BATCH, learning_rate=0.01, momentum=0.9)
    stop = Stop(max_versions=max(4, steps // STEPS_PER_CYCLE // each))
    settings = {"min_updates": each, "min_workers": workers, "epochs_per_push": 1}
    timing = Timing(**{**timing.__dict__, **settings})
    strategy = strategy._replace(timing=timing)
    experiment = make_experiment(task, strategy, training, stop, seed=0)
    speeds = SimSettings(step_s=(0.01,), step_spread=2.0)
    profiles = draw_profiles(workers, rng, speeds)
    epochs = [STEPS_PER_CYCLE] * workers
    return experiment, schedule(timing, profiles, stop, 0, steps_per_epoch=epochs)


def scanned(experiment: Experiment, steps: int) -> Callable[[], float]:
    shard = shard_of(experiment.task, 0)
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.integers(0, shard.indices.size, (steps, BATCH)), jnp.int32)

    @jax.jit
    def run(hyperparams, arrays, rows):
        functions = functions_of(experiment.computation, hyperparams)
        state = functions.trainer.start(functions.init_server().model, 0, 1, 1.0)

        def step(state, rows):
            batch = {name: array[rows] for name, array in arrays.items()}
            return functions.trainer.step(state, batch)[0], ()

        return jax.lax.scan(step, state, rows)[0]

    def call() -> float:
        begun_s = time.process_time()
        jax.block_until_ready(run(experiment.hyperparams, shard.arrays, rows))
        return (time.process_time() - begun_s) / steps

    call()
    return call


def executed(experiment, order, lanes, devices) -> Callable[[], float]:
    prepared = prepare(experiment, order, lanes, devices)

    def call() -> float:
        begun_s = time.process_time()
        jax.block_until_ready(execute_in_lanes(prepared, order).state)
        return (time.process_time() - begun_s) / order.num_steps

    call()
    return call
