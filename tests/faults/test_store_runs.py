"""Runs whose store fails, hangs, or is taken over lose nothing."""

import dataclasses
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from asyn2f import trace
from asyn2f.errors import FencedError, StoreError
from asyn2f.protocol import pipeline, shutdown
from asyn2f.report.metrics import MetricsWriter, read_metrics
from asyn2f.runtime import server as servers
from asyn2f.runtime.server import Server
from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.from_trace import recording_of
from asyn2f.store.base import MemoryStore
from asyn2f.store.orbax import OrbaxStore
from asyn2f.trace.artifacts import RunArtifacts, commit_of
from asyn2f.trace.invariants import check
from tests.contracts.test_runtime import SETTINGS, LocalRun, small
from tests.support.patience import PATIENCE_S, Crowd, wait_until
from tests.support.programs import ENDLESS, ROOT, finish, start, wait_for_line

pytestmark = pytest.mark.usefixtures("patient_stores")


class FaultyStore(MemoryStore):
    """A store that fails, or hangs, from a version on until `is_over`."""

    def __init__(self, trouble: str, at: int) -> None:
        super().__init__()
        self.trouble, self.at = trouble, at
        self.began = threading.Event()  # the fault has
        self.is_over = threading.Event()
        self.failures = 0

    def save(self, version, state, record):
        if version >= self.at and not self.is_over.is_set():
            self.began.set()
            if self.trouble == "fails":
                self.failures += 1
                raise StoreError("no space left on device")
            self.is_over.wait(PATIENCE_S)
        super().save(version, state, record)


def checked(run, **rest):
    """The result of checking the run's invariants."""
    records = {v: run.store._versions[v].record for v in run.store.versions()}
    commits = {version: commit_of(record) for version, record in records.items()}
    return check(RunArtifacts(trace.read(run.folder / "trace"), commits, **rest))


@pytest.mark.parametrize("announce", ["after_save", "before_save"])
@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_workers_train_while_the_store_is_unavailable_and_nothing_is_lost(
    tmp_path, monkeypatch, trouble, announce
):
    monkeypatch.setattr(pipeline, "_SAVE_AGAIN_S", 0.1)
    settings = dataclasses.replace(SETTINGS, publish=announce)
    store = FaultyStore(trouble, at=3)
    run = LocalRun(tmp_path, small(), settings=settings, store=store)
    for number in range(3):
        run.start_worker(number)
    assert store.began.wait(PATIENCE_S)
    began_s = time.time()

    def pushes():
        return sum(event.time_s > began_s for event in run.events(trace.Pushed))

    wait_until(lambda: pushes() >= 6 and (trouble != "fails" or store.failures >= 3))
    given_out = max(event.version for event in run.events(trace.Published))
    assert given_out == (2 if announce == "after_save" else 3)
    assert store.versions() == [0, 1, 2]
    store.is_over.set()
    assert run.finish()["status"] == "finished"
    assert store.versions() == list(range(9))
    result = checked(run, before_save=announce == "before_save")
    assert result.violations == []
    assert result.outcomes["pending"] == 0


def test_a_store_that_hangs_does_not_delay_the_end_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutdown, "_SILENCE_S", 0.5)
    monkeypatch.setattr(servers, "_STORE_PATIENCE_S", 0.2)
    store = FaultyStore("hangs", at=3)
    run = LocalRun(tmp_path, small(), store=store)
    for number in range(3):
        run.start_worker(number)
    assert store.began.wait(PATIENCE_S)
    run.server.stop("enough")
    summary = run.finish()
    assert not store.is_over.is_set()
    assert (summary["status"], summary["versions"]) == ("interrupted", 2)
    # What answers when the summary is written changes nothing any more.
    store.is_over.set()
    run.server._saver._thread.join(PATIENCE_S)
    assert store.versions() == [0, 1, 2]
    result = checked(run)
    assert result.violations == []
    # Nobody was told what became of the updates of the version that was on its way.
    told = {event.version for event in run.events(trace.OutcomeReceived)}
    assert 3 not in told
    assert executed(run, summary) == summary["params_sha256"]


def executed(run, summary) -> str:
    """The digest of the parameters that executing the run's trace gives."""
    events = trace.read(run.folder / "trace")
    order = recording_of(events, summary["versions"]).order
    result = execute_serially(run.experiment, order)
    return params_sha256(result.state.model.params)


def test_a_save_that_completes_during_shutdown_is_in_the_summary(tmp_path, monkeypatch):
    """The run has ended for its peers; the store answers before the server does."""
    monkeypatch.setattr(shutdown, "_SILENCE_S", 0.3)
    monkeypatch.setattr(servers, "_STORE_PATIENCE_S", PATIENCE_S)
    store = FaultyStore("hangs", at=3)
    run = LocalRun(tmp_path, small(), store=store)
    for number in range(3):
        run.start_worker(number)
    assert store.began.wait(PATIENCE_S)
    run.server.stop("enough")
    wait_until(lambda: any(e.actor == "server" for e in run.events(trace.Stopped)))
    store.is_over.set()
    summary = run.finish()
    assert summary["versions"] == max(store.versions()) == 3
    assert [event.version for event in run.events(trace.Saved)] == [1, 2, 3]
    committed = [e for e in run.events(trace.UpdateSettled) if e.outcome == "committed"]
    assert len(committed) == summary["updates"]["committed"]
    assert checked(run).violations == []
    assert executed(run, summary) == summary["params_sha256"]


