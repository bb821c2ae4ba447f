"""Config files in the forms that users write, and the values in them."""

import json
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import asyn2f
from asyn2f.cli import app
from asyn2f.config import build, config_file, schema
from asyn2f.config.default import get_config
from asyn2f.errors import ConfigError

GOOD = """from configs.default import get_config as default

def get_config():
    config = default()
    config.seed = 7
    return config
"""
BODY = "from configs.default import get_config as default\n\ndef get_config():\n"


def put(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("return config", "return config.to_dict()"),
        GOOD.replace("return config", "return config.lock()"),
        GOOD.replace("7", "int(np.int64(7))").replace(
            "from", "import numpy as np\nfrom", 1
        ),
        GOOD.replace("7", "SEVEN").replace("from", "from beside import SEVEN\nfrom", 1),
    ],
    ids=["plain", "CRLF", "BOM", "dict", "locked", "numpy", "neighbour"],
)
@pytest.mark.parametrize("name", ["mine.py", "my own/it's-3:30.py", "3d", "class.py"])
def test_a_config_file_is_read_wherever_it_lies(tmp_path, text, name):
    path = put(tmp_path, text, name)
    put(path.parent, "SEVEN = 7\n", "beside.py")
    found = config_file.load(str(path))
    assert (found.seed, found.workers) == (7, 5)
    assert config_file.imported() == path


def test_the_text_after_the_colon_is_the_argument(tmp_path):
    text = GOOD.replace("get_config():", "get_config(seed):").replace("7", "int(seed)")
    path = put(tmp_path, text, "10:30.py")
    assert config_file.load(f"{path}:12").seed == 12


def test_home_is_expanded_and_relative_paths_become_absolute(tmp_path, monkeypatch):
    path = put(tmp_path, GOOD)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_file.load("~/mine.py").seed == 7
    monkeypatch.chdir(tmp_path)
    assert config_file.load("mine.py").seed == 7
    assert config_file.imported() == path


BAD = {
    "import": ("import no_such_module\n" + GOOD, ["line 1", "no_such_module"]),
    "name": (GOOD.replace("return config", "return conf"), ["line 6", "'conf'"]),
    "nothing": (
        GOOD.replace("return config", "pass"),
        ["returned None", "end it with"],
    ),
    "text": (GOOD.replace("return config", "return 'x'"), ["returned 'x'"]),
    "no function": ("x = 1\n", ["has no function get_config", "digits.py"]),
    "no callable": ("get_config = 1\n", ["has no function get_config"]),
    "syntax": ("def get_config(:\n", ["line 1", "SyntaxError"]),
    "section": (BODY + "    default().trainin.seed = 1\n", ["line 4", "training"]),
    "exit": (GOOD.replace("return config", "exit(7)"), ["line 6", "SystemExit"]),
    "generator": (GOOD.replace("return", "yield"), ["returned <generator"]),
    "relative": ("from .beside import x\n" + GOOD, ["line 1", "no known parent"]),
    "argument": (GOOD.replace("g():", "g(x):"), ["after a colon: mine.py:ARGUMENT"]),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_in_a_file_is_one_line_that_names_it(tmp_path, name):
    text, words = BAD[name]
    path = put(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        config_file.load(str(path))
    message = str(refused.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nothing.py", "nothing.py does not exist"),
        (".", "is a folder"),
        ("mine.py:argument", "cannot be called with 'argument'"),
        ("run.json", "of_run:FOLDER"),
    ],
)
def test_a_path_without_a_config_file_is_refused(tmp_path, monkeypatch, spec, words):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, GOOD)
    put(tmp_path, "{}", "run.json")
    with pytest.raises(ConfigError, match=words):
        config_file.load(spec)


# ---------------------------------------------------------------- values


def changed(**changes) -> ml_collections.ConfigDict:
    config = get_config()
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    return config


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        ("workers", np.int64(7), 7),
        ("training__learning_rate", np.float32(0.5), 0.5),
        ("training__learning_rate", 1, 1.0),
        ("worker_speeds", np.linspace(1, 9, 5), (1.0, 3.0, 5.0, 7.0, 9.0)),
        ("worker_speeds", range(1, 4), (1, 2, 3)),
        ("worker_speeds", tuple(np.arange(1, 4)), (1, 2, 3)),
        ("task__hidden", [np.int32(8)], (8,)),
        ("task__hidden", np.array([8, 4]), (8, 4)),
        ("task__hidden", (jnp.int32(8),), (8,)),
        ("task__batch_norm", np.bool_(True), True),
        ("task__data_dir", Path("/data"), "/data"),
    ],
    ids=str,
)
def test_values_are_converted_to_plain_python(key, written, meant):
    """In a ConfigDict, a frozen one or dicts; JSON, flags and digests accept them."""
    config = changed(**{key: written})
    forms = (config, ml_collections.FrozenConfigDict(config), config.to_dict())
    found = [schema.plain(form) for form in forms]
    expected = schema.plain(changed(**{key: meant}))
    assert found == [expected] * 3
    build.check(found[0])
    value = schema.flatten(found[0])[key.replace("__", ".")]
    assert (type(value), value) == (type(meant), meant)
    items = value if isinstance(value, tuple) else (value,)
    assert all(type(item) in (int, float, bool, str) for item in items)
    assert json.loads(json.dumps(expected)) is not None


@pytest.mark.parametrize(
    ("key", "written", "words"),
    [
        ("workers", 7.0, "workers: found 7.0, allowed: an integer, at least 1"),
        ("workers", True, "workers: found True, allowed: an integer"),
        ("workers", "7", "workers: found '7', allowed: an integer"),
        ("training__learning_rate", "0.1", "found '0.1', allowed: a number, above 0"),
        ("training__learning_rate", np.float64("inf"), "learning_rate: found inf"),
        ("task__hidden", 64, "task.hidden: found 64, allowed: a list"),
        ("task__data_dir", None, "task.data_dir: found None, allowed: a string"),
        ("task__hidden", {8}, r"task.hidden: found \{8\}, allowed: a list"),
        ("strategy", "fedavg", "did you mean strategy.name"),
        ("runtime__publish", "durable", "durable is called after_save since 0.2.0"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_the_allowed_ones(key, written, words):
    with pytest.raises(ConfigError, match=words):
        build.check(schema.plain(changed(**{key: written})))


@pytest.mark.parametrize("config", [[], 3, {}])
def test_an_object_that_is_not_a_config_is_refused(config):
    with pytest.raises(ConfigError, match="config"):
        asyn2f.simulate(config)


def test_a_config_dict_can_be_simulated():
    config = changed(workers=2, stop__max_versions=1, timing__min_updates=1)
    config.task.hidden = np.array([2])
    config.sim.executor = "serial"
    assert list(asyn2f.simulate(config).scores) == [0, 1]


@pytest.mark.parametrize(
    ("flags", "rest"),
    [
        (["--config=X", "--a", "b"], ["--a", "b"]),
        (["--a", "--config", "X"], ["--a"]),
        (["-config=X"], []),
        (["--config.workers=3", "--config=X"], ["--config.workers=3"]),
    ],
    ids=str,
)
def test_a_config_is_found_among_the_flags(tmp_path, monkeypatch, flags, rest):
    path, defined = put(tmp_path, GOOD), []
    define = lambda *args, **_: defined.append(args)
    monkeypatch.setattr(app.config_flags, "DEFINE_config_dict", define)
    argv = ["program", *(flag.replace("X", str(path)) for flag in flags)]
    assert app._read_config("simulate", argv) == ["program", *rest]
    assert [(name, config.seed) for name, config in defined] == [("config", 7)]
