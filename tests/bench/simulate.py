"""How many local steps per second does the simulator do, and what does a round cost?

Scheduling alone; 100 workers on the digits MLP 64-32-10, batch 16, cycles of 10 steps,
synchronous and asynchronous; one round of the small CNN of pfl-research's CIFAR-10
benchmark. To be set beside `tests/bench/peers`. Results: BUILD_NOTES.md.
"""

import resource
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from asyn2f import strategies
from asyn2f.cli import machine
from asyn2f.sim.executors.execute import default_lanes
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.vectorised import execute_in_lanes, prepare
from asyn2f.sim.order import PUSH, Order
from asyn2f.sim.profiles import draw_profiles
from asyn2f.sim.schedule import schedule
from asyn2f.sim.settings import SimSettings
from asyn2f.tasks import models, partition
from asyn2f.tasks.classification import make_classification_task
from asyn2f.tasks.data import Dataset, digits
from asyn2f.timing import Stop, Timing
from asyn2f.training.experiment import Experiment, make_experiment
from asyn2f.training.settings import Training

REPETITIONS = 5
ASYN2F = Timing(while_training="merge", after_push="continue", quorum="some")
BUFFERED = Timing(while_training="ignore", after_push="adopt", quorum="some")
ROUNDS = Timing(
    while_training="ignore", after_push="wait", quorum="all", max_staleness=0
)


def measure() -> Iterator[dict]:
    machine.use_cores_as_devices()
    machine.prepare_jax()
    yield from schedules()
    yield from digits_steps()
    yield fill()
    yield cnn_round()
    yield many_workers(1_000_000, 1_000_000)


# ---------------------------------------------------------------- scheduling


def schedules() -> Iterator[dict]:
    for name, timing, updates, each in (
        ("buffered", BUFFERED, 300_000, 10),
        ("rounds", ROUNDS, 300_000, 1000),
        ("asyn2f", ASYN2F, 100_000, 100),
    ):
        yield {"what": f"schedule, {name}", **scheduled(timing, 1000, updates, each)}
    yield {
        "what": "schedule, a million",
        **scheduled(BUFFERED, 1_000_000, 1_000_000, 10_000),
    }


