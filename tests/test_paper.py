"""The reduced version of the paper's experiment, whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data" / "tensorflow_datasets"

needs_cifar10 = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(), reason=f"cifar10 is not prepared in {DATA}"
)


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
    assert 0.36 <= summary["final_accuracy"] <= 0.52
