"""How many bytes does each codec need until a model is good?

Simulated: Asyn2F, configs/digits.py, and MNIST with the same network and workers; three
seeds. Bytes are those of payloads, up and down. Then a run of real processes of each on
digits, with the bytes that its server counted. Results: BUILD_NOTES.md.

    python -m tests.bench codecs
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asyn2f import build
from asyn2f.evaluate import make_evaluate
from asyn2f.experiment import published
from asyn2f.sim import order as o
from asyn2f.sim.execute import execution_of
from configs.digits import get_config
from launch.simulate import order_of_config, watched_of

SEEDS = (0, 1, 2)
CODECS = {
    "float32": {},
    "bfloat16": {"updates": "bfloat16", "versions": "bfloat16"},
    "int8": {"updates": "int8", "versions": "int8"},
    "int8 delta, bfloat16": {
        "updates": "int8",
        "delta": True,
        "versions": "bfloat16",
    },
    "topk 0.1, bfloat16": {"updates": "topk", "versions": "bfloat16"},
}
# Versions of a run, and an accuracy that all but a broken one reach.
TASKS = {"digits": (150, 0.94), "mnist": (60, 0.92)}


def measure() -> Iterator[dict]:
    for task, (versions, target) in TASKS.items():
        for name, wire in CODECS.items():
            begun_s = time.perf_counter()
            runs = [simulated(task, versions, target, wire, seed) for seed in SEEDS]
            final, needed, total = np.array(runs).T
            yield {
                "task": task,
                "codec": name,
                "final": final.round(4).tolist(),
                "mean_final": round(float(final.mean()), 4),
                "target": target,
                "megabytes_to_target": (needed / 1e6).round(2).tolist(),
                "megabytes": round(float(total.mean()) / 1e6, 2),
                "wall_s": round(time.perf_counter() - begun_s, 1),
            }
    for name, wire in CODECS.items():
        yield {"task": "digits, real", "codec": name, **real(wire)}


def simulated(
    task: str, versions: int, target: float, wire: dict, seed: int
) -> tuple[float, float, float]:
    """The final accuracy, the bytes until the target (NaN: never), and in all."""
    config = get_config()
    config.seed, config.task.dataset = seed, task
    config.stop.max_versions = versions
    config.wire.update(wire)
    plain = dict(config.to_dict())
    experiment = build.build_experiment(plain)
    order = order_of_config(plain, experiment)
    evaluate = make_evaluate(experiment.task)
    accuracy: dict[int, float] = {}

    def watch(node, time_s, state):
        accuracy[node] = evaluate(published(experiment, state.model).params).accuracy
        return False

    execution_of(experiment, order, watched=watched_of(order, 2)).run(watch)
    nodes = np.array(sorted(accuracy))
    made_s = order.time_s[order.kind == o.AGGREGATE][nodes - 1]
    pushed_s = order.time_s[order.kind == o.PUSH]
    pushes = np.searchsorted(pushed_s, made_s, side="right")
    given = np.cumsum(order.receivers, dtype=np.int64)[nodes]
    moved = pushes * experiment.update_template.num_bytes
    moved += given * experiment.publication.template.num_bytes
    reached = [i for i, node in enumerate(nodes) if accuracy[node] >= target]
    needed = moved[reached[0]] if reached else np.nan
    return accuracy[int(nodes[-1])], float(needed), float(moved[-1])


def real(wire: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.local", "--config=configs/digits.py"]
        command += [f"--workdir={folder}/run", "--config.stop.max_versions=60"]
        command += [f"--config.wire.{key}={value}" for key, value in wire.items()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    names = ("best_accuracy", "final_accuracy", "wall_s", "bytes_up", "bytes_down")
    return {name: summary[name] for name in names}
