"""The methods: one file each, one builder each, all of them records of functions."""

import inspect
from typing import Any

from asyn2f.strategies.asafl import asafl
from asyn2f.strategies.asyn2f import asyn2f
from asyn2f.strategies.base import Strategy
from asyn2f.strategies.ca2fl import ca2fl
from asyn2f.strategies.fadas import fadas
from asyn2f.strategies.fedasmu import fedasmu
from asyn2f.strategies.fedasync import fedasync
from asyn2f.strategies.fedavg import fedavg
from asyn2f.strategies.fedbuff import fedbuff
from asyn2f.strategies.fedprox import fedprox
from asyn2f.strategies.kafl import kafl

BUILDERS = {
    builder.__name__: builder
    for builder in (
        asafl,
        asyn2f,
        ca2fl,
        fadas,
        fedasmu,
        fedasync,
        fedavg,
        fedbuff,
        fedprox,
        kafl,
    )
}
"""Every strategy by the name a config gives it."""


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """What a strategy's builder takes: types and defaults.

    >>> parameters("fedprox")["mu"].default
    0.01
    """
    return dict(inspect.signature(BUILDERS[name]).parameters)


def defaults() -> dict[str, dict[str, Any]]:
    """By strategy, the default of each of its parameters."""
    return {
        name: {key: found.default for key, found in parameters(name).items()}
        for name in BUILDERS
    }


__all__ = [
    "BUILDERS",
    "Strategy",
    "asafl",
    "asyn2f",
    "ca2fl",
    "defaults",
    "fadas",
    "fedasmu",
    "fedasync",
    "fedavg",
    "fedbuff",
    "fedprox",
    "kafl",
    "parameters",
]
