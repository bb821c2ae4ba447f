"""The evaluator's process: evaluates each version on the test set."""

import logging
import time

from asyn2f import trace
from asyn2f.errors import WireError
from asyn2f.protocol import events as p
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.peer import (
    Ended,
    ModelInbox,
    PeerClient,
    ReceivedModel,
    Token,
    decode_model,
    hello_of,
    no_token,
    zero_params,
)
from asyn2f.training.batches import make_evaluate
from asyn2f.training.experiment import Experiment, stage
from asyn2f.transport.base import Transport


class Evaluator:
    """Evaluates published versions and reports their scores (the paper's tester)."""

    depth = 16  # versions that may wait; newer ones replace the oldest

    def __init__(
        self, experiment: Experiment, settings: RuntimeSettings, journal: Journal
    ) -> None:
        """Compiles the evaluation. If workers keep a part of the model, versions are no
        whole models, and are not evaluated here."""
        self._experiment = experiment
        self._settings = settings
        self._journal = journal
        self._inbox = ModelInbox(self.depth)
        self._evaluate = make_evaluate(experiment.task)
        if not experiment.sharing.is_whole:
            logging.warning("evaluator: config.share: the workers have the whole model")
            return
        with stage(experiment, "evaluate", 0):
            self._evaluate(zero_params(experiment))

    def stop(self, reason: str) -> None:
        """Ends the evaluator after the present version; from any thread."""
        self._inbox.stop(reason)

    def run(
        self, transport: Transport, terms: tuple[str, ...], token: Token = no_token
    ) -> Ended:
        """Joins, and evaluates until the run is over, or this process is stopped or
        refused. Arguments as of `Worker.run`."""
        hello = hello_of(self._experiment, terms, "evaluator")
        self._client = PeerClient(
            hello, self._settings, transport, self._journal, self._inbox, token
        )
        self._client.start()
        while self._inbox.stopped is None:
            self._inbox.wait()
            received = self._inbox.take()
            if received is not None and self._experiment.sharing.is_whole:
                self._evaluate_version(received)
        return self._client.leave()

    def _evaluate_version(self, received: ReceivedModel) -> None:
        version = received.header.version
        try:
            model = decode_model(self._experiment, received)
        except WireError as error:
            logging.warning("evaluator: dropped a version: %s", error)
            return
        with stage(self._experiment, "evaluate", version):
            scores = self._evaluate(model.params)
        now = time.monotonic()
        self._journal.write(trace.Evaluated(now, version, scores))
        self._client.post(p.VersionEvaluated(version, scores))
