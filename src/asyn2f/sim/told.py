"""Numbers as a run wrote them down, held against those of executing it again."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from asyn2f import trace
from asyn2f.sim import order as o
from asyn2f.sim.from_trace import Computed, Recording
from asyn2f.sim.numbers import Numbers

_COMPUTED = (o.TRAIN, o.MERGE, o.PUSH, o.AGGREGATE)


def differences(
    recording: Recording, numbers: Numbers, tolerance: float
) -> Iterator[str]:
    """Each number of the trace that is another: losses and metrics of stretches and
    updates, what merges kept, what versions were made of.

    Args:
      recording: of the run.
      numbers: of its execution.
      tolerance: relative, or absolute below 1; 0 = bit for bit, as float32.
    """
    order = recording.order
    (places,) = np.nonzero(np.isin(order.kind, _COMPUTED))
    for place, event in zip(places.tolist(), recording.computed, strict=True):
        node = int(order.value[place])
        for name, now in _numbers_of(event, place, node, recording, numbers).items():
            said = getattr(event, name)
            if not agree(said, now, tolerance):
                name = f"{_name(event)}: {name}"
                yield f"{name} is {said} in the trace, and comes out as {now}"


def _numbers_of(
    event: Computed, place: int, node: int, recording: Recording, numbers: Numbers
) -> dict[str, Any]:
    match event:
        case trace.Trained() | trace.Pushed():
            return {"loss": numbers.loss[place], "metric": numbers.metric[place]}
        case trace.Merged():
            return {"share": numbers.share[place]}
        case trace.Aggregated():
            starts = recording.order.member_starts
            span = slice(starts[node], starts[node + 1])
            return {
                "coefficients": numbers.coefficients[span],
                "staleness": numbers.staleness[span],
                "learning_rate": numbers.learning_rate[node],
            }


def agree(said: Any, now: Any, tolerance: float) -> bool:
    """Whether they are the same as float32, up to the tolerance of `differences`; NaN
    now is not computed by these means, and None is what JSON has for it."""
    said, now = np.asarray(said, np.float32), np.asarray(now, np.float32)
    if said.shape != now.shape:
        return False
    near = np.abs(said - now) <= tolerance * np.maximum(1.0, np.abs(now))
    return bool(np.all(np.isnan(now) | (said == now) | near))


def _name(event: Computed) -> str:
    if isinstance(event, trace.Aggregated):
        return f"version {event.version}"
    kind = {trace.Trained: "stretch", trace.Merged: "merge", trace.Pushed: "update"}
    return f"{kind[type(event)]} of worker {event.worker} at step {event.step}"
