"""Faults of a store: two servers, full disks, flipped bits, foreign files."""

import errno
import itertools
import json
import os
import queue
import random
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from asyn2f.errors import FencedError, StoreError
from asyn2f.runtime.startup import start_of
from asyn2f.store import fencing as fences
from asyn2f.store import folder as folders
from asyn2f.store.base import is_as_signed, signed
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import initial_server_state
from asyn2f.types import Best
from tests.contracts.test_runtime import small
from tests.contracts.test_store import state_of
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("patient_stores")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def make(folder):
    """Opens the same store once more, as another process would."""
    made = []

    def build(**settings):
        made.append(OrbaxStore(folder, **settings))
        return made[-1]

    yield build
    for store in made:
        store.close()


def content(store, version, like):
    """The arrays as bytes, and the record; None if the version cannot be read."""
    try:
        state, record = store.load(version, like)
    except StoreError:
        return None
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)], record


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- two servers


def test_a_fenced_server_writes_nothing(make, folder):
    old, new = make(), make()
    old.begin_incarnation()
    for version in (0, 1):
        old.save(version, state_of(version), {})
    assert old.lost_reason() == ""
    assert new.begin_incarnation() == 2
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(FencedError, match="as incarnation 2; this is 1"):
        old.save(2, state_of(2), {})
    with pytest.raises(FencedError, match="as incarnation 2; this is 1"):
        old.set_best(Best(1, "accuracy", 0.9))
    assert {path.name for path in folder.iterdir()} == before
    new.save(2, state_of(7), {})
    assert int(make().load(2, state_of(0)).state.model.version) == 7


def test_a_server_fenced_in_mid_save_does_not_finish_it(make, monkeypatch):
    """Even if the new server begins while the version is being written."""
    old, new = make(), make()
    old.begin_incarnation()
    old.save(0, state_of(0), {})
    write = old._folder.checkpointer.save

    def write_then_fence(*args, **kwargs):
        write(*args, **kwargs)
        new.begin_incarnation()
        new.save(1, state_of(7), {})

    monkeypatch.setattr(old._folder.checkpointer, "save", write_then_fence)
    with pytest.raises(FencedError):
        old.save(1, state_of(1), {})
    assert new.versions() == [0, 1]
    assert int(new.load(1, state_of(0)).state.model.version) == 7


def test_a_new_run_in_the_same_folder_fences_off_the_old_one(make, folder):
    old = make()
    assert old.begin_incarnation() == 1
    shutil.rmtree(folder)
    assert make().begin_incarnation() == 1
    with pytest.raises(FencedError, match="now holds another run"):
        old.save(0, state_of(0), {})


def test_no_server_begins_while_another_renames_a_version(make, folder, monkeypatch):
    monkeypatch.setattr(fences, "_LOCK_TIMEOUT_S", 0.1)
    old, new = make(), make()
    old.begin_incarnation()
    with old._fence.held():
        with pytest.raises(StoreError, match="end the other server of this run"):
            new.begin_incarnation()
        assert old.lost_reason() == ""
    assert new.begin_incarnation() == 2


def test_of_servers_that_begin_at_once_one_may_write(make):
    servers = [make() for _ in range(8)]
    found = []
    threads = [
        threading.Thread(
            target=lambda each=each: found.append(each.begin_incarnation())
        )
        for each in servers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(found) == list(range(1, 9))
    assert sum(server.lost_reason() == "" for server in servers) == 1


def test_incarnations_exceed_those_of_the_versions(make, folder):
    store = make()
    store.begin_incarnation()
    store.save(0, state_of(0), {"incarnation": 7})
    shutil.rmtree(folder / "incarnations")
    assert make().begin_incarnation() == 8


def test_a_missing_folder_is_not_a_fence(make, folder):
    store = make()
    store.begin_incarnation()
    store.save(0, state_of(0), {})
    folder.rename(folder.with_name("away"))
    with pytest.raises(StoreError) as caught:
        store.save(1, state_of(1), {})
    assert not isinstance(caught.value, FencedError)
    assert not folder.exists()
    folder.with_name("away").rename(folder)
    store.save(1, state_of(1), {})
    assert store.versions() == [0, 1]


# ---------------------------------------------------------------- disks


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_reported_with_path_and_bytes(make, folder, monkeypatch):
    store = make()
    state = state_of(1, size=1000)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert needed > 12_000
    with monkeypatch.context() as patch:
        patch.setattr(store._folder.checkpointer, "save", full)
        with pytest.raises(StoreError) as caught:
            store.save(1, state, {})
    assert str(folder / "1") in str(caught.value)
    assert f"the disk is full: {needed:,} bytes are needed" in str(caught.value)
    assert store.versions() == []
    store.save(1, state, {})
    assert store.versions() == [1]


def test_a_failed_save_leaves_no_files(make, folder, monkeypatch):
    store = make()
    write = store._folder.checkpointer.save

    def write_then_fail(*args, **kwargs):
        write(*args, **kwargs)
        full()

    monkeypatch.setattr(store._folder.checkpointer, "save", write_then_fail)
    with pytest.raises(StoreError, match="disk is full"):
        store.save(1, state_of(1), {})
    assert list(folder.iterdir()) == []


def test_a_save_that_fails_after_its_rename_can_be_retried(make, monkeypatch):
    store = make()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "sync_folder", full)
        with pytest.raises(StoreError):
            store.save(1, state_of(1), {})
    assert store.versions() == []
    store.save(1, state_of(1), {})
    assert int(store.load(1, state_of(0)).state.model.version) == 1


