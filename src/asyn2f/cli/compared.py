"""A run that was executed again, compared with all that it left in its folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from asyn2f import rundir
from asyn2f.cli import what_if
from asyn2f.report.metrics import read_metrics
from asyn2f.serialization import params_sha256
from asyn2f.sim.execute import Execution
from asyn2f.sim.from_trace import (
    Recording,
    agree,
    differences,
)
from asyn2f.sim.order import (
    Numbers,
    Order,
)
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.batches import (
    make_evaluate,
)
from asyn2f.training.experiment import initial_server_state, published
from asyn2f.types import Params, ServerState

# Another executor rounds otherwise: by 1e-6, until a merge goes by the direction in
# which a parameter has moved that has hardly moved at all, or a ReLU by such a sign.
# Then 1e-3 to 1e-2 come of it, in one run of ten.
_ROUNDING, LARGEST = 1e-5, 0.05
_SHOWN = 10  # numbers that differ


class Compared(NamedTuple):
    """How a version differs from the one in the folder."""

    version: int
    same_bits: bool
    absolute: float  # largest difference
    relative: float  # the same, divided by the model's largest parameter


def summary_of(folder: Path) -> dict[str, Any]:
    """The run's summary; {} of one that has not come to its end."""
    path = folder / rundir.SUMMARY
    return rundir.read_json(path) if path.exists() else {}


def versions_present(order: Order, folder: Path) -> set[int]:
    """The nodes of the versions in the folder, as far as the newest descends from
    them; version 0 is drawn from the seed."""
    store = OrbaxStore(folder / rundir.MODELS)
    present = set(store.versions())
    store.close()
    return {node for node in line_of(order) if int(order.version[node]) in present}


def line_of(order: Order) -> list[int]:
    """The nodes of the newest version and of those it descends from, without 0."""
    node, line = order.newest, []
    while node > 0:
        line.append(node)
        node = int(order.parent[node])
    return line


def compare(
    execution: Execution, recording: Recording, folder: Path, tolerance: float
) -> int:
    """Executes, and compares with every version in the folder, with the numbers in
    trace and metrics, and with the summary; the exit code."""
    store, experiment = OrbaxStore(folder / rundir.MODELS), execution.experiment
    shapes = jax.eval_shape(lambda: initial_server_state(experiment))
    evaluate = make_evaluate(experiment.task)
    best_accuracy, best_version = store.best()
    found: list[Compared] = []
    best: float | None = None  # computed now

    def watch(node: int, time_s: float, state: ServerState) -> bool:
        nonlocal best
        version = int(state.model.version)
        before = store.load(version, shapes).state.model.params
        found.append(_difference(version, before, state.model.params))
        if version == best_version:
            best = evaluate(published(experiment, state.model).params).accuracy
        return False

    result = what_if.run(execution, watch)
    told = summary_of(folder).get("params_sha256")
    store.close()
    others = list(differences(recording, result.numbers, tolerance))
    others += _losses_that_differ(recording.order, result.numbers, folder, tolerance)
    if best is not None and not agree(best_accuracy, best, tolerance):
        others.append(
            f"best.json: version {best_version} has accuracy {best_accuracy}, and "
            f"comes out with {best}"
        )
    if not found and told is None:
        print("there is nothing to compare with: no version in the folder, no summary")
        return 1
    is_same = _say(found, result.state, told, tolerance)
    for other in others[:_SHOWN]:
        print(other)
    if others:
        print(f"{len(others):,} numbers beside the parameters DIFFER")
    return 0 if is_same and not others else 1


def _say(
    found: list[Compared], newest: ServerState, told: str | None, tolerance: float
) -> bool:
    """Prints how the parameters compare; whether they agree."""
    print(
        f"{'version':>8}  {'same bits':>9}  {'largest difference':>18}  {'relative':>9}"
    )
    for row in found:
        same = "yes" if row.same_bits else "no"
        print(f"{row.version:8d}  {same:>9}  {row.absolute:18.3g}  {row.relative:9.2g}")
    sha256 = params_sha256(newest.model.params)
    print(f"params_sha256 of version {int(newest.model.version)}: {sha256}")
    if told is not None:
        print(
            f"as the run's summary says: {'yes' if told == sha256 else f'no: {told}'}"
        )
    agree = all(row.same_bits or row.relative <= tolerance for row in found)
    if tolerance == 0 and told is not None:
        agree = agree and told == sha256
    bits = all(row.same_bits for row in found) and told in (None, sha256)
    beyond = [row.version for row in found if row.relative > _ROUNDING]
    if beyond and agree:
        print(f"from version {beyond[0]} on by more than rounding: it decided a sign")
    how = "bit for bit" if bits else f"within {tolerance:g}"
    print(f"the parameters agree, {how}" if agree else "the parameters DIFFER")
    return agree


def _losses_that_differ(
    order: Order, numbers: Numbers, folder: Path, tolerance: float
) -> Iterator[str]:
    """Those of versions in the metrics. Of a version that a crash took there may be a
    row besides that of the one made again."""
    losses = {
        int(order.version[node]): numbers.model_loss[node] for node in line_of(order)
    }
    said: dict[int, list[Any]] = {}
    for row in read_metrics(folder):
        if row.get("kind") == "version" and row.get("version") in losses:
            said.setdefault(row["version"], []).append(row.get("loss"))
    for version, values in said.items():
        if not any(agree(value, losses[version], tolerance) for value in values):
            yield (
                f"metrics: version {version} has loss {values[-1]}, and comes out with "
                f"{losses[version]}"
            )


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
