"""A part of the model that stays with its worker: in every executor, over processes,
frames, files and restarts."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f import trace
from asyn2f.api import load_params
from asyn2f.errors import PlanError, StoreError
from asyn2f.kernels.codecs import Coding
from asyn2f.serialization import encode_params
from asyn2f.sim import order as o
from asyn2f.sim.executors.memory import need_of
from asyn2f.sim.executors.planning import plan
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.executors.vectorised import execute_in_lanes, prepare
from asyn2f.store.orbax import OrbaxStore
from asyn2f.store.worker_state import WorkerStateFile
from asyn2f.strategies import BUILDERS
from asyn2f.tasks.base import Aux, Task, mean_evaluation
from asyn2f.training.evaluation import initial, make_scores
from asyn2f.training.experiment import initial_server_state
from asyn2f.transport import base
from asyn2f.transport.zmq import ZmqTransport
from asyn2f.types import OwnPart
from tests.contracts.test_carry import OwnRun, assert_replays, kept
from tests.support.executions import assert_close, assert_same_bits, order_for, words_of
from tests.support.patience import wait_until
from tests.support.tasks import BODY, experiment_of, personal

ROWS = [{"step_s": 0.5}, {"step_s": 0.9, "jitter": 0.3}, {"step_s": 1.7}]
ROUNDING = 1e-5


# ------------------------------------------------------------- simulations


class Scores:
    """A watch that evaluates what it sees."""

    def __init__(self, experiment) -> None:
        self.found: dict[int, dict[str, float]] = {}
        self.kept: dict[int, list] = {}
        self._scores_of = make_scores(experiment)
        self._workers = experiment.workers

    def __call__(self, node, time_s, state, kept_of) -> bool:
        self.found[node] = self._scores_of(state, kept_of)
        parts = [kept_of(worker) for worker in range(self._workers)]
        self.kept[node] = jax.device_get(parts)
        return False


def simulated(share=BODY, rows=ROWS, **more):
    experiment = experiment_of(personal(), share=share, **more)
    return experiment, order_for(experiment, rows)


def test_sharing_everything_is_the_identity():
    """Also by patterns: the same bits, the same programs' shapes."""
    experiment, order = simulated(())
    result = execute_serially(experiment, order)
    for share in [("**",), ("params/**", "statistics/**")]:
        other, _ = simulated(share)
        assert_same_bits(execute_serially(other, order), result)
        assert other.template == experiment.template
        assert other.update_template == experiment.update_template


