"""When things happen: the settings that the programs read, and nothing else reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WhileTraining = Literal["merge", "merge_once", "ignore"]
AfterPush = Literal["continue", "adopt", "wait"]
Quorum = Literal["each", "some", "all"]
Pending = Literal["newest", "all"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When a worker trains, merges and pushes, and when the server aggregates.

    A strategy fixes the first block (it is what makes it asynchronous or not) and says
    which `min_updates` is usual; the experiment sets the rest.

    Attributes:
      while_training: what a worker does with a version that arrives in mid-cycle.
        `merge`: takes it in at the next batch boundary, at that of the cycle's last
        batch before it pushes. `merge_once`: takes the newest in when `merge_slot` of
        the cycle is done. `ignore`: trains on.
      after_push: `continue` from its own model; `adopt` the newest version at hand,
        were it the one that the cycle began with; or `wait` for a newer version and
        adopt it.
      quorum: `each`: every update makes a version by itself. `some`: aggregate once
        `min_updates` updates are pending. `all`: a synchronous round, which ends when
        all workers that were live at its start and still are have pushed.
      pending: `newest`: a newer update of a worker replaces its pending one, all that
        are pending are aggregated, and fewer than `min_updates` where no more workers
        are live. `all`: a worker may stand in several times, and the first
        `min_updates` in order of arrival are aggregated.
      max_staleness: an update staler than this many versions is refused; None = any.
      merge_slot: share of a cycle's steps, in (0, 1), after which `merge_once` merges.
      push_below_mean: a cycle ends with a push only if its update's `signal` is at most
        the mean of this worker's signals so far, this one included. Makes timing depend
        on values.
      keep_unsent: whether a worker whose cycle has ended without a push trains on from
        its own model, although there is a newer version that it would adopt.
      min_updates: m of the paper; the buffer's size. Only for the quorum `some`.
      epochs_per_push: n of the paper: local epochs in a cycle.
      push_min_accuracy: hold pushes back until the training metric of the epoch has
        reached this. Makes timing depend on values; 0 = off.
      push_after_epochs: ... or until that many epochs are done. 0 = never.
      deadline_s: aggregate what is pending after that long: for `some`, counted from
        the oldest pending update, or the oldest that it has replaced; for `all`, from
        the start of the round. 0 = never.
      min_workers: the run starts once that many have registered.
    """

    while_training: WhileTraining
    after_push: AfterPush
    quorum: Quorum
    pending: Pending = "newest"
    max_staleness: int | None = None
    merge_slot: float = 0.5
    push_below_mean: bool = False
    keep_unsent: bool = False
    min_updates: int = 1
    epochs_per_push: int = 1
    push_min_accuracy: float = 0.0
    push_after_epochs: int = 0
    deadline_s: float = 0.0
    min_workers: int = 1

    @property
    def depends_on_values(self) -> bool:
        """Whether it depends on a worker's signal when it pushes."""
        return self.push_below_mean or self.push_min_accuracy > 0

    @property
    def replaces(self) -> bool:
        """Whether a newer update of a worker replaces its pending one."""
        is_buffer = self.quorum == "some" and self.pending == "all"
        return self.quorum != "each" and not is_buffer

    def most_updates(self, workers: int) -> int:
        """How many updates one aggregation may have, at most."""
        if self.quorum == "each":
            return 1
        return workers if self.replaces else self.min_updates

    def may_push(self, signal: float, mean: float, epochs: int) -> bool:
        """Whether a worker pushes after `epochs` whose signal is this, and on average
        has been `mean`."""
        if self.push_below_mean:
            return signal <= mean
        return signal >= self.push_min_accuracy or 0 < self.push_after_epochs <= epochs


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a run ends; whichever comes first. 0 = not for this reason."""

    max_versions: int = 0
    max_time_s: float = 0.0
    target_accuracy: float = 0.0


def deadline_warning(timing: Timing, cycles_s: Sequence[float]) -> str:
    """A sentence, if a deadline will close rounds or make versions before the updates
    that they wait for can be there; else "".

    A synchronous round waits for the slowest worker; the `min_updates`-th fastest has
    pushed again after one cycle of its own.

    Args:
      timing: with its deadline.
      cycles_s: seconds from push to push of each worker, travelling included.

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
