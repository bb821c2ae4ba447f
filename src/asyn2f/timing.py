"""When things happen: settings of the worker and server programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from asyn2f.settings import setting

WhileTraining = Literal["merge", "merge_once", "ignore"]
AfterPush = Literal["continue", "adopt", "wait"]
Quorum = Literal["each", "some", "all"]
Pending = Literal["newest", "all"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When a worker trains, merges and pushes, and when the server aggregates.

    A strategy fixes the first block (it is what makes it asynchronous or not) and its
    usual `min_updates`; the other settings are those of the experiment.

    Attributes:
      while_training: what a worker does with a version that arrives in mid-cycle.
        `merge`: merges it at the next batch boundary, after the cycle's last batch
        before it pushes. `merge_once`: merges the newest when `merge_slot` of the cycle
        is done. `ignore`: keeps training.
      after_push: `continue` from its own model; `adopt` the newest available version,
        even if it is the one the cycle started from; or `wait` for a newer version and
        adopt it.
      quorum: `each`: every update makes a version by itself. `some`: aggregate once
        `min_updates` updates are pending. `all`: a synchronous round, which ends when
        all workers that were live at its start and still are have pushed.
      pending: `newest`: a newer update of a worker replaces its pending one, all that
        are pending are aggregated, and fewer than `min_updates` where no more workers
        are live. `all`: several updates of a worker may be pending, and the first
        `min_updates` in order of arrival are aggregated.
      max_staleness: an update staler than this many versions is rejected; None = any.
      merge_slot: fraction of a cycle's steps, in (0, 1), after which `merge_once`
        merges.
      push_below_mean: a cycle ends with a push only if its update's `signal` is at most
        the mean of this worker's signals so far, this one included. Makes timing depend
        on values.
      higher_is_better: the direction of the metric that `push_at_metric` is a value of,
        which is that of the task's headline.
      keep_unsent: whether a worker whose cycle has ended without a push continues from
        its own model, although there is a newer version that it would adopt.
    """

    while_training: WhileTraining
    after_push: AfterPush
    quorum: Quorum
    pending: Pending = "newest"
    max_staleness: int | None = None
    merge_slot: float = 0.5
    push_below_mean: bool = False
    keep_unsent: bool = False
    higher_is_better: bool = True
    min_updates: int = setting(
        1,
        "m of the paper, or the size of a buffer: aggregate once this many updates are "
        "pending; 0 = the strategy's usual number, at most the number of workers",
        config=0,
        unit="updates",
        at_least=0,
    )
    epochs_per_push: int = setting(
        1,
        "n of the paper: local epochs in a cycle (the paper: 5); 0 = by one of the two "
        "below",
        config=5,
        unit="epochs",
        at_least=0,
    )
    steps_per_push: int = setting(
        0,
        "local steps in a cycle, in place of epochs; a push then reports the mean loss "
        "and metric of its cycle; 0 = by epochs",
        unit="steps",
        at_least=0,
    )
    seconds_per_push: float = setting(
        0.0,
        "as `steps_per_push`, but as many steps as the worker does in this time, at "
        "least one, so that fast and slow workers finish a cycle together: by its step "
        "time in a simulation, by `worker_speeds` or else by its previous cycle in a "
        "run of processes; 0 = by epochs",
        unit="s",
        at_least=0,
    )
    push_at_metric: float | None = setting(
        None,
        "hold pushes back until the training metric of an epoch is this or better, in "
        "the direction of the task's headline; None = off. Makes timing depend on "
        "values",
    )
    push_after_epochs: int = setting(
        0,
        "... or until this many epochs are done; 0 = never",
        unit="epochs",
        at_least=0,
    )
    deadline_s: float = setting(
        0.0,
        "aggregate the pending updates after this time, counted from the oldest, or "
        "the oldest that it has replaced; for a synchronous round from its start; 0 = "
        "never",
        unit="s",
        at_least=0,
    )
    min_workers: int = setting(
        1,
        "the run starts once this many workers have registered; 0 = all",
        config=0,
        unit="workers",
        at_least=0,
        at_root=True,
    )

    @property
    def counts_steps(self) -> bool:
        """Whether cycles are counted in steps or seconds instead of epochs."""
        return self.steps_per_push > 0 or self.seconds_per_push > 0

    def cycle_steps(self, steps_per_epoch: int, step_s: float = 0.0) -> int:
        """The number of local steps in a cycle.

        Args:
          steps_per_epoch: of the worker.
          step_s: seconds that it takes for a step, for `seconds_per_push`; 0 = unknown:
            one step.

        >>> timing = Timing(while_training="ignore", after_push="adopt", quorum="each",
        ...                 epochs_per_push=0, seconds_per_push=2.0)
        >>> [timing.cycle_steps(9, step_s) for step_s in (0.1, 0.4, 3.0)]
        [20, 5, 1]
        """
        if self.steps_per_push:
            return self.steps_per_push
        if not self.seconds_per_push:
            return steps_per_epoch * self.epochs_per_push
        # Seconds are rounded: 0.3 s are three steps of 0.1 s.
        count = self.seconds_per_push / step_s * (1.0 + 1e-9) if step_s else 1.0
        return max(1, int(count))

    def cycle_s(self, steps_per_epoch: int, step_s: float) -> float:
        """The seconds of a cycle's steps, 0 if unknown; arguments as above."""
        steps_s = self.cycle_steps(steps_per_epoch, step_s) * step_s
        return steps_s or self.seconds_per_push

    @property
    def depends_on_values(self) -> bool:
        """Whether the times of pushes depend on the signals of workers."""
        return self.push_below_mean or self.push_at_metric is not None

    @property
    def replaces(self) -> bool:
        """Whether a newer update of a worker replaces its pending one."""
        is_buffer = self.quorum == "some" and self.pending == "all"
        return self.quorum != "each" and not is_buffer

    def most_updates(self, workers: int) -> int:
        """The largest number of updates in one aggregation."""
        if self.quorum == "each":
            return 1
        return workers if self.replaces else self.min_updates

    def may_push(self, signal: float, mean: float, epochs: int) -> bool:
        """Whether a worker pushes after a number of epochs, given the signal of its
        cycle and the mean of its signals so far."""
        if self.push_below_mean:
            return signal <= mean
        if self.push_at_metric is None or 0 < self.push_after_epochs <= epochs:
            return True
        if self.higher_is_better:
            return signal >= self.push_at_metric
        return signal <= self.push_at_metric


