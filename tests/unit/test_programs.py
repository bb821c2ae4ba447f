"""Both programs, driven by hand and by chance: no JAX, no clock, no network."""

import dataclasses
import itertools
from dataclasses import replace
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest

from asyn2f import programs
from asyn2f.programs import (
    Adopt,
    Aggregate,
    Arrived,
    Done,
    Due,
    Joined,
    Left,
    Listen,
    Merge,
    Publish,
    Push,
    Reject,
    Seen,
    Supersede,
    Train,
    UpdateKey,
    Wait,
)
from asyn2f.timing import Timing

settings = hypothesis.settings(deadline=None, print_blob=True, max_examples=150)


def asynchronous(**changes):
    """Asyn2F: merges, continues with its own model, aggregates some."""
    return Timing(
        while_training="merge", after_push="continue", quorum="some", **changes
    )


def synchronous(**changes):
    """FedAvg: rounds that wait for all workers and reject stale updates."""
    return Timing(
        while_training="ignore",
        after_push="wait",
        quorum="all",
        max_staleness=0,
        **changes,
    )


def adopting(**changes):
    """The asynchronous baselines: adopt the newest version after a push."""
    return Timing(while_training="ignore", after_push="adopt", quorum="some", **changes)


# The worker: a pretended one, which carries out commands and takes down what it did.


class Did(NamedTuple):
    """One command, and where the worker stood when it came and when it was done."""

    command: programs.WorkerCommand
    newest: int  # known when the command came
    steps: int  # steps taken by it
    step: int  # all steps after it
    base: int  # the version last taken in, after it


def work(timing, steps_per_epoch, arrivals, metrics=(), num_commands=60):
    """Runs a worker: `arrivals` says how many versions turn up at each chance.

    A chance is every finished command and every local step. While the worker waits,
    a version turns up in any case. Ends after `num_commands`.
    """
    program = programs.worker_program(timing, steps_per_epoch)
    arrivals = iter(arrivals)
    newest = base = -1
    step = 0
    log = []
    command = next(program)
    while len(log) < num_commands:
        known = newest
        taken = 0
        match command:
            case Wait(known):
                newest = max(newest + next(arrivals, 0), known + 1)
            case Adopt(version) | Merge(version):
                base = version
                newest += next(arrivals, 0)
            case Train(steps, known):
                assert steps >= 1
                while taken < steps:
                    taken += 1
                    newest += next(arrivals, 0)
                    if known is not None and newest > known:
                        break
            case Push():
                newest += next(arrivals, 0)
        step += taken
        log.append(Did(command, known, taken, step, base))
        epoch = step // steps_per_epoch - 1
        metric = metrics[epoch] if 0 <= epoch < len(metrics) else 0.0
        command = program.send(Seen(steps=taken, newest=newest, signal=metric))
    return log


def commands_of(log, kind):
    return [did.command for did in log if isinstance(did.command, kind)]


def push_steps(log):
    return [did.step for did in log if isinstance(did.command, Push)]


def test_a_worker_first_waits_for_any_version_and_adopts_it():
    program = programs.worker_program(asynchronous(), steps_per_epoch=3)
    assert next(program) == Wait(known=-1)
    assert program.send(Seen(newest=4)) == Adopt(version=4)


def test_before_its_first_step_a_worker_adopts_instead_of_merging():
    program = programs.worker_program(asynchronous(), steps_per_epoch=3)
    next(program)
    program.send(Seen(newest=0))
    assert program.send(Seen(newest=1)) == Adopt(version=1)
    assert program.send(Seen(newest=1)) == Train(steps=3, known=1)


def test_a_merge_in_mid_epoch_leaves_the_rest_of_the_epoch():
    program = programs.worker_program(asynchronous(), steps_per_epoch=5)
    next(program)
    program.send(Seen(newest=0))
    assert program.send(Seen(newest=0)) == Train(steps=5, known=0)
    assert program.send(Seen(steps=2, newest=1)) == Merge(version=1)
    assert program.send(Seen(newest=1)) == Train(steps=3, known=1)
    assert program.send(Seen(steps=3, newest=1)) == Push()


def test_a_version_at_hand_at_the_last_batch_boundary_is_merged_before_the_push():
    program = programs.worker_program(asynchronous(), steps_per_epoch=2)
    next(program)
    program.send(Seen(newest=0))
    program.send(Seen(newest=0))
    assert program.send(Seen(steps=2, newest=1)) == Merge(version=1)
    # Another one arrives meanwhile: there as anywhere the newest is merged.
    assert program.send(Seen(newest=2)) == Merge(version=2)
    assert program.send(Seen(newest=2)) == Push()
    assert program.send(Seen(newest=2)) == Train(steps=2, known=2)


def test_what_decides_on_a_push_is_the_signal_of_the_merged_model():
    timing = asynchronous(push_at_metric=0.5)
    program = programs.worker_program(timing, steps_per_epoch=2)
    next(program)
    program.send(Seen(newest=0))
    program.send(Seen(newest=0))
    assert program.send(Seen(steps=2, newest=1, signal=0.1)) == Merge(version=1)
    assert program.send(Seen(newest=1, signal=0.6)) == Push()


