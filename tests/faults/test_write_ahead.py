"""Write-ahead files, and the checkpoints that follow them."""

import errno
import itertools
import multiprocessing
import random
import shutil
import threading

import jax
import numpy as np
import pytest

from asyn2f.errors import FencedError, StoreError
from asyn2f.runtime.startup import start_of
from asyn2f.store import formats
from asyn2f.store import orbax as stores
from asyn2f.store.orbax import OrbaxStore
from asyn2f.training.experiment import initial_server_state
from asyn2f.types import Best
from tests.contracts.test_runtime import small
from tests.contracts.test_store import state_of
from tests.support.patience import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("patient_stores")

NEVER_S = 1e6
AT_ONCE_S = 0.005


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def make(folder):
    made: list[OrbaxStore] = []

    def build(checkpoint_every_s=NEVER_S, **settings):
        settings |= {"write_ahead": True, "checkpoint_every_s": checkpoint_every_s}
        made.append(OrbaxStore(folder, **settings))
        return made[-1]

    yield build
    for store in made:
        store.close()


@pytest.fixture
def orbax(monkeypatch):
    """Orbax's writer, which a test can block, or make fail."""

    class Writer:
        def __init__(self) -> None:
            self.open = threading.Event()
            self.open.set()
            self.error: Exception | None = None
            self.called = threading.Semaphore(0)
            self.written: list[int] = []

    writer, write = Writer(), formats.write_checkpoint

    def wrapped(checkpointer, folder, *version):
        writer.called.release()
        assert writer.open.wait(PATIENCE_S)
        if writer.error is not None:
            raise writer.error
        write(checkpointer, folder, *version)
        writer.written.append(int(folder.name.partition(".")[0]))

    monkeypatch.setattr(formats, "write_checkpoint", wrapped)
    yield writer
    writer.open.set()


def same(one, other) -> bool:
    pairs = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other)
    return jax.tree.all(pairs)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def save(store, *versions: int) -> None:
    for version in versions:
        store.save(version, state_of(version), {"version": version})


# ------------------------------------------------------------- files


def test_a_version_is_in_the_store_before_orbax_has_written_anything(make, folder):
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
    store.close()
    assert names(folder / "ahead") == set()
    again = OrbaxStore(folder)
    assert again.versions() == [1]
    assert same(again.load(1, state_of(0)).state, state_of(1))
    assert again.record(1) == record
    again.close()


def test_a_reader_converts_nothing(make, folder):
    save(make(), 1)
    reader = OrbaxStore(folder)
    reader.load(1, state_of(0))
    reader.close()
    assert names(folder / "ahead") == {"1"}


