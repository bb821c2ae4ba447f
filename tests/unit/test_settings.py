"""Settings, and what is derived from them: defaults, checks, names of before, docs."""

import ast
import json
from pathlib import Path

import pytest

import asyn2f
from asyn2f.cli import app
from asyn2f.config import build, config_file, reference, renamed, schema
from asyn2f.config.arguments import of_signature
from asyn2f.config.default import default_config, get_config, load_config
from asyn2f.errors import ConfigError, RunDirError
from asyn2f.settings import check, settings_of
from asyn2f.strategies import BUILDERS
from asyn2f.timing import Stop
from asyn2f.training.settings import Training

ROOT = Path(__file__).parents[2]
SETTINGS = schema.all_settings()


@pytest.mark.parametrize("key", SETTINGS)
def test_every_default_is_allowed_and_documented(key):
    assert SETTINGS[key].problem_of(SETTINGS[key].default) == ""
    assert SETTINGS[key].doc
    assert not SETTINGS[key].doc.endswith(".")


def test_the_default_config_has_every_key_with_its_default():
    flat = schema.flatten(get_config())
    assert flat == {key: each.default for key, each in SETTINGS.items()}
    build.check(schema.plain(get_config()))


def test_every_parameter_of_a_builder_is_a_key():
    for name in BUILDERS:
        for key, each in of_signature(BUILDERS[name]).items():
            assert SETTINGS[f"strategy.{name}.{key}"].default == each.default


def test_the_reference_page_is_that_of_the_settings():
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference.page(), (
        "run: python -m asyn2f.config.reference > docs/config.md"
    )


def test_the_help_has_every_key_with_its_default():
    lines = reference.flags_help().splitlines()
    for key, each in SETTINGS.items():
        assert f"  --config.{key}={reference.value_text(each.default)}" in lines


def test_settings_can_be_checked_outside_of_a_config():
    check(Stop(max_versions=3))
    with pytest.raises(ValueError, match=r"^max_versions: found -1, allowed: at least"):
        check(Stop(max_versions=-1))
    with pytest.raises(ValueError, match=r"^momentum: found 1.0, allowed: \[0, 1\)"):
        check(Training(momentum=1.0))


def test_a_stop_alone_sets_no_limit_but_the_default_experiment_ends():
    assert Stop() == Stop(max_versions=0, max_time_s=0.0, target=None)
    assert settings_of(Stop)["max_versions"].default == 150


# ------------------------------------------------------------- names of before


@pytest.mark.parametrize("key", renamed.KEYS)
def test_a_key_of_before_is_answered_with_its_new_name(key, tmp_path):
    words = f"^config.{key} is called config.{renamed.KEYS[key]} since 0.2.0"
    assert renamed.KEYS[key] in SETTINGS
    config = schema.plain(get_config())
    changed = schema.nested(schema.flatten(config) | {key: 1})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    for refused in (
        lambda: build.check(changed),
        lambda: load_config(tmp_path),
        lambda: default_config({key: 1}),
        lambda: app._read_config("run", ["program", f"--config.{key}=1"]),
    ):
        with pytest.raises(ConfigError, match=words):
            refused()


def test_a_config_file_with_a_key_of_before_is_refused_with_the_new_name(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from asyn2f.config.default import get_config as default\n\n"
        "def get_config():\n"
        "    config = default()\n"
        "    config.runtime.beat_s = 2.0\n"
        "    return config\n"
    )
    words = "runtime.beat_s is called config.runtime.heartbeat_interval_s since 0.2.0"
    with pytest.raises(ConfigError, match=words):
        build.check(schema.plain(config_file.load(str(path))))


# ------------------------------------------------------------- of a config


def test_a_default_config_is_changed_by_dotted_keys():
    config = asyn2f.default_config(
        {"runtime.publish": "before_save"}, workers=3, task__hidden=[8, 4]
    )
    assert config.runtime.publish == "before_save"
    assert (config.workers, config.task.hidden) == (3, (8, 4))
    both = asyn2f.default_config(**{"task.alpha": 1, "seed": 2})
    assert (both.task.alpha, type(both.task.alpha), both.seed) == (1.0, float, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task__alpa": 1.0}, r"unknown key config.task.alpa; did you mean task.alpha"),
        ({"task__alpha": 0.0}, "config.task.alpha: found 0.0, allowed: above 0"),
        ({"strategy": "fedavg"}, "did you mean strategy.name"),
        ({"strategy__name": "fedbuf"}, r"found 'fedbuf', .*; did you mean fedbuff\?"),
    ],
)
def test_a_wrong_change_of_the_default_config_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        asyn2f.default_config(**changes)


def test_the_config_of_a_run_is_loaded_as_it_was(tmp_path):
    begun = default_config(seed=7, worker_speeds=(1.0, 2.5), strategy__name="kafl")
    (tmp_path / "config.json").write_text(json.dumps(begun.to_dict()))
    assert asyn2f.load_config(tmp_path).to_dict() == begun.to_dict()
    with pytest.raises(RunDirError, match=r"cannot read .*config.json"):
        load_config(tmp_path / "none")


def test_what_workers_do_in_a_simulation_follows_from_every_key_of_it():
    """Each of these is read by its name."""
    plain = build.build_profiles(default_config())
    for key, column in {
        "step_s": "step_s",
        "step_spread": "step_s",
        "jitter": "jitter",
        "upload_s": "upload_s",
        "download_s": "download_s",
        "upload_mbps": "upload_mbps",
        "download_mbps": "download_mbps",
        "join_window_s": "join_s",
        "mean_session_s": "leave_s",
        "outage_every_s": "outage_every_s",
        "outage_s": "outage_s",
    }.items():
        value = (2.0,) if key == "step_s" else 2.0
        changed = build.build_profiles(default_config({f"sim.{key}": value}))
        assert (getattr(changed, column) != getattr(plain, column)).any(), key


# ------------------------------------------------------------- who reads a config

_SECTIONS = {*schema.SECTIONS} - {""}
_ROOT = {key for key in SETTINGS if "." not in key}
# Keys of other dictionaries, too: of summaries and of messages between processes.
_COMMON = {"stop", "strategy"} | _ROOT


def _reads(path: Path) -> list[str]:
    """Subscripts and `get`s by the name of a section, or by a key at the root of what
    is called a config."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript):
            of, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr != "get" or not node.args:
                continue
            of, key = node.func.value, node.args[0]
        else:
            continue
        name = key.value if isinstance(key, ast.Constant) else None
        is_config = "config" in ast.unparse(of) and name in _COMMON
        if is_config or name in _SECTIONS - _COMMON:
            found.append(f"{path.name}: {ast.unparse(of)}[{name!r}]")
    return found


def test_only_config_reads_a_config():
    """Others take the dataclass of a section. `report` shows the config of a run's
    folder as a document, which any version may have written, whole or in part."""
    source = Path(str(asyn2f.__file__)).parent
    exempt = (source / "config", source / "report")
    paths = [path for path in source.rglob("*.py") if path.parent not in exempt]
    assert len(paths) > 80
    assert [read for path in paths for read in _reads(path)] == []


def test_a_read_of_a_config_is_found(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "a = config['runtime']['keys_dir']\n"
        "b = job.config['seed']\n"
        "c = (stored or {}).get('sim', {})\n"
        "d = summary['seed'], message['stop']\n"
    )
    assert len(_reads(path)) == 3
