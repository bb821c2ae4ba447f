"""The records that cross `jit`, the wire and the store.

Symbols used in every docstring of this package: K updates in one aggregation,
W workers, N examples, B examples in a batch. A *model* is any pytree of arrays. Inside
training it is a Flax variable dictionary: the collection `"params"` is trained, every
other collection (`"batch_stats"`) is a statistic. Aggregation and merge treat all
arrays alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:  # traces are read without JAX
    import jax

Params = Any
"""A pytree of arrays: all arrays of a model, trained ones and statistics."""

Buffer = bytes | bytearray | memoryview
"""Encoded bytes: of a message, a payload, a file."""

Scores = dict[str, float]
"""The named numbers of a version on the test set."""

MAX_SCORES = 32


def scores_problem(names: Iterable[str]) -> str:
    """What is wrong with the names of scores, which travel in the header of a message;
    "" if nothing is.

    >>> scores_problem(["accuracy", "loss"])
    ''
    >>> scores_problem(["loss", "loss"])
    'found loss twice'
    """
    found = [*names]
    if len(found) > MAX_SCORES:
        return f"found {len(found)} numbers, allowed: at most {MAX_SCORES}"
    for place, name in enumerate(found):
        if not 0 < len(name.encode()) <= 64 or not name.isprintable():
            return f"found the name {name[:80]!r}, allowed: 1 to 64 printable bytes"
        if name in found[:place]:
            return f"found {name} twice"
    return ""


class Metric(NamedTuple):
    """The headline of a task: best version, stop target and comparisons follow it."""

    name: str  # one of the names of the evaluation
    higher_is_better: bool = True
    is_fraction: bool = False  # shown in percent

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another one, or the first one (None). A value
        that is not finite never is.

        >>> Metric("loss", higher_is_better=False).is_better(0.1, than=0.2)
        True
        >>> Metric("return").is_better(float("inf"), than=3.0)
        False
        """
        if not math.isfinite(value) or than is None:
            return math.isfinite(value)
        return value > than if self.higher_is_better else value < than

    def worth(self, value: float) -> float:
        """A number that is larger where the value is better; NaN is worst.

        >>> Metric("loss", higher_is_better=False).worth(0.1)
        -0.1
        """
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value

    def reaches(self, value: float, target: float | None) -> bool:
        """Whether a finite value is the target or better; False without a target.

        >>> Metric("loss", higher_is_better=False).reaches(0.1, target=0.1)
        True
        """
        if target is None or not math.isfinite(value):
            return False
        return value >= target if self.higher_is_better else value <= target


_FLAGS = Metric._fields[1:]


