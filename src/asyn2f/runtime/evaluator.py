"""The evaluator's process: every version on the test set, as it comes."""

import time

from asyn2f import errors, trace
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
from asyn2f.training.batches import (
    make_evaluate,
)
from asyn2f.training.experiment import Experiment
from asyn2f.transport.base import Transport


class Evaluator:
    """The paper's tester: evaluates what the server publishes, and reports it."""

    depth = 16  # versions that may wait; a longer queue loses its oldest

    def __init__(
        self, experiment: Experiment, settings: RuntimeSettings, journal: Journal
    ) -> None:
        """Compiles the evaluation, so that it is ready to work when it joins."""
        self._experiment = experiment
        self._settings = settings
        self._journal = journal
        self._mailbox = ModelInbox(self.depth)
        self._evaluate = make_evaluate(experiment.task)
        self._evaluate(zero_params(experiment))

    def stop(self, reason: str) -> None:
        """Ends the evaluator after the version it is at; from any thread."""
        self._mailbox.stop(reason)

    def run(
        self, transport: Transport, terms: tuple[str, ...], token: Token = no_token
    ) -> Ended:
        """Joins, and evaluates until the run is over, or it is stopped or refused; its
        arguments are those of `Worker.run`."""
        hello = hello_of(self._experiment, terms, "evaluator")
        self._link = PeerClient(
            hello, self._settings, transport, self._journal, self._mailbox, token
        )
        self._link.start()
        while self._mailbox.stopped is None:
            self._mailbox.wait()
            letter = self._mailbox.take()
            if letter is not None:
                self._judge(letter)
        return self._link.leave()

    def _judge(self, letter: ReceivedModel) -> None:
        version = letter.header.version
        try:
            model = decode_model(self._experiment, letter)
        except errors.WireError as error:
            print(f"evaluator: left out a version: {error}", flush=True)
            return
        score = self._evaluate(model.params)
        now = time.monotonic()
        self._journal.write(trace.Evaluated(now, version, score.accuracy, score.loss))
        self._link.post(p.VersionEvaluated(version, *score))