def test_of_several_versions_the_newest_alone_is_merged():
    program = programs.worker_program(asynchronous(), steps_per_epoch=5)
    next(program)
    program.send(Seen(newest=0))
    program.send(Seen(newest=0))
    assert program.send(Seen(steps=2, newest=4)) == Merge(version=4)
    assert program.send(Seen(newest=4)) == Train(steps=3, known=4)


def test_after_a_push_asyn2f_continues_with_its_own_model():
    program = programs.worker_program(asynchronous(), steps_per_epoch=2)
    next(program)
    program.send(Seen(newest=0))
    program.send(Seen(newest=0))
    assert program.send(Seen(steps=2, newest=0)) == Push()
    assert program.send(Seen(newest=0)) == Train(steps=2, known=0)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_a_worker_pushes_at_the_end_of_every_nth_epoch(epochs):
    log = work(asynchronous(epochs_per_push=epochs), 3, arrivals=[])
    steps = push_steps(log)
    assert len(steps) > 3
    assert steps == [3 * epochs * (cycle + 1) for cycle in range(len(steps))]


def test_pushes_are_held_back_until_the_metric_is_reached():
    # Epochs 1 to 3 of two steps: 0.3, 0.7, 0.8. Held back twice, then pushed.
    log = work(
        asynchronous(push_at_metric=0.8), 2, arrivals=[], metrics=[0.3, 0.7, 0.8]
    )
    assert push_steps(log)[0] == 6


def test_a_metric_that_falls_is_reached_from_above():
    # Epochs 1 to 3 of two steps: 0.9, 0.5, 0.2; 0 is a value like any other.
    timing = asynchronous(push_at_metric=0.2, higher_is_better=False)
    log = work(timing, 2, arrivals=[], metrics=[0.9, 0.5, 0.2])
    assert push_steps(log)[0] == 6
    timing = asynchronous(push_at_metric=0.0, higher_is_better=False)
    assert push_steps(work(timing, 2, [], metrics=[0.3] * 100)) == []


def test_held_back_pushes_are_released_by_the_number_of_epochs():
    log = work(
        asynchronous(push_at_metric=0.8, push_after_epochs=4),
        2,
        arrivals=[],
        metrics=[0.3] * 100,
    )
    steps = push_steps(log)
    assert steps[:3] == [8, 10, 12]


def test_the_epochs_that_release_a_push_are_counted_one_by_one():
    # Cycles of two epochs of two steps: after the second cycle four epochs are done.
    log = work(
        asynchronous(epochs_per_push=2, push_at_metric=0.8, push_after_epochs=4),
        2,
        arrivals=[],
        metrics=[0.3] * 100,
    )
    assert push_steps(log)[:2] == [8, 12]


def test_without_a_release_a_metric_that_is_never_reached_holds_back_forever():
    log = work(asynchronous(push_at_metric=0.8), 2, [], metrics=[0.3] * 1000)
    assert push_steps(log) == []


def test_a_worker_that_holds_back_still_merges():
    log = work(asynchronous(push_at_metric=0.8), 2, arrivals=[0, 0, 1, 0] * 50)
    assert len(commands_of(log, Merge)) > 3
    assert push_steps(log) == []


def test_without_a_metric_nothing_is_held_back():
    log = work(asynchronous(push_after_epochs=100), 2, arrivals=[])
    assert push_steps(log)[0] == 2


def test_a_worker_of_fedavg_waits_after_each_push_and_adopts():
    program = programs.worker_program(synchronous(), steps_per_epoch=4)
    assert next(program) == Wait(known=-1)
    assert program.send(Seen(newest=0)) == Adopt(version=0)
    assert program.send(Seen(newest=0)) == Train(steps=4, known=None)
    assert program.send(Seen(steps=4, newest=0)) == Push()
    assert program.send(Seen(newest=0)) == Wait(known=0)
    assert program.send(Seen(newest=1)) == Adopt(version=1)


def test_an_adopting_worker_adopts_after_each_push_were_it_the_same_version():
    program = programs.worker_program(adopting(), steps_per_epoch=4)
    next(program)
    program.send(Seen(newest=0))
    program.send(Seen(newest=0))
    program.send(Seen(steps=4, newest=0))
    assert program.send(Seen(newest=0)) == Adopt(version=0)
    assert program.send(Seen(newest=0)) == Train(steps=4, known=None)
    assert program.send(Seen(steps=4, newest=3)) == Push()
    assert program.send(Seen(newest=3)) == Adopt(version=3)


