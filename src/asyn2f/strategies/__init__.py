"""Methods of federated learning: one file and one builder each, see `Strategy`."""

import inspect
import re
from typing import Any, Literal, get_origin

from asyn2f.strategies._asafl import asafl
from asyn2f.strategies._asyn2f import asyn2f
from asyn2f.strategies._ca2fl import ca2fl
from asyn2f.strategies._fadas import fadas
from asyn2f.strategies._fedasmu import fedasmu
from asyn2f.strategies._fedasync import fedasync
from asyn2f.strategies._fedavg import fedavg
from asyn2f.strategies._fedbuff import fedbuff
from asyn2f.strategies._fedprox import fedprox
from asyn2f.strategies._kafl import kafl
from asyn2f.strategies.base import Strategy

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
"""Every strategy by its name in a config."""


def parameters(name: str) -> dict[str, tuple[Any, Any]]:
    """The parameters of a strategy's builder: by name, type and default.

    Raises:
      TypeError: a parameter is not float, int, bool, str or a `Literal` of strings, or
        has no default.

    >>> parameters("fedprox")
    {'mu': (<class 'float'>, 0.01)}
    """
    found = {}
    signature = inspect.signature(BUILDERS[name], eval_str=True)
    for key, parameter in signature.parameters.items():
        kind, default = parameter.annotation, parameter.default
        if default is parameter.empty or not (
            kind in (float, int, bool, str) or get_origin(kind) is Literal
        ):
            raise TypeError(
                f"strategy {name}, parameter {key}: found annotation {kind!r} and "
                f"default {default!r}; both are needed, and allowed are float, int, "
                "bool, str and Literal[...] of strings"
            )
        found[key] = kind, float(default) if kind is float else default
    return found


def documentation(name: str) -> dict[str, str]:
    """What the docstring of a strategy's builder says of its parameters.

    >>> documentation("fedprox")
    {'mu': 'weight of the term, >= 0; the paper tries 0.001, 0.01, 0.1 and 1'}
    """
    lines = inspect.getdoc(BUILDERS[name]) or ""
    _, _, section = lines.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)|\n\n", section)[0]
    entries = re.split(r"^ {2}(?=\w)", section, flags=re.MULTILINE)[1:]
    found: dict[str, str] = {}
    for entry in entries:
        names, _, text = " ".join(entry.split()).partition(": ")
        found |= dict.fromkeys(names.split(", "), text.rstrip("."))
    return found


__all__ = [
    "BUILDERS",
    "Strategy",
    "asafl",
    "asyn2f",
    "ca2fl",
    "documentation",
    "fadas",
    "fedasmu",
    "fedasync",
    "fedavg",
    "fedbuff",
    "fedprox",
    "kafl",
    "parameters",
]
