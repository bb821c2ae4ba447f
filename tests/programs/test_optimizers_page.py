"""The code and the commands of docs/optimizers.md."""

import ast
import re
from pathlib import Path

import pytest

from asyn2f.config import build, schema
from asyn2f.config.config_file import load
from asyn2f.config.default import default_config
from tests.programs.test_docs import blocks, printed_by

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
OWN, BALANCED = blocks("python", PAGE)
COMMANDS = [text.replace("\\\n", " ").split() for text in blocks("sh", PAGE)]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[-1])
def test_every_command_makes_an_experiment(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    given = dict(
        re.match(r"--config\.([\w.]+)=(.*)", word).groups()
        for word in words
        if word.startswith("--config.")
    )
    digits = schema.flatten(schema.plain(load("digits")))
    for key, text in given.items():
        is_text = re.match(r"[a-z]", text)
        digits[key] = text if is_text else ast.literal_eval(text)
    config = schema.plain(default_config(digits))
    made = build.build_experiment(config)
    is_diloco = "strategy.server_optimizer" in given
    assert hasattr(made.init_server().memory, "optimizer") == is_diloco
    assert made.computation.optimizer is not None


def test_balanced_workers_are_as_the_page_says():
    (told,) = blocks("text", PAGE)
    assert printed_by(lambda: exec(BALANCED, {})) == told