def test_merging_once_takes_the_newest_in_at_its_slot_and_nowhere_else():
    timing = replace(adopting(), while_training="merge_once", merge_slot=0.75)
    program = programs.worker_program(timing, steps_per_epoch=4)
    next(program)
    program.send(Seen(newest=0))
    assert program.send(Seen(newest=1)) == Train(steps=3, known=None)
    assert program.send(Seen(steps=3, newest=2)) == Merge(version=2)
    assert program.send(Seen(newest=2)) == Train(steps=1, known=None)
    assert program.send(Seen(steps=1, newest=5)) == Push()
    assert program.send(Seen(newest=5)) == Adopt(version=5)
    assert program.send(Seen(newest=5)) == Train(steps=3, known=None)
    # Nothing newer at hand: on it goes.
    assert program.send(Seen(steps=3, newest=5)) == Train(steps=1, known=None)


@pytest.mark.parametrize("slot", [0.9, 1.0])
def test_merging_once_does_not_merge_at_the_end_of_a_cycle(slot):
    timing = replace(adopting(), while_training="merge_once", merge_slot=slot)
    program = programs.worker_program(timing, steps_per_epoch=3)
    next(program)
    program.send(Seen(newest=0))
    assert program.send(Seen(newest=0)) == Train(steps=3, known=None)
    assert program.send(Seen(steps=3, newest=1)) == Push()


def test_a_push_below_the_mean_waits_for_a_signal_that_is_not_above_it():
    # Means so far: 0.5, (0.5 + 0.7) / 2 = 0.6, (1.2 + 0.3) / 3 = 0.5, 2.0 / 4 = 0.5.
    log = work(
        asynchronous(push_below_mean=True), 2, [], metrics=[0.5, 0.7, 0.3, 0.5, 0.9]
    )
    assert push_steps(log)[:3] == [2, 6, 8]


arrivals = st.lists(st.sampled_from([0, 0, 0, 1, 2]), max_size=300)
timings = st.builds(
    lambda build, epochs: build(epochs_per_push=epochs),
    st.sampled_from([asynchronous, synchronous, adopting]),
    st.integers(1, 3),
)
epoch_lengths = st.integers(1, 5)


@settings
@hypothesis.given(st.integers(1, 3), epoch_lengths, arrivals)
def test_a_worker_of_asyn2f_never_waits_after_the_start(epochs, length, arrivals):
    log = work(asynchronous(epochs_per_push=epochs), length, arrivals)
    assert isinstance(log[0].command, Wait)
    assert not any(isinstance(did.command, Wait) for did in log[1:])


@settings
@hypothesis.given(st.integers(1, 3), epoch_lengths, arrivals)
def test_a_worker_of_asyn2f_adopts_only_before_its_first_step(epochs, length, arrivals):
    log = work(asynchronous(epochs_per_push=epochs), length, arrivals)
    assert all(did.step == 0 for did in log if isinstance(did.command, Adopt))
    assert all(did.step > 0 for did in log if isinstance(did.command, Merge))


@settings
@hypothesis.given(timings, epoch_lengths, arrivals)
def test_the_steps_between_two_pushes_are_one_cycle(timing, length, arrivals):
    steps = [0, *push_steps(work(timing, length, arrivals))]
    cycle = timing.epochs_per_push * length
    assert all(after - before == cycle for before, after in itertools.pairwise(steps))


@settings
@hypothesis.given(timings, epoch_lengths, arrivals)
def test_a_worker_takes_in_the_newest_version_and_none_twice(timing, length, arrivals):
    base = -1
    for did in work(timing, length, arrivals):
        if isinstance(did.command, Adopt | Merge):
            assert did.command.version == did.newest
            is_again = timing.after_push == "adopt" and isinstance(did.command, Adopt)
            assert did.command.version >= base + (not is_again)
        base = did.base


@settings
@hypothesis.given(epoch_lengths, arrivals)
def test_asyn2f_trains_until_another_version_is_available(length, arrivals):
    for did in work(asynchronous(), length, arrivals):
        if isinstance(did.command, Train):
            assert did.command.known == did.base


@settings
@hypothesis.given(epoch_lengths, arrivals)
def test_a_version_at_hand_at_a_batch_boundary_is_merged_before_the_next_stretch(
    length, arrivals
):
    # Training may begin with a newer version at hand only if that one turned up while
    # another command was carried out; such a stretch is one step long.
    for did in work(asynchronous(), length, arrivals):
        if isinstance(did.command, Train) and did.newest > did.base:
            assert did.steps == 1


@settings
@hypothesis.given(st.integers(1, 3), epoch_lengths, arrivals)
def test_asyn2f_pushes_nothing_that_lacks_an_available_version(
    epochs, length, arrivals
):
    for did in work(asynchronous(epochs_per_push=epochs), length, arrivals):
        if isinstance(did.command, Push):
            assert did.newest == did.base


@settings
@hypothesis.given(st.integers(1, 3), epoch_lengths, arrivals)
def test_a_worker_of_fedavg_always_waits_then_adopts_a_newer_version(
    epochs, length, arrivals
):
    log = work(synchronous(epochs_per_push=epochs), length, arrivals)
    assert commands_of(log, Merge) == []
    for before, after in itertools.pairwise(log):
        if isinstance(before.command, Push):
            assert after.command == Wait(known=before.base)
        if isinstance(before.command, Wait):
            assert isinstance(after.command, Adopt)
            assert after.command.version > before.command.known


