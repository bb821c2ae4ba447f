"""Executes the trace of a run again, real or simulated, and compares the parameters.

    python -m launch.replay --run=runs/demo
    python -m launch.replay --run=runs/demo --explain=40
    python -m launch.replay --run=runs/demo --config.strategy.asyn2f.max_share=1.0

The first ends with exit code 0 only if the parameters agree with every version that is
still in the run's folder. The last executes the same arrivals with other settings.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from asyn2f import rundir, trace
from asyn2f.cli import app, compared, inputs, machine, processor, what_if
from asyn2f.config import build, of_run
from asyn2f.sim.execute import execution_of
from asyn2f.sim.from_trace import recording_of
from asyn2f.trace import causality, history, provenance
from asyn2f.training import agreement

app.takes("run", "config")
_EXECUTOR = flags.DEFINE_enum(
    "executor",
    None,
    ["auto", "serial", "vectorised", "sharded"],
    "By what means: that of a simulated run, or else serial, which alone gives a real "
    "run's parameters bit for bit.",
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance",
    None,
    "Largest difference, relative to the model's largest parameter, that counts as "
    "agreement; unless given, 0 for the run's own executor (serial for a real run) and "
    "0.05 for the others.",
)
_EXPLAIN = flags.DEFINE_integer("explain", None, "Only say what this version is of.")

# What the last bits depend on; the rest of an environment is told, not compared.
_NUMBERS_DEPEND_ON = (
    *("asyn2f", "source", "jax", "jaxlib", "platform", "device", "threads"),
    *("instruction_set", "steps_per_call", "dtype", "xla_flags", "x64"),
    *agreement.REPLAYED,
)


def main() -> int:
    folder = app.run_folder()
    try:
        events = trace.of_run(folder)
        if _EXPLAIN.value is not None:
            print(provenance.describe(provenance.explain(events, _EXPLAIN.value)))
            return 0
    except ValueError as error:
        app.fail(str(error))
    config = app.plain(app.CONFIG.value)
    rundir.read_json(folder / rundir.CONFIG)  # says what is wrong with it
    stored = app.plain(of_run.get_config(str(folder)))
    recorded = recorded_environment(events)
    executor: Any = _EXECUTOR.value or recorded.get("executor", "serial")
    _set_environment(recorded, executor)
    machine.prepare_jax()
    history.check_complete(events)
    causality.check(events)
    print(f"{len(events):,} events: the trace is causally consistent")
    experiment = build.build_experiment(config)
    recording = recording_of(events, compared.summary_of(folder).get("versions"))
    order = recording.order
    lanes = recorded.get("lanes", 0) if executor == recorded.get("executor") else 0
    changed = build.changed_keys(stored, config)
    if changed:
        what_if.check_possible(experiment, order, folder, stored, changed)
        last = len(order.version) - 1
        watched = {*np.linspace(0, last, 11).astype(int).tolist()} - {0}
    else:
        inputs.check_same_data(folder, experiment.task)
        watched = compared.versions_present(order, folder)
    execution = execution_of(
        experiment, order, executor, lanes, watched, machine.TRIALS
    )
    print(f"executor: {execution.why}", flush=True)
    if changed:
        return what_if.execute(execution, events)
    _say_what_differs(recorded)
    same = executor == recorded.get("executor", "serial")
    given = _TOLERANCE.value
    tolerance = (0.0 if same else compared.LARGEST) if given is None else given
    return compared.compare(execution, recording, folder, tolerance)


# ---------------------------------------------------------------- the environment


def recorded_environment(events: list[trace.Event]) -> dict[str, Any]:
    """What most of the processes that computed updates said of themselves."""
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
    processor.limit_instructions(recorded.get("instruction_set", ""))
    devices = recorded.get("devices", 1)
    if executor == "serial":
        jax.config.update("jax_platforms", recorded.get("platform"))
    elif devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    else:
        machine.use_cores_as_devices()


def _say_what_differs(recorded: dict[str, Any]) -> None:
    """Names what the numbers depend on and is not now as it was."""
    here = machine.environment()
    for key in _NUMBERS_DEPEND_ON:
        if key in recorded and recorded[key] != here.get(key):
            print(f"{key} differs: {recorded[key]!r} then, {here.get(key)!r} now")


def prepare_arguments(argv: list[str]) -> list[str]:
    """The arguments, with the run's own config as the one to start from."""
    if any(argument.lstrip("-").startswith("config=") for argument in argv):
        return argv
    for number, argument in enumerate(argv):
        name, given, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "run":
            folder = value if given else "".join(argv[number + 1 : number + 2])
            if (Path(folder) / rundir.CONFIG).exists():
                of_run = Path(build.__file__).with_name("of_run.py")
                return [argv[0], f"--config={of_run}:{folder}", *argv[1:]]
    return argv
