"""Server, workers and evaluator in one process, over both transports."""

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from asyn2f import trace
from asyn2f.errors import StoreError
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.runtime.evaluator import Evaluator
from asyn2f.runtime.io_thread import Journal
from asyn2f.runtime.server import Observer
from asyn2f.runtime.startup import create_server, start_of
from asyn2f.runtime.worker import Worker
from asyn2f.serialization import params_sha256
from asyn2f.store.base import MemoryStore
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import Experiment
from asyn2f.transport.base import MemoryNetwork
from asyn2f.transport.zmq import ZmqTransport
from tests.support.experiments import experiment_with
from tests.support.patience import PATIENCE_S

SAME = ("seed=0",)
SETTINGS = RuntimeSettings(
    heartbeat_interval_s=0.2,
    heartbeat_timeout_s=2.0,
    join_timeout_s=PATIENCE_S,
    worker_speeds=(400.0, 150.0),
)


class Audible:
    """A trace's writer that tells of what it has written."""

    def __init__(
        self, writer: trace.TraceWriter, tell: Callable[[trace.Event], None]
    ) -> None:
        self._writer, self._tell = writer, tell
        self.close = writer.close

    def write(self, event: trace.Event) -> None:
        self._writer.write(event)
        self._tell(event)


class LocalRun:
    """One run as threads: what `launch.local` does with processes."""

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        kind: str = "memory",
        settings: RuntimeSettings = SETTINGS,
        store=None,
        hear: Callable[[trace.Event], None] = lambda event: None,
    ) -> None:
        """`hear`: told of each event when it stands in the trace; on any thread."""
        self._hear = hear
        self.experiment = experiment
        self.settings = settings
        self.folder = folder
        self.rows: list[dict] = []
        self.ended: dict[str, object] = {}
        self._network = MemoryNetwork() if kind == "memory" else None
        self._threads: list[threading.Thread] = []
        self._journals: list[Journal] = []
        self.store = store or MemoryStore()
        size = experiment.template.num_bytes
        if self._network:
            self._transport = self._network.server
        else:
            self._transport = ZmqTransport.bind("tcp://127.0.0.1:0", size, 5)
        self.server = create_server(
            experiment,
            SAME,
            "run-1",
            settings,
            self._transport,
            self.store,
            self._journal("server"),
            Observer(row=self.rows.append, status=lambda status: None),
            self.store.begin_incarnation(),
        )
        self._keep("server", lambda: self.server.run())

    def _journal(self, name: str) -> Journal:
        writer = Audible(trace.TraceWriter(self.folder / "trace", name), self._hear)
        self._journals.append(Journal(writer))
        return self._journals[-1]

    def _keep(self, name: str, run) -> None:
        def body() -> None:
            self.ended[name] = run()

        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _peer_transport(self, depth: int):
        if self._network:
            return self._network.peer()
        address = f"tcp://127.0.0.1:{self._transport.ports()[0]}"
        size = self.experiment.template.num_bytes
        return ZmqTransport.connect_to(address, size, depth)

    def start_worker(self, number: int, terms: tuple[str, ...] = SAME) -> Worker:
        name = f"worker-{number}"
        worker = Worker(self.experiment, number, self.settings, self._journal(name))
        self._keep(name, lambda: worker.run(self._peer_transport(2), terms))
        return worker

    def start_evaluator(self) -> None:
        evaluator = Evaluator(
            self.experiment, self.settings, self._journal("evaluator")
        )
        self._keep("evaluator", lambda: evaluator.run(self._peer_transport(16), SAME))

    def finish(self) -> dict:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} has not ended"
        for journal in self._journals:
            journal.close()
        return self.ended["server"]

    def events(self, kind):
        found = trace.read(self.folder / "trace")
        return [event for event in found if isinstance(event, kind)]


def small(**changes):
    settings = {
        "workers": 3,
        "stop__max_versions": 8,
        "timing__min_updates": 2,
        "timing__epochs_per_push": 1,
        "task__partition": "sizes",
        "task__sizes": (96, 96, 64),
    }
    return experiment_with(**(settings | changes))