def test_a_fenced_server_ends_at_once(tmp_path, monkeypatch):
    serve, ended_s = Server.run, []

    def run_until_fenced(self):
        try:
            return serve(self)
        except FencedError as error:
            return error
        finally:
            ended_s.append(time.monotonic())

    monkeypatch.setattr(Server, "run", run_until_fenced)
    store, other = OrbaxStore(tmp_path / "models"), OrbaxStore(tmp_path / "models")
    experiment = small(stop__max_versions=100_000)
    settings = dataclasses.replace(SETTINGS, server_timeout_s=2.5)
    run = LocalRun(tmp_path, experiment, settings=settings, store=store)
    for number in range(3):
        run.start_worker(number)
    wait_until(lambda: max(store.versions()) >= 3)
    assert other.begin_incarnation() == 2
    replaced_s = time.monotonic()
    versions = other.versions()
    with Crowd() as crowd:
        ended = run.finish()
    assert isinstance(ended, FencedError)
    assert "another server has taken this run over, as incarnation 2" in str(ended)
    assert ended_s[0] - replaced_s < 2.0 * crowd.factor
    assert other.versions() == versions
    # They were told nothing: the other server might have taken them over.
    ends = {run.ended[f"worker-{number}"].reason for number in range(3)}
    assert ends == {"the server has been silent for 2.5 s"}
    for each in (store, other):
        each.close()


# ------------------------------------------------------- what else writes to the disk


class FullFile(io.FileIO):
    """A file on a disk with room for a number of bytes."""

    room = 0

    def write(self, text):
        if not self.room:
            raise OSError(28, "No space left on device")
        count = min(self.room, len(text))
        self.room -= count
        return super().write(bytes(text)[:count])


def test_lines_of_a_trace_wait_for_disk_space(tmp_path, caplog):
    writer = trace.TraceWriter(tmp_path, "server")
    writer._file.close()
    writer._file = FullFile(tmp_path / "server.jsonl", "a")
    events = [trace.Evaluated(float(n), n, {"accuracy": 0.5}) for n in range(9)]
    writer._file.room = 100  # one line and a part of the next
    for event in events[:5]:
        writer.write(event)
    assert trace.read(tmp_path) == events[:1]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    writer._file.room = 10_000
    for event in events[5:]:
        writer.write(event)
    assert trace.read(tmp_path) == events
    writer._file.room = 30
    writer.write(events[0])
    writer.write(events[1])
    with caplog.at_level(logging.ERROR):
        writer.close()
    assert "is missing its last 2 events" in caplog.text
    assert trace.read(tmp_path) == events


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_metrics_resume_when_there_is_disk_space(tmp_path):
    writer = MetricsWriter(tmp_path)
    file, board = writer._file, writer._board
    writer._file = FullFile(tmp_path / "metrics.jsonl", "a")
    writer.write({"kind": "score", "version": 1, "scores": {"accuracy": 0.1}})
    writer._file.close()
    writer._file = file

    def fail(*_):
        raise OSError(28, "No space left on device")

    worker = board.file_writer.event_writer._worker
    worker._record_writer.write_event = fail
    writer.write({"kind": "score", "version": 2, "scores": {"accuracy": 0.2}})
    worker.join(PATIENCE_S)
    assert not worker.is_alive()
    for version in range(3, 203):  # more than its queue holds
        writer.write({"kind": "score", "version": version, "scores": {"accuracy": 0.3}})
    writer.close()
    assert [row["version"] for row in read_metrics(tmp_path)] == list(range(2, 203))


# ------------------------------------------------------------------ two processes


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("first", ["lives", "stands still"])
def test_the_second_of_two_servers_takes_over(tmp_path, first):
    folder = tmp_path / "run"
    flags = [*ENDLESS, "--config.workers=4", "--config.min_workers=2"]
    # Peers of a server that stands still wait this long for it.
    flags += ["--config.runtime.server_timeout_s=5.0", f"--workdir={folder}"]
    peers = []

    def work(server, *numbers):
        line = wait_for_line(server, "listening at")
        address = next(word for word in line.split() if word.startswith("tcp://"))
        there = f"--server={address.rstrip(',')}"
        for number in numbers:
            peers.append(start("worker", *flags, there, f"--worker={number}"))

    old = start("server", *flags)
    work(old, 0, 1)
    wait_for_line(old, r"version [3-9]|version \d\d")
    if first == "stands still":
        old.send_signal(signal.SIGSTOP)
    new = start("server", *flags, "--resume")
    work(new, 2, 3)
    wait_for_line(new, r"version \d")
    resumed_s = time.monotonic()
    old.send_signal(signal.SIGCONT)
    with Crowd() as crowd:
        out, err = old.communicate(timeout=PATIENCE_S)
    took_s = time.monotonic() - resumed_s
    assert old.returncode == 2, out + err
    assert "error: " in err
    assert "another server has taken this run over, as incarnation 2" in err
    assert not (folder / "summary.json").exists()
    if first == "stands still":
        # 2 s, and the end of a process with JAX in it.
        assert took_s < 4.0 * crowd.factor
    for _ in range(3):
        wait_for_line(new, r"version \d\d")
    new.send_signal(signal.SIGINT)
    code, out, err = finish(new)
    assert code == 130, out + err
    for peer in peers:
        finish(peer)
    done = subprocess.run(
        [sys.executable, "-m", "launch.verify", f"--run={folder}", "--deep"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = trace.read(folder / "trace")
    made = {event.version: event for event in events if isinstance(event, trace.Saved)}
    assert sorted(made) == list(range(1, max(made) + 1))
    assert {event.incarnation for event in made.values()} == {1, 2}
