"""When things happen: the settings that the programs read, and nothing else reads."""

from dataclasses import dataclass
from typing import Literal

WhileTraining = Literal["merge", "ignore"]
AfterPush = Literal["continue", "adopt", "wait"]
Quorum = Literal["some", "all"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When a worker trains, merges and pushes, and when the server aggregates.

    A strategy fixes the first block (it is what makes it asynchronous or not); the
    experiment sets the rest.

    Attributes:
      while_training: what a worker does with a version that arrives in mid-cycle.
        `merge`: takes it in at the next batch boundary. `ignore`: trains on.
      after_push: `continue` from its own model, `adopt` the newest version if there is
        a newer one, or `wait` for a newer version and adopt it.
      quorum: `some`: aggregate once `min_updates` workers have a pending update (or all
        live workers, where fewer than that are left). `all`: a synchronous round, which
        ends when all workers that were live at its start and still are have pushed.
      max_staleness: an update staler than this many versions is refused; None = any.
      min_updates: m of the paper.
      epochs_per_push: n of the paper: local epochs in a cycle.
      push_after_metric: hold pushes back until the training metric of the epoch has
        reached this. Makes timing depend on values; 0 = off.
      push_after_epochs: ... or until that many epochs are done. 0 = never.
      deadline_s: aggregate what is pending after that long: for `some`, counted from
        the oldest pending update; for `all`, from the start of the round. 0 = never.
      min_workers: the run starts once that many have registered.
    """

    while_training: WhileTraining
    after_push: AfterPush
    quorum: Quorum
    max_staleness: int | None = None
    min_updates: int = 1
    epochs_per_push: int = 1
    push_after_metric: float = 0.0
    push_after_epochs: int = 0
    deadline_s: float = 0.0
    min_workers: int = 1

    def may_push(self, metric: float, epochs: int) -> bool:
        """Whether a worker whose training metric is `metric` pushes after `epochs`."""
        return metric >= self.push_after_metric or 0 < self.push_after_epochs <= epochs


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a run ends; whichever comes first. 0 = not for this reason."""

    max_versions: int = 0
    max_time_s: float = 0.0
    target_accuracy: float = 0.0
