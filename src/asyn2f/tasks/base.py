"""The record `Task`: a model with its loss and evaluation, and data cut into shards."""

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.types import Metric, Params, Scores

Batch = dict[str, jax.Array]
"""A minibatch by name, each array [B, ...]."""

Carry = Any
"""A worker's own state: a pytree of arrays, the same shapes and dtypes at every step;
() for most tasks."""


class Init(Protocol):
    def __call__(self, key: jax.Array) -> Params:
        """Fresh variables: a dict of collections, `"params"` the trained one."""


class Aux(NamedTuple):
    """What a loss returns beside its value."""

    metric: Any = 0.0  # f32 []: training metric of the batch
    # New values of collections other than "params"; those left out stay as they are.
    statistics: Mapping[str, Any] = {}
    carry: Carry = ()  # the worker's own state after the batch


class Loss(Protocol):
    def __call__(
        self, params: Params, carry: Carry, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Training loss f32 [] without the L2 term, and what it returns beside it."""


class InitCarry(Protocol):
    def __call__(self, key: jax.Array, worker: jax.Array) -> Carry:
        """The state that a worker, i32 [], begins with; the key is its own."""


class Predict(Protocol):
    def __call__(self, params: Params, inputs: Any) -> Any:
        """The model's outputs, [B, ...], for inputs [B, ...] as they are before any
        preparation of the task, in evaluation mode."""


def no_carry(key: jax.Array, worker: jax.Array) -> Carry:
    """For losses without a state."""
    return ()


def same_shapes(before: Carry, after: Carry) -> Carry:
    """`after`, with weak types removed. Raises ValueError unless it has the structure,
    shapes and dtypes of `before`."""
    found, expected = (
        jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)
        for tree in (after, before)
    )
    if found != expected:
        raise ValueError(
            f"loss: found Aux.carry = {found}, allowed: as it was before the step, "
            f"{expected}: return the whole carry, its shapes and dtypes unchanged"
        )
    return jax.tree.map(lambda x, y: jnp.array(x, jnp.result_type(y)), after, before)


class Evaluation(NamedTuple):
    """A model's named numbers on the test set, which is read batch by batch."""

    # (params, batch, mask bool [B] of the real rows) -> pytree of arrays, which are
    # summed over the batches in float64 on the host.
    sums: Callable[[Params, Batch, jax.Array], Any]
    values: Callable[[Any, int], Scores]  # (sums, rows of the test set) -> numbers


PerExample = Callable[[Params, Batch], jax.Array]
"""A number per example, f32 [B], in evaluation mode."""


def mean_evaluation(metrics: Mapping[str, PerExample]) -> Evaluation:
    """The evaluation whose numbers are means over the examples of the test set.

    Args:
      metrics: by name, each (params, batch) -> f32 [B].

    >>> evaluation = mean_evaluation({"loss": lambda params, batch: batch["x"] ** 2})
    >>> batch = {"x": jnp.array([1.0, 2.0, 9.0])}
    >>> sums = evaluation.sums({}, batch, jnp.array([True, True, False]))
    >>> evaluation.values(sums, 2)
    {'loss': 2.5}
    """
    return _mean_evaluation(tuple(metrics.items()))


@lru_cache(maxsize=32)
def _mean_evaluation(metrics: tuple[tuple[str, PerExample], ...]) -> Evaluation:
    """The same functions each time, so that equal tasks share a compiled program."""

    def sums(params: Params, batch: Batch, mask: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.sum(f(params, batch), where=mask) for name, f in metrics}

    def values(sums: dict[str, Any], count: int) -> Scores:
        return {name: float(sums[name] / count) for name, _ in metrics}

    return Evaluation(sums, values)


class Task(NamedTuple):
    """A learning problem, spread over workers."""

    name: str
    init: Init
    loss: Loss
    evaluation: Evaluation
    metric: Metric  # the headline
    train: dict[str, np.ndarray]  # [N, ...]
    test: dict[str, np.ndarray]  # [N_test, ...]
    shards: tuple[np.ndarray, ...] = ()  # row numbers, per worker; () = not split yet
    qualities: tuple[float, ...] = ()  # Q_k per worker, in (0, 1]
    init_carry: InitCarry = no_carry
    labels: np.ndarray | None = None  # int [N]: classes, for the split and its report
    # Whether the rows of (other) workers are not here: their shards are empty, and
    # `train` then has 0 rows, which state the columns. Set by the framework.
    is_private: bool = False
    # Row numbers of `test`, per worker; () = the test set is nobody's own.
    held_out: tuple[np.ndarray, ...] = ()
    predict: Predict | None = None  # for uses of a trained model; no run needs it

    def __repr__(self) -> str:
        shards = f"{len(self.shards)} shards" if self.shards else "not split"
        return (
            f"<Task {self.name}: train {_columns(self.train)}; test "
            f"{_columns(self.test)}; {shards}; scored by {self.metric.name}>"
        )


def _columns(data: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{k} {x.dtype}{list(x.shape)}" for k, x in data.items())


def num_rows(data: Mapping[str, np.ndarray]) -> int:
    """The number of examples of a data set."""
    return len(next(iter(data.values())))


def split_of(task: Task, reveal: Collection[str] = ("size",)) -> dict[str, Any]:
    """What a run's folder holds on the split: the examples of each worker, and where
    there are labels of each class. Null where each worker's data are its own, or sizes
    are not revealed."""
    if task.is_private or "size" not in reveal:
        return {"sizes": None, "counts": None}
    return {"sizes": [len(s) for s in task.shards], "counts": class_counts(task)}


def class_counts(task: Task) -> list[list[int]] | None:
    """The number of examples of each class of each worker, [workers][classes]; None
    where there are no classes."""
    if task.labels is None:
        return None
    labels, classes = task.labels, int(task.labels.max(initial=-1)) + 1
    return [np.bincount(labels[s], minlength=classes).tolist() for s in task.shards]
