"""What the programs have in common."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from asyn2f import errors
from asyn2f.cli import app, machine, main, process

ROOT = Path(__file__).parents[2]
ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers():
    """Handlers that a test may change; the usual ones, also under nohup."""
    before = [signal.getsignal(number) for number in ALL]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(ALL, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL)
def test_stopping_signals_are_passed_on_by_name(handlers, number):
    """A closed terminal too: a simulation keeps what there is."""
    stops: list[str] = []
    process.stop_on_signals(stops.append)
    signal.raise_signal(number)
    assert stops == [number.name]


def test_under_nohup_a_closed_terminal_does_not_stop(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stops: list[str] = []
    process.stop_on_signals(stops.append)
    signal.raise_signal(signal.SIGHUP)
    assert not stops


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("launch.local", ["--config=", "--workdir=", "--insecure", "--resume"]),
        (
            "launch.simulate",
            ["--config=", "--workdir=", "simulated \\\n        --conf"],
        ),
        ("launch.report", ["--run="]),
        ("tests.bench", ["Benchmarks: ", "latency"]),
    ],
)
def test_help_lists_the_flags_of_a_program(name, words):
    done = subprocess.run(
        [sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in words:
        assert word in done.stdout


@pytest.mark.parametrize("name", ["server", "evaluator"])
def test_the_full_help_lists_the_keys_of_the_config(monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [f"asyn2f {name}", "--helpfull"])
    assert "--config.workers=5\n" in app._help(main.main, name, is_full=True)


def test_an_unknown_command_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["asyn2f", "simulat"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("error: unknown command 'simulat'; allowed: run, server, ")


@pytest.mark.processes
def test_the_flag_of_another_command_is_refused(tmp_path):
    command = [sys.executable, "-m", "launch.report", f"--run={tmp_path}", "--deep"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown flag --deep; see asyn2f report --help\n"


@pytest.mark.parametrize(
    ("name", "flags", "seed"),
    [
        ("run", [], 0),  # the packaged experiment
        ("simulate", ["--config=default"], 0),
        ("worker", [], None),
        ("run", ["--resume", "--workdir=RUN"], 7),
        ("server", ["--workdir", "RUN", "--resume"], 7),
        ("replay", ["--run=RUN"], 7),
        ("replay", ["--run", "RUN", "--config=default"], 0),
        ("simulate", ["--config=of_run:RUN"], 7),
        ("simulate", ["--noresume", "--workdir=RUN"], 0),
        ("simulate", ["--resume=false", "--workdir=RUN"], 0),
        ("replay", ["--run=nothing"], None),
    ],
)
def test_where_a_config_comes_from(tmp_path, monkeypatch, name, flags, seed):
    defined = []
    define = lambda *args, **_: defined.append(args)
    monkeypatch.setattr(app.config_flags, "DEFINE_config_dict", define)
    (tmp_path / "config.json").write_text('{"seed": 7}')
    flags = [flag.replace("RUN", str(tmp_path)) for flag in flags]
    app._read_config(name, ["program", *flags])
    assert [config.seed for _, config in defined] == ([] if seed is None else [seed])


def test_workdir_is_accepted_in_place_of_run(capsys, monkeypatch):
    monkeypatch.setattr(app, "RUN", SimpleNamespace(value=None, name="run"))
    monkeypatch.setattr(app, "WORKDIR", SimpleNamespace(value="runs/a"))
    assert app.run_folder() == Path("runs/a")
    assert "--run" in capsys.readouterr().err
    monkeypatch.setattr(app, "RUN", SimpleNamespace(value="runs/b", name="run"))
    assert app.run_folder() == Path("runs/b")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to ...")])
def test_a_missing_device_is_reported_in_one_line(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(errors.DeviceError, match="JAX_PLATFORMS: found") as refused:
        machine.prepare_jax()
    assert str(error) in str(refused.value)
    assert isinstance(refused.value, errors.Asyn2fError)


@pytest.mark.processes
def test_an_unusable_folder_is_reported_before_scheduling(tmp_path):
    (tmp_path / "file").write_text("")
    flags = ["--config=configs/digits.py", f"--workdir={tmp_path / 'file' / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.simulate", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cannot use ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.processes
def test_the_last_line_of_a_process_that_a_library_ended_is_shown(tmp_path):
    """XLA does, when it does not know a flag: its last words are in a log."""
    folder = tmp_path / "run"
    flags = ["--config=configs/digits.py", f"--workdir={folder}", "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": "--xla_no_such_flag=1"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Unknown flag in XLA_FLAGS: --xla_no_such_flag" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"


def test_each_line_of_the_log_is_written_once():
    """Whatever an import has done: Orbax's has the root logger write as well."""
    root, before = logging.getLogger(), list(logging.getLogger().handlers)
    root.addHandler(logging.StreamHandler())
    app.log_once()
    assert root.handlers == before
