"""Versions that a file holds before Orbax does: as much in the store as the
others."""

import errno
import itertools
import random
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from asyn2f.errors import FencedError, StoreError
from asyn2f.runtime.startup import (
    start_of,
)
from asyn2f.store import behind, orbax_writer, wal
from asyn2f.store import orbax as stores
from asyn2f.store.orbax import OrbaxStore
from asyn2f.store.orbax_writer import OrbaxWriter
from asyn2f.training.experiment import initial_server_state
from tests.contracts.test_runtime import small
from tests.contracts.test_store import state_of
from tests.programs.test_launch import has_ended
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("patient_stores")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def make(folder):
    made: list[OrbaxStore] = []

    def build(**settings):
        made.append(OrbaxStore(folder, write_ahead=True, **settings))
        return made[-1]

    yield build
    for store in made:
        store.close()


@pytest.fixture
def orbax(monkeypatch):
    """Orbax, which can be held up, and can fail."""

    class Gate:
        def __init__(self) -> None:
            self.open = threading.Event()
            self.open.set()
            self.error: Exception | None = None
            self.called = threading.Semaphore(0)

    gate, to_orbax = Gate(), OrbaxStore._to_orbax

    def wrapped(self, *args):
        gate.called.release()
        assert gate.open.wait(PATIENCE_S)
        if gate.error is not None:
            raise gate.error
        to_orbax(self, *args)

    monkeypatch.setattr(OrbaxStore, "_to_orbax", wrapped)
    yield gate
    gate.open.set()


def same(one, other) -> bool:
    pairs = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other)
    return jax.tree.all(pairs)


def wait_until(condition) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "it has not come to that"
        time.sleep(0.02)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_version_is_there_before_orbax_has_written_anything(make, folder, orbax):
    orbax.open.clear()
    store = make()
    store.save(1, state_of(1), {"parent": 0, "version": 1})
    assert names(folder / "ahead") == {"1"}
    assert not (folder / "1").exists()
    for reader in (store, OrbaxStore(folder)):
        assert reader.versions() == [1]
        state, record = reader.load(1, state_of(0))
        assert same(state, state_of(1))
        assert record["parent"] == 0
        assert reader.record(1)["parent"] == 0
    orbax.open.set()
    store.close()
    assert names(folder / "ahead") == set()
    again = OrbaxStore(folder)
    assert again.versions() == [1]
    assert same(again.load(1, state_of(0)).state, state_of(1))
    assert again.record(1) == record
    again.close()


def test_orbax_has_all_of_them_in_the_end(make, folder):
    store = make()
    for version in range(12):
        store.save(version, state_of(version), {"version": version})
    assert store.versions() == list(range(12))
    store.close()
    assert names(folder) == {"ahead", *map(str, range(12))}
    assert names(folder / "ahead") == set()


def test_who_saves_waits_for_orbax_when_it_is_far_behind(
    make, folder, orbax, monkeypatch
):
    monkeypatch.setattr(behind, "MOST_WAITING", 2)
    orbax.open.clear()
    store = make()
    store.save(0, state_of(0), {})
    assert orbax.called.acquire(timeout=PATIENCE_S)  # it is at version 0
    saved = []

    def save():
        for version in (1, 2, 3, 4):
            store.save(version, state_of(version), {})
            saved.append(version)

    saving = threading.Thread(target=save)
    saving.start()
    saving.join(1.0)
    assert saving.is_alive()
    assert len(saved) < behind.MOST_WAITING + 1
    assert len(names(folder / "ahead")) <= behind.MOST_WAITING + 1
    orbax.open.set()
    saving.join(PATIENCE_S)
    assert saved == [1, 2, 3, 4]


def test_nothing_is_lost_or_held_up_while_orbax_fails(make, folder, orbax, caplog):
    orbax.error = OSError(errno.ENOSPC, "No space left on device")
    store = make()
    for version in range(6):
        store.save(version, state_of(version), {"version": version})
        assert orbax.called.acquire(timeout=PATIENCE_S)
    assert store.versions() == list(range(6))
    assert not (folder / "5").exists()
    orbax.error = None
    store.save(6, state_of(6), {"version": 6})
    store.close()
    assert names(folder) == {"ahead", *map(str, range(7))}
    for version in range(7):
        assert same(store.load(version, state_of(0)).state, state_of(version))
    said = [x.message for x in caplog.records if "the disk is full" in x.message]
    assert 1 <= len(said) <= 6
    assert "it will be tried again" in said[0]


