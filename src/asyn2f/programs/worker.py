"""The worker's program: its commands, and the generator that yields them."""

from collections.abc import Generator
from typing import NamedTuple

from asyn2f.timing import Timing


class Wait(NamedTuple):
    """Wait for a version other than this one, or the end of the run."""

    known: int


class Adopt(NamedTuple):
    """Replace the local model by this global version."""

    version: int


class Train(NamedTuple):
    """Train for `steps` >= 1 local steps; with `known`, only up to the first batch
    boundary at which a version other than that is available."""

    steps: int
    known: int | None


class Merge(NamedTuple):
    """Merge this global version into the local model."""

    version: int


class Push(NamedTuple):
    """Push the local model to the server, without waiting for an answer."""


WorkerCommand = Wait | Adopt | Train | Merge | Push


class Seen(NamedTuple):
    """The result of a worker's command."""

    steps: int = 0  # local steps done by the command
    # The newest version available; it decreases only if a crash loses a version that
    # was published before it was saved.
    newest: int = -1
    signal: float = 0.0  # what a push may depend on: `UpdateInfo.signal`
    stop: bool = False  # the run is over
    step_s: float = 0.0  # measured time of a step; 0 = as at the start


WorkerProgram = Generator[WorkerCommand, Seen, None]


_PUSH = Push()  # one object, as a simulation pushes millions of times


def worker_program(
    timing: Timing, steps_per_epoch: int, step_s: float = 0.0
) -> WorkerProgram:
    """A worker, from its first model to the end of the run (Asyn2F, worker side).

    Args:
      timing: the strategy's, with the experiment's settings.
      steps_per_epoch: local steps in one pass over the worker's shard.
      step_s: time of a local step, as far as it is known, for `seconds_per_push`.

    Yields:
      Commands; a `Seen` is sent in return for each.

    >>> timing = Timing(while_training="merge", after_push="continue", quorum="some")
    >>> program = worker_program(timing, steps_per_epoch=3)
    >>> next(program)
    Wait(known=-1)
    >>> program.send(Seen(newest=0))
    Adopt(version=0)
    >>> program.send(Seen(newest=0))
    Train(steps=3, known=0)
    >>> program.send(Seen(steps=2, newest=1))
    Merge(version=1)
    >>> program.send(Seen(newest=1))
    Train(steps=1, known=1)
    >>> program.send(Seen(steps=1, newest=2))  # the last batch boundary of the cycle
    Merge(version=2)
    >>> program.send(Seen(newest=2))
    Push()
    """
    merges = timing.while_training == "merge"
    cycle, slot = _cycle_of(timing, steps_per_epoch, step_s)
    seen = yield Wait(known=-1)
    base, trained, pushed, cycles, steps, mean = -1, False, False, 0, 0, 0.0
    while not seen.stop:
        is_newer = seen.newest != base and not (cycles and timing.keep_unsent)
        if base < 0 or (timing.after_push != "continue" and (pushed or is_newer)):
            base = seen.newest
            seen = yield Adopt(base)
            trained = False
        if seen.step_s and timing.seconds_per_push:
            cycle, slot = _cycle_of(timing, steps_per_epoch, seen.step_s)
        done, merged = 0, False
        while not seen.stop:
            is_slot = done == slot < cycle and not merged
            if (merges or is_slot) and seen.newest != base:
                base, merged = seen.newest, True
                # Before the first step there is no local progress: adopt.
                seen = yield Merge(base) if trained else Adopt(base)
                continue
            if done == cycle:
                break
            until = slot if done < slot < cycle else cycle
            seen = yield Train(until - done, known=base if merges else None)
            done += seen.steps
            trained = trained or seen.steps > 0
        cycles += 1
        mean += (seen.signal - mean) / cycles
        steps += done
        epochs = steps // steps_per_epoch
        pushed = not seen.stop and timing.may_push(seen.signal, mean, epochs)
        if pushed:
            seen = yield _PUSH
        if pushed and timing.after_push == "wait" and not seen.stop:
            seen = yield Wait(known=base)


def _cycle_of(timing: Timing, steps_per_epoch: int, step_s: float) -> tuple[int, int]:
    """The local steps of a cycle, and those after which a worker merges once; -1 where
    it does not."""
    cycle = timing.cycle_steps(steps_per_epoch, step_s)
    if timing.while_training != "merge_once":
        return cycle, -1
    return cycle, max(round(cycle * timing.merge_slot), 1)
