"""What accuracy do the methods reach on digits in 30 seconds of real time?

Real processes; five workers, speeds 1 : 4, Dirichlet(1) labels, three seeds: configs/
digits.py with the changes named. A first look, not a comparison: no tuning, one data
set, one profile of speeds. Results: README.md.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SECONDS = 30
SEEDS = (0, 1, 2)
METHODS = {
    "asyn2f, max_share 0.5": [],
    "asyn2f, as in the paper": ["--config.strategy.asyn2f.max_share=1.0"],
    "fedavg": ["--config.strategy.name=fedavg"],
}


def measure() -> Iterator[dict]:
    for method, flags in METHODS.items():
        runs = [run(seed, flags) for seed in SEEDS]
        best, final, versions = np.array(runs).T
        yield {
            "method": method,
            "best": [round(x, 4) for x in best],
            "final": [round(x, 4) for x in final],
            "mean_best": round(best.mean(), 4),
            "mean_final": round(final.mean(), 4),
            "versions": [int(x) for x in versions],
        }


def run(seed: int, flags: list[str]) -> tuple[float, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.local", "--config=configs/digits.py"]
        command += [f"--workdir={folder}/run", f"--config.seed={seed}", *flags]
        command += [f"--config.stop.max_time_s={SECONDS}.0"]
        command += ["--config.stop.max_versions=0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return (
        summary["best_value"],
        summary["final_scores"]["accuracy"],
        summary["versions"],
    )
