"""The contract of every strategy: all executors compute the same numbers of a run.

Each run is small, of unequal workers, and has all that its strategy's timing allows.
"""

import functools
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from asyn2f import programs, strategies, trace
from asyn2f.programs import Adopt, Merge, Push, Train, worker_program
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.serialization import params_sha256
from asyn2f.sim import order as o
from asyn2f.sim.executors.calls import Limits
from asyn2f.sim.executors.machine import Machine
from asyn2f.sim.executors.serial import Follower, execute_serially
from asyn2f.sim.executors.vectorised import calls_of, execute_in_lanes
from asyn2f.sim.from_trace import order_of
from asyn2f.sim.order import Order, Result
from asyn2f.timing import Stop, Timing
from asyn2f.trace import causality
from asyn2f.training.experiment import Experiment
from tests.contracts.test_runtime import LocalRun
from tests.support.compilation import nothing_compiles
from tests.support.executions import (
    Seen,
    assert_close,
    assert_same_bits,
    epochs_of,
    events_for,
    experiment_of,
    given,
    machine_for,
    order_for,
)
from tests.support.patience import PATIENCE_S
from tests.unit.test_protocol import ProtocolHarness, outcomes

ROOT = Path(__file__).parents[2]
DEVICES = 3  # of the process that `executed_in_shards` starts
UNEQUAL = (
    {"step_s": 0.1, "jitter": 0.3, "upload_s": 2.0},
    {"step_s": 0.9, "download_s": 1.3, "upload_s": 0.1},
    {"step_s": 1.7, "outages": [[3.0, 9.0]]},
    {"step_s": 0.4, "join_s": 2.0},
    {"step_s": 3.1, "jitter": 0.2, "upload_s": 0.5},
)
DEADLINES_S = {"each": 0.0, "some": 0.8, "all": 19.0}
VERSIONS = 10
SETTINGS = RuntimeSettings(  # of real runs
    heartbeat_interval_s=0.2,
    heartbeat_timeout_s=5.0,
    join_timeout_s=PATIENCE_S,
    worker_speeds=(300.0, 80.0, 50.0, 150.0, 40.0),
)
LIMITS = Limits(waves=16, ticks=32, versions=8)
IN_SHARDS = "test_lanes_on_several_devices"

every_strategy = pytest.mark.parametrize("name", sorted(strategies.BUILDERS))
# Where compiling takes long: all of them, but most with the slow tests. These three
# merge in mid-epoch, run in rounds, and keep a memory of every worker.
in_lanes = pytest.mark.parametrize(
    "name",
    [
        name if name in ("asyn2f", "fedavg", "ca2fl") else slow
        for name in sorted(strategies.BUILDERS)
        for slow in [pytest.param(name, marks=pytest.mark.slow)]
    ],
)


# ------------------------------------------------------------- a run of each


@functools.cache
def experiment_with_all(name: str, **changes: str) -> Experiment:
    timing = strategies.BUILDERS[name]().timing
    return experiment_of(
        name,
        workers=len(UNEQUAL),
        training__batch_size=128,
        timing__epochs_per_push=2,
        timing__min_updates=3 if timing.pending == "all" else 2,
        timing__deadline_s=DEADLINES_S[timing.quorum],
        **{f"strategy__{name}__{key}": value for key, value in changes.items()},
    )


def order_with_all(experiment: Experiment, seed: int = 0) -> Order:
    depends = experiment.strategy.timing.depends_on_values
    signal_of = Follower(experiment).signal if depends else None
    return order_for(
        experiment, UNEQUAL, seed=seed, versions=VERSIONS, signal_of=signal_of
    )


class Run(NamedTuple):
    experiment: Experiment
    order: Order
    result: Result  # of the serial execution
    seen: Seen  # all versions of it


@functools.cache
def run_of(name: str, **changes: str) -> Run:
    experiment = experiment_with_all(name, **changes)
    order, seen = order_with_all(experiment), Seen()
    result = execute_serially(experiment, order, range(1, 99), seen)
    return Run(experiment, order, result, seen)