@settings
@hypothesis.given(timings, epoch_lengths, arrivals)
def test_a_worker_that_ignores_versions_is_not_interrupted(timing, length, arrivals):
    hypothesis.assume(timing.while_training == "ignore")
    log = work(timing, length, arrivals)
    assert commands_of(log, Merge) == []
    assert {command.known for command in commands_of(log, Train)} <= {None}


def worker_after(timing, length, arrivals, num_commands):
    """A worker program that has had so many commands carried out, and its next one."""
    program = programs.worker_program(timing, length)
    arrivals = iter(arrivals)
    command, newest = next(program), -1
    for _ in range(num_commands):
        newest += next(arrivals, 0)
        steps = 0
        if isinstance(command, Wait):
            newest = max(newest, command.known + 1)
        if isinstance(command, Train):
            interrupted = command.known is not None and newest > command.known
            steps = 1 if interrupted else command.steps
        command = program.send(Seen(steps=steps, newest=newest))
    return program, command, newest


@settings
@hypothesis.given(timings, epoch_lengths, arrivals)
def test_stop_ends_a_worker_after_any_command(timing, length, arrivals):
    for num_commands in range(20):
        program, _, newest = worker_after(timing, length, arrivals, num_commands)
        with pytest.raises(StopIteration):
            program.send(Seen(newest=newest, stop=True))


@pytest.mark.parametrize(
    ("num_commands", "last"),
    [
        (0, Wait(known=-1)),
        (1, Adopt(version=0)),
        (2, Adopt(version=1)),  # before the first step
        (3, Train(steps=3, known=1)),
        (4, Merge(version=2)),
        (5, Train(steps=2, known=2)),
        (6, Push()),
    ],
)
def test_stop_in_answer_to_a_command_is_the_end(num_commands, last):
    arrivals = [1, 1, 0, 1, 0, 0, 0]
    program, command, newest = worker_after(asynchronous(), 3, arrivals, num_commands)
    assert command == last
    with pytest.raises(StopIteration):
        program.send(Seen(newest=newest, stop=True))


# The server: events go in one by one; out come the commands up to the next `Listen`.


def start(timing, version=0):
    """A server program that listens, and its first `Listen`."""
    program = programs.server_program(timing, version)
    command = next(program)
    assert isinstance(command, Listen)
    return program, command


def tell(program, event):
    """What the program does about one event; the last command is its next `Listen`."""
    commands = [program.send(event)]
    while not isinstance(commands[-1], Listen):
        commands.append(program.send(Done(event.time_s)))
    return commands


def tell_all(program, events):
    return [command for event in events for command in tell(program, event)]


def without_listening(commands):
    return [command for command in commands if not isinstance(command, Listen)]


def key(worker, seq=0, session="a"):
    return UpdateKey(worker=worker, session=session, seq=seq)


def join(worker, time_s=0.0):
    return Joined(time_s=time_s, worker=worker)


def leave(worker, time_s=0.0):
    return Left(time_s=time_s, worker=worker)


def push(worker, seq=0, base=0, time_s=0.0, session="a"):
    return Arrived(time_s=time_s, key=key(worker, seq, session), base_version=base)


def running(timing, num_workers, version=0, time_s=0.0):
    """A server that has started, with workers 0, 1, ..."""
    program, _ = start(timing, version)
    commands = tell_all(
        program, [join(worker, time_s) for worker in range(num_workers)]
    )
    assert Publish(version) in commands
    return program