def test_what_is_left_behind_by_a_crash_is_followed_up(make, folder, orbax):
    """The first writer's Orbax never gets anywhere."""
    orbax.error = RuntimeError("killed")
    first = make()
    first.begin_incarnation()
    for version in range(3):
        first.save(version, state_of(version), {"version": version, "incarnation": 1})
    first.close()
    (folder / "ahead" / "3.1.unfinished").write_bytes(b"cut sho")
    orbax.error = None
    second = make()
    assert second.begin_incarnation() == 2
    assert names(folder / "ahead") == {"0", "1", "2"}
    assert second.versions() == [0, 1, 2]
    assert same(second.load(2, state_of(0)).state, state_of(2))
    second.close()  # it need not have saved anything itself
    assert names(folder) == {"ahead", "incarnations", *map(str, range(3))}


@pytest.mark.parametrize("is_of_another", [False, True])
def test_a_damaged_file_holds_nothing_up(make, folder, orbax, caplog, is_of_another):
    """It is set aside, and the versions after it are followed up."""
    orbax.error = RuntimeError("killed")
    store = make()
    for version in range(3):
        store.save(version, state_of(version), {"version": version})
        assert orbax.called.acquire(timeout=PATIENCE_S)
    damaged, whole = (folder / "ahead" / "1"), (folder / "ahead" / "2").read_bytes()
    damaged.write_bytes(whole if is_of_another else damaged.read_bytes()[:-1])
    orbax.error = None
    store.save(3, state_of(3), {"version": 3})
    store.close()
    assert names(folder) == {"ahead", "1.damaged", "0", "2", "3"}
    assert names(folder / "ahead") == set()
    assert store.versions() == [0, 2, 3]
    assert store.damaged() == {1}
    assert [x for x in caplog.messages if "version 1 is set aside" in x]


