"""A complete small run, stored: its config, its trace, its last parameters.

    python -m tests.support.golden_run

writes it anew, by `launch.simulate`: to be done where a change of the numbers is meant,
and noted in BUILD_NOTES.md.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyn2f.cli import app
from asyn2f.config import build
from asyn2f.config.of_run import get_config as of_run
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import initial_server_state

FOLDER = Path(__file__).parents[1] / "golden"
SETTINGS = {
    "workers": "4",
    "task.hidden": "(4,)",
    "training.batch_size": "64",
    "timing.epochs_per_push": "1",
    "timing.min_updates": "2",
    "stop.max_versions": "10",
    "worker_speeds": "(100.0,60.0,40.0,25.0)",
    "sim.jitter": "0.2",
    "sim.upload_s": "0.05",
    "sim.download_s": "0.03",
    "sim.outage_every_s": "1.0",
    "sim.outage_s": "0.2",
    "sim.executor": "serial",
}


def config() -> build.Config:
    """That of the stored run."""
    return app.checked(of_run(FOLDER))


def params() -> dict[str, Any]:
    """The stored parameters of the last version, by path."""
    return json.loads((FOLDER / "params.json").read_text())


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def write() -> None:
    """The stored run, made and written anew."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        flags = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        command = [sys.executable, "-m", "launch.simulate", f"--workdir={folder}"]
        subprocess.run([*command, "--config=configs/digits.py", *flags], check=True)
        FOLDER.mkdir(exist_ok=True)
        shutil.copy(folder / "config.json", FOLDER)
        (FOLDER / "trace").mkdir(exist_ok=True)
        shutil.copy(folder / "trace" / "simulation.jsonl", FOLDER / "trace")
        experiment = build.build_experiment(config())
        like = jax.eval_shape(lambda: initial_server_state(experiment))
        store = OrbaxStore(folder / "models")
        state = store.load(experiment.stop.max_versions, like).state
        store.close()
        rows = {name: x.tolist() for name, x in by_path(state.model.params).items()}
        (FOLDER / "params.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    write()
