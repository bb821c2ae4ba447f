"""The same arrivals under other settings, where their order allows it."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from asyn2f import trace
from asyn2f.cli import app
from asyn2f.config import build
from asyn2f.serialization import params_sha256
from asyn2f.sim.execute import Execution
from asyn2f.sim.order import (
    Order,
    Result,
    ended_by_divergence,
)
from asyn2f.sim.serial import Watch
from asyn2f.timing import Timing
from asyn2f.training.batches import (
    make_evaluate,
    steps_per_epoch,
)
from asyn2f.training.experiment import Experiment, published
from asyn2f.types import ServerState


def check_possible(
    experiment: Experiment,
    order: Order,
    folder: Path,
    stored: build.Config,
    changed: dict[str, Any],
) -> None:
    """Says what is different now, and ends the program if the order forbids it."""
    for key, (before, now) in changed.items():
        print(f"config.{key}: {before!r} in the run, {now!r} now")
    obstacle = _obstacle(experiment, order, stored, changed)
    if obstacle:
        settings = " ".join(
            shlex.quote(f"--config.{key}={now}") for key, (_, now) in changed.items()
        )
        app.fail(
            f"{obstacle}; schedule it anew: python -m launch.simulate "
            f"--config=configs/of_run.py:{folder} {settings} --workdir=..."
        )


def execute(execution: Execution, events: list[trace.Event]) -> int:
    """Executes the same arrivals with other settings; says how good that is, beside
    what the run's events say of the same versions."""
    recorded = {
        event.version: event.accuracy
        for event in events
        if isinstance(event, trace.Evaluated)
    }
    evaluate = make_evaluate(execution.experiment.task)
    print(f"{'version':>8}  {'in the run':>10}  {'now':>6}")

    def watch(node: int, time_s: float, state: ServerState) -> bool:
        version = int(state.model.version)
        before = recorded.get(version)
        text = "-" if before is None else f"{before:.4f}"
        accuracy = evaluate(
            published(execution.experiment, state.model).params
        ).accuracy
        print(f"{version:8d}  {text:>10}  {accuracy:.4f}", flush=True)
        return False

    state = run(execution, watch).state
    print(f"params_sha256: {params_sha256(state.model.params)}")
    return 0


def _obstacle(
    experiment: Experiment,
    order: Order,
    stored: build.Config,
    changed: dict[str, Any],
) -> str:
    """Why the recorded order does not allow the new settings; "" if it does."""
    fixed = [key for key in changed if key.split(".")[0] in ("timing", "stop")]
    if fixed:
        return f"config.{fixed[0]} decides when things happen, and that is recorded"
    before = build.build_strategy(stored).timing
    now = experiment.strategy.timing
    for name, was in vars(_plain(before)).items():
        is_now = getattr(_plain(now), name)
        if was != is_now:
            return (
                f"{experiment.strategy.name} has {name} = {is_now!r}, and the run went "
                f"by {was!r}: other things happen at other times"
            )
    if experiment.workers <= int(order.worker.max(initial=0)):
        return f"config.workers = {experiment.workers} are fewer than the run had"
    before_experiment = build.build_experiment(stored)
    for worker, (was, rows) in enumerate(
        zip(before_experiment.task.shards, experiment.task.shards, strict=False)
    ):
        epochs = [
            steps_per_epoch(len(rows_), e.training.batch_size)
            for rows_, e in ((was, before_experiment), (rows, experiment))
        ]
        if epochs[0] != epochs[1]:
            return (
                f"an epoch of worker {worker} had {epochs[0]} steps and would have "
                f"{epochs[1]}: it would push at other times"
            )
    return ""


def _plain(timing: Timing) -> Timing:
    """The timing without what does not act, or was compared elsewhere."""
    if timing.quorum != "some":
        timing = replace(timing, min_updates=1, pending="newest")
    if timing.while_training != "merge_once":
        timing = replace(timing, merge_slot=0.5)
    return replace(timing, min_workers=1)


def run(execution: Execution, watch: Watch) -> Result:
    """Executes, and says how fast that was."""
    begun_s = time.monotonic()
    result = execution.run(watch)
    jax.block_until_ready(result.state)
    wall_s = time.monotonic() - begun_s
    steps = execution.order.num_steps
    print(f"executed {steps:,} local steps in {wall_s:.1f} s: {steps / wall_s:,.0f}/s")
    ended = ended_by_divergence(execution.order, result.numbers)
    if ended is not None:
        app.fail(f"{ended.reason}; nothing of it can be used")
    return result
