"""How many bytes does each codec need until a model is good?

Asyn2F, configs/digits.py, and MNIST with the same network and workers. Simulated with
three seeds, bytes of payloads alone; then a run of real processes of each, bytes as its
server counted them: with headers, resends, and what the evaluator was sent. Up and
down in both. Results: BUILD_NOTES.md.

    python -m tests.bench codecs
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyn2f.api.results import bytes_by
from asyn2f.api.simulation import simulate
from asyn2f.report.load import load_run
from asyn2f.report.summary import scores
from asyn2f.sim import order as o
from configs.digits import get_config

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
    "4 fragments, bfloat16": {"updates": "fragments", "versions": "bfloat16"},
}
TARGETS = {"digits": 0.94, "mnist": 0.92}  # which all but a broken run reach
VERSIONS = {
    "simulator": {"digits": 150, "mnist": 60},
    "runtime": {"digits": 150, "mnist": 20},  # minutes each, as it is paced
}


class Reached(NamedTuple):
    """What came of a run."""

    final: float  # accuracy
    until_target: float  # bytes; NaN = it never got there
    in_all: float  # bytes


def measure() -> Iterator[dict]:
    for by, run, seeds in (
        ("simulator", simulated, SEEDS),
        ("runtime", real, SEEDS[:1]),
    ):
        for task, target in TARGETS.items():
            for codec, wire in CODECS.items():
                versions = VERSIONS[by][task]
                begun_s = time.perf_counter()
                runs = [run(task, versions, target, wire, seed) for seed in seeds]
                final, until_target, in_all = np.array(runs).T
                yield {
                    "by": by,
                    "task": task,
                    "codec": codec,
                    "final": final.round(4).tolist(),
                    "mean_final": round(float(final.mean()), 4),
                    "target": target,
                    "megabytes_to_target": (until_target / 1e6).round(2).tolist(),
                    "megabytes": round(float(in_all.mean()) / 1e6, 2),
                    "wall_s": round(time.perf_counter() - begun_s, 1),
                }


def simulated(
    task: str, versions: int, target: float, wire: dict, seed: int
) -> Reached:
    config = get_config()
    config.seed, config.task.dataset = seed, task
    config.stop.max_versions = versions
    config.wire.update(wire)
    config.sim.evaluate_every = 2
    run = simulate(config.to_dict())
    nodes = np.array(sorted(run.scores))[1:]
    made_s = run.order.time_s[run.order.kind == o.AGGREGATE][nodes - 1]
    moved = bytes_by(config.to_dict(), run.experiment, run.order, made_s)
    num_bytes = moved.up + moved.down
    found = [run.scores[node]["accuracy"] for node in nodes]
    return reached(zip(found, num_bytes, strict=True), target)


def real(task: str, versions: int, target: float, wire: dict, seed: int) -> Reached:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "launch.local", "--config=configs/digits.py"]
        command += [f"--workdir={run}", f"--config.seed={seed}"]
        command += [f"--config.task.dataset={task}"]
        command += [f"--config.stop.max_versions={versions}"]
        command += [f"--config.wire.{key}={value}" for key, value in wire.items()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = scores(load_run(run))
    return reached(((x.accuracy, x.num_bytes) for x in found), target)


def reached(way: Iterable[tuple[float, float]], target: float) -> Reached:
    """Of accuracies, one after the other, and the bytes moved by then."""
    way = list(way)
    first = next((moved for accuracy, moved in way if accuracy >= target), math.nan)
    return Reached(way[-1][0], first, way[-1][1])
