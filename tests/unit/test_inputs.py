"""The files that a config names: where they lie, and whether they have changed."""

import json

import pytest

from asyn2f import rundir
from asyn2f.cli import claim
from asyn2f.config import build, identity, schema
from asyn2f.errors import ConfigError
from tests.support.experiments import config_with

SHARDS = [[*range(0, 700)], [*range(700, 1400)]]


@pytest.fixture
def begun(tmp_path):
    """A config with a partition file, in the folder of a run that has begun with it."""
    path = tmp_path / "partition.json"
    path.write_text(json.dumps(SHARDS))
    config = config_with(workers=2, task__partition="file", task__indices=str(path))
    claim.write_split(tmp_path, build.build_task(config), {})
    return config, path


def test_the_same_data_are_the_same_wherever_their_file_is(begun, tmp_path):
    config, path = begun
    moved = path.rename(tmp_path / "moved.json")
    other = config_with(workers=2, task__partition="file", task__indices=str(moved))
    claim.check_same_data(tmp_path, build.build_task(other))
    identity.check_same_experiment(config, other)
    assert identity.experiment_digest(config) == identity.experiment_digest(other)


def edited(rows_of_1: list[int]) -> str:
    return json.dumps([SHARDS[0], rows_of_1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (edited(SHARDS[1][1:]), "data of worker 1 differ"),
        (edited([*SHARDS[1][1:], 1400]), "data of worker 1 differ"),
        (json.dumps(SHARDS[::-1]), "data of worker 0, worker 1 differ"),
    ],
    ids=["fewer", "another", "exchanged"],
)
def test_a_file_that_was_edited_is_noticed(begun, tmp_path, text, words):
    config, path = begun
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        claim.check_same_data(tmp_path, build.build_task(config))


def test_another_test_set_is_noticed(begun, tmp_path):
    task = build.build_task(begun[0])
    label = task.test["label"].copy()
    label[7] += 1
    with pytest.raises(ConfigError, match="data of the test set differ"):
        claim.check_same_data(
            tmp_path, task._replace(test=task.test | {"label": label})
        )


def test_a_run_of_an_older_version_has_no_digests_of_its_data(begun, tmp_path):
    split = rundir.read_json(tmp_path / rundir.SPLIT)
    rundir.write_json(tmp_path / rundir.SPLIT, {"counts": split["counts"]})
    claim.check_same_data(tmp_path, build.build_task(config_with(workers=2)))


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = config_with(
        task__indices="part.json",
        task__data_dir="~/data",
        task__dataset="./mnist/3.0.1",
        sim__profiles="../devices.csv",
    )
    found = schema.with_absolute_paths(config)
    assert found["task"]["indices"] == str(tmp_path / "part.json")
    assert found["task"]["data_dir"] == "/home/me/data"
    assert found["task"]["dataset"] == str(tmp_path / "mnist" / "3.0.1")
    assert found["sim"]["profiles"] == str(tmp_path.parent / "devices.csv")
    assert found["runtime"]["keys_dir"] == ""
    plain = schema.with_absolute_paths(config_with())
    assert plain == schema.nested(schema.flatten(config_with()))