def test_every_flipped_bit_is_found(make, folder):
    store = make()
    save(store, 1)
    path = folder / "ahead" / "1"
    content, chance = path.read_bytes(), random.Random(1)
    print("seed 1")
    for _ in range(200):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with pytest.raises(StoreError):
            store.load(1, state_of(0))
    for size in (0, 5, 16, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(StoreError):
            store.load(1, state_of(0))
    path.write_bytes(content + b"x")
    with pytest.raises(StoreError):
        store.load(1, state_of(0))
    path.write_bytes(content)
    assert same(store.load(1, state_of(0)).state, state_of(1))


def test_a_server_begins_with_the_newest_intact_version(make, folder):
    experiment = small()
    first = initial_server_state(experiment)
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


def test_a_checkpoint_serves_where_the_file_is_damaged(make, folder):
    """A crash between rename and deletion leaves both."""
    store = make()
    save(store, 1)
    store.close()
    (folder / "ahead" / "1").write_bytes(b"asyn2f-1 damaged")
    again = OrbaxStore(folder)
    assert same(again.load(1, state_of(0)).state, state_of(1))
    assert again.record(1)["version"] == 1
    again.set_aside(1)
    assert again.versions() == []
    again.close()


def test_a_fenced_server_writes_neither_file_nor_checkpoint(make, folder, orbax):
    store = make()
    store.begin_incarnation()
    save(store, 0)
    other = OrbaxStore(folder)
    other.begin_incarnation()
    with pytest.raises(FencedError):
        save(store, 1)
    store.close()
    assert other.versions() == [0]
    assert orbax.written == []
    other.close()


def test_a_server_fenced_in_mid_conversion_does_not_finish_it(make, folder, orbax):
    orbax.open.clear()
    store = make(AT_ONCE_S)
    store.begin_incarnation()
    save(store, 0)
    assert orbax.called.acquire(timeout=PATIENCE_S)
    other = make()
    other.begin_incarnation()
    orbax.open.set()
    store.close()
    assert not (folder / "0").exists()
    assert not list(folder.glob("*unfinished*"))
    assert other.versions() == [0]


def test_a_version_is_not_overwritten_in_either_format(make):
    store = make()
    save(store, 1)
    with pytest.raises(StoreError, match="already exists"):
        store.save(1, state_of(2), {})
    store.close()
    again = make()
    with pytest.raises(StoreError, match="already exists"):
        again.save(1, state_of(2), {})
    assert same(again.load(1, state_of(0)).state, state_of(1))


def test_the_best_may_be_a_file(make, folder):
    store = make()
    save(store, 1)
    store.set_best(Best(1, "accuracy", 0.5))
    assert OrbaxStore(folder).best() == Best(1, "accuracy", 0.5)


def test_large_versions_are_checkpoints_at_once(make, folder, monkeypatch):
    monkeypatch.setattr(formats, "MAX_WRITE_AHEAD_BYTES", 10)
    store = make()
    save(store, 1)
    assert (folder / "1").is_dir()
    assert not (folder / "ahead").exists()


# ------------------------------------------------------------- checkpoints


def test_of_versions_that_come_fast_the_newest_and_the_best_are_converted(
    make, folder, orbax
):
    """Newest wins: versions in between stay files."""
    orbax.open.clear()
    store = make(AT_ONCE_S)
    save(store, 0)
    assert orbax.called.acquire(timeout=PATIENCE_S)  # blocked in version 0
    save(store, *range(1, 9))
    store.set_best(Best(3, "accuracy", 0.9))
    orbax.open.set()
    between = {"1", "2", "4", "5", "6", "7"}
    wait_until(lambda: names(folder / "ahead") == between)
    assert orbax.written == [0, 8, 3]
    assert store.versions() == list(range(9))


def test_conversions_wait_for_their_period(make, orbax):
    store = make()
    save(store, *range(5))
    assert not orbax.called.acquire(timeout=0.2)
    store.close()


def test_at_the_end_the_best_and_the_last_are_checkpoints(make, folder, orbax):
    """The newest and the best first, as the end may be cut short."""
    store = make(keep_last=4)
    save(store, *range(12))
    store.set_best(Best(2, "accuracy", 0.5))
    store.close()
    assert orbax.written == [11, 2, 8, 9, 10]
    assert names(folder) - {"ahead", "best.json"} == {"2", "8", "9", "10", "11"}
    again = OrbaxStore(folder)
    assert again.versions() == list(range(12))  # the others are young
    for version in range(12):
        assert same(again.load(version, state_of(0)).state, state_of(version))
        assert again.record(version)["version"] == version
    again.close()


def test_retention_deletes_files_as_it_does_checkpoints(make, folder):
    now = itertools.count()
    store = make(keep_last=3, keep_younger_than_s=5.0, clock=now.__next__)
    for version in range(30):
        save(store, version)
        if version == 2:
            store.set_best(Best(2, "accuracy", 0.5))
    assert 2 in store.versions()
    assert set(store.versions()) >= {27, 28, 29}
    assert len(store.versions()) < 12
    store.close()
    assert names(folder) >= {"2", "27", "28", "29"}


def test_nothing_is_lost_or_delayed_while_orbax_fails(make, folder, orbax, caplog):
    orbax.error = OSError(errno.ENOSPC, "No space left on device")
    store = make(AT_ONCE_S)
    for version in range(6):
        save(store, version)
        assert orbax.called.acquire(timeout=PATIENCE_S)
    assert store.versions() == list(range(6))
    assert not (folder / "5").exists()
    orbax.error = None
    save(store, 6)
    store.close()
    assert names(folder) == {"ahead", *map(str, range(7))}
    for version in range(7):
        assert same(store.load(version, state_of(0)).state, state_of(version))
    logged = [x.message for x in caplog.records if "the disk is full" in x.message]
    assert logged
    assert "it will be tried again" in logged[0]


def test_files_that_a_crash_left_are_converted_when_the_run_resumes(
    make, folder, orbax
):
    """The first writer's conversions fail."""
    orbax.error = RuntimeError("killed")
    first = make()
    first.begin_incarnation()
    save(first, 0, 1, 2)
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


def test_conversions_resume_when_an_unavailable_folder_is_back(make, folder, caplog):
    store = make(AT_ONCE_S)
    save(store, 0)
    wait_until(lambda: names(folder / "ahead") == set())
    folder.rename(folder.with_name("away"))
    wait_until(lambda: "it will be tried again" in caplog.text)
    folder.with_name("away").rename(folder)
    save(store, 1)
    wait_until(lambda: (folder / "1").exists())
    assert store.versions() == [0, 1]


def test_a_store_whose_folder_is_gone_can_be_closed(make, folder):
    store = make()
    save(store, 0)
    shutil.rmtree(folder)
    store.close()
    folder.mkdir()


@pytest.mark.parametrize("is_of_another", [False, True])
def test_a_damaged_file_is_set_aside(make, folder, caplog, is_of_another):
    """Its successors are converted all the same."""
    store = make()
    save(store, 0, 1, 2)
    damaged, content = (folder / "ahead" / "1"), (folder / "ahead" / "2").read_bytes()
    damaged.write_bytes(content if is_of_another else damaged.read_bytes()[:-1])
    save(store, 3)
    store.close()
    assert names(folder) == {"ahead", "1.damaged", "0", "2", "3"}
    assert names(folder / "ahead") == set()
    assert store.versions() == [0, 2, 3]
    assert store.damaged() == {1}
    assert [x for x in caplog.messages if "version 1 is set aside" in x]


def test_a_conversion_that_hangs_delays_neither_saves_nor_the_end(
    make, folder, orbax, monkeypatch, caplog
):
    orbax.open.clear()
    store = make(AT_ONCE_S)
    save(store, 0)
    assert orbax.called.acquire(timeout=PATIENCE_S)
    save(store, *range(1, 9))
    assert store.versions() == list(range(9))
    monkeypatch.setattr(stores, "_HANGS_S", 0.2)
    store.close()
    assert "have no Orbax checkpoint" in caplog.text
    monkeypatch.setattr(stores, "_HANGS_S", PATIENCE_S)
    reader = OrbaxStore(folder)
    for version in range(9):
        assert same(reader.load(version, state_of(0)).state, state_of(version))
    reader.close()


def test_a_sealed_store_converts_what_it_holds_and_saves_nothing_more(
    make, folder, orbax
):
    store = make()
    save(store, 0)
    store.seal()
    with pytest.raises(StoreError, match="the run has ended without this version"):
        save(store, 1)
    with pytest.raises(StoreError, match="the run has ended without this version"):
        store.set_best(Best(0, "accuracy", 0.5))
    store.close()
    assert names(folder) == {"ahead", "0"}
    assert store.best() is None


def _convert_for_ever(folder: str, channel) -> None:
    store = OrbaxStore(folder, write_ahead=True, checkpoint_every_s=0.0)
    store.begin_incarnation()
    version = max(store.versions(), default=0)
    while True:
        version += 1
        save(store, version)
        channel.send(version)


@pytest.mark.processes
@pytest.mark.slow
def test_a_server_killed_in_mid_conversion_loses_nothing_it_saved(folder):
    seed = 5
    print(f"seed {seed}")
    chance, context = random.Random(seed), multiprocessing.get_context("spawn")
    newest = 0
    for _ in range(3):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_convert_for_ever, args=(folder, there))
        process.start()
        there.close()
        assert here.poll(PATIENCE_S)
        here.recv()
        process.join(chance.uniform(0.3, 1.0))
        process.kill()
        process.join()
        while True:
            try:
                newest = max(newest, here.recv())
            except EOFError:
                break
        store = OrbaxStore(folder)
        versions = store.versions()
        assert newest <= versions[-1] <= newest + 1
        assert versions == list(range(1, versions[-1] + 1))
        assert [v for v in versions if (folder / str(v)).is_dir()]
        for version in versions:
            assert same(store.load(version, state_of(0)).state, state_of(version))
        newest = versions[-1]
        store.close()
