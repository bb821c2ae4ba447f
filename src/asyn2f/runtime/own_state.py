"""What a worker keeps for its restart, at each push: the task's carry, and the part of
the model that does not travel."""

import time

import jax
import jax.numpy as jnp

from asyn2f import trace
from asyn2f.runtime.io_thread import Journal
from asyn2f.store.worker_state import WorkerStateFile, encoded
from asyn2f.types import WorkerState


class OwnState:
    """The own state of one worker, in its file and its trace."""

    def __init__(
        self, file: WorkerStateFile | None, worker: int, journal: Journal
    ) -> None:
        """`file`: None = nothing is kept, and the worker always begins anew."""
        self._file, self._worker, self._journal = file, worker, journal

    def restored(self, run: str, state: WorkerState) -> tuple[WorkerState, str]:
        """The state with the own part that an earlier process of this worker kept in
        this run, and the digest of that; "" if there is none."""
        if self._file is None or not jax.tree.leaves(state.own):
            return state, ""
        found = self._file.read(run, state.own)
        if found is None:
            return state, ""
        own, digest = found
        # Copied, as steps donate it.
        return state._replace(**jax.tree.map(jnp.array, own)._asdict()), digest

    def keep(self, run: str, state: WorkerState) -> None:
        """Writes the own part; durable when it returns."""
        if self._file is None or not jax.tree.leaves(state.own):
            return
        kept, step = encoded(jax.device_get(state.own)), int(state.step)
        # First: a state in the file that the trace lacks could not be replayed.
        event = trace.StateKept(time.monotonic(), self._worker, step, kept.digest)
        self._journal.write(event)
        self._file.write(run, kept)