# Timing, workers, version; then events, and the commands until the next `Listen`.
CASES = {
    "a resumed server starts with its version": (
        *(asynchronous(), 1, 7),
        [([push(0, base=7)], [Aggregate((key(0),)), Publish(8)])],
    ),
    "min_updates are aggregated, each once": (
        *(asynchronous(min_updates=2), 3, 0),
        [
            ([push(0)], []),
            ([push(2)], [Aggregate((key(0), key(2))), Publish(1)]),
            ([push(1)], []),
            ([push(0, seq=1)], [Aggregate((key(1), key(0, 1))), Publish(2)]),
        ],
    ),
    "a buffer takes the first in order, and a worker twice": (
        *(asynchronous(min_updates=3, pending="all"), 2, 0),
        [
            ([push(0), push(1)], []),
            ([push(0, seq=1)], [Aggregate((key(0), key(1), key(0, 1))), Publish(1)]),
        ],
    ),
    "a buffer of workers that block is full with the last of them": (
        replace(asynchronous(min_updates=3, pending="all"), after_push="wait"),
        *(2, 0),
        [([push(0), push(1)], [Aggregate((key(0), key(1)), 1), Publish(1)])],
    ),
    "each update is a version": (
        *(replace(asynchronous(min_updates=3), quorum="each"), 3, 0),
        [
            ([push(0, seq=1)], [Aggregate((key(0, 1),)), Publish(1)]),
            ([push(0, seq=2)], [Aggregate((key(0, 2),)), Publish(2)]),
        ],
    ),
    "a second push supersedes the first": (
        *(asynchronous(min_updates=2), 3, 0),
        [
            ([push(0)], []),
            ([push(0, seq=1)], [Supersede(key(0))]),
            ([push(1)], [Aggregate((key(0, 1), key(1))), Publish(1)]),
        ],
    ),
    "a push of a new session supersedes one of the old": (
        *(asynchronous(min_updates=2), 3, 0),
        [
            ([push(0, seq=4), leave(0), join(0)], []),
            ([push(0, session="b")], [Supersede(key(0, 4))]),
        ],
    ),
    "a superseding update is ordered by its own arrival": (
        *(asynchronous(min_updates=3), 4, 0),
        [
            ([push(0), push(1), push(0, seq=1)], [Supersede(key(0))]),
            ([push(2)], [Aggregate((key(1), key(0, 1), key(2))), Publish(1)]),
        ],
    ),
    "fewer live workers than min_updates do not block": (
        *(asynchronous(min_updates=5), 2, 0),
        [
            ([push(0)], []),
            ([push(1)], [Aggregate((key(0), key(1)), 3), Publish(1)]),
        ],
    ),
    "a worker that leaves does not block the others": (
        *(asynchronous(min_updates=3), 3, 0),
        [
            ([push(0), push(1)], []),
            ([leave(2)], [Aggregate((key(0), key(1)), 1), Publish(1)]),
        ],
    ),
    # Neither `min_updates` nor all live workers, which are 1 and 2.
    "an update of a worker that left stands for no live worker": (
        *(asynchronous(min_updates=3), 3, 0),
        [
            ([push(0), leave(0), push(1)], []),
            ([push(2)], [Aggregate((key(0), key(1), key(2))), Publish(1)]),
        ],
    ),
    "the update of a worker that left still counts": (
        *(asynchronous(min_updates=2), 3, 0),
        [
            ([push(0), leave(0)], []),
            ([push(1)], [Aggregate((key(0), key(1))), Publish(1)]),
        ],
    ),
    "without pending updates no version is created when workers leave": (
        *(asynchronous(min_updates=2), 2, 0),
        [([leave(0), leave(1)], [])],
    ),
    "a worker that joins late takes part": (
        *(asynchronous(min_updates=2), 1, 0),
        [
            ([join(1), push(1)], []),
            ([push(0)], [Aggregate((key(1), key(0))), Publish(1)]),
        ],
    ),
    "asyn2f accepts any staleness": (
        *(asynchronous(), 1, 9),
        [([push(0, base=0)], [Aggregate((key(0),)), Publish(10)])],
    ),
    "an update beyond max_staleness is rejected": (
        *(asynchronous(max_staleness=2), 1, 9),
        [([push(0, base=6)], [Reject(key(0), "stale")])],
    ),
    "an update at max_staleness is aggregated": (
        *(asynchronous(max_staleness=2), 1, 9),
        [([push(0, base=7)], [Aggregate((key(0),)), Publish(10)])],
    ),
    "a rejected update does not supersede a pending one": (
        *(asynchronous(min_updates=2, max_staleness=2), 3, 9),
        [
            ([push(0, base=9)], []),
            ([push(0, seq=1, base=0)], [Reject(key(0, 1), "stale")]),
            ([push(1, base=9)], [Aggregate((key(0), key(1))), Publish(10)]),
        ],
    ),
    "a server continues after all workers have left": (
        *(asynchronous(min_updates=1), 1, 0),
        [
            ([push(0), leave(0), join(0)], [Aggregate((key(0),)), Publish(1)]),
            (
                [push(0, base=1, session="b")],
                [Aggregate((key(0, session="b"),)), Publish(2)],
            ),
        ],
    ),
    "a round continues after all workers have left": (
        *(synchronous(), 1, 0),
        [
            ([push(0), leave(0), join(0)], [Aggregate((key(0),)), Publish(1)]),
            (
                [push(0, base=1, session="b")],
                [Aggregate((key(0, session="b"),)), Publish(2)],
            ),
        ],
    ),
    "a round waits for all live workers": (
        *(synchronous(min_workers=3), 3, 0),
        [
            ([push(2), push(0)], []),
            ([push(1)], [Aggregate((key(2), key(0), key(1))), Publish(1)]),
        ],
    ),
    "a round does not wait for a worker that leaves": (
        *(synchronous(min_workers=3), 3, 0),
        [
            ([push(0), push(1)], []),
            ([leave(2)], [Aggregate((key(0), key(1))), Publish(1)]),
        ],
    ),
    "a worker that joins during a round is awaited in the next": (
        *(synchronous(min_workers=2), 2, 0),
        [
            ([push(0), join(2)], []),
            ([push(1)], [Aggregate((key(0), key(1))), Publish(1)]),
            ([push(0, seq=1, base=1), push(1, seq=1, base=1)], []),
            (
                [push(2, base=1)],
                [Aggregate((key(0, 1), key(1, 1), key(2))), Publish(2)],
            ),
        ],
    ),
    "a late update of a round is rejected as stale": (
        *(synchronous(min_workers=2, deadline_s=5.0), 2, 0),
        [
            ([push(0, time_s=1.0)], []),
            ([Due(5.0)], [Aggregate((key(0),), 1), Publish(1)]),
            ([push(1, base=0, time_s=6.0)], [Reject(key(1), "stale")]),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_server_answers_events_with_these_commands(case):
    timing, workers, version, steps = case
    program = running(timing, workers, version)
    for events, commands in steps:
        assert without_listening(tell_all(program, events)) == commands


@pytest.mark.parametrize("timing", [asynchronous, synchronous])
def test_a_server_starts_only_with_min_workers(timing):
    program, _ = start(timing(min_workers=3))
    assert without_listening(tell_all(program, [join(0), join(1)])) == []
    assert without_listening(tell(program, join(2))) == [Publish(0)]


def test_a_worker_that_left_before_the_start_does_not_count():
    program, _ = start(asynchronous(min_workers=2))
    events = [join(0), leave(0), join(1)]
    assert without_listening(tell_all(program, events)) == []
    assert without_listening(tell(program, join(2))) == [Publish(0)]


def test_a_worker_that_registers_twice_counts_once():
    program, _ = start(asynchronous(min_workers=2))
    assert without_listening(tell_all(program, [join(0), join(0)])) == []


def test_every_pending_update_joins_not_only_min_updates_of_them():
    # More than two can be pending when the run starts, e.g. after a resume.
    program, _ = start(asynchronous(min_updates=2, min_workers=4), version=5)
    events = [join(0), join(1), join(2), push(0, base=5), push(1, base=5)]
    events += [push(2, base=5), join(3), push(3, base=5)]
    commands = tell_all(program, events)
    first = next((one for one in commands if isinstance(one, Aggregate)), None)
    assert first is not None
    assert first.keys[:3] == (key(0), key(1), key(2))


def test_what_has_arrived_before_the_start_is_aggregated_buffer_by_buffer():
    timing = asynchronous(min_updates=2, min_workers=2, pending="all")
    program, _ = start(timing, version=5)
    events = [join(0), *[push(0, seq=seq, base=5) for seq in range(5)], join(1)]
    commands = without_listening(tell_all(program, events))
    assert commands == [
        Publish(5),
        Aggregate((key(0, 0), key(0, 1))),
        Publish(6),
        Aggregate((key(0, 2), key(0, 3))),
        Publish(7),
    ]


@pytest.mark.parametrize(
    ("changes", "most"),
    [({}, 9), ({"pending": "all"}, 4), ({"quorum": "each"}, 1), ({"quorum": "all"}, 9)],
)
def test_how_many_updates_an_aggregation_may_have(changes, most):
    timing = replace(asynchronous(min_updates=4), **changes)
    assert timing.most_updates(workers=9) == most


def test_what_waited_for_the_start_can_be_too_stale_for_the_second_version():
    """After a restart of the server, workers push their outboxes."""
    one = asynchronous(min_updates=1, min_workers=2, max_staleness=0)
    program, _ = start(dataclasses.replace(one, pending="all"))
    tell_all(program, [join(0), push(0), push(0, seq=1)])
    commands = without_listening(tell(program, join(1)))
    assert commands[:3] == [Publish(0), Aggregate((key(0),)), Publish(1)]
    assert commands[3:] == [Reject(key(0, 1), "stale")]


def test_a_version_says_how_many_updates_it_lacks():
    """Of the live workers of its round, or up to `min_updates`; who has left, or has
    joined since the round began, is not awaited."""
    program = running(synchronous(min_workers=4, deadline_s=5.0), 4)
    tell_all(program, [push(0), leave(1), join(4)])
    (made, _) = without_listening(tell(program, Due(5.0)))
    assert (made.keys, made.lacking) == ((key(0),), 2)
    program = running(synchronous(min_workers=2, deadline_s=5.0), 2)
    (made, _) = without_listening(tell_all(program, [push(0), push(1)]))
    assert made.lacking == 0
    program = running(asynchronous(min_updates=4, deadline_s=5.0), 4)
    tell_all(program, [push(0), push(1)])
    (made, _) = without_listening(tell(program, Due(5.0)))
    assert made.lacking == 2
    program = running(replace(asynchronous(min_updates=3), quorum="each"), 4)
    (made, _) = without_listening(tell(program, push(0)))
    assert made.lacking == 0


def test_without_a_deadline_the_server_listens_without_timeout():
    program = running(asynchronous(min_updates=2), 2)
    assert tell(program, push(0)) == [Listen(until_s=None)]


def test_the_deadline_counts_from_the_oldest_pending_update():
    program = running(asynchronous(min_updates=3, deadline_s=5.0), 4)
    assert tell(program, join(4, time_s=8.0)) == [Listen(until_s=None)]
    assert tell(program, push(0, time_s=10.0)) == [Listen(until_s=15.0)]
    assert tell(program, push(1, time_s=12.0)) == [Listen(until_s=15.0)]
    commands = tell(program, Due(15.0))
    assert commands == [
        Aggregate((key(0), key(1)), 1),
        Publish(1),
        Listen(until_s=None),
    ]


def test_workers_that_push_often_do_not_put_the_deadline_off():
    """One is live and never pushes, the others replace what they have pending."""
    program = running(asynchronous(min_updates=3, deadline_s=5.0), 3)
    tell(program, push(0, time_s=10.0))
    tell(program, push(1, time_s=11.0))
    commands = tell(program, push(0, seq=1, time_s=14.0))
    assert commands == [Supersede(key(0)), Listen(until_s=15.0)]
    commands = tell(program, push(0, seq=2, time_s=14.5))
    assert commands == [Supersede(key(0, 1)), Listen(until_s=15.0)]
    commands = without_listening(tell(program, Due(15.0)))
    assert commands == [Aggregate((key(1), key(0, 2)), 1), Publish(1)]


def test_a_round_of_fedavg_does_not_wait_for_an_update_that_came_before_it():
    """After a restart of the server, from the first worker that is back."""
    program, _ = start(synchronous(min_workers=2))
    tell_all(program, [join(0), push(0), join(1)])
    commands = without_listening(tell(program, push(1)))
    assert commands == [Aggregate((key(0), key(1))), Publish(1)]


def test_the_deadline_of_a_round_counts_from_its_start():
    program, _ = start(synchronous(min_workers=2, deadline_s=5.0))
    tell(program, join(0, time_s=3.0))
    tell(program, join(1, time_s=10.0))
    assert tell(program, push(0, time_s=12.0)) == [Listen(until_s=15.0)]
    commands = without_listening(tell(program, Due(15.0)))
    assert commands == [Aggregate((key(0),), 1), Publish(1)]


def test_the_deadline_of_the_next_round_counts_from_the_next_start():
    program = running(synchronous(min_workers=2, deadline_s=5.0), 2, time_s=10.0)
    tell_all(program, [push(0, time_s=11.0), push(1, time_s=12.0)])
    commands = tell(program, push(0, seq=1, base=1, time_s=13.0))
    assert commands == [Listen(until_s=17.0)]


@pytest.mark.parametrize("timing", [asynchronous, synchronous])
def test_a_deadline_without_updates_makes_no_version_and_no_busy_loop(timing):
    program = running(timing(min_updates=2, deadline_s=5.0), 2, time_s=10.0)
    commands = tell(program, Due(15.0))
    assert without_listening(commands) == []
    assert commands[-1].until_s is None or commands[-1].until_s > 15.0


def test_the_first_update_after_a_deadline_without_updates_still_makes_a_version():
    program = running(synchronous(min_workers=2, deadline_s=5.0), 2, time_s=10.0)
    # Whether at once or at a time that it names is left open.
    tell(program, Due(15.0))
    commands = tell(program, push(0, time_s=16.0))
    if commands[-1].until_s is not None:
        commands += tell(program, Due(max(16.0, commands[-1].until_s)))
    assert without_listening(commands) == [Aggregate((key(0),), 1), Publish(1)]


# The server under any sequence of events.


class History(NamedTuple):
    """What happened: the events as told, and all commands that they called forth."""

    events: list
    commands: list  # one list per event told
    live: set
    version: int
    time_s: float


moves = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "push", "push", "push"]),
        st.integers(0, 4),  # the worker
        st.sampled_from([0, 0, 0, 1, 3]),  # how many versions its base lags behind
        st.sampled_from([0.0, 0.5, 2.0, 7.0]),  # seconds since the event before
    ),
    max_size=60,
)
server_timings = st.builds(
    lambda build, updates, workers, deadline_s, staleness: build(
        min_updates=updates, min_workers=workers, deadline_s=deadline_s, **staleness
    ),
    st.just(asynchronous),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 5.0]),
    st.sampled_from([{}, {"max_staleness": 1}]),
) | st.builds(
    lambda workers, deadline_s: synchronous(min_workers=workers, deadline_s=deadline_s),
    st.integers(1, 3),
    st.sampled_from([0.0, 5.0]),
)


