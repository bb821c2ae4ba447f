"""The programs as a user runs them: real processes, real sockets, real signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyn2f import trace
from tests.support.crashed_run import newest_saved
from tests.support.patience import PATIENCE_S, Crowd
from tests.support.programs import (
    ENDLESS,
    FAST,
    children_of,
    finish,
    has_ended,
    read,
    run,
    start,
    wait_for_line,
)

pytestmark = pytest.mark.processes
WORKING = r"version [1-9]"  # a line of progress


def has_loaded(pid: int, library: str) -> bool:
    """Whether a process has a library of such a name (Linux)."""
    try:
        return library in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of server, three workers and evaluator, to its end."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    code, out, err = run("local", *FAST, f"--workdir={folder}")
    assert code == 0, err
    return folder, out


def test_a_run_ends_by_itself_and_names_its_results(finished):
    folder, out = finished
    assert out.startswith("starting a server, 3 workers and an evaluator\n")
    assert "finished" in out
    assert "report.html" in out
    assert str(folder) in out


def test_the_summary_is_complete(finished):
    summary = read(finished[0] / "summary.json")
    assert summary["status"] == "finished"
    assert summary["strategy"] == "asyn2f"
    assert summary["seed"] == 0
    assert summary["versions"] == 12
    assert 0 <= summary["best_version"] <= 12
    assert 0 < summary["best_value"] <= 1
    assert 0 < summary["final_scores"]["accuracy"] <= summary["best_value"]
    assert summary["wall_s"] > 0
    assert summary["updates"]["committed"] >= 24
    assert set(summary["updates"]) == {"committed", "superseded", "rejected"}
    assert summary["bytes_up"] > 0
    assert summary["bytes_down"] > 0
    assert len(summary["params_sha256"]) == 64


def test_report_curves_and_models_are_written(finished):
    folder = finished[0]
    assert (folder / "report.html").stat().st_size > 100_000
    assert list((folder / "tensorboard").glob("events*"))
    assert (folder / "models" / "12" / "state").is_dir()
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"version", "score"}


def test_every_process_wrote_its_trace(finished):
    events = trace.read(finished[0] / "trace")
    actors = {e.actor for e in events if isinstance(e, trace.ProcessStarted)}
    assert actors == {"server", "worker-0", "worker-1", "worker-2", "evaluator"}
    merged = [event for event in events if isinstance(event, trace.Merged)]
    assert any(0 < event.epoch_fraction < 1 for event in merged)


def test_a_workdir_that_holds_a_run_is_left_alone(finished):
    folder = finished[0]
    before = (folder / "summary.json").read_text()
    code, _, err = run("local", *FAST, f"--workdir={folder}")
    assert code == 2
    assert "--resume" in err
    assert "--overwrite" in err
    assert (folder / "summary.json").read_text() == before


def test_a_run_is_resumed_where_it_ended(finished):
    folder = finished[0]
    more = "--config.stop.max_versions=16"
    code, _, err = run("local", *FAST, more, f"--workdir={folder}", "--resume")
    assert code == 0, err
    assert read(folder / "summary.json")["versions"] == 16
    events = trace.read(folder / "trace")
    made = [e.version for e in events if isinstance(e, trace.Aggregated)]
    assert made == list(range(1, 17))


@pytest.mark.slow
def test_a_run_is_not_resumed_as_another_experiment(finished):
    folder = finished[0]
    code, _, err = run(
        "local", *FAST, "--config.seed=5", f"--workdir={folder}", "--resume"
    )
    assert code == 2
    assert "config.seed: found 5" in err
    assert (folder / "summary.json").exists()


WRONG = [  # of each kind one in the ordinary suite: a process each
    (["--config.training.momentm=0.5"], ["did you mean training.momentum"]),
    (["--config.training.momentum=2.0"], ["training.momentum", "2.0", "[0, 1)"]),
    (["--config=configs/nothing.py"], ["nothing.py"]),
    (["--confg.seed=1"], ["confg"]),
    (["--resume"], ["holds no run"]),
]
WRONG_TOO = [
    (["--config.traning.momentum=0.5"], ["did you mean"]),
    (["--config.workers=many"], ["workers=many: found 'many', allowed: an integer"]),
    (["--config.sim.jitter=wide"], ["jitter=wide: found 'wide', allowed: a number"]),
    (["--config.strategy.name=fedsgd"], ["fedsgd", "asyn2f, ca2fl"]),
    (["--config.task.dataset=mnits"], ["mnits", "digits"]),
    (["stray"], ["stray"]),
    (["--resume", "--overwrite"], ["exclude each other"]),
]


@pytest.mark.parametrize(
    ("flags", "words"),
    [*WRONG, *(pytest.param(*each, marks=pytest.mark.slow) for each in WRONG_TOO)],
)
def test_wrong_input_is_one_clear_line_and_exit_code_2(tmp_path, flags, words):
    folder = tmp_path / "run"
    if not any(flag.startswith("--config=") for flag in flags):
        flags = ["--config=configs/digits.py", *flags]
    code, out, err = run("local", f"--workdir={folder}", *flags)
    assert code == 2, out + err
    assert "Traceback" not in out + err
    for word in words:
        assert word in err
    assert not folder.exists()


def test_without_a_config_no_process_joins_others(tmp_path):
    """They have to agree; a whole run takes the packaged one, see test_package.py."""
    code, _, err = run("server", f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "--config must be given" in err


def test_without_a_workdir_nothing_starts():
    code, _, err = run("local", "--config=configs/digits.py")
    assert code == 2
    assert "--workdir must be given" in err


def test_a_port_in_use_is_reported_and_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "summary.json").write_text("precious")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        address = f"--config.runtime.address=tcp://127.0.0.1:{port}"
        flags = [address, f"--workdir={folder}", "--overwrite"]
        code, _, err = run("local", *FAST, *flags)
    assert code == 2
    assert "cannot listen" in err
    assert (folder / "summary.json").read_text() == "precious"
    assert "Traceback" not in err


@pytest.mark.timed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything_within_five_seconds(tmp_path, number):
    folder = tmp_path / "run"
    process = start("local", *ENDLESS, f"--workdir={folder}")
    wait_for_line(process, WORKING)
    family = children_of(process.pid)
    assert len(family) >= 5
    start_s = time.monotonic()
    process.send_signal(number)
    with Crowd() as crowd:
        code, out, err = finish(process)
        assert code == 130, out + err
        assert all(has_ended(pid, start_s + PATIENCE_S) for pid in family)
    assert time.monotonic() - start_s < 5.0 * crowd.factor
    summary = read(folder / "summary.json")
    assert summary["status"] == "interrupted"
    assert summary["versions"] >= 1
    assert len(summary["params_sha256"]) == 64
    assert (folder / "report.html").exists()


@pytest.mark.timed
def test_a_signal_before_the_run_has_begun_ends_it_too(tmp_path):
    folder = tmp_path / "run"
    process = start("local", *ENDLESS, f"--workdir={folder}")
    wait_for_line(process, "server at")
    start_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    with Crowd() as crowd:
        code, out, err = finish(process)
    assert time.monotonic() - start_s < 5.0 * crowd.factor
    assert code == 130, out + err
    assert read(folder / "summary.json")["status"] == "interrupted"


def test_ctrl_c_while_it_imports_shows_nothing_and_leaves_nothing(tmp_path):
    """Neither the launcher nor what its children are forked from."""
    flags = [*ENDLESS, f"--workdir={tmp_path / 'run'}"]
    process = start("local", *flags, process_group=0)
    while not any(has_loaded(pid, "_multiarray") for pid in children_of(process.pid)):
        assert process.poll() is None
        os.sched_yield()
    family = children_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = finish(process)
    assert code in (130, -signal.SIGINT)
    assert "Traceback" not in out + err
    by_s = time.monotonic() + PATIENCE_S
    assert all(has_ended(pid, by_s) for pid in family)


def test_neither_its_output_nor_its_fork_server_is_needed_to_finish(tmp_path):
    """A full disk behind standard output, and the process is killed that the others
    were forked from: all that matters is what they leave."""
    folder, last = tmp_path / "run", 25
    flags = [*FAST, f"--config.stop.max_versions={last}", f"--workdir={folder}"]
    with open("/dev/full", "w") as full:
        process = start("local", *flags, stdout=full)
    while newest_saved(folder / "models") < 1:
        assert process.poll() is None
        os.sched_yield()
    family = children_of(process.pid)
    os.kill(_parent_of(_pid_of(folder, "server")), signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 0, err
    assert "standard output cannot be written: No space left on device" in err
    summary = read(folder / "summary.json")
    assert (summary["status"], summary["versions"]) == ("finished", last)
    by_s = time.monotonic() + PATIENCE_S
    assert all(has_ended(pid, by_s) for pid in family)


@pytest.mark.parametrize(
    "when", ["logs/server.log", "logs/evaluator.log", "server.json"]
)
def test_a_launcher_that_is_killed_early_leaves_no_process(tmp_path, when):
    """Its children wait for an address that it will not tell them."""
    folder = tmp_path / "run"
    process = start("local", *ENDLESS, f"--workdir={folder}")
    while not (folder / when).exists():
        assert process.poll() is None
        os.sched_yield()
    family = children_of(process.pid)
    process.kill()
    process.communicate()
    by_s = time.monotonic() + PATIENCE_S
    assert all(has_ended(pid, by_s) for pid in family)


@pytest.mark.timed
def test_a_killed_server_ends_a_local_run_with_a_summary(tmp_path):
    folder = tmp_path / "run"
    process = start("local", *ENDLESS, f"--workdir={folder}")
    wait_for_line(process, WORKING)
    family = children_of(process.pid)
    os.kill(_pid_of(folder, "server"), signal.SIGKILL)
    start_s = time.monotonic()
    with Crowd() as crowd:
        code, out, err = finish(process)
        assert code == 1, out + err
        assert all(has_ended(pid, start_s + PATIENCE_S) for pid in family)
    assert time.monotonic() - start_s < 5.0 * crowd.factor
    summary = read(folder / "summary.json")
    assert summary["wall_s"] > 0
    assert summary["updates"]["committed"] >= 2 * summary["versions"]
    assert summary["bytes_up"] > 0
    assert summary["status"] == "failed"
    assert "server ended with -9" in summary["reason"]
    assert summary["versions"] >= 1


def test_a_killed_worker_delays_no_other_and_is_replaced(tmp_path):
    folder = tmp_path / "run"
    flags = [*ENDLESS, f"--workdir={folder}"]
    local = start("local", *flags)
    wait_for_line(local, WORKING)
    victim = _pid_of(folder, "worker-1")
    while os.getpriority(os.PRIO_PROCESS, victim) != 10:  # as soon as it has joined
        os.sched_yield()
    os.kill(victim, signal.SIGKILL)
    wait_for_line(local, "worker-1 ended")
    newcomer = start("worker", *flags, "--worker=1", stderr=subprocess.STDOUT)
    wait_for_line(newcomer, "joined run")
    joined_at = newest_saved(folder / "models")
    for program in ("simulate", "server"):  # which must not delete a live run
        code, out, err = run(program, *flags, "--overwrite")
        assert (code, out) == (2, "")
        assert "is in use by a live run" in err
    while True:  # until it has seen some versions come
        version = re.search(r"version (\d+)", wait_for_line(local, WORKING))
        if int(version.group(1)) > joined_at + 15:
            break
    local.send_signal(signal.SIGTERM)
    code, _, err = finish(local)
    assert code == 130, err
    code, out, _ = finish(newcomer)
    assert code == 0, out
    events = trace.read(folder / "trace")
    sessions = [e.session for e in events if isinstance(e, trace.WorkerJoined)]
    assert len(set(sessions)) == 4
    joined_s = max(e.time_s for e in events if isinstance(e, trace.WorkerJoined))
    later = [e for e in events if e.time_s > joined_s]
    assert any(isinstance(e, trace.Merged) and e.worker == 1 for e in later)
    assert any(isinstance(e, trace.Merged) and e.worker == 0 for e in later)
    left = [e for e in events if isinstance(e, trace.WorkerLeft)]
    assert [(e.worker, e.reason) for e in left if e.reason == "silent"] == [
        (1, "silent")
    ]
    assert read(folder / "summary.json")["status"] == "interrupted"


def test_server_worker_and_evaluator_are_started_by_hand(tmp_path):
    folder = tmp_path / "run"
    flags = [*FAST, "--config.min_workers=1", f"--workdir={folder}"]
    server = start("server", *flags)
    line = wait_for_line(server, "listening at")
    address = next(word for word in line.split() if word.startswith("tcp://"))
    peers = [
        start("worker", *flags, "--worker=0", f"--server={address.rstrip(',')}"),
        start("worker", *flags, "--worker=2"),
        start("evaluator", *flags),
    ]
    code, out, log = finish(server)
    assert code == 0, out + log
    date = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    for event in (r"worker [02] has joined with \d+ ", r"worker [02] has left: "):
        assert len(re.findall(f"^{date}{event}", log, re.MULTILINE)) == 2, log
    assert re.search(f"^{date}the evaluator has joined", log, re.MULTILINE)
    assert re.search(f"^{date}00:.*version 12", out, re.MULTILINE)
    for peer in peers:
        code, out, err = finish(peer)
        assert code == 0, out + err
    assert read(folder / "summary.json")["versions"] == 12


def test_a_run_without_an_evaluator_warns(tmp_path):
    folder = tmp_path / "run"
    flags = [*FAST, "--config.workers=1", "--config.timing.min_updates=1"]
    flags += ["--config.stop.max_versions=2", f"--workdir={folder}"]
    server = start("server", *flags)
    wait_for_line(server, "listening at")
    worker = start("worker", *flags, "--worker=0")
    code, out, err = finish(server)
    assert code == 0, out + err
    assert "warning: no version was evaluated" in out
    assert "no version was evaluated" in read(folder / "summary.json")["warnings"][0]
    assert finish(worker)[0] == 0


def test_a_worker_without_a_server_gives_up_with_a_reason(tmp_path):
    code, _, err = run(
        "worker",
        *FAST,
        "--config.runtime.join_timeout_s=1.0",
        f"--workdir={tmp_path}",
        "--worker=0",
        "--server=tcp://127.0.0.1:9",
    )
    assert code == 2
    assert "could not register within 1 s" in err


def test_a_worker_without_a_shard_is_refused(tmp_path):
    code, _, err = run("worker", *FAST, f"--workdir={tmp_path}", "--worker=3")
    assert code == 2
    assert "found 3, allowed: 0 to 2" in err


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _pid_of(folder: Path, name: str) -> int:
    """The process that holds a child's log open."""
    log = (folder / "logs" / f"{name}.log").resolve()
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if link.resolve() == log:
                return int(link.parent.parent.name)
        except OSError:
            continue
    raise AssertionError(f"no process writes {log}")