@pytest.mark.parametrize("name", BUILDERS)
def test_every_strategy_shares_a_part(name):
    """And the other part is a worker's own: it differs from every other worker's, and
    from the initial one."""
    experiment = experiment_of(personal(), strategy=BUILDERS[name](), share=BODY)
    timing = experiment.strategy.timing
    signal = (lambda log, worker: 0.0) if timing.depends_on_values else None
    order = order_for(experiment, ROWS, signal_of=signal)
    scores = Scores(experiment)
    nodes = range(1, len(order.version))
    result = execute_serially(experiment, order, nodes, scores)
    assert [x.path for x in experiment.template.leaves] == ["params/body/w"]
    (body,) = jax.tree.leaves(result.state.model.params)
    assert body.shape == (3, 8)
    assert result.numbers.finite.all()
    *_, last = scores.kept.values()
    first = experiment.init_kept()
    for leaves in zip(*map(jax.tree.leaves, [first, *last]), strict=True):
        values = [np.asarray(leaf).tobytes() for leaf in leaves]
        assert len({*values}) == len(values)


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_keep_the_same(lanes):
    """The parts that workers keep as well, as every version is made, and the scores of
    all workers on it."""
    experiment, _ = simulated()
    order = order_for(experiment, ROWS, versions=20)
    nodes = [3, 4, 9, 20]
    serial, laned = Scores(experiment), Scores(experiment)
    expected = execute_serially(experiment, order, nodes, serial)
    machine = prepare(experiment, order, lanes, 1, nodes)
    found = execute_in_lanes(machine, order, laned)
    assert_close(expected, found)
    assert [*laned.found] == [*serial.found] == nodes
    for node in nodes:
        assert laned.found[node] == pytest.approx(serial.found[node], rel=1e-4)
        pairs = zip(*map(jax.tree.leaves, (serial.kept, laned.kept)), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_lanes_on_several_devices_keep_the_same():
    assert words_of("tests.support.sharded_carry", "kept") == ["3", "same"]


def test_the_memory_of_kept_parts_is_counted():
    whole, order = simulated(())
    shared, _ = simulated()
    needs = []
    for experiment in (whole, shared):
        machine = prepare(experiment, order, 1, 1)
        needs.append(need_of(experiment, machine.plan, machine.limits))
    model, part = whole.template.num_bytes, shared.template.num_bytes
    rows = whole.workers + 1
    # Two models in a state travel (params, previous), of which only the part remains;
    # once there is what a worker keeps.
    assert needs[0].workers - needs[1].workers == rows * (model - part)
    slots = machine.plan.version_slots + 3
    assert needs[0].versions - needs[1].versions == slots * (model - part)


def test_lanes_refuse_a_worker_that_begins_again_without_its_part():
    _, order = simulated()
    begins = np.flatnonzero(order.kind == o.BEGIN)
    again = order._replace(
        kind=np.append(order.kind, o.BEGIN),
        worker=np.append(order.worker, order.worker[begins[0]]),
        value=np.append(order.value, 0),
        time_s=np.append(order.time_s, order.end_s),
    )
    plan(again, 1, 1)
    with pytest.raises(PlanError, match=r"without its part .* --executor=serial"):
        plan(again, 1, 1, keeps=True)


def test_codings_apply_to_the_shared_part():
    plain, _ = simulated()
    coding = Coding(updates="int8", delta=True)
    coded = experiment_of(personal(), share=BODY, coding=coding)
    order = order_for(coded, ROWS)
    assert coded.update_template.num_bytes < plain.update_template.num_bytes
    assert execute_serially(coded, order).numbers.finite.all()


def test_a_version_has_the_scores_of_all_workers():
    experiment, _ = simulated()
    state = initial_server_state(experiment)
    scores = make_scores(experiment)(state, initial(experiment))
    assert list(scores) == ["mse", "mse_worst", "mse_p10"]
    assert scores["mse"] < scores["mse_p10"] < scores["mse_worst"]


# ------------------------------------------------------------- processes


def listen(monkeypatch, kind: type, hear: Callable) -> None:
    """Has `hear` called with an end of a network and the parts of what it sends."""

    def heard(send):
        def sending(end, *parts):
            hear(end, *parts)
            return send(end, *parts)

        return sending

    for name in ("send", "publish"):
        monkeypatch.setattr(kind, name, heard(getattr(kind, name)))


def windows_of(payload: bytes) -> set[bytes]:
    """Every two neighbours of its numbers."""
    return {payload[i : i + 8] for i in range(0, len(payload) - 7, 4)} - {bytes(8)}


def decoded(folder: Path) -> bytes:
    """The bytes of all files of a run but those that the workers keep, and of all
    arrays in its store, which may be compressed in their files."""
    files = [x for x in folder.rglob("*") if x.is_file() and "workers" not in x.parts]
    found = b"".join(path.read_bytes() for path in files)
    store = OrbaxStore(folder / "models")
    experiment = experiment_of(personal(), share=BODY)
    like = jax.eval_shape(lambda: initial_server_state(experiment))
    for version in store.versions():
        for leaf in jax.tree.leaves(store.load(version, like).state):
            found += np.ascontiguousarray(leaf).tobytes()
    store.close()
    return found


@pytest.mark.parametrize("kind", ["memory", "zmq"])
def test_what_is_kept_never_leaves(tmp_path, monkeypatch, kind):
    """No two neighbouring numbers of it, at no time: not in a frame, and in no file but
    the worker's own."""
    end = base._MemoryEnd if kind == "memory" else ZmqTransport
    frames: list[bytes] = []
    listen(monkeypatch, end, lambda _, *parts: frames.extend(map(bytes, parts)))
    own, write = [], WorkerStateFile.write

    def written(file, run, state):
        own.append(bytes(state.payload))
        write(file, run, state)

    monkeypatch.setattr(WorkerStateFile, "write", written)
    experiment = experiment_of(personal(), share=BODY)
    store = OrbaxStore(tmp_path / "models")
    run = OwnRun(tmp_path, experiment, kind, store=store)
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    store.close()
    assert summary["versions"] == 8
    assert len(own) >= 8
    first = bytes(encode_params(jax.device_get(experiment.init_kept())))
    secrets = set().union(*map(windows_of, (first, *own)))
    assert len(secrets) >= 8 * 8
    payloads = [x for x in frames if len(x) == experiment.template.num_bytes]
    assert len(payloads) >= 8 + 8  # updates and versions
    sent, files = b"".join(frames), decoded(tmp_path)
    # What travels is found, so that what is kept would be.
    travels = set().union(*map(windows_of, payloads))
    assert all(window in sent for window in travels)
    assert any(window in files for window in travels)
    assert [x for x in secrets if x in sent or x in files] == []
    modes = [path.stat().st_mode for path in (tmp_path / "workers").iterdir()]
    assert len(modes) == 3
    assert not any(mode & 0o077 for mode in modes)  # nobody else's


@pytest.mark.parametrize("kind", ["memory", "zmq"])
@pytest.mark.parametrize("share", [BODY, ("!**",)], ids=["body", "nothing"])
def test_a_run_of_processes_replays_bit_for_bit(tmp_path, kind, share):
    run = OwnRun(tmp_path, experiment_of(personal(), share=share), kind)
    for number in range(3):
        run.start_worker(number)
    assert_replays(run, run.finish())


def test_the_model_of_a_worker_is_loaded_from_the_folder(tmp_path):
    experiment = experiment_of(personal(), share=BODY)
    store = OrbaxStore(tmp_path / "models")
    run = OwnRun(tmp_path, experiment, store=store)
    for number in range(3):
        run.start_worker(number)
    run.finish()
    store.close()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps({"run": "run-1"}))
    shared = load_params(tmp_path, "newest")
    assert list(shared) == ["params"]
    assert list(shared["params"]) == ["body"]
    shapes = jax.eval_shape(experiment.task.init, jax.random.key(0))
    models = [load_params(tmp_path, 8, like=shapes, worker=k) for k in range(3)]
    for number, model in enumerate(models):
        np.testing.assert_array_equal(
            model["params"]["body"]["w"], shared["params"]["body"]["w"]
        )
        kept_now, _ = WorkerStateFile(run.file_of(number)).read(
            "run-1", OwnPart((), experiment.sharing.kept(shapes))
        )
        for one, other in zip(
            jax.tree.leaves(experiment.sharing.kept(model)),
            jax.tree.leaves(kept_now),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    heads = {model["params"]["head"]["w"].tobytes() for model in models}
    assert len(heads) == 3
    with pytest.raises(StoreError, match="worker-3 cannot be read: FileNotFound"):
        load_params(tmp_path, 8, worker=3)
    (tmp_path / "run.json").write_text(json.dumps({"run": "run-2"}))
    with pytest.raises(StoreError, match="worker-0 is of another run"):
        load_params(tmp_path, 8, worker=0)


def test_a_restarted_worker_has_its_part_again(tmp_path):
    """And the run replays bit for bit, which it would not with another part."""
    run = OwnRun(tmp_path, experiment_of(personal(), versions=40, share=BODY))
    run.start_worker(1)
    run.start_worker(2)
    first = run.start_worker(0)
    wait_until(lambda: len(kept(run, 0)) >= 2)
    run.restart(0, first)
    lives = lambda: [e for e in run.events(trace.Adopted) if e.worker == 0]
    wait_until(lambda: any(e.restored for e in lives()))
    summary = run.finish()
    restored = next(e.restored for e in lives() if e.restored)
    assert restored in [e.digest for e in kept(run, 0)]
    assert_replays(run, summary)


def wide(*, workers: int = 1) -> Task:
    """100,000 numbers, a twentieth of which is an adapter."""

    def loss(params, carry, batch, key):
        adapter, rest = params["params"]["adapter"], params["params"]["rest"]
        return jnp.mean(adapter**2) + jnp.mean(rest**2), Aux()

    def init(key):
        return {"params": {"adapter": jnp.ones(5_000), "rest": jnp.ones(95_000)}}

    return personal(workers=workers)._replace(
        init=init,
        loss=loss,
        evaluation=mean_evaluation({"mse": lambda params, batch: batch["y"]}),
    )


def bytes_per_push(folder: Path, monkeypatch, share: tuple[str, ...]) -> float:
    """Of all that a worker sends in a run: registration, heartbeats, updates."""
    sent: list[int] = []

    def hear(end, *parts):
        if not end._is_server:
            sent.extend(map(len, parts))

    with monkeypatch.context() as patch:
        listen(patch, base._MemoryEnd, hear)
        run = OwnRun(folder, experiment_of(wide(), share=share, min_updates=1))
        run.start_worker(0)
        run.finish()
    return sum(sent) / len(run.events(trace.Pushed))


def test_a_twentieth_of_the_model_is_a_nineteenth_of_the_bytes_at_most(
    tmp_path, monkeypatch
):
    pair = ((), ("params/adapter",))
    whole, part = (
        bytes_per_push(tmp_path / str(len(share)), monkeypatch, share) for share in pair
    )
    assert part * 19 <= whole
