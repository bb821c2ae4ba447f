"""On every processor an executor repeats its own bits, in this process and
in others, compiled anew or read from the cache; executors agree up to rounding.

XLA is free to contract either product of `a * b + c * d` into the sum, and chooses
otherwise inside of a loop than outside: two executors need not share their last bits.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
SETS = ["AVX2", *(pytest.param(x, marks=pytest.mark.slow) for x in ("SSE4_2", "AVX"))]
SETS.append(pytest.param("AVX512", marks=pytest.mark.slow))


@pytest.mark.processes
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "strategy", ["asyn2f", pytest.param("fedavg", marks=pytest.mark.slow)]
)
def test_executors_repeat_their_bits_and_agree_up_to_rounding(name, strategy, tmp_path):
    """On a processor without that set, XLA takes the largest one that there is."""

    command = ["tests.support.instruction_sets", strategy]
    first = output_of(command, name, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert first.startswith("serial")
    assert list(tmp_path.iterdir())  # the second time, programs are read from here
    assert output_of(command, name, JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == first


@pytest.mark.processes
def test_a_run_made_with_fewer_instructions_is_replayed_with_these(tmp_path):
    """Whatever the environment of the replay."""
    settings = ["--config.stop.max_versions=3", "--config.sim.executor=serial"]
    settings += ["--config.workers=2", "--config.task.hidden=(4,)"]
    run = ["--config=configs/digits.py", f"--workdir={tmp_path}", *settings]
    output_of(["launch.simulate", *run], "SSE4_2")
    replay = ["launch.replay", f"--run={tmp_path}"]
    for name in ("", "AVX"):
        assert "agree, bit for bit" in output_of(replay, name)


def output_of(command: list[str], name: str, **env: str) -> str:
    """What a module prints under a limit to the set of instructions."""
    flags = f"--xla_cpu_max_isa={name}" if name else ""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | env,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