@pytest.mark.slow
def test_a_killed_server_comes_back_and_its_workers_with_it(tmp_path):
    folder = tmp_path / "run"
    flags = [*ENDLESS, "--config.workers=2", f"--workdir={folder}"]
    server = start("server", *flags)
    wait_for_line(server, "listening at")
    workers = [start("worker", *flags, f"--worker={number}") for number in (0, 1)]
    wait_for_line(server, r"version [5-9]|version \d\d")
    server.kill()
    server.communicate()
    lived_until = newest_saved(folder / "models")
    again = start("server", *flags, "--resume")
    while True:
        version = re.search(r"version (\d+)", wait_for_line(again, WORKING))
        if int(version.group(1)) > lived_until + 5:
            break
    again.send_signal(signal.SIGINT)
    code, out, err = finish(again)
    assert code == 130, out + err
    for worker in workers:
        code, out, err = finish(worker)
        assert code == 0, out + err
    events = trace.read(folder / "trace")
    made = [e for e in events if isinstance(e, trace.Aggregated)]
    # The one that was on its way when the server died was made again.
    last = {event.version: event for event in made}
    assert sorted(last) == list(range(1, max(last) + 1))
    assert {event.incarnation for event in made} == {1, 2}
    keys = [tuple(key) for event in last.values() for key in event.updates]
    assert len(keys) == len(set(keys))
    sessions = {e.session for e in events if isinstance(e, trace.WorkerJoined)}
    assert len(sessions) == 2


@pytest.mark.parametrize("is_background", [True, False])
def test_workers_lower_their_priority(is_background):
    """In all threads, also those of XLA, which started before."""
    code = (
        "import os, threading\n"
        "from asyn2f.cli.children import lower_priority\n"
        "begun, over = threading.Event(), threading.Event()\n"
        "def say():\n"
        "    begun.wait()\n"
        "    print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.nice(0))\n"
        "thread = threading.Thread(target=say, daemon=True)\n"
        "thread.start()\n"
        f"lower_priority({is_background})\n"
        "begun.set()\n"
        "thread.join()\n"
        "print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.nice(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = "True 0" if is_background else "False 10"
    assert done.stdout.split() == 2 * expected.split(), done.stderr
