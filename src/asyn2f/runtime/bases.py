"""What updates may be a change of: versions as they were given out."""

from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp

from asyn2f import serialization
from asyn2f.errors import StoreError
from asyn2f.store.base import (
    ModelStore,
)
from asyn2f.training.experiment import Experiment, initial_server_state
from asyn2f.types import Params

_KEPT = 8  # in memory; older ones are read from the store


class BaseCache:
    """Versions by the digest of what was given out.

    By digest, not by number: after a crash there may be two versions of one number, and
    a change of the one must not be added to the other.
    """

    def __init__(self, experiment: Experiment, store: ModelStore) -> None:
        self._publication = experiment.publication
        self._shapes = jax.eval_shape(lambda: initial_server_state(experiment))
        self._store = store
        self._kept: OrderedDict[str, Params] = OrderedDict()

    def keep(self, digest: str, coded: Any) -> None:
        """Remembers a version as it is given out, by its payload's digest."""
        self._kept[digest] = self._publication.decode(coded)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def find(self, version: int, digest: str) -> Params | None:
        """A version as its workers saw it; None if it is neither here nor in the store,
        or is another of the same number."""
        if digest not in self._kept:
            try:
                state, _ = self._store.load(version, self._shapes)
            except StoreError:
                return None
            params = jax.tree.map(jnp.asarray, state.model.params)
            coded = self._publication.encode(params)
            self.keep(serialization.digest(serialization.encode_params(coded)), coded)
        return self._kept.get(digest)
