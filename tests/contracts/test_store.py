"""One contract for all stores, and faults of a store on disk."""

import contextlib
import multiprocessing
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyn2f.errors import StoreError
from asyn2f.store import formats
from asyn2f.store.base import MemoryStore, superfluous
from asyn2f.store.orbax import OrbaxStore
from asyn2f.strategies.base import initial_state
from asyn2f.types import Best, ServerState
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("patient_stores")


def state_of(version: int, size: int = 12) -> ServerState:
    """A state whose parameters all equal its version."""
    params = {"params": {"w": jnp.full((size, 3), float(version)), "b": jnp.ones(2)}}
    state = initial_state(params, workers=1)
    return state._replace(model=state.model._replace(version=jnp.int32(version)))


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", "orbax", "write-ahead"])
def make(request, tmp_path):
    """Opens a store; on a disk, the same one each time."""
    kept: list = []

    def build(**settings):
        if request.param == "memory":
            return MemoryStore(**settings)
        is_ahead = request.param == "write-ahead"
        store = OrbaxStore(tmp_path / "models", write_ahead=is_ahead, **settings)
        kept.append(store)
        return kept[-1]

    yield build
    for store in kept:
        store.close()


def test_a_saved_version_is_loaded_bit_for_bit_with_its_record(make):
    store = make()
    store.save(3, state_of(3), {"parent": 2, "names": ["a"]})
    state, record = store.load(3, state_of(0))
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), state, state_of(3))
    )
    assert int(state.model.version) == 3
    assert record["parent"] == 2
    assert record["names"] == ["a"]


def test_versions_are_listed_in_order(make):
    store = make()
    assert store.versions() == []
    for version in (0, 1, 2, 10, 11):
        store.save(version, state_of(version), {})
    assert store.versions() == [0, 1, 2, 10, 11]


def test_a_missing_version_is_named(make):
    with pytest.raises(StoreError, match="7 is not in"):
        make().load(7, state_of(0))


def test_a_version_is_never_overwritten(make):
    store = make()
    store.save(1, state_of(1), {})
    with pytest.raises(StoreError):
        store.save(1, state_of(2), {})
    assert (
        float(store.load(1, state_of(0)).state.model.params["params"]["w"][0, 0]) == 1
    )


def test_a_shape_mismatch_names_the_array(make):
    store = make()
    store.save(1, state_of(1, size=12), {})
    with pytest.raises(StoreError, match="another config"):
        store.load(1, state_of(0, size=5))


def test_retention_keeps_the_best_the_last_and_the_young(make):
    clock = _Clock()
    store = make(keep_last=2, keep_younger_than_s=10.0, clock=clock)
    for version in range(8):
        clock.now += 3.0
        store.save(version, state_of(version), {})
        if version == 1:
            store.set_best(Best(1, "accuracy", 0.5))
    # At the last save version 3 was 12 s old and version 4 was 9 s old.
    assert store.versions() == [1, 4, 5, 6, 7]
    assert store.best() == Best(1, "accuracy", 0.5)
    assert int(store.load(1, state_of(0)).state.model.version) == 1


def test_a_version_set_aside_can_be_saved_again(make):
    store = make()
    store.save(1, state_of(1), {})
    store.save(2, state_of(2), {})
    store.set_aside(2)
    assert store.versions() == [1]
    store.save(2, state_of(7), {})
    assert int(store.load(2, state_of(0)).state.model.version) == 7


def test_fencing_tokens_increase(make):
    store = make()
    first = store.begin_incarnation()
    assert store.begin_incarnation() > first


@given(
    st.dictionaries(st.integers(0, 50), st.floats(0, 100), max_size=20),
    st.none() | st.integers(0, 50),
    st.integers(1, 12),
    st.floats(0, 50),
)
def test_retention_never_deletes_best_last_or_young(saved_s, best, keep, younger):
    gone = superfluous(saved_s, best, keep, younger, now=100.0)
    kept = set(saved_s) - set(gone)
    assert best not in gone
    assert set(sorted(saved_s)[-keep:]) <= kept
    assert all(100.0 - saved_s[v] > younger for v in gone)
    # and every version kept has a reason
    for version in kept:
        assert (
            version == best
            or version in sorted(saved_s)[-keep:]
            or 100.0 - saved_s[version] <= younger
        )


# ---------------------------------------------------------------- on a disk


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "models"


def test_a_reopened_store_has_versions_best_and_incarnation(folder):
    store = OrbaxStore(folder)
    first = store.begin_incarnation()
    store.save(0, state_of(0), {})
    store.set_best(Best(0, "accuracy", 0.25))
    store.close()
    again = OrbaxStore(folder)
    assert again.versions() == [0]
    assert again.best() == Best(0, "accuracy", 0.25)
    assert again.begin_incarnation() == first + 1
    again.close()