def last_version(commands, version):
    return version + sum(isinstance(command, Aggregate) for command in commands)


def play(program, listen, timing, moves, version):
    """Tells the program a random history, with `Due` wherever it asked for that."""
    told, answers = [], []
    live: set[int] = set()
    seqs: dict[int, int] = {}
    sessions: dict[int, int] = {}
    now_s = 0.0

    def say(event):
        nonlocal listen, version
        commands = tell(program, event)
        told.append(event)
        answers.append(commands)
        listen = commands[-1]
        version = last_version(commands, version)

    for what, worker, lag, pause_s in moves:
        now_s += pause_s
        while listen.until_s is not None and listen.until_s <= now_s:
            # A time that has passed already is due at once, and no second time.
            due_s = max(listen.until_s, told[-1].time_s)
            say(Due(due_s))
            assert listen.until_s is None or listen.until_s > due_s
        if what == "join" and worker not in live:
            live.add(worker)
            sessions[worker] = sessions.get(worker, -1) + 1
            seqs[worker] = 0
            say(join(worker, now_s))
        elif what == "leave" and worker in live:
            live.discard(worker)
            say(leave(worker, now_s))
        elif what == "push" and worker in sessions:  # it may have left meanwhile
            seqs[worker] += 1
            base = max(0, version - lag)
            say(push(worker, seqs[worker], base, now_s, str(sessions[worker])))
    return History(told, answers, live, version, now_s)


