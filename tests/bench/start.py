"""How long from a command to the first local step, with a warm compilation cache?

One worker that joins a server which waits for it; and all of `launch.local`, server,
evaluator and one worker. Against a program that imports JAX and compiles one training
step of the same network, with the same cache: nobody can begin sooner.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from asyn2f import trace
from tests.bench.figures import Figure, compared

ROUNDS = 5
FLOOR = "import of JAX, and one compiled step"
STEP = """
import os
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR",
                      os.path.expanduser("~/.cache/asyn2f/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
import jax, jax.numpy as jnp
def loss(params, x, y):
    w, b, v, c = params
    logits = jax.nn.relu(x @ w + b) @ v + c
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(32), y])
@jax.jit
def step(params, x, y):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params, x, y))
zeros = jnp.zeros
params = zeros((64, 64)), zeros(64), zeros((64, 10)), zeros(10)
jax.block_until_ready(step(params, zeros((32, 64)), zeros(32, jnp.int32)))
"""
FLAGS = [
    "--config=configs/digits.py",
    "--config.workers=1",
    "--config.timing.min_updates=1",
    "--config.worker_speeds=(0.0,)",
    "--config.stop.max_versions=2",
]


def measure() -> Iterator[Figure]:
    seconds: dict[str, list[float]] = {FLOOR: [], "a worker": [], "everything": []}
    for number in range(ROUNDS + 1):
        found = {
            FLOOR: _floor_s(),
            "a worker": _first_step_s(_worker),
            "everything": _first_step_s(_everything),
        }
        for what, took_s in found.items() if number else ():
            seconds[what].append(took_s)
    what = "a worker, from its command to its first step"
    turns = {what: seconds["a worker"], FLOOR: seconds[FLOOR]}
    yield compared(what, turns, what, FLOOR, 1.5)
    what = "launch.local with one worker, to its first step"
    turns = {what: seconds["everything"], FLOOR: seconds[FLOOR]}
    yield compared(what, turns, what, FLOOR)


def _floor_s() -> float:
    begin_s = time.time()
    subprocess.run([sys.executable, "-c", STEP], check=True)
    return time.time() - begin_s


def _first_step_s(run) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begin_s = run([*FLAGS, f"--workdir={folder}/run"])
        events = trace.read(Path(folder) / "run" / "trace")
    trained = next(e for e in events if isinstance(e, trace.Trained))
    step_s = (trained.time_s - trained.start_s) / trained.steps
    return trained.start_s + step_s - begin_s


def _everything(flags: list[str]) -> float:
    begin_s = time.time()
    subprocess.run(
        [sys.executable, "-m", "launch.local", *flags],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return begin_s


def _worker(flags: list[str]) -> float:
    command = [sys.executable, "-m"]
    with subprocess.Popen(
        [*command, "launch.server", *flags], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        while "listening at" not in line:
            line = server.stdout.readline()
        address = next(word for word in line.split() if word.startswith("tcp://"))
        begin_s = time.time()
        worker = subprocess.Popen(
            [
                *command,
                "launch.worker",
                *flags,
                "--worker=0",
                f"--server={address.rstrip(',')}",
            ],
            stdout=subprocess.DEVNULL,
        )
        server.communicate(timeout=60)
        worker.wait(60)
    return begin_s
