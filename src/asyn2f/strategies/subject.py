"""A strategy as checks see it."""

import functools
from typing import Any

import jax
import numpy as np

from asyn2f.strategies.base import Strategy
from asyn2f.strategies.samples import MASK, four_updates, model, update
from asyn2f.types import WorkerUpdate


class Subject:
    """A strategy that is checked, and the same with its functions jitted."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.jitted = strategy._replace(
            aggregate=jax.jit(strategy.aggregate), merge=jax.jit(strategy.merge)
        )

    def first(self) -> Any:
        """The server's state at version 0, for four workers."""
        return self.strategy.init(model(99), 4)

    def next_state(self, updates: WorkerUpdate, mask: Any = MASK) -> Any:
        """The state and the metrics after one aggregation."""
        return self.jitted.aggregate(self.first(), updates, mask)

    @functools.cached_property
    def merged(self) -> Any:
        """The parameters and the metrics after one merge."""
        state, _ = self.next_state(four_updates())
        return self.jitted.merge(update(model(1)), model(2), state.model)

    @property
    def adds(self) -> bool:
        """Whether workers push changes: nothing where nothing has changed."""
        pushed = self.strategy.push(model(7), model(7))
        return not any(np.any(np.asarray(x)) for x in jax.tree.leaves(pushed["params"]))
