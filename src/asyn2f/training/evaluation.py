"""The scores of a version of the model: on the test set, or at every worker."""

from collections.abc import Callable, Iterator

import numpy as np

from asyn2f.tasks.base import Task, num_rows
from asyn2f.training.batches import make_evaluate
from asyn2f.training.experiment import Experiment, published
from asyn2f.types import Params, Scores, ServerState, over_workers

KeptOf = Callable[[int], Params]
"""From a worker to the part of the model that it keeps; () where everything travels."""

ScoresOf = Callable[[ServerState, KeptOf], Scores]
"""From the state of a version to its scores, as workers and evaluators receive it."""

_BATCH = 500  # examples, at most


def initial(experiment: Experiment) -> KeptOf:
    """What workers keep before they have trained."""
    kept = experiment.init_kept()
    return lambda worker: kept


def make_scores(experiment: Experiment, task: Task | None = None) -> ScoresOf:
    """A function from a version to its scores.

    If a part of the model stays with the workers, or they have test rows of their own,
    these are the scores at all workers, of the version with the part that each keeps,
    on the rows of each: see `over_workers`.

    Args:
      experiment: of the version.
      task: with another test set than the experiment's; None = its own.
    """
    task = experiment.task if task is None else task
    if experiment.sharing.is_whole and not task.held_out:
        evaluate = make_evaluate(task)
        return lambda state, _: evaluate(published(experiment, state.model).params)
    at_worker = dict(_evaluations(task, experiment.workers))
    whole = experiment.sharing.whole

    def scores_of(state: ServerState, kept_of: KeptOf) -> Scores:
        shared = published(experiment, state.model).params
        scores = [
            evaluate(whole(shared, kept_of(worker)))
            for worker, evaluate in at_worker.items()
        ]
        return over_workers(task.metric, scores)

    return scores_of


def _evaluations(
    task: Task, workers: int
) -> Iterator[tuple[int, Callable[[Params], Scores]]]:
    """The evaluation on the rows of each worker that has some, by one program."""
    rows = task.held_out or (np.arange(num_rows(task.test)),) * workers
    batch_size = min(_BATCH, max(len(own) for own in rows))
    for worker, own in enumerate(rows):
        if len(own):
            yield worker, make_evaluate(task, batch_size, own)
