"""Benchmarks start, with settings that exist, and change nothing of the sources."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyn2f.config import build
from configs import digits
from tests.bench import __main__ as bench
from tests.bench import digits as digits_bench
from tests.bench import figures, latency, start
from tests.bench.figures import Figure


def config_of(flags: list[str]) -> dict:
    """configs/digits.py with the changes of these flags; unknown keys raise."""
    config = digits.get_config()
    for key, text in re.findall(r"^--config\.([\w.]+)=(.*)$", "\n".join(flags), re.M):
        *groups, name = key.split(".")
        section = config
        for group in groups:
            section = section[group]
        is_text = isinstance(section[name], str)
        section[name] = text if is_text else type(section[name])(ast.literal_eval(text))
    return config.to_dict()


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_benchmark_can_be_measured_and_says_what_it_asks(name):
    module = importlib.import_module(f"tests.bench.{name}")
    assert inspect.isgeneratorfunction(module.measure)
    assert module.__doc__.partition("\n")[0].endswith(("?", "."))


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_setting_that_a_benchmark_names_exists(name):
    """`digits` had named one that had long moved, in its second row."""
    source = Path(importlib.import_module(f"tests.bench.{name}").__file__).read_text()
    for key in re.findall(r"--config\.([\w.]+)=", source):
        value = digits.get_config()
        for part in key.split("."):
            assert part in value, f"config.{key}"
            value = value[part]


FLAGS = {
    **digits_bench.METHODS,
    "latency, small": latency.SMALL,
    "latency, large": latency.LARGE,
    "start": start.FLAGS,
}


@pytest.mark.parametrize("name", FLAGS)
def test_settings_of_a_benchmark_are_a_sound_config(name):
    build.check(config_of(FLAGS[name]))


def test_figures_are_printed_and_kept_only_where_asked_for(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results.json")
    one = Figure("a thing", 1.0, "ms", 2.0, "another", 0.5, 1.0)
    monkeypatch.setattr("tests.bench.payload.measure", lambda: iter([one]))
    for flags, is_kept in (([], False), (["--keep"], True)):
        monkeypatch.setattr(sys, "argv", ["bench", "payload", *flags])
        bench.main()
        line, *rest = capsys.readouterr().out.splitlines()
        assert json.loads(line)["what"] == "a thing"
        assert "| a thing | 1 ms |" in rest[-1]
        assert figures.RESULTS.exists() == is_kept


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [(["--help"], 0, "usage: python -m tests.bench"), (["nonsense"], 2, "there are: ")],
)
def test_help_and_unknown_names(monkeypatch, capsys, flags, code, words):
    monkeypatch.setattr(sys, "argv", ["bench", *flags])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == code
    out, error = capsys.readouterr()
    assert words in out + error


@pytest.mark.slow
@pytest.mark.processes
def test_every_row_of_digits_is_measured(monkeypatch):
    monkeypatch.setattr(digits_bench, "SECONDS", 3)
    monkeypatch.setattr(digits_bench, "SEEDS", (0,))
    try:
        rows = list(digits_bench.measure())
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error.cmd} ended with {error.returncode}")
    assert [row["method"] for row in rows] == list(digits_bench.METHODS)
    assert all(row["versions"][0] > 0 for row in rows)