def test_every_flipped_bit_of_the_arrays_is_detected(folder):
    store = OrbaxStore(folder)
    state = state_of(1, size=400)
    store.save(1, state, {})
    kernel = np.asarray(state.model.params["params"]["w"]).tobytes()
    found = [
        (path, place)
        for path in (folder / "1").rglob("*")
        if path.is_file()
        for place in [path.read_bytes().find(kernel[:400])]
        if place >= 0
    ]
    assert found, "the arrays are stored as they are"
    path, place = found[0]
    clean = path.read_bytes()
    for offset in range(0, len(kernel), len(kernel) // 60):
        damaged = bytearray(clean)
        damaged[place + offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"damaged|cannot read"):
            store.load(1, state_of(0, size=400))
    path.write_bytes(clean)
    store.load(1, state_of(0, size=400))
    store.close()


def test_with_a_missing_or_truncated_file_a_version_is_intact_or_refused(folder):
    store = OrbaxStore(folder)
    store.save(1, state_of(1), {})
    backup = folder.parent / "backup"
    shutil.copytree(folder / "1", backup)
    refused = set()
    for path in [p for p in backup.rglob("*") if p.is_file()]:
        name = path.relative_to(backup)
        for kept in (0.5, None):
            target = folder / "1" / name
            if kept is None:
                target.unlink()
            else:
                target.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            try:
                state, _ = store.load(1, state_of(0))
                values = np.asarray(state.model.params["params"]["w"])
                assert (values == 1).all()
            except StoreError:
                refused.add(str(name))
            shutil.copyfile(path, target)
    assert {"state/manifest.ocdbt", "state/_METADATA", "record/metadata"} <= refused
    store.close()


def test_other_folders_are_not_versions(folder):
    store = OrbaxStore(folder)
    store.save(1, state_of(1), {})
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    (folder / "notes").mkdir()
    (folder / ".deleted-0").mkdir()
    assert store.versions() == [1]
    store.begin_incarnation()
    names = {path.name for path in folder.iterdir()}
    assert names == {"1", "notes", "incarnations"}
    store.close()


def _save_for_ever(folder: str, ready) -> None:
    store = OrbaxStore(Path(folder), keep_younger_than_s=0.0)
    version = max(store.versions(), default=0)
    while True:
        version += 1
        if version % 3 == 0:
            ready.send(version)
        store.save(version, state_of(version, size=200_000), {"version": version})


@pytest.mark.processes
@pytest.mark.slow
def test_a_store_whose_writer_was_killed_in_mid_save_is_intact(folder):
    context = multiprocessing.get_context("spawn")
    for round_ in range(3):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_save_for_ever, args=(str(folder), there))
        process.start()
        assert here.poll(PATIENCE_S), "the writer has not started"
        begun = here.recv()
        # It is saving that version now, or has just begun the next.
        for _ in range(round_):
            begun = here.recv()
        process.kill()
        process.join()
        store = OrbaxStore(folder)
        versions = store.versions()
        assert versions[-1] >= begun - 1
        for version in versions:
            state, record = store.load(version, state_of(0, size=200_000))
            values = np.asarray(state.model.params["params"]["w"])
            assert record["version"] == version
            assert (values == version).all()
        # and it can be written again, over what was left unfinished
        store.save(
            versions[-1] + 1,
            state_of(versions[-1] + 1, size=200_000),
            {"version": versions[-1] + 1},
        )
        store.close()


def test_an_unwritable_store_is_an_error(folder):
    if os.geteuid() == 0:
        blocked = folder.parent / "file"
        blocked.write_text("in the way")
        with pytest.raises(StoreError, match="file"):
            OrbaxStore(blocked / "models")
    else:
        folder.mkdir(mode=0o500)
        store = OrbaxStore(folder)
        with pytest.raises(StoreError, match="cannot save"):
            store.save(1, state_of(1), {})


# ------------------------------------------------- folders with odd names

ODD = ["lr[0.1]", "back\\slash", "a*b?", "{a,b}", "two\nlines", "gs:", "file:", "[!a]-"]
ODD += ["[[]x", "50%25", "日本", os.fsdecode(b"latin-\xff")]


@pytest.mark.parametrize("is_ahead", [False, True])
def test_versions_are_loaded_from_a_folder_of_any_name(tmp_path, is_ahead):
    for number, name in enumerate(ODD[:3] if is_ahead else ODD):
        folder = tmp_path / name / "models"
        store = OrbaxStore(folder, write_ahead=is_ahead)
        store.save(1, state_of(number), {"version": 1, "name": number})
        store.close()
        assert (folder / "1" / "state").is_dir(), name
        again = OrbaxStore(folder)
        state, record = again.load(1, state_of(0))
        assert int(state.model.version) == number, name
        assert record["name"] == again.record(1)["name"] == number
        again.close()
    assert {x.name for x in tmp_path.iterdir()} <= {*ODD}


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_version_that_cannot_be_read_back_is_not_saved(
    tmp_path, monkeypatch, is_ahead
):
    """Orbax only warns when its patterns match nothing."""
    monkeypatch.setattr(formats, "plain_name", contextlib.nullcontext)
    folder = tmp_path / "lr[0.1]" / "models"
    store = OrbaxStore(folder, write_ahead=is_ahead)
    if is_ahead:
        store.save(1, state_of(1), {"version": 1})
    else:
        with pytest.raises(StoreError, match="cannot save"):
            store.save(1, state_of(1), {"version": 1})
    store.close()
    assert not (folder / "1").exists()
    again = OrbaxStore(folder)
    assert again.versions() == ([1] if is_ahead else [])
    if is_ahead:
        assert int(again.load(1, state_of(0)).state.model.version) == 1
    again.close()


def test_a_file_that_reads_back_differently_is_not_saved(tmp_path, monkeypatch):
    encode = formats.encode_params
    monkeypatch.setattr(
        formats, "encode_params", lambda state: bytes(len(encode(state)))
    )
    store = OrbaxStore(tmp_path / "models", write_ahead=True)
    with pytest.raises(StoreError, match="not read back as it was written"):
        store.save(1, state_of(1), {"version": 1})
    assert store.versions() == []
    store.close()


def test_without_proc_a_folder_with_patterns_is_refused(tmp_path, monkeypatch):
    """As on a system without /proc."""
    monkeypatch.setattr(formats, "_HANDLES", tmp_path / "no" / "such" / "folder")
    with pytest.raises(StoreError, match=r"lr\[1\].*pattern.*give a run folder"):
        OrbaxStore(tmp_path / "lr[1]")
    OrbaxStore(tmp_path / "lr=1, b").close()
