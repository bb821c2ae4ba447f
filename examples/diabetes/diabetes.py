"""How far diabetes proceeds within a year: a regression, and a loss of its own."""

import jax.numpy as jnp
from sklearn.datasets import load_diabetes

import asyn2f


def init(key, x):
    """A linear model, as a pair of plain functions."""
    return {"w": jnp.zeros(x.shape[-1]), "b": jnp.zeros(())}


def apply(params, x):
    return 150.0 + 50.0 * (x @ params["w"] + params["b"])


def loss(outputs, batch):
    """Squared error in units of about a standard deviation."""
    return jnp.square((outputs - batch["y"]) / 80.0)


def make_task(*, seed: int = 0) -> asyn2f.Task:
    """A task that `config.task.partition` splits."""
    patients = load_diabetes()
    return asyn2f.supervised(
        (init, apply),
        (patients.data, patients.target),
        test=0.25,
        loss=loss,
        metrics={"mae": "mae"},
        normalise=True,
        seed=seed,
        name="diabetes",
    )