@pytest.fixture(scope="module", params=["memory", "zmq"])
def finished(request, tmp_path_factory):
    """A whole asynchronous run, looked at by many tests."""
    run = LocalRun(tmp_path_factory.mktemp(request.param), small(), request.param)
    run.start_evaluator()  # first: the run begins, and may end, with its workers
    for number in range(3):
        run.start_worker(number)
    run.summary = run.finish()
    return run


def test_a_run_reaches_its_last_version_and_ends_everywhere(finished):
    assert finished.summary["status"] == "finished"
    assert finished.summary["versions"] == 8
    assert {
        name: end.status for name, end in finished.ended.items() if name != "server"
    }
    assert all(
        end.status == "finished" for n, end in finished.ended.items() if n != "server"
    )


def test_versions_have_no_gap_and_each_is_made_of_at_least_m_updates(finished):
    made = finished.events(trace.Aggregated)
    assert [event.version for event in made] == list(range(1, 9))
    assert all(len(event.updates) >= 2 for event in made)


def test_coefficients_are_shares(finished):
    for event in finished.events(trace.Aggregated):
        assert min(event.coefficients) >= 0
        assert math.isclose(sum(event.coefficients), 1.0, rel_tol=1e-5)
        assert len(event.coefficients) == len(event.updates) == len(event.staleness)


def test_every_update_pushed_is_settled_once(finished):
    def key(event):
        return (event.worker, event.session, event.seq)

    pushed = {key(event) for event in finished.events(trace.Pushed)}
    settled = finished.events(trace.UpdateSettled)
    by_server = [key(event) for event in settled if event.outcome != "withdrawn"]
    withdrawn = {key(event) for event in settled if event.outcome == "withdrawn"}
    assert len(by_server) == len(set(by_server))
    assert pushed == set(by_server) | withdrawn
    assert sum(finished.summary["updates"].values()) == len(by_server)


def test_committed_updates_are_those_that_stand_in_a_version(finished):
    committed = {
        (event.worker, event.session, event.seq): event.version
        for event in finished.events(trace.UpdateSettled)
        if event.outcome == "committed"
    }
    in_versions = {
        tuple(key): event.version
        for event in finished.events(trace.Aggregated)
        for key in event.updates
    }
    assert committed == in_versions


def test_workers_never_wait_and_merge_in_the_middle_of_epochs(finished):
    assert finished.events(trace.Blocked) == []
    merged = finished.events(trace.Merged)
    assert merged
    assert any(0 < event.epoch_fraction < 1 for event in merged)
    assert all(event.version > event.from_version for event in merged)


def test_no_worker_uses_a_version_before_it_is_published(finished):
    published = {e.version: e.time_s for e in finished.events(trace.Published)}
    for kind in (trace.Received, trace.Adopted, trace.Merged):
        for event in finished.events(kind):
            assert event.time_s >= published[event.version]


def test_the_evaluator_scores_the_last_version_and_the_best_is_kept(finished):
    scored = {event.version: event for event in finished.events(trace.Evaluated)}
    assert 8 in scored
    summary = finished.summary
    best = max(event.scores["accuracy"] for event in scored.values())
    assert summary["best_value"] == best
    assert summary["final_scores"] == scored[8].scores
    assert scored[summary["best_version"]].scores["accuracy"] == best
    assert summary["best_version"] in finished.store.versions()


def test_the_summary_names_the_model_in_the_store(finished):
    like = jax.eval_shape(lambda: start_of(finished.experiment, MemoryStore()).state)
    state, record = finished.store.load(8, like)
    assert finished.summary["params_sha256"] == params_sha256(state.model.params)
    assert record["version"] == 8
    assert record["parent"] == 7


def test_bytes_are_counted(finished):
    size = finished.experiment.template.num_bytes
    received = len(finished.events(trace.Pushed))
    assert 0 < finished.summary["bytes_up"] <= received * (size + 500)
    downloads = len(finished.events(trace.Received))
    assert finished.summary["bytes_down"] >= downloads * size


