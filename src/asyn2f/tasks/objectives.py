"""Losses and metrics of each example, by name or as functions."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyn2f.errors import TaskError
from asyn2f.tasks.base import Batch, Metric

Rows = Callable[[Any, Batch], jax.Array]
"""(outputs, batch) -> f32 [B], a number for each example; of a loss also f32 [], the
mean over the batch. The target is `batch["y"]`."""


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """f32 [B] of logits [B, ..., C] and labels i32 [B, ...], the mean over further axes
    (the places of a sequence)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
    return _mean_of_rows(losses)


def accuracy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Of logits [B, ..., C] and labels i32 [B, ...], or of one logit for each label in
    {0, 1}: f32 [B], the fraction that is right."""
    if logits.ndim == label.ndim + 1 and logits.shape[-1] > 1:
        predicted = jnp.argmax(logits, axis=-1)
    else:
        predicted = (_like(logits, label) > 0).astype(label.dtype)
    return _mean_of_rows((predicted == label).astype(jnp.float32))


def _binary_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    logits = _like(logits, label)
    losses = optax.sigmoid_binary_cross_entropy(logits, label.astype(logits.dtype))
    return _mean_of_rows(losses)


def _mse(outputs: jax.Array, target: jax.Array) -> jax.Array:
    return _mean_of_rows(jnp.square(_like(outputs, target) - target))


def _mae(outputs: jax.Array, target: jax.Array) -> jax.Array:
    return _mean_of_rows(jnp.abs(_like(outputs, target) - target))


def _huber(outputs: jax.Array, target: jax.Array) -> jax.Array:
    return _mean_of_rows(optax.huber_loss(_like(outputs, target), target))


def _mean_of_rows(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim))) if values.ndim > 1 else values


def _like(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Outputs [B, 1] for targets [B], or the reverse, without the axis of 1.

    Raises:
      TaskError: other shapes. NumPy would broadcast [B, 1] and [B] to [B, B].
    """
    if outputs.size != target.size:
        raise TaskError(
            f"model: found outputs {list(outputs.shape)} for targets "
            f"{list(target.shape)}; needed: one output for each number of the target"
        )
    return outputs.reshape(target.shape).astype(jnp.float32)


class Named(NamedTuple):
    """A loss or metric that has a name."""

    rows: Callable[[jax.Array, jax.Array], jax.Array]  # of outputs and target
    higher_is_better: bool
    is_fraction: bool
    target: str  # what the target is: class, 0 or 1, number, any


NAMED = {
    "cross_entropy": Named(cross_entropy, False, False, "class"),
    "binary_cross_entropy": Named(_binary_cross_entropy, False, False, "0 or 1"),
    "mse": Named(_mse, False, False, "number"),
    "mae": Named(_mae, False, False, "number"),
    "huber": Named(_huber, False, False, "number"),
    "accuracy": Named(accuracy, True, True, "any"),
}
"""Losses, all but `accuracy`, and metrics."""

_USUAL = {"class": "accuracy", "0 or 1": "accuracy", "number": "mae"}


class Objective(NamedTuple):
    """The loss, the metrics and the headline; hashable, see `ByCode`."""

    loss: "ByCode"
    metrics: tuple[tuple[str, "ByCode"], ...]
    headline: Metric
    target: str  # as of `Named`
    counts_hits: bool  # whether the accuracy is one of the metrics


def objective_of(
    loss: str | Rows,
    metrics: str | Rows | Sequence[str | Rows] | Mapping[str, str | Rows] | None,
    headline: str | Metric,
) -> Objective:
    """The objective that names and functions describe.

    Raises:
      TaskError: an unknown name, or a headline whose direction is not known.

    >>> objective = objective_of("mse", None, "")
    >>> [name for name, _ in objective.metrics], objective.headline.higher_is_better
    (['mae'], False)
    """
    target = "any"
    if not callable(loss):
        named = _named("loss", loss, [name for name in NAMED if name != "accuracy"])
        target = named.target
    if metrics is None:
        metrics = [_USUAL[target]] if target in _USUAL else []
    if isinstance(metrics, str) or callable(metrics):
        metrics = [metrics]
    if not isinstance(metrics, Mapping):
        metrics = {_name_of(metric): metric for metric in metrics}
    rows: dict[str, ByCode] = {}
    known = {"loss": Metric("loss", higher_is_better=False)}
    for name, metric in metrics.items():
        if name == "loss":
            raise TaskError("metrics: 'loss' is the name of the loss; choose another")
        if not callable(metric):
            named = _named("metrics", metric, [*NAMED])
            known[name] = Metric(name, named.higher_is_better, named.is_fraction)
        rows[name] = _rows(metric)
    return Objective(
        loss=_rows(loss),
        metrics=tuple(rows.items()),
        headline=_headline(headline, [*rows], known),
        target=target,
        counts_hits="accuracy" in metrics.values(),
    )


def _name_of(metric: Any) -> str:
    if not callable(metric):
        return str(metric)
    name = getattr(metric, "__name__", "<lambda>")
    if name == "<lambda>":
        raise TaskError(
            f"metrics: found {metric!r:.60}, which has no name; give functions by "
            "name, as metrics={'gap': ...}"
        )
    return str(name)


def _named(key: str, name: Any, allowed: Sequence[str]) -> Named:
    if name not in allowed:
        raise TaskError(
            f"{key}: found {name!r}, allowed: {', '.join(allowed)}, or a function of "
            "outputs and batch"
        )
    return NAMED[name]


def _rows(function: Any) -> "ByCode":
    if callable(function):
        return ByCode(function)
    rows = NAMED[function].rows
    return ByCode(lambda outputs, batch: rows(outputs, batch["y"]))


def _headline(
    headline: str | Metric, names: Sequence[str], known: Mapping[str, Metric]
) -> Metric:
    """The headline among the metrics and the loss; "" = the first."""
    name = headline.name if isinstance(headline, Metric) else headline
    name = name or (*names, "loss")[0]
    if name not in (*names, "loss"):
        raise TaskError(
            f"metric: found {name!r}, allowed: {', '.join([*names, 'loss'])}"
        )
    if isinstance(headline, Metric):
        return headline
    if name not in known:
        raise TaskError(
            f"metric: the headline {name!r} is a function; state its direction by "
            f"metric=asyn2f.Metric({name!r}, higher_is_better=False), or True"
        )
    return known[name]


class ByCode:
    """A function that equals another of the same code and the same constants: what a
    factory defines is compiled once, however often the factory is called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._key = _key_of(function)

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByCode) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _key_of(value: Any) -> Any:
    """A key that only interchangeable values share. Constants are compared by type, as
    1 == True, and by their text, as 0.0 == -0.0."""
    if isinstance(value, str | int | float | bool | None):
        return type(value), repr(value)
    if isinstance(value, tuple):
        return tuple, *map(_key_of, value)
    if not inspect.isfunction(value) or value.__kwdefaults__:
        return id(value)
    try:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
    except ValueError:  # not bound yet
        return id(value)
    if any(inspect.isfunction(cell) and cell.__closure__ for cell in cells):
        return id(value)  # perhaps itself
    constants = (*cells, *(value.__defaults__ or ()))
    return value.__code__, id(value.__globals__), *map(_key_of, constants)
