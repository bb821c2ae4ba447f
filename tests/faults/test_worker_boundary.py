"""A worker's process at the last batch of its cycle, without a network."""

from types import SimpleNamespace

from asyn2f import programs, serialization, trace
from asyn2f.programs import Adopt, Merge, Push, Train, Wait
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.peer import ReceivedModel
from asyn2f.runtime.worker import Worker
from tests.support.experiments import experiment_with


def received_model(experiment, version):
    """A version, as it comes out of the network."""
    model = experiment.init_server().model
    payload = serialization.encode_params(experiment.publication.encode(model.params))
    header = messages.ModelHeader(
        run="run-1",
        incarnation=1,
        version=version,
        num_examples=10.0,
        loss=2.0,
        quality=1.0,
        learning_rate=float(model.learning_rate),
        fingerprint=experiment.publication.template.fingerprint,
        num_bytes=len(payload),
        digest=serialization.digest(payload),
    )
    return ReceivedModel(header, payload)


def test_a_version_that_comes_in_the_last_batch_is_merged_and_then_pushed():
    experiment = experiment_with(
        workers=2,
        timing__epochs_per_push=1,
        task__partition="sizes",
        task__sizes=(96, 64),
    )
    written, posted = [], []
    journal = SimpleNamespace(write=written.append)
    worker = Worker(experiment, 0, RuntimeSettings(), journal)
    worker._client = SimpleNamespace(post=posted.append)
    trainer, done = worker._trainer, []

    def advance(state, shard):
        done.append(len(done))
        if len(done) == 3:
            worker._inbox.put(received_model(experiment, 1))
        return trainer.advance(state, shard)

    worker._trainer = trainer._replace(advance=advance)
    worker._inbox.put(received_model(experiment, 0))
    program = programs.worker_program(experiment.strategy.timing, steps_per_epoch=3)
    commands = [next(program)]
    while not isinstance(commands[-1], Push):
        commands.append(program.send(worker._carry_out(commands[-1])))
    worker._carry_out(commands[-1])
    assert commands == [Wait(-1), Adopt(0), Train(3, known=0), Merge(1), Push()]
    assert [type(event) for event in written][-2:] == [trace.Trained, trace.Merged]
    (pushed,) = [each for each in posted if isinstance(each, p.UpdateReady)]
    assert (pushed.info.base_version, pushed.info.start_version) == (1, 0)
