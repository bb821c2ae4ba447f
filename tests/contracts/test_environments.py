"""Homes, temporary folders and locales as other people's machines have them."""

import os
import pwd
import subprocess
import sys
import tempfile

import pytest

from asyn2f.tasks import cache
from tests.support.patience import PATIENCE_S
from tests.support.programs import FAST, ROOT, read


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def without_home(monkeypatch):
    """As in a container started for a user that its files do not know."""

    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def with_a_file_as_home(monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")


def with_a_home_that_cannot_be_written(monkeypatch):
    access = os.access
    may = lambda path, mode: str(path) != "/home" and access(path, mode)
    monkeypatch.setattr(os, "access", may)
    monkeypatch.setenv("HOME", "/home/nobody-of-that-name")


def test_caches_are_kept_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "asyn2f"


@pytest.mark.parametrize(
    "change", [without_home, with_a_file_as_home, with_a_home_that_cannot_be_written]
)
def test_without_a_home_caches_are_temporary_and_this_users_alone(
    temporary, monkeypatch, change
):
    change(monkeypatch)
    first = cache.cache_folder()
    assert first.parent == temporary
    assert first.stat().st_mode & 0o777 == 0o700
    assert cache.cache_folder() == first  # for the next process


def test_a_folder_that_somebody_else_has_put_there_is_not_used(
    temporary, tmp_path, monkeypatch
):
    without_home(monkeypatch)
    (temporary / f"asyn2f-{os.getuid()}").symlink_to(tmp_path)
    found = cache.cache_folder()
    assert found.parent == temporary
    assert not found.is_symlink()


CONFIG = """from asyn2f.strategies import BUILDERS, fedavg
from configs.digits import get_config as digits


def mine():
    return fedavg()._replace(name="mine")


BUILDERS["mine"] = mine


def get_config():
    config = digits()
    config.strategy.mine = {}
    config.strategy.name = "mine"
    return config
"""


@pytest.mark.processes
def test_a_run_ends_well_where_much_is_otherwise(tmp_path):
    """A strategy that the config's file registers, from another working directory; no
    home, TMPDIR of 120 characters, ASCII alone, and a run folder that needs more."""
    temporary = tmp_path / ("t" * 120)
    temporary.mkdir()
    config, folder = tmp_path / "my own-config.py", tmp_path / "größe 1"
    config.write_text(CONFIG)
    env = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    env |= {"HOME": "/dev/null", "TMPDIR": str(temporary)}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    flags = [f"--config={config}", *FAST[1:], "--config.stop.max_versions=2"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.local", *flags, f"--workdir={folder}"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = read(folder / "summary.json")
    assert (summary["strategy"], summary["versions"]) == ("mine", 2)
    assert (folder / "report.html").exists()
