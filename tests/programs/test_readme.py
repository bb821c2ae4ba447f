"""What README.md shows can be typed: programs, settings and files that exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from asyn2f.api.simulation import (
    order_of_config,
)
from asyn2f.config import build, default
from configs import digits

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = sorted(
    set(re.findall(r"`(?:--)?config[.]([a-z0-9_.]*[a-z0-9_])(?![\w.])", TEXT))
)
FILES = sorted(set(re.findall(r"[`(]((?:\w+/)+\w+[.](?:py|md|png)|\w+[.]py)", TEXT)))


def commands() -> list[list[str]]:
    """The words of every command in an indented block."""
    joined = TEXT.replace("\\\n", " ")
    lines = re.findall(r"^    (python -m .*?)(?:    #.*)?$", joined, re.MULTILINE)
    return [shlex.split(line) for line in lines]


COMMANDS = commands()


def setting(key: str) -> object:
    """The default of a setting; KeyError where there is none."""
    value: object = default.get_config()
    for part in key.split("."):
        assert isinstance(value, ConfigDict), key
        value = value[part]
    return value


def config_of(words: list[str]) -> ConfigDict:
    """configs/digits.py with the changes of the command's flags."""
    config = digits.get_config()
    for word in words:
        if found := re.fullmatch(r"--config[.]([\w.]+)=(.*)", word):
            kind = type(setting(found[1]))
            value = kind(ast.literal_eval(found[2]))
            config.update_from_flattened_dict({found[1]: value})
    return config


def test_there_are_commands():
    assert len(COMMANDS) > 12


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_names_a_program_and_settings_that_exist(words):
    assert importlib.util.find_spec(words[2])
    for key in re.findall(r"--config[.]([\w.]+)=", " ".join(words)):
        setting(key)
    for path in re.findall(r"--config=([\w/]+[.]py)", " ".join(words)):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("key", SETTINGS)
def test_a_setting_that_the_text_names_exists(key):
    setting(key)


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_the_text_names_is_there(path):
    assert list(ROOT.glob(path)) or list(ROOT.glob(f"src/asyn2f/{path}"))


def test_the_example_of_simulate_is_long_enough_to_learn_something():
    """An older one ended after 0.2 virtual seconds, with 12 steps of each worker."""
    (words,) = [w for w in COMMANDS if "--workdir=runs/simulated" in w]
    config = config_of(words).to_dict()
    order = order_of_config(config, build.build_experiment(config))
    told = re.search(r"ends\s+after ([\d.]+) of them, at version (\d+)", TEXT)
    assert order.end_s - order.start_s == pytest.approx(float(told[1]), abs=0.05)
    assert int(order.version.max()) == int(told[2])
