"""Who looks at a simulation while it is executed."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags

from asyn2f import rundir
from asyn2f.cli import machine
from asyn2f.config import build
from asyn2f.sim.checkpoint import Progress, read_progress, write_progress
from asyn2f.sim.execute import Execution
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.batches import (
    Score,
    make_evaluate,
)
from asyn2f.training.experiment import Experiment, published
from asyn2f.types import ServerState

_KEEP_EVERY = flags.DEFINE_float(
    "keep_every_s",
    60.0,
    "Seconds after which it is written down how far an execution in lanes is.",
    lower_bound=0.0,
)


class Watcher:
    """Evaluates versions as they are made, keeps the best, and knows when to stop."""

    def __init__(self, experiment: Experiment, folder: Path, start_s: float) -> None:
        self.scores: dict[int, Score] = {}
        self.status = "finished"
        self.reason: str | None = None  # why it has ended the run, if it has
        self._experiment = experiment
        self._evaluate = make_evaluate(experiment.task)
        self._target = experiment.stop.target_accuracy
        self._store = OrbaxStore(folder / rundir.MODELS)
        self._run = rundir.read_json(folder / rundir.RUN)["run"]
        self._start_s = start_s
        self._shown_s = time.monotonic()

    def __call__(self, node: int, time_s: float, state: ServerState) -> bool:
        score = self.scores[node] = self._evaluate(
            published(self._experiment, state.model).params
        )
        best, _ = self._store.best()
        if best is None or score.accuracy > best:
            self._keep(node, state)
            self._store.set_best(node, score.accuracy)
        if time.monotonic() - self._shown_s > 2.0:
            self._shown_s = time.monotonic()
            elapsed_s = time_s - self._start_s
            print(
                f"{elapsed_s:9.1f} virtual s  version {node:6d}  "
                f"accuracy {score.accuracy:.4f}  best {self.best[0]:.4f}",
                flush=True,
            )
        if self._target and score.accuracy >= self._target:
            self.reason = f"target accuracy {self._target:g} reached"
        return self.reason is not None

    def stop(self, signal: str) -> None:
        """Ends the run at the next version that is evaluated."""
        self.status, self.reason = "interrupted", f"{signal} received"

    @property
    def best(self) -> tuple[float, int]:
        accuracy, version = self._store.best()
        assert accuracy is not None
        assert version is not None
        return accuracy, version

    def finish(self, state: ServerState | None) -> None:
        """Keeps the last version too, if there is one that can be used."""
        if state is not None:
            self._keep(int(state.model.version), state)
        self._store.close()

    def _keep(self, node: int, state: ServerState) -> None:
        if node not in self._store.versions():
            record = {"run": self._run, "incarnation": 1, "version": node}
            self._store.save(node, state, record)


class Keeper:
    """Writes down how far an execution is, and finds what was written."""

    def __init__(
        self, folder: Path, config: build.Config, execution: Execution, watcher: Watcher
    ) -> None:
        self._path = folder / rundir.PROGRESS
        self._execution, self._key = execution, _key(config, execution)
        self._watcher = watcher
        self._kept_s = time.monotonic()

    def found(self) -> Progress | None:
        """Where to go on: nowhere but in an execution of the same by the same means."""
        if self._execution.machine is None:
            return None
        read = read_progress(self._path, self._key, self._execution.machine.carry)
        if read is None:
            return None
        progress, scores = read
        self._watcher.scores |= {node: Score(*score) for node, score in scores.items()}
        waves = len(self._execution.machine.plan.steps)
        print(f"going on after {progress.wave:,} of {waves:,} waves", flush=True)
        return progress

    def __call__(self, progress: Callable[[], Progress]) -> None:
        if time.monotonic() - self._kept_s < _KEEP_EVERY.value:
            return
        write_progress(self._path, self._key, progress(), self._watcher.scores)
        self._kept_s = time.monotonic()


def _key(config: build.Config, execution: Execution) -> str:
    """Names all that the numbers and the cutting into calls depend on."""
    digest = hashlib.sha256(machine.source_digest(("report", "runtime")).encode())
    digest.update(build.experiment_digest(config).encode())
    digest.update(repr((execution.means, sorted(execution.watched))).encode())
    for column in execution.order:
        digest.update(np.asarray(column).tobytes())
    return digest.hexdigest()