@functools.cache
def machine_of(name: str, lanes: int) -> Machine:
    experiment, order, *_ = run_of(name)
    return machine_for(experiment, order, lanes, LIMITS)


# ------------------------------------------------------------- what happens in it


def features_for(timing: Timing) -> set[str]:
    """What a run of many unequal workers has in it, and what it has not."""
    found = {"pushes what it has merged nothing into"}
    if timing.while_training != "ignore":
        found.add("merges in mid-cycle")
    if timing.while_training == "merge":
        found.add("merges twice in a cycle")
    if timing.after_push != "continue":
        found.add("adopts a newer one")
        found.add("adopts again" if timing.after_push == "adopt" else "waits")
    if timing.push_below_mean:
        found.add("trains on from what it has not sent")
        if not timing.keep_unsent:
            found.add("drops what it has not sent")
    if timing.quorum == "each":
        return found | {"versions of one size"}
    found |= {"versions of several sizes", "updates overtake each other"}
    if timing.quorum == "all":
        return found | {"an update is refused"}
    if timing.pending == "all":
        return found | {"a worker stands in a version twice"}
    return found | {"an update is replaced"}


def features_of(experiment: Experiment, order: Order) -> set[str]:
    """What happened, of all that; by each worker's events, and by what versions were
    made of."""
    found, epochs = _of_versions(order), experiment.strategy.timing.epochs_per_push
    for worker, steps in enumerate(epochs_of(experiment)):
        cycle = steps * epochs
        rows = (order.worker == worker) & ~np.isin(order.kind, _OF_SERVER)
        acts = zip(order.kind[rows].tolist(), order.value[rows].tolist(), strict=True)
        found |= _of_worker(acts, cycle)
    return found


_OF_SERVER = (o.LEAVE, o.RETURN, o.SUPERSEDE, o.REJECT, o.LOSE)


def _of_worker(acts: Iterator[tuple[int, int]], cycle: int) -> set[str]:
    found: set[str] = set()
    base, done, merges, cycles = -1, 0, 0, 0  # of the version; in the cycle; cycles
    before = o.BEGIN
    for kind, value in acts:
        if kind == o.ADOPT:
            if cycles:
                found.add("adopts again" if value == base else "adopts a newer one")
            if before == o.TRAIN:
                found.add("drops what it has not sent")
            assert done in (0, cycle), "adoptions are between cycles"
        elif kind == o.MERGE:
            merges += 1
            assert value > base
            if 0 < done < cycle:
                found.add("merges in mid-cycle")
            if merges > 1:
                found.add("merges twice in a cycle")
        elif kind == o.TRAIN:
            if done == cycle:
                found.add("trains on from what it has not sent")
                done = merges = 0
            done += value
            assert done <= cycle
            if done == cycle:
                cycles += 1
        elif kind == o.PUSH:
            assert done == cycle, "pushes are at the end of cycles"
            if not merges:
                found.add("pushes what it has merged nothing into")
        elif kind == o.WAITED:
            assert before == o.PUSH
            found.add("waits")
        if kind in (o.ADOPT, o.MERGE):
            base = value
        if kind in (o.ADOPT, o.PUSH):
            done = merges = 0
        before = kind
    return found


def _of_versions(order: Order) -> set[str]:
    found: set[str] = set()
    owner = order.worker[order.kind == o.PUSH]
    sizes = np.diff(order.member_starts)[1:]
    found.add(f"versions of {'one size' if np.ptp(sizes) == 0 else 'several sizes'}")
    for node in range(1, len(order.version)):
        members = order.members_of(node)
        if len(set(owner[members])) < len(members):
            found.add("a worker stands in a version twice")
        if (np.diff(members) < 0).any():
            found.add("updates overtake each other")
    names = {o.SUPERSEDE: "an update is replaced", o.REJECT: "an update is refused"}
    return found | {name for kind, name in names.items() if kind in order.kind}