def test_metrics_have_a_row_for_every_version_and_every_score(finished):
    versions = [row["version"] for row in finished.rows if row["kind"] == "version"]
    assert versions == list(range(1, 9))
    scores = [row for row in finished.rows if row["kind"] == "score"]
    assert all(0 <= row["scores"]["accuracy"] <= 1 for row in scores)


def test_fedavg_waits_for_everybody_in_every_round(tmp_path):
    run = LocalRun(tmp_path, small(strategy__name="fedavg", stop__max_versions=3))
    for number in range(3):
        run.start_worker(number)
    assert run.finish()["status"] == "finished"
    for event in run.events(trace.Aggregated):
        assert sorted(key[0] for key in event.updates) == [0, 1, 2]
        assert event.staleness == [0, 0, 0]
        np.testing.assert_allclose(
            sorted(event.coefficients), [64 / 256, 96 / 256, 96 / 256], rtol=1e-6
        )
    assert run.events(trace.Merged) == []
    assert len(run.events(trace.Blocked)) >= 6


def test_batch_norm_statistics_travel_merge_and_stay_variances(tmp_path):
    made = small(
        task__model="cnn",
        task__channels=(4, 6),
        task__batch_norm=True,
        stop__max_versions=5,
    )
    run = LocalRun(tmp_path, made, "zmq")
    for number in range(3):
        run.start_worker(number)
    summary = run.finish()
    assert summary["versions"] == 5
    like = jax.eval_shape(lambda: start_of(made, MemoryStore()).state)
    final = run.store.load(5, like).state.model.params
    statistics = final["batch_stats"]["BatchNorm_0"]
    assert (np.asarray(statistics["var"]) > 0).all()
    assert not np.allclose(statistics["mean"], 0.0)


@pytest.mark.parametrize(
    "wire",
    [
        {},
        {"wire__updates": "int8", "wire__delta": True, "wire__versions": "int8"},
        {"wire__updates": "topk", "wire__versions": "bfloat16"},
    ],
)
def test_a_worker_joins_late_and_another_leaves_early(tmp_path, wire):
    run = LocalRun(
        tmp_path,
        small(min_workers=1, stop__max_versions=12, timing__min_updates=1, **wire),
        settings=SETTINGS,
    )
    first = run.start_worker(0)
    joined = threading.Event()

    def watch(row):
        run.rows.append(row)
        if row["kind"] == "version" and row["version"] == 3:
            run.start_worker(1)
        if row["kind"] == "version" and row["version"] == 6:
            first.stop("enough")
            joined.set()

    run.server._observer = run.server._observer._replace(row=watch)
    summary = run.finish()
    assert joined.is_set()
    assert summary["versions"] == 12
    adopted = {e.worker: e.version for e in run.events(trace.Adopted)}
    assert adopted[0] == 0
    assert adopted[1] >= 2
    assert run.ended["worker-0"].reason == "enough"


def test_a_worker_with_another_config_is_turned_away_at_once(tmp_path):
    run = LocalRun(tmp_path, small(min_workers=1))
    run.start_worker(0, terms=("seed=1",))
    run._threads[-1].join(PATIENCE_S)
    ended = run.ended["worker-0"]
    assert ended.status == "refused"
    assert "its settings differ from the server's: seed is 1, there 0" in ended.reason
    run.server.stop("enough")
    assert run.finish()["status"] == "interrupted"


def test_a_run_can_be_stopped_before_anybody_came(tmp_path):
    run = LocalRun(tmp_path, small())
    run.server.stop("SIGTERM")
    summary = run.finish()
    assert (summary["status"], summary["versions"]) == ("interrupted", 0)


def test_a_target_ends_the_run(tmp_path):
    run = LocalRun(tmp_path, small(stop__max_versions=0, stop__target=0.5, workers=3))
    for number in range(3):
        run.start_worker(number)
    run.start_evaluator()
    summary = run.finish()
    assert summary["status"] == "finished"
    assert summary["best_value"] >= 0.5
    assert "accuracy" in summary["reason"]


