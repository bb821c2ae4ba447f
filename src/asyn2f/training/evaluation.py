"""The scores of a version of the model: on the test set, or at every worker."""

from collections.abc import Callable

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
    at_workers, rows = make_worker_scores(experiment, task), test_rows(task)

    def scores_of(state: ServerState, kept_of: KeptOf) -> Scores:
        found = at_workers(state, kept_of)
        return over_workers(
            task.metric, [*found.values()], [rows[worker] for worker in found]
        )

    return scores_of


def test_rows(task: Task) -> list[int]:
    """The number of rows on which each worker evaluates."""
    if not task.held_out:
        return [num_rows(task.test)] * len(task.shards)
    return [len(own) for own in task.held_out]


def make_worker_scores(
    experiment: Experiment, task: Task | None = None
) -> Callable[[ServerState, KeptOf], dict[int, Scores]]:
    """A function from a version to its scores at each worker that has test rows.
    Arguments as of `make_scores`."""
    task, whole = task or experiment.task, experiment.sharing.whole
    counts = test_rows(task)
    at_worker = {k: evaluation_at(task, k) for k, count in enumerate(counts) if count}

    def scores_of(state: ServerState, kept_of: KeptOf) -> dict[int, Scores]:
        shared = published(experiment, state.model).params
        return {
            worker: evaluate(whole(shared, kept_of(worker)))
            for worker, evaluate in at_worker.items()
        }

    return scores_of


def evaluation_at(task: Task, worker: int) -> Callable[[Params], Scores]:
    """The evaluation on the rows of one worker. Its program depends on their number
    alone, so that the worker's process and a replay compute the same bits; few sizes
    of batches are compiled."""
    if not task.held_out:
        return make_evaluate(task)
    own = task.held_out[worker]
    return make_evaluate(task, min(_BATCH, 1 << (len(own) - 1).bit_length()), own)


def is_federated(experiment: Experiment) -> bool:
    """Whether the versions of a run are evaluated by its workers: there is no whole
    model, or no test set, outside of them."""
    task = experiment.task
    is_apart = task.is_private and bool(task.held_out)
    return experiment.reveals_scores and (is_apart or not experiment.sharing.is_whole)