@pytest.mark.usefixtures("shards")  # which take their time, beside what follows
@every_strategy
def test_everything_happens_that_the_timing_leads_to_and_nothing_else(name):
    experiment, order, result, _ = run_of(name)
    timing = experiment.strategy.timing
    assert features_of(experiment, order) == features_for(timing)
    assert {o.LEAVE, o.RETURN} < set(order.kind.tolist())  # workers return
    assert (result.numbers.staleness.max() > 0) == (timing.quorum != "all")
    assert sorted(order.worker[order.kind == o.BEGIN]) == [*range(len(UNEQUAL))]
    assert len(order.version) == VERSIONS + 1


@pytest.mark.parametrize("unsent", ["drop", "keep"])
def test_pushes_depend_on_the_values_that_are_executed(unsent):
    """A cycle ends with a push where its signal is no higher than on average."""
    experiment = experiment_with_all("asafl", unsent=unsent)
    follower, heard = Follower(experiment), []

    def signal_of(log, worker):
        heard.append((len(log.kind), worker, follower.signal(log, worker)))
        return heard[-1][2]

    order = order_for(experiment, UNEQUAL, versions=VERSIONS, signal_of=signal_of)
    assert features_of(experiment, order) == features_for(experiment.strategy.timing)
    signals: dict[int, list[float]] = {}
    for event, worker, signal in heard:
        if order.kind[event - 1] == o.TRAIN:  # a cycle has ended: no stretch is cut
            signals.setdefault(worker, []).append(signal)
            is_pushed = order.kind[event] == o.PUSH and order.worker[event] == worker
            assert is_pushed == (signal <= np.mean(signals[worker]))
    assert Counter(order.kind)[o.TRAIN] == sum(map(len, signals.values()))
    sent = []  # as it is executed, in order of arrival

    def aggregate(state, updates):
        sent.extend(float(update.info.signal) for update in updates)
        return experiment.aggregate(state, updates)

    execute_serially(experiment._replace(aggregate=aggregate), order)
    pushes = {int(order.value[e]): s for e, _, s in heard if order.kind[e] == o.PUSH}
    assert sent == [pushes[update] for update in order.members.tolist()]


# ------------------------------------------------------------- the same numbers


@in_lanes
def test_many_lanes(name):
    _, order, serial, _ = run_of(name)
    machine = machine_of(name, 3)
    assert machine.plan.fill > 0.4
    assert (machine.plan.row >= 0).sum(axis=(1, 2)).max() == 3
    assert_close(serial, execute_in_lanes(machine, order))


