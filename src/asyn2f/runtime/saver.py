"""The store's thread: makes every version durable, records the best one, polls the
fencing token. Which versions become Orbax checkpoints is decided in `store.orbax`."""

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from asyn2f import failpoints
from asyn2f.errors import FencedError, StoreError
from asyn2f.protocol import events as p
from asyn2f.store.base import ModelStore, Record
from asyn2f.types import Best, ServerState

_LOOK_S = 0.5


class Saver:
    """Writes to the store, one job after the other.

    While the store fails, versions are kept until they are saved, and the best until it
    is recorded.
    """

    def __init__(
        self, store: ModelStore, first: ServerState, tell: Callable[[p.Event], None]
    ) -> None:
        """
        Args:
          store: written by this thread alone after `start`.
          first: the state that the server begins with, already in the store.
          tell: takes `VersionSaved`, `SaveFailed` and `Replaced`, on this thread.
        """
        self.newest = first  # the newest state in the store
        self.replaced = ""  # the reason, once this server is fenced off
        self._store = store
        self._tell = tell
        self._made: dict[int, tuple[ServerState, Record]] = {}  # not saved yet
        self._best: Best | None = None  # not recorded yet
        self._problem = ""  # the last one that was logged
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Ends the thread after its last job, or abandons it if the store does not
        answer. The store is sealed then, and `newest` is the newest state in it."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        made = dict(self._made)
        self._store.seal()
        late = max(made.keys() & {*self._store.versions()}, default=-1)
        if late > int(self.newest.model.version):
            self.newest = made[late][0]

    def take(self, version: int, state: ServerState, record: Record) -> None:
        """Adds a version, for a later `save`."""
        self._made[version] = state, record

    def save(self, version: int, accounting: dict[str, Any]) -> None:
        """Saves a version with this accounting in its record; from any thread."""
        self._jobs.put(lambda: self._save(version, accounting))

    def keep_best(self, best: Best) -> None:
        """Records the best version, once it is in the store."""
        self._jobs.put(lambda: self._keep_best(best))

    def _run(self) -> None:
        while not self.replaced:
            try:
                job = self._jobs.get(timeout=_LOOK_S)
            except Empty:
                job = self._look
            if job is None:
                return
            try:
                job()
            except FencedError as error:
                self._end(str(error))
            except Exception as error:  # reported nowhere else
                self._warn(error)

    def _save(self, version: int, accounting: dict[str, Any]) -> None:
        state, record = self._made[version]
        try:
            failpoints.reach("saving")
            self._store.save(version, state, record | {"accounting": accounting})
            failpoints.reach("saved")
        except FencedError:
            raise
        except Exception as error:  # Orbax raises whatever its layers raise
            self._warn(error)
            self._tell(p.SaveFailed(version, str(error)))
            return
        del self._made[version]
        self._problem, self.newest = "", state
        self._tell(p.VersionSaved(version))
        self._keep_best(self._best)

    def _keep_best(self, best: Best | None) -> None:
        """Now, or after the next save, if the version is not saved yet or the disk is
        full. It may also have been deleted already."""
        self._best = best
        if best is not None and best.version not in self._made:
            try:
                self._store.set_best(best)
            except FencedError:
                raise
            except StoreError as error:
                self._warn(error)
                if best.version in self._store.versions():
                    return
            self._best = None

    def _look(self) -> None:
        if reason := self._store.lost_reason():
            self._end(reason)

    def _end(self, reason: str) -> None:
        self.replaced = reason
        self._tell(p.Replaced(reason))

    def _warn(self, error: Exception) -> None:
        """Logs a problem, once while it lasts."""
        if str(error) != self._problem:
            self._problem = str(error)
            if isinstance(error, StoreError | OSError):
                logging.warning("%s; it will be tried again", error)
            else:
                logging.error("the store has failed", exc_info=error)
