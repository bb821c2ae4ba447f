"""What does a local step cost in the runtime, beside the bare step?

The digits MLP, whose step takes a fraction of a millisecond and shows every overhead,
and a small CNN. A worker's own loop, without a network and with nothing arriving,
against the same compiled step called again and again; each step is waited for in both,
as no worker runs ahead of the versions that reach it. A merge is shown apart.
"""

from collections.abc import Iterator
from functools import partial

import jax

from asyn2f.config import build
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.worker import Worker
from asyn2f.training.batches import shard_of
from asyn2f.training.experiment import initial_server_state
from configs.digits import get_config
from tests.bench.figures import Figure, compared, in_turns

ROUNDS = 15
STEPS = {"digits MLP": 2000, "small CNN": 60}
BARE = "the bare jitted step, waited for"


def measure() -> Iterator[Figure]:
    yield from _measured("digits MLP", {}, None)
    yield from _measured("small CNN", {"model": "small_cnn"}, 1.03)


def _measured(name: str, changes: dict, wanted: float | None) -> Iterator[Figure]:
    config = get_config()
    config.task.update(changes)
    experiment = build.build_experiment(config.to_dict())
    settings = RuntimeSettings(worker_speeds=(0.0,))
    worker = Worker(experiment, 0, settings, _Nobody())
    worker._client = _Nobody()
    model = initial_server_state(experiment).model
    trainer, shard = experiment.trainer, shard_of(experiment.task, 0)
    count, begin = STEPS[name], (model, 0, int(shard.num_examples), 1.0)
    worker._state, state = trainer.start(*begin), trainer.start(*begin)

    def by_itself() -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = trainer.advance(state, shard)
            jax.block_until_ready(metrics)

    def merge() -> None:
        worker._fresh = model, 1
        worker._merge()

    what = f"{count} steps of a worker, {name}"
    candidates = {
        BARE: by_itself,
        what: partial(worker._train, count, known=-1),
        "merge": merge,
    }
    turns = in_turns(candidates, ROUNDS)
    yield compared(what, turns, what, BARE, wanted)
    steps = {"merge": turns["merge"], BARE: [x / count for x in turns[BARE]]}
    yield compared(f"a merge, {name}", steps, "merge", BARE)


class _Nobody:
    """Takes what a worker writes and posts."""

    def write(self, event: object) -> None:
        pass

    def post(self, event: object) -> None:
        pass