_CYCLES = ("epochs_per_push", "steps_per_push", "seconds_per_push")


def check_cycle(timing: Timing) -> None:
    """Raises ValueError unless exactly one setting decides how long cycles are."""
    given = {name: getattr(timing, name) for name in _CYCLES}
    chosen = [f"{name} = {value:g}" for name, value in given.items() if value]
    if len(chosen) != 1:
        name = "steps_per_push" if timing.steps_per_push else "seconds_per_push"
        raise ValueError(
            f"{name if chosen else _CYCLES[0]}: found "
            f"{' and '.join(chosen) or 'nothing that ends a cycle'}, allowed: exactly "
            f"one of {', '.join(_CYCLES)} above 0; set the others to 0"
        )


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a run ends: at the first of these limits that is reached."""

    max_versions: int = setting(
        0, "aggregations; 0 = no limit", config=150, unit="versions", at_least=0
    )
    max_time_s: float = setting(
        0.0, "time since training began; 0 = no limit", unit="s", at_least=0
    )
    target: float | None = setting(
        None,
        "value of the task's headline on the test set: at least this where higher is "
        "better, at most where lower is; None = no target",
    )


def deadline_warning(timing: Timing, cycles_s: Sequence[float]) -> str:
    """A sentence if a deadline will end rounds, or make versions, before the updates
    that they wait for can arrive; else "".

    A synchronous round waits for the slowest worker; a version waits at most for one
    cycle of the `min_updates`-th fastest worker.

    Args:
      timing: with its deadline.
      cycles_s: seconds from push to push of each worker, transfers included.

    >>> timing = Timing(while_training="ignore", after_push="wait", quorum="all",
    ...                 deadline_s=15.0)
    >>> print(deadline_warning(timing, [13.0, 40.0, 453.0])[:64])
    config.timing.deadline_s = 15 is shorter than the cycles of 2 of
    >>> deadline_warning(timing, [13.0, 14.0])
    ''
    """
    deadline_s = timing.deadline_s
    if not deadline_s or timing.quorum == "each" or not cycles_s:
        return ""
    slower = sum(cycle_s > deadline_s for cycle_s in cycles_s)
    if timing.quorum == "all":
        is_short, what = slower > 0, "synchronous rounds will close without them"
    else:
        awaited_s = sorted(cycles_s)[min(timing.min_updates, len(cycles_s)) - 1]
        is_short = awaited_s > deadline_s and timing.min_updates > 1
        what = f"versions may be made of fewer than {timing.min_updates} updates"
    if not is_short:
        return ""
    return (
        f"config.timing.deadline_s = {deadline_s:g} is shorter than the cycles of "
        f"{slower} of {len(cycles_s)} workers, which take up to {max(cycles_s):.3g} s: "
        f"{what}; 0 waits for every live worker"
    )
