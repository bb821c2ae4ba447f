"""Optimizers of local training: the built-in SGD, and those of optax."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asyn2f.errors import OptimizerError, in_one_line
from asyn2f.kernels.promotion import promoting
from asyn2f.training.settings import Training
from asyn2f.types import Params

SGD = "sgd"
"""The built-in optimizer, as `Training.optimizer`."""

Optimizer = Callable[[Any], optax.GradientTransformation]
"""From a learning rate, a number or f32 [], to a transformation whose updates are added
to the parameters: `optax.adamw`, for example.

It is called anew in every step, with the learning rate of that step, so that whatever
an optimizer does with its learning rate is as under a schedule of optax. The structure
of its state must not depend on the rate.
"""


def optimizer_of(training: Training, own: Optimizer | None = None) -> Optimizer:
    """The optimizer of local training, which accepts extra arguments.

    Args:
      training: settings; of SGD where there is no other optimizer.
      own: another one than SGD.
    """

    def build(learning_rate: Any) -> optax.GradientTransformation:
        clip = training.clip_norm
        parts = [optax.clip_by_global_norm(clip)] if clip else []
        parts.append((own or _sgd(training))(learning_rate))
        return promoting(optax.chain(*parts))

    return build


def _sgd(training: Training) -> Optimizer:
    """Torch's SGD: momentum gathers gradients before the learning rate, so that a new
    rate acts at once. What is zero is left out, to save passes over memory."""

    def build(learning_rate):
        parts = [optax.identity()]
        if training.weight_decay:
            parts.append(optax.add_decayed_weights(training.weight_decay))
        if training.momentum:
            parts.append(optax.trace(decay=training.momentum))
        return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))

    return build


def check_optimizer(optimizer: Optimizer, params: Params) -> None:
    """Makes the state and one update of an optimizer, of shapes alone.

    Args:
      optimizer: that is used with a gradient, the parameters and the loss as `value`.
      params: the trained parameters, or their shapes.

    Raises:
      OptimizerError: it cannot be used; begins with `optimizer`.

    >>> check_optimizer(optax.adamw, {"w": jnp.ones(3)})
    >>> check_optimizer(optax.lbfgs, {"w": jnp.ones(3)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    asyn2f.errors.OptimizerError: optimizer: its update failed: TypeError: ...
    """
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    doing = "construction"

    def step(rate, params):
        nonlocal doing
        made = optimizer(rate)
        if not isinstance(made, optax.GradientTransformation):
            raise TypeError(f"it returned {made!r:.60}, not a GradientTransformation")
        transformation = promoting(made)
        doing = "init"
        state = transformation.init(params)
        doing = "update"
        return state, transformation.update(params, state, params, value=rate)

    try:
        before, (updates, after) = jax.eval_shape(step, rate, params)
    except Exception as error:
        remedy = ""
        if doing == "update":
            remedy = (
                "; it is given a gradient, the parameters and the loss `value`, of one "
                "batch"
            )
        raise OptimizerError(
            f"optimizer: its {doing} failed: {in_one_line(error)}{remedy}"
        ) from error
    _check_same("its state after an update", after, before)
    _check_same("its update", updates, params, with_dtype=False)


def _check_same(what: str, found: Any, wanted: Any, with_dtype: bool = True) -> None:
    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path): (x.shape, x.dtype.name if with_dtype else "")
            for path, x in leaves
        }

    there, expected = shapes(found), shapes(wanted)
    for name in {**expected, **there}:
        if there.get(name) != expected.get(name):
            raise OptimizerError(
                f"optimizer: {what} has {there.get(name, 'nothing')} at {name}, "
                f"needed: {expected.get(name, 'nothing')}, as before"
            )