def metric_of(record: Any) -> Metric | None:
    """The headline in a record of JSON, which holds its fields as "metric"; None if
    there is none.

    >>> metric_of({"metric": Metric("loss", False)._asdict()})
    Metric(name='loss', higher_is_better=False, is_fraction=False)
    """
    found = record.get("metric") if isinstance(record, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    flags = (bool(found.get(name, name == "higher_is_better")) for name in _FLAGS)
    return Metric(found["name"], *flags)


class Best(NamedTuple):
    """The best version of a run so far, and its headline."""

    version: int
    metric: str
    value: float


WORST, P10 = "_worst", "_p10"
"""Endings of the names of the headline's worst value over workers, and of the 10th
percentile from it."""


def over_workers(
    metric: Metric, scores: Sequence[Scores], rows: Sequence[int] | None = None
) -> Scores:
    """The scores of a version, of its scores at each of several workers: the mean of
    every number, weighted by the test rows of each (None = all the same), and of the
    headline the worst as well, and the 10th percentile from the worst.

    >>> accuracy = Metric("accuracy", is_fraction=True)
    >>> over_workers(accuracy, [{"accuracy": x / 10} for x in range(11)])
    {'accuracy': 0.5, 'accuracy_worst': 0.0, 'accuracy_p10': 0.1}
    """
    weights = [1] * len(scores) if rows is None else rows
    found = {
        name: sum(w * each[name] for w, each in zip(weights, scores, strict=True))
        / sum(weights)
        for name in scores[0]
    }
    values = sorted((each[metric.name] for each in scores), key=metric.worth)
    place = (len(values) - 1) / 10
    below, part = int(place), place % 1
    above = min(below + 1, len(values) - 1)
    p10 = values[below] + part * (values[above] - values[below])
    return found | {metric.name + WORST: values[0], metric.name + P10: p10}


Metrics = dict[str, "jax.Array"]
"""What a pure function wants a person to see; never fed back into the mathematics."""


def headline_of(
    metric: Metric,
    best: Best | None,
    final: Scores | None,
    initial: Scores | None = None,
) -> dict[str, Any]:
    """The entries of a run's summary on its scores; `final` are those of the newest
    version, `initial` those of version 0."""
    return {
        "metric": metric._asdict(),
        "best_version": best.version if best else None,
        "best_value": best.value if best else None,
        "final_scores": final,
        "initial_value": initial.get(metric.name) if initial else None,
    }


class GlobalModel(NamedTuple):
    """A version of the global model and what travels with it (S, L and Q of the paper).

    `num_examples`, `loss` and `quality` describe the updates it was made of: the sum of
    their examples, the plain mean of their losses and of their qualities. Version 0 has
    no updates, and 0, 0, 1.
    """

    params: Params
    version: jax.Array  # i32 []: aggregations behind it; 0 = the initial model
    num_examples: jax.Array  # f32 []
    loss: jax.Array  # f32 []
    quality: jax.Array  # f32 [], in (0, 1]
    learning_rate: jax.Array  # f32 []: what workers shall use from now on


Int = TypeVar("Int")
Float = TypeVar("Float")


class UpdateInfo(NamedTuple, Generic[Int, Float]):
    """The scalars of an update, the same in computations, messages and traces.

    `Int` and `Float` are i32 and f32 arrays in a `WorkerUpdate`, numbers of Python in
    a message or an event. A field that is added here, with a default, travels with
    every update; `trainer.report` computes its value. A new field changes messages, so
    `protocol.messages.PROTOCOL` is raised; in simulated traces `sim.to_trace` sets it.
    """

    base_version: Int  # the last version taken in (adopted or merged)
    start_version: Int  # the version this cycle started from
    step: Int  # local steps since the worker began
    num_examples: Float  # size of the worker's shard, > 0
    # mean training loss of the epoch, or cycle in steps, without the L2 term
    loss: Float
    quality: Float  # in (0, 1]
    metric: Float  # likewise the mean training metric
    # What the push may have depended on: the strategy's signal, or `metric`; 0 in the
    # trace of a simulation.
    signal: Float = 0.0  # type: ignore[assignment]


class WorkerUpdate(NamedTuple):
    """What a worker pushes. In an aggregation every leaf has a leading axis K."""

    params: Params  # the model, or what else the strategy has its workers push
    worker: jax.Array  # i32 []
    info: UpdateInfo[jax.Array, jax.Array]  # i32 and f32 []


class OwnPart(NamedTuple):
    """The part of a worker's state that is its own: kept over versions and restarts,
    and never sent."""

    carry: Any
    kept: Params


class WorkerState(NamedTuple):
    """Everything a worker in training is. No key evolves in it: see `trainer`."""

    # the model
    params: Params
    previous: Params  # before the last local step; () where nothing is ever merged
    start: Params  # what the cycle started from; () where nobody asks for it
    opt_state: Any
    learning_rate: jax.Array  # f32 []: as the server sent it
    # its identity and shard
    worker: jax.Array  # i32 []
    num_examples: jax.Array  # f32 []
    quality: jax.Array  # f32 []
    # where it comes from
    base_version: jax.Array  # i32 []
    start_version: jax.Array  # i32 []
    # how far it is
    step: jax.Array  # i32 []: local steps done since it began
    # over the steps of the present epoch; with `Timing.counts_steps`, of the cycle
    loss_sum: jax.Array  # f32 []
    metric_sum: jax.Array  # f32 []
    epoch_steps: jax.Array  # i32 []: steps behind the two sums
    # the task's own, kept over versions; () where it has none
    carry: Any
    # what its pushes are coded with; () where the codec needs none
    base: Params = ()  # the version of `base_version`
    memory: Any = ()  # what has not been sent so far
    # the part of the model that never leaves the worker, kept over versions; `params`,
    # `previous`, `start` and `base` have the shared part; () where everything travels
    kept: Params = ()

    @property
    def own(self) -> OwnPart:
        return OwnPart(self.carry, self.kept)


class ServerState(NamedTuple):
    """What the server keeps from one aggregation to the next."""

    model: GlobalModel
    memory: Any  # the strategy's own pytree; () where it needs none


class Shard(NamedTuple):
    """One worker's data: rows of arrays that may be shared with other workers.

    `indices` is padded to a length common to all workers, so that every worker's step
    is the same compiled program; only the first `num_examples` of them are real.
    """

    arrays: Any  # pytree of [N, ...]
    indices: jax.Array  # i32 [n_max]
    num_examples: jax.Array  # i32 []
