"""`launch.verify` on runs as they are made, and on folders that were spoilt."""

import re

import pytest

from asyn2f import rundir, trace
from tests.support.programs import run

pytestmark = pytest.mark.processes


def verify(folder, *flags):
    code, out, err = run("verify", f"--run={folder}", *flags)
    words = {}
    for line in out.splitlines():
        for word in ("holds", "BROKEN", "unverified"):
            if line.strip().startswith(word) and "  " in line.strip():
                words[line.strip().removeprefix(word).split()[0]] = word
    return code, words, out, err


@pytest.fixture(
    scope="module",
    params=[pytest.param("real", marks=pytest.mark.slow), "simulated"],
)
def made(request, tmp_path_factory):
    """A run of a few versions, by the runtime or under a virtual clock."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    flags = ["--config=configs/digits.py", f"--workdir={folder}"]
    flags += ["--config.workers=3", "--config.stop.max_versions=6"]
    flags += ["--config.timing.epochs_per_push=1", "--config.timing.min_updates=2"]
    if request.param == "simulated":
        flags += ["--config.sim.step_s=0.01,", "--config.sim.executor=serial"]
    code, out, err = run("local" if request.param == "real" else "simulate", *flags)
    assert code == 0, out + err
    return request.param, folder


def test_all_invariants_of_a_run_hold(made):
    kind, folder = made
    code, words, out, err = verify(folder, "--deep")
    assert (code, err) == (0, ""), out
    assert "BROKEN" not in words.values()
    held = {"I1", "I2", "I5", "I10", "I13", "I16", "records", "causality"}
    if kind == "real":
        held |= {"I3", "I4", "I6", "I7", "I11", "I12", "I17"}
    assert {name for name, word in words.items() if word == "holds"} == held
    count = len([x for x in (folder / "models").iterdir() if x.name.isdigit()])
    assert f"{count} of {count} versions match their digests" in out


def test_a_version_that_has_changed_is_found_by_reading_it(made):
    _, folder = made
    newest = max(int(x.name) for x in (folder / "models").iterdir() if x.name.isdigit())
    version = folder / "models" / str(newest)
    for path in version.glob("state/d/*"):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + b"?" + content[middle + 1 :])
    code, _, out, _ = verify(folder, "--deep")
    assert code == 1
    assert f"models/{newest}" in out
    record = version / "record" / "metadata"
    record.write_bytes(b"{")
    code, words, out, _ = verify(folder)  # which reads the records alone
    assert (code, words["I1"]) == (1, "BROKEN")
    assert f"the record of version {newest} in the store cannot be read" in out


def test_an_event_of_the_wrong_types_is_no_violation(tmp_path):
    line = trace.to_line(trace.Aggregated(1.0, 1, 1, 5, 5, 5, 5, 0.1))
    (tmp_path / rundir.TRACE).mkdir()
    (tmp_path / rundir.TRACE / "server.jsonl").write_text(line + "\n")
    code, _, _, err = verify(tmp_path)
    assert code == 2
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def test_replay_finds_numbers_that_were_altered(tmp_path):
    """In the trace, the metrics and the file of the best, each alone."""
    folder = tmp_path / "run"
    flags = ["--config=configs/digits.py", "--config.sim.step_s=0.01,"]
    flags += ["--config.workers=3", "--config.stop.max_versions=6"]
    flags += ["--config.timing.epochs_per_push=1", "--config.timing.min_updates=2"]
    flags += ["--config.task.hidden=4,", "--config.sim.executor=serial"]
    code, out, err = run("simulate", *flags, f"--workdir={folder}")
    assert code == 0, out + err
    code, out, err = run("replay", f"--run={folder}")
    assert code == 0, out + err
    assert "bit for bit" in out
    rows = folder / "metrics.jsonl"
    best = folder / "models" / "best.json"
    events = folder / "trace" / "simulation.jsonl"
    altered = (rows, "loss", "loss"), (best, "value", "accuracy")
    for path, key, told in (*altered, (events, "share", "share")):
        right = path.read_text()
        wrong = re.sub(f'"{key}": ([0-9.]+)', f'"{key}": 0.123', right)
        assert wrong != right
        path.write_text(wrong)
        code, out, err = run("replay", f"--run={folder}")
        path.write_text(right)
        assert code == 1, out + err
        assert "besides the parameters DIFFER" in out
        assert told in out
