"""The functions of a task, made of a model and an objective."""

import inspect
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asyn2f.errors import Asyn2fError, TaskError, in_one_line
from asyn2f.tasks.base import Aux, Batch, Evaluation, Init, Loss, Predict
from asyn2f.tasks.networks import Network, network_of
from asyn2f.tasks.objectives import ByCode, Objective
from asyn2f.types import Params, Scores

_ROWS = 2  # of the batch of the check


class Functions(NamedTuple):
    """What a task computes."""

    init: Init
    loss: Loss
    evaluation: Evaluation
    outputs: Predict  # of prepared inputs, compiled
    classes: int | None  # outputs for each target, where these are classes


class _Kind(NamedTuple):
    """The dependencies of the functions; hashable if the model is."""

    model: Any  # functions as `ByCode`
    objective: Objective
    inputs: tuple[str, ...]
    forms: tuple[tuple[str, tuple[int, ...], str], ...]  # name, shape of a row, dtype

    def batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            name: jax.ShapeDtypeStruct((rows, *shape), dtype)
            for name, shape, dtype in self.forms
        }


def functions_of(
    model: Any, objective: Objective, inputs: tuple[str, ...], data: dict[str, Any]
) -> Functions:
    """The functions of a task, which have been traced for their shapes; the same ones
    for equal arguments and data of one form, so that tasks share compiled programs.

    Args:
      model: see `network_of`.
      objective: loss and metrics.
      inputs: the arrays that the model is given: one as it is, several as a dict.
      data: arrays [N, ...] by name.

    Raises:
      TaskError: the model, the loss or a metric fails, or returns something else.
    """
    forms = tuple((k, v.shape[1:], np.dtype(v.dtype).str) for k, v in data.items())
    key: Any = model
    if isinstance(model, tuple):
        key = tuple(map(ByCode, model))
    elif inspect.isfunction(model):
        key = ByCode(model)
    kind = _Kind(key, objective, inputs, forms)
    return (_made if _is_constant(key) else _made.__wrapped__)(kind)


def _is_constant(model: Any) -> bool:
    """Whether a model can be a key: neither unhashable, nor an object that changes."""
    if not isinstance(model, ByCode | tuple | type | nn.Module):
        return False
    try:
        return hash(model) is not None
    except TypeError:
        return False


@lru_cache(maxsize=32)
def _made(kind: _Kind) -> Functions:
    model = kind.model
    if isinstance(model, tuple):
        model = tuple(each.function for each in model)
    elif isinstance(model, ByCode):
        model = model.function
    network = network_of(model)
    made = Functions(
        init=_init(kind, network),
        loss=_loss(kind, network),
        evaluation=_evaluation(kind, network),
        outputs=jax.jit(lambda params, inputs: network.apply(params, inputs, None)[0]),
        classes=None,
    )
    outputs = _check(kind, network, made)
    is_class = kind.objective.target == "class"
    return made._replace(classes=outputs.shape[-1] if is_class else None)


def _input(kind: _Kind, batch: dict[str, Any]) -> Any:
    if kind.inputs == ("x",):
        return batch["x"]
    return {name: batch[name] for name in kind.inputs}


def _init(kind: _Kind, network: Network) -> Init:
    def init(key: jax.Array) -> Params:
        first = {k: jnp.zeros(x.shape, x.dtype) for k, x in kind.batch(1).items()}
        return network.init(key, _input(kind, first))

    return init


def _loss(kind: _Kind, network: Network) -> Loss:
    objective = kind.objective
    headline = dict(objective.metrics).get(objective.headline.name)

    def loss(params: Params, carry: Any, batch: Batch, key: jax.Array):
        outputs, statistics = network.apply(params, _input(kind, batch), key)
        value = jnp.mean(objective.loss(outputs, batch))
        metric = value
        if headline is not None:
            metric = jnp.mean(headline(outputs, batch))
        return value, Aux(metric, statistics, carry)

    return loss


def _evaluation(kind: _Kind, network: Network) -> Evaluation:
    """The means of the metrics and the loss over the test set."""
    functions = {**dict(kind.objective.metrics), "loss": kind.objective.loss}

    def sums(params: Params, batch: Batch, mask: jax.Array) -> dict[str, jax.Array]:
        outputs, _ = network.apply(params, _input(kind, batch), None)
        return {
            name: jnp.sum(_of_rows(name, function, outputs, batch), where=mask)
            for name, function in functions.items()
        }

    def values(sums: dict[str, Any], count: int) -> Scores:
        return {name: float(sums[name] / count) for name in functions}

    return Evaluation(sums, values)