def scheduled(timing: Timing, workers: int, updates: int, each: int) -> dict[str, Any]:
    """Speeds 1 : 4, latency 50 ms, 100 Mbit/s, a model of 10 kB, jitter."""
    rates = []
    for _ in range(3 if workers < 1_000_000 else 1):
        begun_s = time.perf_counter()
        order = order_of(timing, workers, updates, each, 0.05)
        wall_s = time.perf_counter() - begun_s
        rates.append(int((order.kind == PUSH).sum()) / wall_s)
    return {
        "workers": workers,
        "completions_per_s": round(statistics.median(rates)),
        "events_per_s": round(len(order.kind) / wall_s),
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def order_of(
    timing: Timing, workers: int, updates: int, each: int, latency_s: float = 0.0
) -> Order:
    speeds = SimSettings(
        step_s=(0.01,),
        step_spread=4.0,
        jitter=0.1 if latency_s else 0.0,
        upload_s=latency_s,
        download_s=latency_s,
        upload_mbps=100.0 if latency_s else 0.0,
        download_mbps=100.0 if latency_s else 0.0,
    )
    profiles = draw_profiles(workers, np.random.default_rng(0), speeds)
    settings = {"min_updates": each, "min_workers": workers}
    timing = Timing(**{**timing.__dict__, **settings})
    stop = Stop(max_versions=updates // each)
    epochs = [10] * workers
    return schedule(timing, profiles, stop, 0, steps_per_epoch=epochs, num_bytes=9_640)


# ---------------------------------------------------------------- executing


def digits_steps() -> Iterator[dict]:
    for name, strategy, timing, each in (
        ("rounds", strategies.fedavg(), ROUNDS, 100),
        ("asyn2f, 10 updates a version", strategies.asyn2f(), ASYN2F, 10),
        ("asyn2f, 50 updates a version", strategies.asyn2f(), ASYN2F, 50),
    ):
        experiment = digits_experiment(strategy)
        begun_s = time.perf_counter()
        order = order_of(timing, 100, 20_000, each)
        schedule_s = time.perf_counter() - begun_s
        for devices in sorted({1, jax.device_count()}):
            for lanes in sorted({1, default_lanes(100, devices)}):
                figures = executed(experiment, order, lanes, devices, schedule_s)
                yield {"what": f"digits, {name}", **figures}


def digits_experiment(strategy: strategies.Strategy) -> Experiment:
    dataset = digits()
    labels = dataset.train["label"]
    shards = partition.iid(labels, 100, np.random.default_rng(0))
    task = make_classification_task(
        "digits", models.MLP((32,), 10), dataset, shards, [1.0] * 100
    )
    training = Training(batch_size=16, learning_rate=0.05, weight_decay=0.0)
    return make_experiment(task, strategy, training, Stop(), seed=0)


def executed(
    experiment: Experiment, order: Order, lanes: int, devices: int, schedule_s: float
) -> dict[str, Any]:
    """`steps_per_s` of executing what is planned; `whole_steps_per_s` of scheduling,
    planning and executing; neither with compiling."""
    begun_s = time.perf_counter()
    plan(order, devices, lanes)
    plan_s = time.perf_counter() - begun_s
    machine = prepare(experiment, order, lanes, devices)
    walls_s = []
    for _ in range(REPETITIONS + 1):
        begun_s = time.perf_counter()
        jax.block_until_ready(execute_in_lanes(machine, order).state)
        walls_s.append(time.perf_counter() - begun_s)
    wall_s = statistics.median(walls_s[1:])  # the first one compiles
    return {
        "lanes": lanes,
        "devices": devices,
        "steps": order.num_steps,
        "steps_per_s": round(order.num_steps / wall_s),
        "best_steps_per_s": round(order.num_steps / min(walls_s[1:])),
        "whole_steps_per_s": round(order.num_steps / (wall_s + plan_s + schedule_s)),
        "fill": round(machine.plan.fill, 3),
    }


def fill() -> dict[str, Any]:
    order = order_of(ASYN2F, 1000, 20_000, 100)
    devices = jax.device_count()
    planned = plan(order, devices, default_lanes(1000, devices))
    return {
        "what": "lane fill, asyn2f",
        "workers": 1000,
        "fill": round(planned.fill, 3),
        "version_slots": planned.version_slots,
        "update_slots": planned.update_slots,
    }


def many_workers(workers: int, updates: int) -> dict[str, Any]:
    """FedBuff with 10,000 updates a version, executed: a worker's state is kept while
    it is in a wave, and no longer."""
    labels = digits().train["label"]
    rng = np.random.default_rng(0)
    some = [rng.choice(len(labels), 160, replace=False) for _ in range(1000)]
    shards = [some[k % len(some)] for k in range(workers)]
    task = make_classification_task(
        "digits", models.MLP((32,), 10), digits(), shards, [1.0] * workers
    )
    training = Training(batch_size=16, learning_rate=0.05, weight_decay=0.0)
    timing = Timing(**{**BUFFERED.__dict__, "min_updates": 10_000})
    strategy = strategies.fedbuff()._replace(timing=timing)
    experiment = make_experiment(task, strategy, training, Stop(), seed=0)
    times_s = [time.perf_counter()]
    order = order_of(BUFFERED, workers, updates, 10_000, 0.05)
    times_s.append(time.perf_counter())
    lanes, devices = default_lanes(workers, jax.device_count()), jax.device_count()
    machine = prepare(experiment, order, lanes, devices)
    times_s.append(time.perf_counter())
    jax.block_until_ready(execute_in_lanes(machine, order).state)
    times_s.append(time.perf_counter())
    schedule_s, plan_s, execute_s = np.diff(times_s).round(1).tolist()
    return {
        "what": "many workers, executed",
        "workers": workers,
        "steps": order.num_steps,
        "versions": len(order.version) - 1,
        "rows": machine.plan.rows,
        "schedule_s": schedule_s,
        "plan_s": plan_s,
        "execute_s": execute_s,
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


# ---------------------------------------------------------------- the small CNN


def cnn_round() -> dict[str, Any]:
    """20 workers, 5 steps each, batch 10, 32x32x3; FedAvg."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1000, 32, 32, 3)).astype(np.float32)
    data = {"input": images, "label": rng.integers(0, 10, 1000).astype(np.int32)}
    shards = partition.iid(data["label"], 20, rng)
    dataset = Dataset(train=data, test=data, num_classes=10)
    network = models.SmallCNN((32, 64), (128,), 10)
    task = make_classification_task("random", network, dataset, shards, [1.0] * 20)
    training = Training(
        batch_size=10, learning_rate=0.1, momentum=0.0, weight_decay=0.0
    )
    experiment = make_experiment(task, strategies.fedavg(), training, Stop(), seed=0)
    profiles = draw_profiles(20, rng, SimSettings(step_s=(0.01,)))
    timing = Timing(**{**ROUNDS.__dict__, "min_workers": 20})
    rounds = 10
    stop = Stop(max_versions=rounds)
    order = schedule(timing, profiles, stop, 0, steps_per_epoch=[5] * 20)
    devices = jax.device_count()
    figures = executed(experiment, order, 1, devices, 0.0)
    best_s = order.num_steps / figures["best_steps_per_s"] / rounds
    return {
        "what": "small CNN",
        "devices": devices,
        "median_s_per_round": order.num_steps / figures["steps_per_s"] / rounds,
        "min_s_per_round": best_s,
    }
