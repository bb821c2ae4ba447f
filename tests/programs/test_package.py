"""The package as `pip install` gives it: in an empty folder, without the checkout."""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

import asyn2f
from asyn2f import errors
from asyn2f.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]

SCRIPT = """
import asyn2f

print(asyn2f.__file__)
config = asyn2f.default_config(workers=3, stop__max_versions=20)
config.strategy.name = "fedavg"
run = asyn2f.simulate(config)
for row in run.history()[::10]:
    accuracy = row["scores"]["accuracy"]
    print(row["version"], row["time_s"], row["bytes_up"], accuracy > 0.05)
print(sorted(run.params), run.report("report.html"))
"""


def output_of(words: list[str], folder: Path, **env: str) -> str:
    """What a program prints that ends well, without the checkout in its path."""
    outside = {key: x for key, x in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=outside | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs words in an empty folder, with the wheel installed."""
    folder = tmp_path_factory.mktemp("package")
    source, target, empty = folder / "source", folder / "installed", folder / "empty"
    empty.mkdir()
    shutil.copytree(ROOT / "src" / "asyn2f", source / "src" / "asyn2f")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--quiet", "--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir=dist", "."]
    output_of(build, source)
    (wheel,) = (source / "dist").glob("asyn2f-*.whl")
    output_of([*pip, "install", *offline, f"--target={target}", str(wheel)], folder)

    def run(*words: str) -> str:
        program = str(target / "bin" / "asyn2f") if words[0] == "asyn2f" else words[0]
        return output_of([program, *words[1:]], empty, PYTHONPATH=str(target))

    run.target, run.folder = target, empty
    return run


@pytest.mark.processes
def test_help_lists_the_commands(installed):
    usage = installed("asyn2f", "--help")
    assert all(f"\n  {name} " in usage for name in COMMANDS)
    text = installed("asyn2f", "run", "--help")
    assert text.startswith("A whole run on this machine: ")
    assert "asyn2f run --" in text
    assert "--workdir=..." in text
    assert (installed.target / "asyn2f" / "py.typed").is_file()


@pytest.mark.processes
def test_ten_lines_of_python_simulate_a_run(installed):
    where, *rows, last = installed(sys.executable, "-c", SCRIPT).splitlines()
    assert Path(where).is_relative_to(installed.target)
    versions, times_s, up, better = zip(*(row.split() for row in rows), strict=True)
    assert versions == ("0", "10", "20")
    assert 0.0 == float(times_s[0]) < float(times_s[1]) < float(times_s[2])
    assert 0 == int(up[0]) < int(up[1]) < int(up[2])
    assert set(better) == {"True"}
    assert last == "['params'] report.html"
    assert (installed.folder / "report.html").stat().st_size > 100_000


@pytest.mark.processes
def test_a_run_of_processes_learns_the_digits(installed):
    """Without `--config`: the packaged experiment."""
    ends = ["--config.stop.target=0.95", "--config.stop.max_versions=300"]
    ends.append("--config.runtime.idle_priority=False")  # other tests keep cores busy
    out = installed("asyn2f", "run", "--workdir=digits", *ends)
    assert re.search(r"finished: accuracy 0[.]9[5-9]\d* reached", out)
    summary = json.loads((installed.folder / "digits" / "summary.json").read_text())
    assert summary["best_value"] >= 0.95
    assert "all invariants hold" in installed("asyn2f", "verify", "--run=digits")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_what_a_command_does_and_an_example(name):
    command = COMMANDS[name]
    module_name, _, function = command.program.partition(":")
    module = importlib.import_module(f"asyn2f.cli.{module_name}")
    program = getattr(module, function)
    text = inspect.getdoc(program) or inspect.getdoc(module) or ""
    summary, blank, example, *_ = text.splitlines()
    assert summary.endswith(".")
    assert not blank
    begin = "" if command.argument else "--"
    assert example.startswith(f"    asyn2f {name} {begin}")
    shim = {"run": "local"}.get(name, name.replace("-", "_"))
    assert importlib.util.find_spec(f"launch.{shim}")
    assert all(flag in flags.FLAGS for flag in command.flags.split())


def test_dir_lists_what_there_is():
    names = dir(asyn2f)
    assert {"simulate", "replay", "verify", "default_config", "Stop"} <= {*names}
    for name in names:
        assert getattr(asyn2f, name) is not None
    found = {name for name in names if name.endswith("Error")}
    assert {name for name in vars(errors) if name.endswith("Error")} <= found
    for name in found:
        assert issubclass(getattr(asyn2f, name), asyn2f.Asyn2fError)