def _of_rows(name: str, function: ByCode, outputs: Any, batch: Batch) -> jax.Array:
    """A number for each row; of a loss that is one number, that of each row alone."""
    found = function(outputs, batch)
    rows = next(iter(batch.values())).shape[0]
    if name == "loss" and jnp.shape(found) == ():

        def alone(outputs: Any, row: Batch) -> jax.Array:
            return function(*jax.tree.map(lambda x: x[None], (outputs, row)))

        return jax.vmap(alone)(outputs, batch)
    if jnp.shape(found) != (rows,):
        key = "loss" if name == "loss" else f"metrics: {name!r}"
        raise TaskError(
            f"{key} returned {_form(found)} of a batch of {rows} examples, "
            f"allowed: f32 [{rows}]{' or []' if name == 'loss' else ''}"
        )
    return found


def _form(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"


# ---------------------------------------------------------------- the check


def _check(kind: _Kind, network: Network, made: Functions) -> Any:
    """Traces the functions, and returns the shapes of outputs.

    Raises:
      TaskError: one fails or does not fit.
    """

    batch = kind.batch(_ROWS)
    x = f"x = {_described(_input(kind, batch))}"
    params = _traced("model", x, lambda: made.init(jax.random.key(0)))
    _check_params(params)
    outputs = _traced(
        "model",
        x,
        lambda p, b: network.apply(p, _input(kind, b), None)[0],
        params,
        batch,
    )
    objective = kind.objective
    if objective.target == "class":
        _check_logits(outputs, batch["y"])
    given = f"outputs {_described(outputs)} and a batch of {_described(batch)}"
    value = _traced("loss", given, objective.loss, outputs, batch)
    _check_loss(value)
    for name, function in objective.metrics:
        _traced(f"metrics: {name!r}", given, function, outputs, batch)
    mask = jax.ShapeDtypeStruct((_ROWS,), bool)
    _traced("metrics", given, made.evaluation.sums, params, batch, mask)

    def loss(params: Params, batch: Batch) -> jax.Array:
        return made.loss(params, (), batch, jax.random.key(0))[0]

    _traced("model in training", x, loss, params, batch)
    if objective.target == "any" and not _depends(loss, params, batch):
        raise TaskError(
            "loss: found one whose gradient is zero for all parameters, needed: a "
            "function that changes smoothly with the outputs, so no argmax, round or "
            "comparison alone; what counts hits is a metric"
        )
    return outputs


def _traced(stage: str, given: str, function: Any, *arguments: Any) -> Any:
    """The shapes of what a function returns.

    Raises:
      TaskError: it fails.
    """
    try:
        return jax.eval_shape(function, *arguments)
    except Asyn2fError:
        raise
    except Exception as error:  # of any library
        raise TaskError(f"{stage}: failed on {given}: {in_one_line(error)}") from error


def _described(tree: Any) -> str:
    if isinstance(tree, dict):
        return ", ".join(f"{name}: {_described(x)}" for name, x in tree.items())
    return str(jax.tree.map(_form, tree))


def _check_loss(value: Any) -> None:
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TaskError(
            f"loss: returned {jnp.result_type(value)}, allowed: floating point; other "
            "types have no gradient, so that nothing would be trained"
        )


def _depends(loss: Any, params: Params, batch: Any) -> bool:
    """Whether the derivative by the trained parameters is more than a constant zero:
    false only if no operation leads from their tangents to that of the loss. A
    `jax.custom_vjp` has no tangents and counts as a dependence."""
    others = {name: x for name, x in params.items() if name != "params"}

    def tangent(tangents: Any, trained: Any, others: Any, batch: Any) -> jax.Array:
        def of_trained(p: Any) -> jax.Array:
            return loss({**others, "params": p}, batch)

        return jax.jvp(of_trained, (trained,), (tangents,))[1]

    trained = params["params"]
    try:
        traced = jax.make_jaxpr(tangent)(trained, trained, others, batch).jaxpr
    except TypeError:
        return True
    needed = {id(x) for x in traced.outvars}
    for equation in reversed(traced.eqns):
        if not needed.isdisjoint(map(id, equation.outvars)):
            needed.update(map(id, equation.invars))
    tangents = traced.invars[: len(jax.tree.leaves(trained))]
    return not needed.isdisjoint(map(id, tangents))


def _check_params(params: Params) -> None:
    paths = jax.tree_util.tree_leaves_with_path(params)
    if not jax.tree.leaves(params.get("params", ())):
        raise TaskError("model: found no parameters, needed: at least one array")
    for path, leaf in paths:
        if leaf.dtype != jnp.float32:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TaskError(
                f"model: found {name}: {_form(leaf)}, allowed: float32; compute in "
                "another type inside the model, and keep its variables in float32"
            )


def _check_logits(outputs: Any, target: Any) -> None:
    is_array = hasattr(outputs, "shape")
    if not is_array or outputs.shape[:-1] != target.shape:
        found = _form(outputs) if is_array else type(outputs).__name__
        is_one_hot = is_array and outputs.shape == target.shape and target.ndim > 1
        more = ""
        if is_one_hot:
            more = "; of one-hot targets give the class numbers, np.argmax(y, axis=-1)"
        raise TaskError(
            f"model: found outputs {found} for targets {_form(target)}; "
            "needed: an output for each class along one more axis, the last"
            f"{more}"
        )