def test_every_flipped_bit_is_found(make, folder, orbax):
    orbax.error = RuntimeError("never")
    store = make()
    store.save(1, state_of(1), {"version": 1})
    path = folder / "ahead" / "1"
    whole, chance = path.read_bytes(), random.Random(1)
    print("seed 1")
    for _ in range(200):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(StoreError):
            store.load(1, state_of(0))
    for size in (0, 5, 16, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            store.load(1, state_of(0))
    path.write_bytes(whole + b"x")
    with pytest.raises(StoreError):
        store.load(1, state_of(0))
    path.write_bytes(whole)
    assert same(store.load(1, state_of(0)).state, state_of(1))


def test_a_server_begins_with_the_newest_that_is_right(make, folder, orbax):
    experiment = small()
    first = initial_server_state(experiment)
    orbax.error = RuntimeError("never")
    store = make()
    for version in range(3):
        number = jax.numpy.int32(version)
        state = first._replace(model=first.model._replace(version=number))
        store.save(version, state, {"version": version})
    path = folder / "ahead" / "2"
    path.write_bytes(path.read_bytes()[:-1])
    again = make()
    again.begin_incarnation()
    assert int(start_of(experiment, again).state.model.version) == 1
    assert again.versions() == [0, 1]
    assert again.damaged() == {2}
    again.save(2, first, {"version": 2})
    assert again.versions() == [0, 1, 2]


def test_what_orbax_has_serves_where_the_file_is_damaged(make, folder):
    """A crash may leave both."""
    store = make()
    store.save(1, state_of(1), {"version": 1})
    store.close()
    (folder / "ahead" / "1").write_bytes(b"asyn2f-1 damaged")
    again = OrbaxStore(folder)
    assert same(again.load(1, state_of(0)).state, state_of(1))
    assert again.record(1)["version"] == 1
    again.set_aside(1)
    assert again.versions() == []
    again.close()


def test_who_was_replaced_writes_nothing_ahead(make, folder):
    store = make()
    store.begin_incarnation()
    store.save(0, state_of(0), {})
    other = OrbaxStore(folder)
    other.begin_incarnation()
    with pytest.raises(FencedError):
        store.save(1, state_of(1), {})
    assert 1 not in other.versions()
    other.close()


def test_a_version_is_not_overwritten_in_either_form(make, orbax):
    store = make()
    orbax.open.clear()
    store.save(1, state_of(1), {})
    with pytest.raises(StoreError, match="there already"):
        store.save(1, state_of(2), {})
    orbax.open.set()
    store.close()
    again = make()
    with pytest.raises(StoreError, match="there already"):
        again.save(1, state_of(2), {})
    assert same(again.load(1, state_of(0)).state, state_of(1))


def test_the_best_may_be_one_that_orbax_does_not_have_yet(make, folder, orbax):
    orbax.error = RuntimeError("killed")
    store = make()
    store.save(1, state_of(1), {})
    store.set_best(1, 0.5)
    assert OrbaxStore(folder).best() == (0.5, 1)


def test_who_waits_goes_on_as_soon_as_a_part_is_done(monkeypatch):
    """Not only when the whole job is."""
    monkeypatch.setattr(behind, "MOST_WAITING", 2)
    monkeypatch.setattr(behind, "_HELD_S", PATIENCE_S)
    left, begun, go, called = [1, 2], *(threading.Semaphore(0) for _ in range(3))

    def job():
        while left:
            begun.release()
            assert go.acquire(timeout=PATIENCE_S)
            left.pop()
            yield

    def make_more():
        follower.wait()
        called.release()

    follower = behind.Behind(job, lambda: len(left))
    threading.Thread(target=make_more, daemon=True).start()
    assert begun.acquire(timeout=PATIENCE_S)
    assert not called.acquire(timeout=0.5)
    go.release()
    assert called.acquire(timeout=PATIENCE_S)
    assert len(left) == 1
    go.release(20)
    assert follower.close(PATIENCE_S)


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_nobody_waits_long_for_a_job_that_fails_or_hangs(monkeypatch, trouble):
    """And as soon as it works again, it is waited for again."""
    monkeypatch.setattr(behind, "MOST_WAITING", 3)
    monkeypatch.setattr(behind, "_HELD_S", 0.2)
    left, works, tried = list(range(40)), threading.Event(), threading.Semaphore(0)

    def job():
        while left:
            tried.release()
            if trouble == "fails" and not works.is_set():
                raise RuntimeError("no space")
            assert works.wait(PATIENCE_S)
            left.pop()
            yield

    follower = behind.Behind(job, lambda: len(left))
    for _ in range(3):
        follower.wait()
        follower.call()
    assert tried.acquire(timeout=PATIENCE_S)
    assert len(left) == 40
    monkeypatch.setattr(behind, "_HELD_S", PATIENCE_S)
    works.set()
    follower.call()
    until_s = time.monotonic() + PATIENCE_S
    while len(left) >= 3 and time.monotonic() < until_s:
        follower.wait()  # it may not have come to its first part yet
    assert len(left) < 3
    assert follower.close(PATIENCE_S)
    assert left == []


def test_a_writer_that_dies_is_replaced(tmp_path):
    writer = OrbaxWriter()
    writer.write(tmp_path / "1", state_of(1), {"version": 1})
    writer._process._process.kill()
    with pytest.raises(OSError, match="has ended with -9"):
        writer.write(tmp_path / "2", state_of(2), {"version": 2})
    writer.write(tmp_path / "3", state_of(3), {"version": 3})
    writer.close()
    assert names(tmp_path) >= {"1", "3"}


def test_a_writer_is_renewed_now_and_then(tmp_path, monkeypatch):
    """By one that has started before; what they write is the same."""
    monkeypatch.setattr(orbax_writer, "MOST_SAVES", 4)
    monkeypatch.setattr(orbax_writer, "_STARTS_BEFORE", 2)
    writer, numbers = OrbaxWriter(), []
    for version in range(10):
        writer.write(tmp_path / str(version), state_of(version), {"version": version})
        numbers.append(writer._process._process.pid)
    writer.close()
    assert [len(list(same)) for _, same in itertools.groupby(numbers)] == [4, 4, 2]
    store = OrbaxStore(tmp_path)
    assert store.versions() == list(range(10))
    assert [store.record(v) for v in range(10)] == [{"version": v} for v in range(10)]
    store.close()


def test_a_writer_ends_with_the_process_that_started_it(tmp_path):
    """Even if that is killed in the middle of a save; nothing is left of it then."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from asyn2f.store.orbax_writer import OrbaxWriter\n"
        "from tests.contracts.test_store import state_of\n"
        "process, folder = OrbaxWriter()._process, Path(sys.argv[1])\n"
        "process.write(folder / '1', state_of(1), {})\n"
        "process._pipe.send((folder / '2', state_of(2), {}))\n"
        "print(process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert has_ended(int(done.stdout), time.monotonic() + PATIENCE_S)
    assert names(tmp_path) in ({"1"}, {"1", "2"})  # whole, or not at all


def test_what_a_writer_cannot_do_is_said(tmp_path):
    writer = OrbaxWriter()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        writer.write(tmp_path / "file" / "1", state_of(1), {})
    writer.write(tmp_path / "1", state_of(1), {})
    writer.close()


def test_large_versions_go_to_orbax_at_once(make, folder, monkeypatch):
    monkeypatch.setattr(wal, "MOST_BYTES", 10)
    store = make()
    store.save(1, state_of(1), {})
    assert (folder / "1").is_dir()
    assert not (folder / "ahead").exists()


# ------------------------------------------------- a process that hangs, and the end


def test_a_process_that_hangs_is_killed_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_writer, "_ANSWERS_S", 1.0)
    writer = OrbaxWriter()
    writer.write(tmp_path / "1", state_of(1), {"version": 1})
    for version, size in ((2, 12), (3, 300_000)):  # more than the pipe holds
        stopped = writer._process._process
        stopped.send_signal(signal.SIGSTOP)
        with pytest.raises(OSError, match="hangs, and is killed"):
            writer.write(tmp_path / str(version), state_of(version, size=size), {})
        assert stopped.poll() == -signal.SIGKILL
        writer.write(tmp_path / f"{version}0", state_of(version), {"version": version})
    writer.close()


def test_versions_are_made_while_orbax_hangs_and_it_catches_up(
    make, folder, monkeypatch
):
    monkeypatch.setattr(behind, "MOST_WAITING", 3)
    monkeypatch.setattr(behind, "_HELD_S", 0.2)
    monkeypatch.setattr(orbax_writer, "_ANSWERS_S", 2.0)
    store = make()
    store.begin_incarnation()
    store.save(0, state_of(0), {"version": 0})
    wait_until(lambda: (folder / "0").exists())
    stopped = store._writer._process._process
    stopped.send_signal(signal.SIGSTOP)
    for version in range(1, 9):
        store.save(version, state_of(version), {"version": version})
    assert store.versions() == list(range(9))
    wait_until(lambda: stopped.poll() is not None)
    monkeypatch.setattr(orbax_writer, "_ANSWERS_S", 60.0)  # its successor may be slow
    store.close()
    assert names(folder / "ahead") == set()
    assert names(folder) >= set(map(str, range(9)))


def test_what_was_left_behind_is_bounded_again_after_a_restart(
    make, folder, orbax, monkeypatch
):
    orbax.error = RuntimeError("away")
    first = make()
    for version in range(24):
        first.save(version, state_of(version), {"version": version})
    first.close()
    assert len(names(folder / "ahead")) == 24
    orbax.error = None
    monkeypatch.setattr(behind, "_HELD_S", PATIENCE_S)
    second = make()
    second.save(24, state_of(24), {"version": 24})
    assert len(names(folder / "ahead")) <= behind.MOST_WAITING
    second.close()
    assert names(folder / "ahead") == set()


def test_the_end_has_the_newest_and_the_best_written_first(make, folder, monkeypatch):
    order, to_orbax = [], OrbaxStore._to_orbax

    def noted(self, beside, *version):
        if not self._ends:
            raise RuntimeError("away")
        order.append(int(beside.name.partition(".")[0]))
        to_orbax(self, beside, *version)

    monkeypatch.setattr(OrbaxStore, "_to_orbax", noted)
    store = make()
    for version in range(9):
        store.save(version, state_of(version), {"version": version})
    store.set_best(4, 0.9)
    store.close()
    assert order == [8, 4, 0, 1, 2, 3, 5, 6, 7]


def test_the_end_does_not_wait_for_a_process_that_hangs(
    make, folder, monkeypatch, caplog
):
    """It is killed, and another one writes what it has not."""
    store = make()
    store.begin_incarnation()
    store.save(0, state_of(0), {"version": 0})
    wait_until(lambda: (folder / "0").exists())
    hanging = store._writer._process._process
    hanging.send_signal(signal.SIGSTOP)
    store.save(1, state_of(1), {"version": 1})
    monkeypatch.setattr(stores, "_HANGS_S", 2.0)
    store.close()
    assert hanging.poll() == -signal.SIGKILL
    assert OrbaxStore(folder).versions() == [0, 1]


def test_of_old_versions_that_orbax_never_gets_not_all_are_kept(
    make, folder, orbax, monkeypatch
):
    """While it fails for days."""
    monkeypatch.setattr(behind, "MOST_WAITING", 4)
    orbax.error = RuntimeError("away")
    now = itertools.count()
    store = make(keep_last=3, keep_younger_than_s=5.0, clock=now.__next__)
    for version in range(60):
        store.save(version, state_of(version), {"version": version})
        if version == 2:
            store.set_best(2, 0.5)
        assert orbax.called.acquire(timeout=PATIENCE_S)
    wait_until(lambda: len(names(folder / "ahead")) < 20)
    assert {2, 57, 58, 59} <= {*store.versions()}


def test_nothing_is_saved_once_the_run_has_ended(make, folder, orbax):
    """But for what Orbax has to follow with."""
    orbax.open.clear()
    store = make()
    store.save(0, state_of(0), {"version": 0})
    store.seal()
    with pytest.raises(StoreError, match="the run has ended without it"):
        store.save(1, state_of(1), {"version": 1})
    with pytest.raises(StoreError, match="the run has ended without it"):
        store.set_best(0, 0.5)
    orbax.open.set()
    store.close()
    assert names(folder) == {"ahead", "0"}
    assert store.best() == (None, None)