def test_only_a_version_in_the_store_can_be_the_best(make, folder):
    store = make(keep_last=2, keep_younger_than_s=0.0, clock=itertools.count().__next__)
    for version in range(4):
        store.save(version, state_of(version), {})
    with pytest.raises(StoreError, match="version 9 is not in the store"):
        store.set_best(Best(9, "accuracy", 0.9))
    assert store.best() is None
    store.set_best(Best(3, "accuracy", 0.5))
    assert make().best() == Best(3, "accuracy", 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[]",
        '{"version": 1}',
        '{"version": [], "metric": "accuracy", "value": 1}',
    ],
)
def test_a_malformed_mark_of_the_best_is_ignored(make, folder, text):
    make().save(1, state_of(1), {})
    (folder / "best.json").write_text(text)
    store = make()
    assert store.best() is None
    store.set_best(Best(1, "accuracy", 0.25))
    assert make().best() == Best(1, "accuracy", 0.25)


# ---------------------------------------------------------------- damage


def test_a_flipped_bit_in_any_file_is_harmless_or_detected(make, folder):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    store = make()
    accounting = {
        "ledger": {"workers": {"0": {"committed": {str(n): n for n in range(9)}}}}
    }
    store.save(1, state_of(1, size=40), {"version": 1, "accounting": accounting})
    like = state_of(0, size=40)
    clean = content(store, 1, like)
    files = [path for path in files_of(folder / "1") if path.stat().st_size]
    flipped, noticed = Counter(), Counter()
    for flip in range(60):
        path = files[flip % len(files)]
        right = path.read_bytes()
        wrong = bytearray(right)
        place = draw.randrange(len(wrong) * 8)
        wrong[place // 8] ^= 1 << place % 8
        path.write_bytes(wrong)
        found = content(store, 1, like)
        name = str(path.relative_to(folder / "1"))
        assert found is None or found == clean, f"bit {place} of {name}"
        flipped[name] += 1
        noticed[name] += found is None
        path.write_bytes(right)
    # The other files are not read, or are redundant.
    for name in flipped:
        if name.startswith(("record/meta", "state/d/", "state/manifest")):
            assert noticed[name] == flipped[name] > 0, name
    assert content(store, 1, like) == clean


def test_the_digest_covers_every_bit(make, folder):
    """Integers whose last bits a float would lose, and the record itself."""
    store = make()
    state = state_of(1)._replace(memory={"key": np.uint32(2**32 - 1)})
    for wrong in ({"key": np.uint32(2**32 - 2)}, {"key": np.uint32(0)}):
        record = signed({"a": 1}, state)
        assert is_as_signed(record, state)
        assert not is_as_signed(record, state._replace(memory=wrong))
    assert not is_as_signed({**record, "a": 2}, state)
    assert not is_as_signed({"a": 1}, state)
    store.save(1, state_of(1), {"accounting": {"committed": 41}})
    (path,) = (folder / "1" / "record").glob("metadata")
    text = path.read_text()
    path.write_text(text.replace("41", "40"))
    assert text != path.read_text()
    with pytest.raises(StoreError, match="damaged"):
        store.load(1, state_of(0))


def test_a_loaded_version_can_be_saved_as_another(make):
    store = make()
    store.save(1, state_of(1), {"a": 1})
    state, record = store.load(1, state_of(0))
    store.save(2, state, {**record, "a": 2})
    assert store.load(2, state_of(0)).record["a"] == 2


def test_a_version_copied_over_another_is_detected(make, folder):
    store = make()
    for version in (1, 2):
        store.save(version, state_of(version), {"version": version})
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")
    with pytest.raises(StoreError, match="it holds version 1"):
        store.load(2, state_of(0))


@pytest.mark.parametrize("part", ["", "record", "record/metadata", "state/_METADATA"])
def test_a_symbolic_link_is_detected(make, folder, part):
    store = make()
    store.save(1, state_of(1), {})
    there = folder / "1" / part
    elsewhere = folder.parent / "elsewhere"
    there.rename(elsewhere)
    there.symlink_to(elsewhere)
    with pytest.raises(StoreError, match="symbolic link"):
        store.load(1, state_of(0))


def _cut(version: Path) -> None:
    for path in files_of(version):
        os.truncate(path, path.stat().st_size // 2)


def _flip(version: Path) -> None:
    path = version / "record" / "metadata"
    text = path.read_text()
    path.write_text(text.replace('"parent": 2', '"parent": 1'))
    assert path.read_text() != text


def _empty(version: Path) -> None:
    shutil.rmtree(version)
    version.mkdir()


def _foreign(version: Path) -> None:
    _empty(version)
    (version / "notes.txt").write_text("not ours")


def _file(version: Path) -> None:
    shutil.rmtree(version)
    version.write_text("not a folder")


def _link(version: Path) -> None:
    version.rename(version.with_name("elsewhere"))
    version.symlink_to(version.with_name("elsewhere"))


def _gone(version: Path) -> None:
    version.rename(version.with_name("3.1.unfinished"))


@pytest.mark.parametrize("spoil", [_cut, _flip, _empty, _foreign, _file, _link, _gone])
def test_a_server_begins_with_the_newest_intact_version(make, folder, spoil):
    experiment = small()
    first = initial_server_state(experiment)
    store = make()
    for version in range(4):
        number = jax.numpy.int32(version)
        state = first._replace(model=first.model._replace(version=number))
        store.save(
            version, state, {"parent": version - 1, "accounting": {"of": version}}
        )
    (folder / "notes").mkdir()
    (folder / "²").mkdir()
    (folder / "007").mkdir()
    spoil(folder / "3")
    again = make()
    again.begin_incarnation()
    start = start_of(experiment, again)
    assert int(start.state.model.version) == 2
    assert start.accounting == {"of": 2}
    assert again.versions() == [0, 1, 2]
    assert again.damaged() == (frozenset() if spoil is _gone else {3})
    again.save(3, state, {})
    assert again.versions() == [0, 1, 2, 3]


def test_a_server_does_not_begin_without_an_intact_version(make, folder):
    experiment = small()
    make().save(0, initial_server_state(experiment), {})
    _empty(folder / "0")
    with pytest.raises(StoreError, match="no version in the store can be used"):
        start_of(experiment, make())
    assert make().versions() == [0], "it is kept for inspection"


@pytest.mark.parametrize("foreign", ["the newest", "the best"])
def test_versions_of_another_run_are_refused(make, foreign):
    experiment, store = small(), make()
    state = initial_server_state(experiment)
    runs = ["run-1", "run-2"] if foreign == "the newest" else ["run-2", "run-1"]
    for version, run in enumerate(runs):
        store.save(version, state, {"run": run, "version": version})
    store.set_best(Best(0, "accuracy", 0.5))
    with pytest.raises(StoreError, match=r"is of run 'run-2', this is run 'run-1'"):
        start_of(experiment, make(), "run-1")
    assert store.versions() == [0, 1]
    assert start_of(experiment, make()).made_in == 1


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize("reads", [4, pytest.param(40, marks=[pytest.mark.slow])])
def test_a_late_reader_finds_every_young_version(make, reads):
    """Four newer versions have followed, the store keeps the last two, and more are
    being written."""
    settings: Any = {"keep_last": 2, "keep_younger_than_s": 1000.0}
    writer, reader = make(**settings), make()
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    done = threading.Event()

    def write():
        version = 0
        while not done.is_set():
            writer.save(version, state_of(version, size=2000), {})
            told.put(version)
            version += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        behind: list[int] = []
        for _ in range(reads):
            while len(behind) < 5 or not told.empty():
                behind.append(told.get(timeout=PATIENCE_S))
            late = behind[-5]
            found = reader.load(late, state_of(0, size=2000)).state
            assert int(found.model.version) == late
            behind.clear()
    finally:
        done.set()
        thread.join()


def test_a_reader_misses_versions_that_are_not_kept_long_enough(make):
    """The race above can be lost."""
    writer, reader = make(keep_last=1, keep_younger_than_s=0.0), make()
    for version in range(3):
        writer.save(version, state_of(version), {})
    with pytest.raises(StoreError, match="version 1 is not in"):
        reader.load(1, state_of(0))


def test_versions_found_on_opening_count_as_young(make, folder):
    for version in range(5):
        make().save(version, state_of(version), {})
        os.utime(folder / str(version), (0, 0))  # in 1970
    store = make(keep_last=1, keep_younger_than_s=100.0)
    store.save(5, state_of(5), {})
    assert store.versions() == [0, 1, 2, 3, 4, 5]
    assert json.loads((folder / "5" / "record" / "metadata").read_text())["digest"]


# ------------------------------------------------------- the lock on the incarnations


def test_a_server_waits_for_the_lock_of_another(tmp_path):
    first, second = (fences.Fence(tmp_path / "fence") for _ in range(2))
    assert first.begin() == 1
    begun = []
    with first.held():
        waiting = threading.Thread(target=lambda: begun.append(second.begin()))
        waiting.start()
        waiting.join(0.2)
        assert begun == []
    waiting.join(PATIENCE_S)
    assert begun == [2]