def outcomes_of(commands):
    """Every key that an outcome was passed on, as often as it was."""
    fates = []
    for command in commands:
        match command:
            case Aggregate(keys):
                fates += keys
            case Supersede(one) | Reject(one, _):
                fates.append(one)
    return fates


def flatten(answers):
    return [command for commands in answers for command in commands]


@settings
@hypothesis.given(server_timings, moves, st.sampled_from([0, 6]))
def test_every_update_is_used_once_or_superseded_or_rejected_or_pending(
    timing, moves, version
):
    program, listen = start(timing, version)
    history = play(program, listen, timing, moves, version)
    arrived = [event.key for event in history.events if isinstance(event, Arrived)]
    fates = outcomes_of(flatten(history.commands))
    assert len(set(fates)) == len(fates)
    assert set(fates) <= set(arrived)
    # What has had no outcome yet must be pending: it gets one from the next versions.
    # New workers enough for any quorum join; then every live worker pushes, twice, for
    # a round that was open may have begun without them.
    newcomers = [100, 101, 102, 103]
    commands = tell_all(program, [join(worker, history.time_s) for worker in newcomers])
    for seq in (1000, 1001):
        for worker in sorted(history.live | set(newcomers)):
            base = last_version(commands, history.version)
            commands += tell(program, push(worker, seq, base, history.time_s))
    fates += outcomes_of(commands)
    assert set(arrived) <= set(fates)
    assert len(set(fates)) == len(fates)


