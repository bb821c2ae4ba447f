"""Executes the trace of a run again, real or simulated, and compares the parameters.

    python -m launch.replay --run=runs/demo
    python -m launch.replay --run=runs/demo --explain=40
    python -m launch.replay --run=runs/demo --config.strategy.asyn2f.max_share=1.0

The first ends with exit code 0 only if the parameters agree with every version that is
still in the run's folder. The last executes the same arrivals with other settings.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from asyn2f import agreement, build, causality, lineage, provenance, trace, workdir
from asyn2f.experiment import initial_server_state
from asyn2f.runtime.orbax_store import OrbaxStore
from asyn2f.sim.execute import Execution, execution_of
from asyn2f.sim.order import Order
from asyn2f.sim.recorded import order_of
from asyn2f.trees import params_sha256
from asyn2f.types import Params, ServerState
from configs import of_run
from launch import inputs, processor, program, what_if

program.takes("run", "config")
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
# Another executor rounds otherwise: by 1e-6, until a merge goes by the direction in
# which a parameter has moved that has hardly moved at all, or a ReLU by such a sign.
# Then 1e-3 to 1e-2 come of it, in one run of ten.
_ROUNDING, _LARGEST = 1e-5, 0.05


class Compared(NamedTuple):
    """How a version differs from the one in the folder."""

    version: int
    same_bits: bool
    absolute: float  # largest difference
    relative: float  # the same, divided by the model's largest parameter


def main() -> int:
    folder = program.run_folder()
    try:
        events = trace.of_run(folder)
        if _EXPLAIN.value is not None:
            print(provenance.describe(provenance.explain(events, _EXPLAIN.value)))
            return 0
    except ValueError as error:
        program.fail(str(error))
    config = program.plain(program.CONFIG.value)
    workdir.read_json(folder / workdir.CONFIG)  # says what is wrong with it
    stored = program.plain(of_run.get_config(str(folder)))
    recorded = recorded_environment(events)
    executor: Any = _EXECUTOR.value or recorded.get("executor", "serial")
    _set_environment(recorded, executor)
    program.prepare_jax()
    lineage.check_complete(events)
    causality.check(events)
    print(f"{len(events):,} events; none contradicts another")
    if old := trace.older_format(events):
        print(old)
    experiment = build.build_experiment(config)
    order = order_of(events, summary_of(folder).get("versions"))
    lanes = recorded.get("lanes", 0) if executor == recorded.get("executor") else 0
    changed = build.changed_keys(stored, config)
    if changed:
        what_if.check_possible(experiment, order, folder, stored, changed)
        last = len(order.version) - 1
        watched = {*np.linspace(0, last, 11).astype(int).tolist()} - {0}
    else:
        inputs.check_same_data(folder, experiment.task)
        watched = _versions_present(order, folder)
    execution = execution_of(
        experiment, order, executor, lanes, watched, program.TRIALS
    )
    print(f"executor: {execution.why}", flush=True)
    if changed:
        return what_if.execute(execution, events)
    _say_what_differs(recorded)
    same = executor == recorded.get("executor", "serial")
    given = _TOLERANCE.value
    tolerance = (0.0 if same else _LARGEST) if given is None else given
    return _compare(execution, folder, tolerance)


# ---------------------------------------------------------------- the environment


def recorded_environment(events: list[trace.Event]) -> dict[str, Any]:
    """What most of the processes that computed updates said of themselves."""
    heads = [event for event in events if isinstance(event, trace.Recorded)]
    heads = [h for h in heads if h.actor.startswith(("worker-", "simulation"))]
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
        program.use_cores_as_devices()


def _say_what_differs(recorded: dict[str, Any]) -> None:
    """Names what the numbers depend on and is not now as it was."""
    here = program.environment()
    for key in _NUMBERS_DEPEND_ON:
        if key in recorded and recorded[key] != here.get(key):
            print(f"{key} differs: {recorded[key]!r} then, {here.get(key)!r} now")


# ---------------------------------------------------------------- comparing


def summary_of(folder: Path) -> dict[str, Any]:
    """The run's summary; {} of one that has not come to its end."""
    path = folder / workdir.SUMMARY
    return workdir.read_json(path) if path.exists() else {}


def _versions_present(order: Order, folder: Path) -> set[int]:
    """The nodes of the versions in the folder, as far as the newest descends from
    them; version 0 is drawn from the seed."""
    store = OrbaxStore(folder / workdir.MODELS)
    present = set(store.versions())
    store.close()
    node, line = order.newest, set()
    while node > 0:
        if int(order.version[node]) in present:
            line.add(node)
        node = int(order.parent[node])
    return line


def _compare(execution: Execution, folder: Path, tolerance: float) -> int:
    """Executes, and compares with every version in the folder; the exit code."""
    store = OrbaxStore(folder / workdir.MODELS)
    shapes = jax.eval_shape(lambda: initial_server_state(execution.experiment))
    found: list[Compared] = []

    def watch(node: int, time_s: float, state: ServerState) -> bool:
        version = int(state.model.version)
        before = store.load(version, shapes).state.model.params
        found.append(_difference(version, before, state.model.params))
        return False

    result = what_if.run(execution, watch)
    sha256 = params_sha256(result.model.params)
    told = summary_of(folder).get("params_sha256")
    store.close()
    print(
        f"{'version':>8}  {'same bits':>9}  {'largest difference':>18}  {'relative':>9}"
    )
    for row in found:
        same = "yes" if row.same_bits else "no"
        print(f"{row.version:8d}  {same:>9}  {row.absolute:18.3g}  {row.relative:9.2g}")
    print(f"params_sha256 of version {int(result.model.version)}: {sha256}")
    if told is not None:
        print(
            f"as the run's summary says: {'yes' if told == sha256 else 'no: ' + told}"
        )
    agree = all(row.same_bits or row.relative <= tolerance for row in found)
    if tolerance == 0 and told is not None:
        agree = agree and told == sha256
    if not found and told is None:
        print("there is nothing to compare with: no version in the folder, no summary")
        return 1
    bits = all(row.same_bits for row in found) and told in (None, sha256)
    beyond = [row.version for row in found if row.relative > _ROUNDING]
    if beyond and agree:
        print(f"from version {beyond[0]} on by more than rounding: it decided a sign")
    how = "bit for bit" if bits else f"within {tolerance:g}"
    print(f"the parameters agree, {how}" if agree else "the parameters DIFFER")
    return 0 if agree else 1


def _difference(version: int, before: Params, now: Params) -> Compared:
    pairs = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True)
    ]
    absolute = max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs)
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x, _ in pairs)
    same = params_sha256(before) == params_sha256(now)
    return Compared(
        version, same, absolute, absolute / largest if largest else absolute
    )


def _with_config_of_run(argv: list[str]) -> list[str]:
    """The arguments, with the run's own config as the one to start from."""
    if any(argument.lstrip("-").startswith("config=") for argument in argv):
        return argv
    for number, argument in enumerate(argv):
        name, given, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "run":
            folder = value if given else "".join(argv[number + 1 : number + 2])
            if (Path(folder) / workdir.CONFIG).exists():
                of_run = Path(__file__).parent.parent / "configs" / "of_run.py"
                return [argv[0], f"--config={of_run}:{folder}", *argv[1:]]
    return argv


if __name__ == "__main__":
    sys.argv = _with_config_of_run(sys.argv)
    program.run(main)