class Shards:
    """The same in a process of its own, as JAX's devices are counted once; it runs
    beside the other tests. Values are pickled to it, and are read back as JSON."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        path = folder / "serial.pickle"
        runs = {name: run_of(name) for name in names}
        serial = {k: (r.order, jax.device_get(r.result)) for k, r in runs.items()}
        path.write_bytes(pickle.dumps(serial))
        self._found: dict[str, list] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contracts.test_every_strategy", path],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __getitem__(self, name: str) -> list:
        """How many devices had something to do, and what was wrong."""
        if not self._found:
            out, err = self._process.communicate(timeout=3 * PATIENCE_S)
            assert self._process.returncode == 0, out + err
            self._found = json.loads(out)
        return self._found[name]

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def shards(request, tmp_path_factory):
    tests = [
        x for x in request.session.items if getattr(x, "originalname", "") == IN_SHARDS
    ]
    names = [test.callspec.params["name"] for test in tests]
    started = Shards(tmp_path_factory.mktemp("shards"), names)
    yield started
    started.end()


def execute_in_shards(path: str) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    found = {}
    for name, (order, serial) in pickle.loads(Path(path).read_bytes()).items():
        experiment = experiment_with_all(name)
        machine = machine_for(experiment, order, 2, LIMITS, devices=DEVICES)
        busy = int((machine.plan.row >= 0).any(axis=(0, 2)).sum())
        problem = ""
        try:
            assert_close(serial, execute_in_lanes(machine, order))
        except AssertionError as error:
            problem = str(error)
        found[name] = busy, problem
    print(json.dumps(found))


@in_lanes
def test_one_lane_has_the_bits_of_every_worker_up_to_a_version_of_other_bits(name):
    """XLA may compile a sum of several updates to another order inside of a loop, and
    a worker has other bits from where it takes that in."""
    experiment, order, serial, expected = run_of(name)
    seen, watched = Seen(), range(1, len(order.version))
    machine = given(machine_of(name, 1), order, watched=watched)
    result = execute_in_lanes(machine, order, seen)
    assert_close(serial, result)
    assert seen.nodes == expected.nodes == [*watched]
    pairs = zip(seen.sha256s, expected.sha256s, strict=True)
    same = {0} | {node for node, (a, b) in enumerate(pairs, start=1) if a == b}
    events = events_of_same_bits(order, same)
    names = ("loss", "metric", "share")
    for key in names:
        one, other = (getattr(r.numbers, key)[events] for r in (serial, result))
        np.testing.assert_array_equal(one, other, err_msg=key)
    compared = Counter(order.kind[events].tolist())
    assert compared[o.PUSH] >= len(UNEQUAL)
    if experiment.strategy.timing.while_training != "ignore":
        assert compared[o.MERGE] >= 2


def events_of_same_bits(order: Order, same: set[int]) -> list[int]:
    """Those of workers that have taken in versions of the same bits alone."""
    found, is_other = [], {}
    columns = (order.kind.tolist(), order.worker.tolist(), order.value.tolist())
    for event, (kind, worker, value) in enumerate(zip(*columns, strict=True)):
        if kind == o.ADOPT:
            is_other[worker] = value not in same
        elif kind == o.MERGE:
            is_other[worker] |= value not in same
        if kind in (o.TRAIN, o.PUSH, o.MERGE) and not is_other[worker]:
            found.append(event)
    return found


# ------------------------------------------------------------- however it is cut


@in_lanes
def test_how_a_run_is_cut_into_calls_and_waves_changes_nothing(name):
    experiment, order, serial, _ = run_of(name)
    usual = machine_of(name, 1)
    whole = execute_in_lanes(usual, order)
    limits = Limits(waves=5, ticks=3, versions=2)
    small = machine_for(experiment, order, 1, limits, max_steps=3)
    calls = [
        len(list(calls_of(machine.plan, machine.limits, frozenset())))
        for machine in (usual, small)
    ]
    assert calls[1] > 3 * calls[0]
    assert_close(whole, execute_in_lanes(small, order))  # by another program
    shorter = given(usual, order, max_steps=1)
    assert len(shorter.plan.steps) > len(usual.plan.steps)
    assert_same_bits(whole, execute_in_lanes(shorter, order))
    many = given(machine_of(name, 3), order, max_steps=1)
    assert_close(serial, execute_in_lanes(many, order))


@in_lanes
def test_a_second_execution_and_that_of_another_order_compile_nothing(name):
    experiment, order, *_ = run_of(name)
    other = order_with_all(experiment, seed=1)
    assert not np.array_equal(other.time_s, order.time_s)
    machine = machine_of(name, 3)
    first = execute_in_lanes(machine, order)
    another = given(machine, other)
    with nothing_compiles():
        again = execute_in_lanes(machine, order)
        execute_in_lanes(another, other)
    assert_same_bits(first, again)


# ------------------------------------------------------------- as a trace


@every_strategy
def test_its_trace_can_have_happened_and_is_executed_to_the_same_bits(name, tmp_path):
    experiment, order, result, _ = run_of(name)
    events = events_for(experiment, order, result)
    lines = "".join(trace.to_line(event) + "\n" for event in events)
    (tmp_path / "simulation.jsonl").write_text(lines)
    found = trace.read(tmp_path)
    assert found == events
    causality.check(found)
    again = order_of(found)
    # An order from a trace has no WAITED events.
    assert features_of(experiment, again) | {"waits"} == features_of(
        experiment, order
    ) | {"waits"}
    replayed = execute_serially(experiment, again)
    digests = [params_sha256(r.state.model.params) for r in (result, replayed)]
    assert digests[0] == digests[1]


@every_strategy
def test_a_real_run_replays_bit_for_bit(name, tmp_path):
    """Server and workers over ZeroMQ, as threads, each at its own speed."""
    experiment = experiment_with_all(name)._replace(stop=Stop(max_versions=6))
    run = LocalRun(tmp_path, experiment, "zmq", SETTINGS)
    for number in range(len(UNEQUAL)):
        run.start_worker(number)
    summary = run.finish()
    assert (summary["status"], summary["versions"]) == ("finished", 6)
    ends = [end for actor, end in run.ended.items() if actor != "server"]
    assert {end.status for end in ends} == {"finished"}
    events = trace.read(tmp_path / "trace")
    causality.check(events)
    order, timing = order_of(events), experiment.strategy.timing
    replayed = execute_serially(experiment, order)
    assert params_sha256(replayed.state.model.params) == summary["params_sha256"]
    found = features_of(experiment, order)
    assert ("merges in mid-cycle" in found) == (timing.while_training != "ignore")
    assert ("adopts a newer one" in found) == (timing.after_push != "continue")
    waited = any(isinstance(event, trace.Blocked) for event in events)
    assert waited == (timing.after_push == "wait")
    sizes = set(np.diff(order.member_starts)[1:].tolist())
    # No worker is absent, and no deadline passes.
    expected = {"each": 1, "some": timing.min_updates, "all": len(UNEQUAL)}
    assert min(sizes) == expected[timing.quorum]


# ------------------------------------------------------------- where acts take time


@every_strategy
def test_a_version_may_come_while_a_worker_is_busy_with_another(name):
    """Under a virtual clock, that takes no time; in a process it does."""
    timing = strategies.BUILDERS[name]().timing
    program, newest, merges, taken = worker_program(timing, 8), 0, [0], []
    command = next(program)
    for _ in range(100):
        steps = min(command.steps, 2) if isinstance(command, Train) else 0
        newest += steps > 0
        if isinstance(command, Merge | Adopt):
            taken.append(command.version)
            newest += command.version % 3 < 2  # not always, so that it can go on
        merges[-1] += isinstance(command, Merge)
        if isinstance(command, Push):
            merges.append(0)
            newest += timing.after_push == "wait"
        command = program.send(programs.Seen(steps=steps, newest=newest))
    assert len(merges) > 5
    assert taken == sorted(set(taken))
    if timing.while_training == "merge_once":
        assert set(merges[:-1]) == {1}
    else:
        assert (max(merges) > 1) == (timing.while_training == "merge")


@pytest.mark.parametrize("when", ["in turn", "being made", "overtaken"])
@every_strategy
def test_only_where_updates_are_replaced_a_newer_one_replaces_an_older(name, when):
    """Whether the server listens, makes a version, or is sent an update again."""
    makers = ("1", "0") if when == "being made" else ()
    timing = strategies.BUILDERS[name]().timing
    timing = replace(timing, min_updates=len(makers) or 3, min_workers=2)
    replaces = timing.quorum == "all" or (timing.quorum, timing.pending) == (
        "some",
        "newest",
    )
    server = ProtocolHarness(timing)
    server.join("0", "1")
    for session in makers[:1] if timing.quorum == "each" else makers:
        server.push(session, 9)  # of which a version is made: now it does not listen
    numbers = [11, 10] if when == "overtaken" else [10, 11]
    found = []
    for number in numbers:
        found += outcomes(server.push("0", number))
    expected = [("0", 10, "superseded")] if replaces else []
    assert found == expected


# ------------------------------------------------------------- on several devices


@in_lanes
def test_lanes_on_several_devices(name, shards):
    assert shards[name] == [DEVICES, ""]


if __name__ == "__main__":
    execute_in_shards(sys.argv[1])
