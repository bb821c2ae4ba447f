"""The file of a worker's own state: whole or not at all, and only of its run."""

import logging

import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.store.worker_state import WorkerStateFile, encoded

STATE = {
    "steps": np.int32(7),
    "mean": np.array([0.5, -1.5], np.float32),
    "seen": np.array([True, False]),
    "half": np.asarray(jnp.array([1.5, 2.5], jnp.bfloat16)),
    "key": np.array([1, 2**32 - 1], np.uint32),
}


@pytest.fixture
def file(tmp_path):
    return WorkerStateFile(tmp_path / "workers" / "worker-3")


def path_of(file):
    return file._path


def test_what_was_written_is_read(file):
    kept = encoded(STATE)
    file.write("run-1", kept)
    state, digest = file.read("run-1", STATE)
    assert digest == kept.digest
    assert state.keys() == STATE.keys()
    for name, array in STATE.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array)


def test_the_newest_replaces_the_one_before_and_nothing_is_left_over(file):
    for steps in (1, 2, 3):
        file.write("run-1", encoded({"steps": np.int32(steps)}))
    assert file.read("run-1", {"steps": np.int32(0)})[0]["steps"] == 3
    assert [path.name for path in path_of(file).parent.iterdir()] == ["worker-3"]


def test_another_run_begins_anew_without_a_warning(file, caplog):
    file.write("run-1", encoded(STATE))
    assert file.read("run-2", STATE) is None
    assert caplog.records == []


def test_a_first_process_begins_anew_without_a_warning(file, caplog):
    assert file.read("run-1", STATE) is None
    assert caplog.records == []


def cut(content: bytes) -> bytes:
    return content[:-1]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE = {
    "cut": cut,
    "flipped": flipped,
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "only its header": lambda content: content.partition(b"\n")[0],
    "no header": lambda content: content.partition(b"\n")[2],
    "another thing": lambda content: b"[]\n" + content,
    "without a digest": lambda content: b'{"run": "run-1"}\n' + content,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_left_out_with_a_warning(file, caplog, name):
    file.write("run-1", encoded(STATE))
    path = path_of(file)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert file.read("run-1", STATE) is None
    (record,) = caplog.records
    assert "worker-3 cannot be used, the worker begins anew" in record.getMessage()


@pytest.mark.parametrize(
    "like",
    [
        {"steps": np.int32(0)},
        STATE | {"mean": np.zeros(3, np.float32)},
        STATE | {"steps": np.int64(0)},
    ],
)
def test_a_state_of_other_shapes_is_left_out_with_a_warning(file, caplog, like):
    file.write("run-1", encoded(STATE))
    assert file.read("run-1", like) is None
    assert "other names, shapes or dtypes" in caplog.text


def test_where_nothing_can_be_written_the_worker_goes_on_and_warns_once(
    file, tmp_path, caplog
):
    (tmp_path / "workers").write_text("no folder")
    for _ in range(3):
        file.write("run-1", encoded(STATE))
    (record,) = caplog.records
    assert "the previous state stays" in record.getMessage()


def test_a_process_killed_while_it_writes_leaves_the_state_before(file, monkeypatch):
    file.write("run-1", encoded({"steps": np.int32(1)}))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        file.write("run-1", encoded({"steps": np.int32(2)}))
    assert file.read("run-1", {"steps": np.int32(0)})[0]["steps"] == 1
