"""Whole runs with keys, as a user starts them: real processes, real keys."""

import shutil

import pytest

from asyn2f import trace
from tests.support.programs import FAST, finish, read, run, start, wait_for_line

pytestmark = [pytest.mark.processes, pytest.mark.slow]
ELSEWHERE = "tcp://192.0.2.1:5570"  # reserved for documentation


@pytest.fixture(scope="module")
def keys_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "keys"
    code, out, err = run("keys", f"--folder={folder}", "--workers=2")
    assert code == 0, err
    assert "copy" in out
    code, _, err = run("keys", f"--folder={folder}", "--add=worker-2")
    assert code == 0, err
    return folder


def with_keys(folder):
    return f"--config.runtime.keys_dir={folder}"


def test_a_run_with_keys_finishes(keys_dir, tmp_path):
    """Server, evaluator and two workers here; a third joins from a machine that has
    its own key and no other, after two that the server does not let in."""
    folder, far = tmp_path / "run", tmp_path / "far"
    for name in ("worker-1", "worker-2"):
        shutil.copytree(keys_dir / "worker-2", far / name)
    flags = [*FAST, f"--workdir={folder}"]
    local = start("local", *flags, with_keys(keys_dir), "--start_workers=2")
    address = wait_for_line(local, "server at tcp").split("server at ")[1].strip()
    try:
        there = [*FAST, f"--workdir={far}", f"--server={address}"]
        wrong = start("worker", *there, with_keys(far), "--worker=1")
        keyless = start("worker", *there, "--worker=2")
        code, _, err = finish(wrong)
        assert code == 2
        assert "worker-2" in err
        code, _, err = finish(keyless)
        assert code == 2
        assert "--config.runtime.keys_dir" in err
        code, out, err = run("worker", *there, with_keys(far), "--worker=2")
        assert code == 0, err
        assert "worker-2: finished" in out
        code, out, err = finish(local)
        assert code == 0, err
    finally:
        local.kill()
    summary = read(folder / "summary.json")
    assert summary["status"] == "finished"
    assert summary["versions"] == 12
    events = [*trace.read(folder / "trace"), *trace.read(far / "trace")]
    actors = {e.actor for e in events if isinstance(e, trace.ProcessStarted)}
    assert actors == {"server", "worker-0", "worker-1", "worker-2", "evaluator"}
    used = {
        key[0] for e in events if isinstance(e, trace.Aggregated) for key in e.updates
    }
    assert 2 in used


@pytest.mark.slow
def test_addresses_beyond_this_machine_require_keys(tmp_path):
    folder = tmp_path / "run"
    flags = [*FAST, f"--workdir={folder}"]
    there = f"--server={ELSEWHERE}"
    started = [
        start("server", *flags, "--config.runtime.address=tcp://0.0.0.0:0"),
        start("local", *flags, f"--config.runtime.address={ELSEWHERE}"),
        start("worker", *flags, there, "--worker=0"),
        start("evaluator", *flags, there),
    ]
    for process in started:
        code, out, err = finish(process)
        assert code == 2, out + err
        assert err.count("\n") == 1
        assert "asyn2f keys" in err
        assert "--insecure" in err
    assert not folder.exists()


@pytest.mark.slow
def test_insecure_is_passed_to_all_processes_with_a_warning(tmp_path):
    flags = [*FAST, f"--workdir={tmp_path / 'run'}", "--config.stop.max_versions=2"]
    everywhere = "--config.runtime.address=tcp://0.0.0.0:0"
    code, _, err = run("local", *flags, everywhere, "--insecure")
    assert code == 0, err
    assert "warning: insecure" in err
