"""A run's folder: claimed for one run at a time, and replaced without loss."""

import contextlib
import shutil

import pytest

from asyn2f import rundir
from asyn2f.cli.claim import claimed, in_use
from asyn2f.errors import RunDirError


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def folder(tmp_path):
    """A folder with a run in it, and a file that is not of the run."""
    folder = tmp_path / "run"
    for name in (rundir.MODELS, rundir.TRACE, rundir.LOGS):
        (folder / name).mkdir(parents=True)
        (folder / name / "old").write_text(name)
    for name in (rundir.CONFIG, rundir.RUN, rundir.SUMMARY, rundir.SPLIT):
        (folder / name).write_text(f"old {name}")
    (folder / "notes.txt").write_text("mine")
    return folder


def contents(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def overwrite(folder):
    return claimed(folder, resume=False, overwrite=True)


def write_new(folder) -> None:
    (folder / rundir.CONFIG).write_text("new")
    (folder / rundir.SERVER).write_text("new")
    (folder / rundir.LOGS).mkdir()
    (folder / rundir.LOGS / "server.log").write_text("cannot listen")


def test_a_started_run_replaces_the_old_one(folder):
    with overwrite(folder) as claim:
        claim.clear(overwrite=True)
        write_new(folder)
        claim.begin()
    found = contents(folder)
    assert found.pop("notes.txt") == "mine"
    assert found.pop("logs/server.log") == "cannot listen"
    assert found == {"config.json": "new", "server.json": "new"}


def test_a_run_that_did_not_start_leaves_the_old_one_and_its_own_log(folder):
    before = contents(folder)
    with contextlib.suppress(ZeroDivisionError), overwrite(folder) as claim:
        claim.clear(overwrite=True)
        write_new(folder)
        raise ZeroDivisionError
    assert contents(folder) == before | {"logs/server.log": "cannot listen"}


@pytest.mark.parametrize("moves", range(17))
def test_a_kill_while_a_run_is_replaced_loses_nothing(
    folder, tmp_path, monkeypatch, moves
):
    """Killed before this move of a file or a folder, forth or back."""
    before, left = contents(folder), [moves]
    rename, saved = type(folder).rename, tmp_path / "saved"

    def or_die(path, target):
        if not left[0] and not saved.exists():
            shutil.copytree(folder, saved)  # what the killed process leaves
        if saved.exists():
            raise Killed
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", or_die)
    with contextlib.suppress(Killed), overwrite(folder) as claim:
        claim.clear(overwrite=True)
        write_new(folder)
        raise Killed
    monkeypatch.undo()
    after = (
        saved if saved.exists() else folder
    )  # no process was killed in the last case
    with claimed(after, resume=True, overwrite=False):
        pass
    found = contents(after)
    found.pop("logs/server.log", None)
    assert found == before
    assert not list(after.glob(".*"))


def test_a_new_run_that_is_killed_after_its_start_is_kept(folder):
    with overwrite(folder) as claim:
        claim.clear(overwrite=True)
        write_new(folder)
        (folder / rundir.SPLIT).write_text("new")
        claim.holds_old = False  # killed just before it could delete the old one
    with claimed(folder, resume=True, overwrite=False):
        assert (folder / rundir.CONFIG).read_text() == "new"
    assert not (folder / ".replaced").exists()


@pytest.mark.parametrize("takes_over", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_a_live_run_uses_is_only_taken_over(folder, resume, takes_over):
    before = contents(folder)
    claim = claimed(folder, resume=resume, overwrite=not resume, takes_over=takes_over)
    with in_use(folder):
        if resume and takes_over:  # the fence shuts the old server out
            with claim:
                pass
        else:
            with pytest.raises(RunDirError, match="in use by a live run"), claim:
                pass
    assert contents(folder) == before


def test_one_of_two_concurrent_claims_succeeds(folder):
    with overwrite(folder) as first:
        with pytest.raises(RunDirError, match="in use"), overwrite(folder):
            pass
        with pytest.raises(RunDirError, match="in use"), in_use(folder):
            pass
        first.share()
        with in_use(folder):
            pass
        with pytest.raises(RunDirError, match="in use"), overwrite(folder):
            pass
    with overwrite(folder):
        pass


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    folder = tmp_path / "some" / "where"
    claim = claimed(folder, resume=True, overwrite=False)
    with pytest.raises(RunDirError, match="holds no run"), claim:
        pass
    assert not (tmp_path / "some").exists()


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    claim = claimed(tmp_path / "file" / "run", resume=False, overwrite=False)
    with pytest.raises(RunDirError, match=r"cannot use .*: Not a directory"), claim:
        pass


@pytest.mark.parametrize("name", ["models/3", "metrics.jsonl", "trace/server.jsonl"])
def test_remains_of_a_run_without_its_config_are_not_continued(tmp_path, name):
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("old")
    claim = claimed(folder, resume=False, overwrite=False)
    with pytest.raises(RunDirError, match=r"of a run, and no config.json"), claim:
        pass
    assert contents(folder) == {name: "old"}
    with overwrite(folder) as claim:
        claim.clear(overwrite=True)
        claim.begin()
    assert contents(folder) == {}


def test_traces_of_peers_and_logs_are_not_a_run(tmp_path):
    for name in ("trace/worker-3.jsonl", "logs/server.log", "models/.keep"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "models" / ".keep").unlink()
    with claimed(tmp_path, resume=False, overwrite=False):
        pass
