"""Executes the trace of a run again, real or simulated, and compares the parameters.

    asyn2f replay --run=runs/demo
    asyn2f replay --run=runs/demo --explain=40
    asyn2f replay --run=runs/demo --config.strategy.asyn2f.max_share=1.0

The first ends with exit code 0 only if the parameters agree with every version that is
still in the run's folder. The second prints what a version was made of. The last
executes the same arrivals with other settings.
"""

import os
import shlex
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from absl import flags

from asyn2f import trace
from asyn2f.api import replaying
from asyn2f.api.replaying import Comparison
from asyn2f.cli import app, claim, machine
from asyn2f.config import build, identity, user_code
from asyn2f.config.default import load_config
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.execute import Execution, Executor, execution_of
from asyn2f.sim.executors.serial import Watch
from asyn2f.sim.from_trace import recording_of
from asyn2f.sim.order import Result, ended_by_divergence
from asyn2f.trace import causality, history, provenance
from asyn2f.training import agreement
from asyn2f.training.evaluation import KeptOf, make_scores
from asyn2f.types import ServerState

_EXECUTOR = flags.DEFINE_enum(
    "executor",
    None,
    list(get_args(Executor)),
    "How to execute. Unless given: as a simulated run was, or else serial, which alone "
    "reproduces a run of processes bit for bit.",
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance",
    None,
    "Largest difference, relative to the model's largest parameter, that counts as "
    "agreement. Unless given: 0 for the run's own executor (serial for a run of "
    "processes), 0.05 for others.",
)
_EXPLAIN = flags.DEFINE_integer(
    "explain", None, "Only print what this version was made of."
)

# The last bits depend on these; the rest of an environment is not compared.
_NUMBERS_DEPEND_ON = (
    *("asyn2f", "source", "jax", "jaxlib", "platform", "device", "threads"),
    *("instruction_set", "steps_per_call", "dtype", "xla_flags", "x64"),
    *agreement.REPLAYED,
)
# Another executor rounds differently: by 1e-6, until a merge depends on the direction
# of a parameter that has hardly moved, or a ReLU on such a sign. Then differences are
# 1e-3 to 1e-2, in one run of ten.
_ROUNDING, _LARGEST = 1e-5, 0.05
_SHOWN = 10  # numbers that differ


def main() -> int:
    folder = app.run_folder()
    try:
        events = trace.of_run(folder)
        if _EXPLAIN.value is not None:
            print(provenance.describe(provenance.explain(events, _EXPLAIN.value)))
            return 0
    except ValueError as error:
        app.fail(str(error))
    config = app.checked(app.CONFIG.value)
    recorded = recorded_environment(events)
    executor: Any = _EXECUTOR.value or recorded.get("executor", "serial")
    _set_environment(recorded, executor)
    machine.prepare_jax()
    history.check_complete(events)
    causality.check(events)
    print(f"{len(events):,} events: the trace is causally consistent")
    return _replay(folder, config, events, recorded, executor)


def _replay(
    folder: Path,
    config: build.Config,
    events: list[trace.Event],
    recorded: dict[str, Any],
    executor: Any,
) -> int:
    """Executes, and prints how it compares; returns the exit code."""
    task = build.build_task(config, "all", app.roots())
    experiment = build.build_experiment(config, task)
    recording = recording_of(events, replaying.summary_of(folder).get("versions"))
    order = recording.order
    is_own = executor == recorded.get("executor", "serial")
    lanes = recorded.get("lanes", 0) if executor == recorded.get("executor") else 0
    stored = app.checked(load_config(folder))
    changed = identity.changed_keys(stored, config)
    if changed:
        obstacle = replaying.obstacle(experiment, order, stored, changed, app.roots())
        _print_changes(folder, changed, obstacle)
        last = len(order.version) - 1
        watched = {*np.linspace(0, last, 11).astype(int).tolist()} - {0}
    else:
        for difference in claim.code_differences(folder, user_code.digests(config)):
            print(difference)
        claim.check_same_data(folder, task)
        agreement.check_registered(task, events)
        watched = replaying.nodes_present(order, folder)
    execution = execution_of(experiment, order, executor, lanes, watched)
    print(f"executor: {execution.why}", flush=True)
    if changed:
        return _print_scores(execution, events)
    _print_environment(recorded)
    tolerance = _TOLERANCE.value
    if tolerance is None:
        tolerance = 0.0 if is_own else _LARGEST
    compared = replaying.compare(
        execution, recording, folder, tolerance, _execute, events
    )
    return _print_comparison(compared, int(order.version[order.newest]), tolerance)


def _execute(execution: Execution, watch: Watch) -> Result:
    """Executes, and prints how fast that was."""
    start_s = time.monotonic()
    result = execution.run(watch)
    jax.block_until_ready(result.state)
    wall_s = time.monotonic() - start_s
    steps = execution.order.num_steps
    print(f"executed {steps:,} local steps in {wall_s:.1f} s: {steps / wall_s:,.0f}/s")
    ended = ended_by_divergence(execution.order, result.numbers)
    if ended is not None:
        app.fail(f"{ended.reason}; there is nothing to compare")
    return result