def test_a_run_goes_on_where_it_ended(tmp_path):
    folder = tmp_path / "models"
    first = LocalRun(tmp_path / "a", small(), store=OrbaxStore(folder))
    for number in range(3):
        first.start_worker(number)
    first.start_evaluator()
    before = first.finish()

    store = OrbaxStore(folder)
    second = LocalRun(tmp_path / "b", small(stop__max_versions=12), store=store)
    for number in range(3):
        second.start_worker(number)
    second.start_evaluator()
    after = second.finish()
    made = second.events(trace.Aggregated)
    assert [event.version for event in made] == [9, 10, 11, 12]
    assert {event.incarnation for event in made} == {2}
    assert after["updates"]["committed"] > before["updates"]["committed"]
    assert after["wall_s"] > before["wall_s"]
    assert after["best_value"] >= before["best_value"]
    assert second.events(trace.Published)[0].version == 8
    store.close()


def test_a_damaged_newest_version_is_set_aside_for_the_one_before(tmp_path):
    made = small()
    store = OrbaxStore(tmp_path / "models")
    start = start_of(made, store)
    for version in (0, 1):
        state = start.state._replace(
            model=start.state.model._replace(version=np.int32(version))
        )
        store.save(version, state, {})
    (tmp_path / "models" / "1" / "state" / "manifest.ocdbt").write_bytes(b"?")
    assert int(start_of(made, store).state.model.version) == 0
    assert store.versions() == [0]
    store.save(1, start.state, {})  # and it can be made again
    (tmp_path / "models" / "0" / "state" / "manifest.ocdbt").write_bytes(b"?")
    (tmp_path / "models" / "1" / "state" / "manifest.ocdbt").write_bytes(b"?")
    with pytest.raises(StoreError, match="no version in the store can be used"):
        start_of(made, store)
    store.close()


def test_a_diverged_update_is_rejected_and_changes_nothing(tmp_path):
    run = LocalRun(
        tmp_path,
        small(
            min_workers=1,
            timing__min_updates=1,
            stop__max_versions=0,
            stop__max_time_s=4.0,
        ),
    )
    worker = run.start_worker(0)
    diverged = threading.Event()

    def spoil(row):
        if row["kind"] == "version" and row["version"] == 2:
            push = worker._trainer.push

            def push_nan(state):
                update, state = push(state)
                params = jax.tree.map(lambda leaf: leaf * np.nan, update.params)
                return update._replace(params=params), state

            worker._trainer = worker._trainer._replace(push=push_nan)
            diverged.set()

    run.server._observer = run.server._observer._replace(row=spoil)
    summary = run.finish()
    assert diverged.is_set()
    assert summary["updates"]["rejected"] > 0
    rejected = [e for e in run.events(trace.UpdateSettled) if e.outcome == "rejected"]
    assert any("not finite" in event.reason for event in rejected)
    like = jax.eval_shape(lambda: start_of(run.experiment, MemoryStore()).state)
    final = run.store.load(summary["versions"], like).state.model.params
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final))


def test_a_worker_says_how_far_it_is_also_in_the_middle_of_a_cycle(tmp_path):
    """Who is slow must not look as if it hung: see `StallDetector`."""
    experiment = small(
        workers=2, task__sizes=(96, 96), strategy__name="fedavg", min_workers=1
    )
    settings = dataclasses.replace(
        SETTINGS, worker_speeds=(8.0,), heartbeat_interval_s=0.1
    )
    long_cycle = dataclasses.replace(experiment.strategy.timing, epochs_per_push=10_000)
    strategy = experiment.strategy._replace(timing=long_cycle)
    run = LocalRun(tmp_path, experiment._replace(strategy=strategy), settings=settings)
    steps, has_said = [0], threading.Event()

    def watch(status):
        step = status.workers[0].step if status.workers else 0
        steps.extend([step] * (step > steps[-1]))
        if len(steps) == 4:
            has_said.set()

    run.server._observer = run.server._observer._replace(status=watch)
    run.start_worker(0)
    assert has_said.wait(PATIENCE_S), f"its heartbeats said {steps}"
    run.server.stop("enough")
    run.finish()
    assert not run.events(trace.Pushed)
