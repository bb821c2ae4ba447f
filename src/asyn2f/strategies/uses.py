"""The numbers of workers that a strategy depends on, found by changing them."""

import itertools
from typing import Any

import jax
import numpy as np

from asyn2f.strategies.base import Strategy
from asyn2f.strategies.samples import f32, four_updates, model, update
from asyn2f.strategies.subject import Subject

# Of `UpdateInfo` and `GlobalModel`, by the numbers of workers.
_FIELDS = {
    "loss": "loss",
    "metric": "metric",
    "size": "num_examples",
    "quality": "quality",
}


def used(strategy: Strategy) -> set[str]:
    """The numbers of workers that change what the strategy makes of some updates."""
    subject, merges = Subject(strategy), strategy.timing.while_training != "ignore"
    updates, local = four_updates(), update(model(1), num_examples=f32(70))
    version = subject.next_state(updates)[0].model

    def results(info: Any, own: Any, merged: Any) -> list[np.ndarray]:
        after, metrics = subject.next_state(updates._replace(info=info))
        found = [after.model.params, metrics["coefficients"]]
        if merges:
            mine = local._replace(info=own)
            found.append(subject.jitted.merge(mine, model(2), merged)[0])
        return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]

    records = [updates.info, local.info, version]
    before, found = results(*records), set()
    for (name, field), place in itertools.product(_FIELDS.items(), range(3)):
        others = [*records]
        others[place] = _changed(records[place], field)
        pairs = zip(before, results(*others), strict=True)
        if any(np.any(x != y) for x, y in pairs):
            found.add(name)
    return found


def _changed(record: Any, field: str) -> Any:
    """The record with other values in a field, each by a factor of its own."""
    value = getattr(record, field, None)
    if value is None:  # a version has no training metric
        return record
    values = np.asarray(value)
    factors = np.linspace(0.4, 0.9, values.size, dtype=np.float32)
    return record._replace(**{field: values * factors.reshape(values.shape)})
