"""The settings that `asyn2f compare --trials` tries for each method."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from asyn2f import errors
from asyn2f.config import references, schema
from asyn2f.config.references import label_of
from asyn2f.config.schema import Config, RunSettings, section

Grids = dict[str, dict[str, tuple[Any, ...]]]

# The settings that `asyn2f compare --trials` tries for each method, besides the config
# as it is: dotted keys and their values, from whose combinations the same number is
# drawn for every method. Every method may choose the workers' learning rate, and those
# that aggregate several updates their number.
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

_SIZES = (3, 5, 10)

_OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "asafl": {
        "strategy.asafl.rate": (0.05, 0.1, 0.3),
    },
    "asyn2f": {
        "timing.min_updates": _SIZES,
        "strategy.asyn2f.beta": (0.2, 0.4, 0.6, 0.8),
        "strategy.asyn2f.max_share": (0.25, 0.5, 1.0),
    },
    "ca2fl": {
        "timing.min_updates": _SIZES,
        "strategy.ca2fl.server_rate": (0.3, 1.0),
    },
    "fadas": {
        "timing.min_updates": _SIZES,
        "strategy.fadas.server_rate": (0.001, 0.003, 0.01, 0.03),
    },
    "fedasmu": {
        "strategy.fedasmu.mu": (0.5, 1.0, 2.0, 5.0),
        "strategy.fedasmu.sigma": (0.25, 0.5, 1.0),
    },
    "fedasync": {
        "strategy.fedasync.mixing": (0.2, 0.4, 0.6, 0.9),
        "strategy.fedasync.power": (0.0, 0.5, 1.0),
    },
    "fedavg": {},
    "fedbuff": {
        "timing.min_updates": _SIZES,
        "strategy.fedbuff.server_rate": (0.3, 1.0, 2.0),
    },
    "fedprox": {
        "strategy.fedprox.mu": (0.001, 0.01, 0.1, 1.0),
    },
    "kafl": {
        "timing.min_updates": _SIZES,
        "strategy.kafl.mixing": (0.4, 0.6, 0.8),
        "strategy.kafl.weighting": ("full", "plain"),
    },
}
GRIDS = {name: {"training.learning_rate": _RATES, **own} for name, own in _OWN.items()}


def grids_of(config: Config, reference: str | None) -> Grids:
    """By method, the values that may be tried of each key.

    Args:
      config: of whose `code_path` the reference may be.
      reference: to a dict of further grids, or a function that returns it.

    Raises:
      ConfigError: it is neither.
    """
    grids: dict[str, Any] = dict(GRIDS)
    if not reference:
        return grids
    path = section(config, RunSettings).code_path
    found = references.resolve(reference, path, "--grids")
    given = found() if callable(found) else found
    if not isinstance(given, Mapping) or not all(
        isinstance(grid, Mapping) for grid in given.values()
    ):
        raise errors.ConfigError(
            f"--grids: found {given!r:.60} in {reference}, allowed: a dict of "
            '{method: {"training.learning_rate": (0.1, 0.2), ...}}, or a function that '
            "returns one"
        )
    for name, grid in given.items():
        values = {
            key: x if isinstance(x, list | tuple) else (x,) for key, x in grid.items()
        }
        grids[name] = {key: tuple(x) for key, x in values.items()}
    return grids


def settings_to_try(
    name: str, config: Config, count: int, grids: Grids
) -> list[dict[str, Any]]:
    """The settings of a method to try: the config's own, and others of its grid.

    Raises:
      ConfigError: the grid has fewer.
    """
    if count == 1:
        return [{}]
    grid = grids.get(name) or grids.get(
        label_of(name), {"training.learning_rate": _RATES}
    )
    combinations = [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    flat = schema.flatten(config)
    others = [c for c in combinations if any(flat.get(key) != c[key] for key in c)]
    if len(others) < count - 1:
        raise errors.ConfigError(
            f"--trials: found {count}, but the grids have {len(others)} settings of "
            f"{name} besides the config's own; allowed: at most {len(others) + 1}; "
            "--grids=MODULE:NAME gives others"
        )
    drawn = np.random.default_rng(0).permutation(len(others))[: count - 1]
    return [{}, *(others[index] for index in drawn.tolist())]