# ---------------------------------------------------------------- the environment


def recorded_environment(events: list[trace.Event]) -> dict[str, Any]:
    """The environment of most of the processes that computed updates."""
    heads = agreement.made_by(events)
    result: dict[str, Any] = {}
    for key in {key for head in heads for key in head.environment}:
        values = Counter(str(head.environment.get(key)) for head in heads)
        most = values.most_common(1)[0][0]
        result[key] = next(
            head.environment.get(key)
            for head in heads
            if str(head.environment.get(key)) == most
        )
        if len(values) > 1:
            found = ", ".join(f"{value} ({count})" for value, count in values.items())
            print(f"the run's processes differ in {key}: {found}; taking {most}")
    return result


def _set_environment(recorded: dict[str, Any], executor: str) -> None:
    """Sets what can be set, before anything is computed."""
    if "threads" in recorded:
        os.environ["PJRT_NPROC"] = str(recorded["threads"])
    if "x64" in recorded:
        jax.config.update("jax_enable_x64", recorded["x64"])
    agreement.set_flags(recorded)
    machine.limit_instructions(recorded.get("instruction_set", ""))
    devices = recorded.get("devices", 1)
    if executor == "serial":
        jax.config.update("jax_platforms", recorded.get("platform"))
    elif devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    else:
        machine.use_cores_as_devices()


def _print_environment(recorded: dict[str, Any]) -> None:
    """Prints the differences that numbers may depend on."""
    here = machine.environment()
    for key in _NUMBERS_DEPEND_ON:
        if key in recorded and recorded[key] != here.get(key):
            print(f"{key} differs: {recorded[key]!r} then, {here.get(key)!r} now")


# ---------------------------------------------------------------- printing


def _print_comparison(found: Comparison, newest: int, tolerance: float) -> int:
    """Prints how a replay compares; returns the exit code."""
    if not found.versions and found.recorded_sha256 is None:
        print("there is nothing to compare with: no version in the folder, no summary")
        return 1
    print(
        f"{'version':>8}  {'same bits':>9}  {'largest difference':>18}  {'relative':>9}"
    )
    for row in found.versions:
        same = "yes" if row.same_bits else "no"
        print(f"{row.version:8d}  {same:>9}  {row.absolute:18.3g}  {row.relative:9.2g}")
    print(f"params_sha256 of version {newest}: {found.sha256}")
    recorded = found.recorded_sha256
    if recorded is not None:
        same = "yes" if recorded == found.sha256 else f"no: {recorded}"
        print(f"same as in the run's summary: {same}")
    agree = all(row.same_bits or row.relative <= tolerance for row in found.versions)
    if tolerance == 0 and recorded is not None:
        agree = agree and recorded == found.sha256
    beyond = [row.version for row in found.versions if row.relative > _ROUNDING]
    if beyond and agree:
        print(
            f"from version {beyond[0]} on, differences exceed rounding (a rounding "
            "difference flipped a merge direction)"
        )
    how = "bit for bit" if found.same_bits else f"within {tolerance:g}"
    print(f"the parameters agree, {how}" if agree else "the parameters DIFFER")
    for other in found.other[:_SHOWN]:
        print(other)
    if found.other:
        print(f"{len(found.other):,} numbers besides the parameters DIFFER")
    return 0 if agree and not found.other else 1


def _print_changes(folder: Path, changed: dict[str, Any], obstacle: str) -> None:
    """Prints the changed settings; ends the program if the order forbids them."""
    for key, (before, now) in changed.items():
        print(f"config.{key}: {before!r} in the run, {now!r} now")
    if obstacle:
        settings = " ".join(
            shlex.quote(f"--config.{key}={now}") for key, (_, now) in changed.items()
        )
        app.fail(
            f"{obstacle}; schedule it again: asyn2f simulate --config=of_run:{folder} "
            f"{settings} --workdir=..."
        )


def _print_scores(execution: Execution, events: list[trace.Event]) -> int:
    """Executes with other settings; prints the headline beside the recorded one."""
    recorded = {e.version: e.scores for e in events if isinstance(e, trace.Evaluated)}
    experiment = execution.experiment
    scores_of, name = make_scores(experiment), experiment.task.metric.name
    print(name)
    print(f"{'version':>8}  {'in the run':>10}  {'now':>6}")

    def watch(node: int, time_s: float, state: ServerState, kept_of: KeptOf) -> bool:
        version = int(state.model.version)
        before = recorded.get(version, {}).get(name)
        text = "-" if before is None else f"{before:.4f}"
        value = scores_of(state, kept_of)[name]
        print(f"{version:8d}  {text:>10}  {value:.4f}", flush=True)
        return False

    state = _execute(execution, watch).state
    print(f"params_sha256: {params_sha256(state.model.params)}")
    return 0