@settings
@hypothesis.given(server_timings, moves, st.sampled_from([0, 6]))
def test_versions_go_up_by_one_and_each_is_published(timing, moves, version):
    program, listen = start(timing, version)
    commands = without_listening(
        flatten(play(program, listen, timing, moves, version).commands)
    )
    published = [
        command.version for command in commands if isinstance(command, Publish)
    ]
    assert published == list(range(version, version + len(published)))
    for index, command in enumerate(commands):
        if isinstance(command, Aggregate):
            assert isinstance(commands[index + 1], Publish)


@settings
@hypothesis.given(server_timings, moves)
def test_nothing_is_aggregated_before_the_start(timing, moves):
    program, listen = start(timing)
    commands = without_listening(
        flatten(play(program, listen, timing, moves, 0).commands)
    )
    made = [command for command in commands if isinstance(command, Aggregate | Publish)]
    assert made[:1] in ([], [Publish(0)])


@settings
@hypothesis.given(server_timings, moves)
def test_an_aggregation_takes_one_update_per_worker_in_order_of_arrival(timing, moves):
    program, listen = start(timing)
    history = play(program, listen, timing, moves, 0)
    arrived = [event.key for event in history.events if isinstance(event, Arrived)]
    for command in flatten(history.commands):
        if isinstance(command, Aggregate):
            places = [arrived.index(one) for one in command.keys]
            assert places == sorted(places)
            assert len({one.worker for one in command.keys}) == len(places) >= 1


@settings
@hypothesis.given(server_timings, moves)
def test_no_update_staler_than_allowed_is_aggregated(timing, moves):
    program, listen = start(timing)
    history = play(program, listen, timing, moves, 0)
    bases = {
        event.key: event.base_version
        for event in history.events
        if isinstance(event, Arrived)
    }
    version = 0
    for command in flatten(history.commands):
        if isinstance(command, Aggregate):
            if timing.max_staleness is not None:
                oldest = min(bases[one] for one in command.keys)
                assert version - oldest <= timing.max_staleness
            version += 1


@settings
@hypothesis.given(server_timings, moves)
def test_a_running_server_never_sits_on_enough_updates(timing, moves):
    hypothesis.assume(timing.quorum == "some")
    program, listen = start(timing)
    history = play(program, listen, timing, moves, 0)
    pending: set[UpdateKey] = set()
    started = False
    for event, commands in zip(history.events, history.commands, strict=True):
        if isinstance(event, Arrived):
            pending.add(event.key)
        pending -= set(outcomes_of(commands))
        started |= any(isinstance(command, Publish) for command in commands)
        assert not started or len(pending) < timing.min_updates
