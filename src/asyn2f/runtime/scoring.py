"""Scores of versions by a worker, on held-out rows of its own."""

import logging
import time
from collections.abc import Callable

from asyn2f import trace
from asyn2f.errors import WireError
from asyn2f.protocol import events as p
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.peer import ModelInbox, ReceivedModel, decode_model, zero_params
from asyn2f.training.evaluation import evaluation_at, is_federated, test_rows
from asyn2f.training.experiment import Experiment, stage
from asyn2f.types import WorkerState

DEPTH = 16  # versions that may wait to be scored; newer ones replace the oldest


class Scoring:
    """A worker's part in the evaluation of a run whose workers evaluate."""

    def __init__(self, experiment: Experiment, worker: int, journal: Journal) -> None:
        """Compiles the evaluation, if there is one."""
        self._experiment, self._worker = experiment, worker
        self._journal = journal
        own = test_rows(experiment.task)[worker] if is_federated(experiment) else 0
        self.rows = own  # 0 = this worker scores nothing
        if not own:
            return
        self._evaluate = evaluation_at(experiment.task, worker)
        with stage(experiment, "evaluate", 0, worker):
            kept = experiment.init_kept()
            whole = experiment.sharing.whole(zero_params(experiment), kept)
            self._evaluate(whole)

    def catch_up(
        self,
        inbox: ModelInbox,
        state: WorkerState | None,
        post: Callable[[p.VersionEvaluated], None],
    ) -> None:
        """Scores the versions that wait, with what the worker keeps at present."""
        while (received := inbox.take_unscored()) is not None:
            self._score(received, state, post)

    def _score(
        self,
        received: ReceivedModel,
        state: WorkerState | None,
        post: Callable[[p.VersionEvaluated], None],
    ) -> None:
        version = received.header.version
        try:
            model = decode_model(self._experiment, received)
        except WireError:
            logging.warning("worker %d: version %d not scored", self._worker, version)
            return
        kept = self._experiment.init_kept() if state is None else state.kept
        with stage(self._experiment, "evaluate", version, self._worker):
            whole = self._experiment.sharing.whole(model.params, kept)
            scores = self._evaluate(whole)
        step = 0 if state is None else int(state.step)
        own = self._worker, version, step, self.rows
        self._journal.write(trace.WorkerScored(time.monotonic(), *own, scores))
        post(p.VersionEvaluated(version, scores))
