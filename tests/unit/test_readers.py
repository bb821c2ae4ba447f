"""One data set in every form is the same arrays; what is malformed is named."""

import gzip
import io
import json
import sys

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

import asyn2f
from asyn2f.config import build
from asyn2f.errors import DataError
from asyn2f.serialization import params_sha256
from asyn2f.tasks.columns import Choice, arrange, by_owner, held_out, labels
from asyn2f.tasks.models import MLP
from asyn2f.tasks.prediction import normalised, scale_of
from asyn2f.tasks.readers import read_splits
from tests.support import golden_run

RNG = np.random.default_rng(0)
TABLE = {
    "age": RNG.integers(20, 90, 50),
    "size": RNG.normal(size=50).astype(np.float32),
    "site": np.array(["b", "a"] * 25),
    "label": np.arange(50) % 2,
}


def csv_text(table=TABLE):
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    lines = [",".join(table), *(",".join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def save_to_disk(folder, table):
    """The files of `datasets.Dataset.save_to_disk`, in two pieces."""
    folder.mkdir(parents=True)
    names = []
    for k in range(2):
        names.append(f"data-{k:05}-of-00002.arrow")
        piece = table.slice(
            k * (table.num_rows // 2), None if k else table.num_rows // 2
        )
        with (
            pa.OSFile(str(folder / names[-1]), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(piece)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def written(kind, folder):
    path = folder / f"table.{kind}"
    match kind:
        case "npz":
            np.savez(path, **TABLE)
        case "csv":
            path.write_text(csv_text())
        case "csv.gz":
            path.write_bytes(gzip.compress(csv_text().encode()))
        case "parquet":
            pyarrow.parquet.write_table(pa.table(TABLE), path)
        case "saved":
            save_to_disk(path, pa.table(TABLE))
        case "dict":
            return TABLE
        case "frame":
            return pandas.DataFrame(TABLE)
    return path


@pytest.mark.parametrize(
    "kind", ["npz", "csv", "csv.gz", "parquet", "saved", "dict", "frame"]
)
def test_every_form_gives_the_same_arrays(kind, tmp_path):
    splits = read_splits(written(kind, tmp_path), ids="site")
    assert list(splits) == ["train"]
    rows = arrange(splits["train"], Choice(split_by="site"), "table")
    assert list(rows.batch) == ["x", "y"]
    expected = np.stack([TABLE["age"], TABLE["size"]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(rows.batch["x"], expected)
    np.testing.assert_array_equal(rows.batch["y"], TABLE["label"])
    assert rows.batch["x"].dtype == np.float32
    assert rows.batch["y"].dtype == np.int32
    a, b = by_owner(rows.owners, 2, "site", "table")
    assert (a.tolist(), b.tolist()) == ([*range(1, 50, 2)], [*range(0, 50, 2)])


def test_arrays_of_more_axes_go_through_files(tmp_path):
    x = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8)
    table = pa.table({"x": x.tolist(), "y": np.arange(6)})
    fixed = pa.list_(pa.list_(pa.uint8(), 3), 4)
    for number, kind in enumerate([fixed, pa.list_(pa.list_(pa.uint8()))]):
        column = pa.array(x.tolist(), kind)
        pyarrow.parquet.write_table(
            table.set_column(0, "x", column), tmp_path / "x.parquet"
        )
        found = read_splits(tmp_path / "x.parquet")["train"]["x"]
        np.testing.assert_array_equal(found, x)
        assert found.dtype == np.uint8
        saved = save_to_disk(tmp_path / f"{number}", table.set_column(0, "x", column))
        np.testing.assert_array_equal(read_splits(saved)["train"]["x"], x)


def test_a_saved_data_set_with_images_and_two_splits(tmp_path):
    images = RNG.integers(0, 256, (4, 5, 7)).astype(np.uint8)

    def encoded(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        return {"bytes": file.getvalue(), "path": None}

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(list(map(encoded, images)), kind)
    table = pa.table({"image": column, "label": np.arange(4)})
    for split in ("train", "test"):
        save_to_disk(tmp_path / "set" / split, table)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    splits = read_splits(tmp_path / "set")
    assert list(splits) == ["train", "test"]
    np.testing.assert_array_equal(splits["test"]["image"], images[..., None])


def test_an_npz_of_two_splits(tmp_path):
    np.savez(
        tmp_path / "d.npz", x_train=np.ones(3), y_train=np.ones(3), x_test=np.ones(1)
    )
    splits = read_splits(tmp_path / "d.npz")
    assert {k: list(v) for k, v in splits.items()} == {
        "train": ["x", "y"],
        "test": ["x"],
    }


def test_what_tensorflow_datasets_prepared_is_read_by_its_reader(tmp_path, monkeypatch):
    (tmp_path / "features.json").write_text("{}")
    monkeypatch.setattr(
        "asyn2f.tasks.readers.read_prepared", lambda name: ({name: {}}, 2)
    )
    assert read_splits(tmp_path) == {str(tmp_path): {}}


# ------------------------------------------------------------- malformed files


def file_with(content, name="d.csv"):
    def write(folder):
        (folder / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
        return folder / name

    return write


def npz_with(**arrays):
    def write(folder):
        np.savez(folder / "d.npz", **arrays)
        return folder / "d.npz"

    return write


def parquet_with(**columns):
    def write(folder):
        pyarrow.parquet.write_table(pa.table(columns), folder / "d.parquet")
        return folder / "d.parquet"

    return write


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: folder / "none.csv", "none.csv: no such file or folder"),
        (lambda folder: folder, "found none of dataset_dict.json and state.json"),
        (file_with("", "d.txt"), r"d.txt: allowed: a file ending in .npz, .csv"),
        (file_with(""), "the first line '', needed: a name for each column"),
        (file_with("a,a\n1,2\n"), "first line 'a,a'"),
        (file_with("a,y\n1,2\n\n1\n"), "line 4: found 1 cells, needed 2"),
        (file_with("a,y\n"), "found no rows, needed: at least one"),
        (file_with(b"\xff\xfea,y\n"), "d.csv: not a CSV file that can be read"),
        (file_with("a,y\n1,0\n", "d.csv.gz"), "d.csv.gz: not a CSV file that can"),
        (file_with("a,y\n1,0\n2,1\nn/a,1\n"), "column 'a': found 'n/a' in row 2"),
        (file_with("a,y\n1,0\n,1\n"), "column 'a': an empty cell in row 1"),
        (file_with("a,y\n1,0\nnan,1\n"), "column 'a': found nan in row 1 .* finite"),
        (file_with("a,y\n1,0\n1e39,1\n"), "column 'a': found 1e.39 in row 1 .* finite"),
        (
            file_with("a,b\n1,0\n"),
            r"columns a, b, and none named y, label, labels, target",
        ),
        (file_with("y\n1\n"), "no columns of inputs beside y"),
        (file_with("a,y\n1,0\n", "d.npz"), "d.npz: not an .npz file that can be read"),
        (file_with("PAR1", "d.parquet"), "d.parquet: not a parquet file"),
        (npz_with(x=np.array([{}, {}]), y=[0, 1]), "'x' holds pickled Python objects"),
        (npz_with(x=np.ones(3), y=np.ones(2)), r"several lengths \(x 3, y 2\)"),
        (npz_with(x=np.ones(3), y=1.0), "'y' is a single value"),
        (npz_with(x=np.ones((2, 2)), z=np.ones((2, 1)), y=[1j, 2]), "found complex128"),
        (npz_with(x=np.array([1, 2**40]), y=[0, 1]), "found 1099511627776 in row 1"),
        (parquet_with(x=[1.0, None], y=[0, 1]), "'x': found nan in row 1"),
        (
            parquet_with(x=[[1, 2], [3]], y=[0, 1]),
            r"shapes, \(2,\) in row 0 and \(1,\)",
        ),
        (parquet_with(x=[{"a": 1}, {"a": 2}], y=[0, 1]), "objects of Python, dict"),
        (lambda folder: {"x": [[1, 2], [3]], "y": [0, 1]}, r"and \(1,\) in row 1"),
        (lambda folder: {"x": ["a", 1.0], "y": [0, 1]}, "found 'a' in row 0"),
        (lambda folder: (1, 2, 3), r"found a tuple of 3, allowed: a pair"),
        (lambda folder: {}, "found no rows"),
    ],
)
def test_malformed_data_are_named_with_place_and_remedy(source, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        arrange(read_splits(source(tmp_path))["train"], Choice(), "data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no split train"),
        ({}, "KeyError: '_data_files'"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow"),
    ],
)
def test_a_damaged_saved_data_set(content, message, tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    if content is not None:
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "state.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path)


@pytest.mark.parametrize(
    ("library", "kind"), [("pyarrow", "parquet"), ("pyarrow", "saved")]
)
def test_a_missing_library_is_named_with_what_installs_it(
    library, kind, tmp_path, monkeypatch
):
    path = written(kind, tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        DataError, match=rf"{library}, which is missing.*asyn2f\[data\]"
    ):
        read_splits(path)


# ------------------------------------------------------------- choices


def test_columns_are_chosen():
    columns = {
        "image": np.zeros((3, 2, 2), np.uint8),
        "meta": np.zeros(3),
        "grade": np.array([2, 0, 1]),
        "weight": np.ones(3),
        "note": np.array(["", "", ""]),
    }
    choice = Choice(("image", "meta"), "grade", ("weight",))
    rows = arrange(columns, choice, "data")
    assert rows.inputs == ("image", "meta")
    assert list(rows.batch) == ["image", "meta", "y", "weight"]
    assert rows.batch["image"].dtype == np.uint8
    rows = arrange(columns, Choice(("image",), None), "data")
    assert (rows.inputs, list(rows.batch)) == (("x",), ["x"])
    with pytest.raises(DataError, match="column 'size' is missing; found grade, image"):
        arrange(columns, Choice(("size",), "grade"), "data")
    with pytest.raises(DataError, match="x and y are the names of input and target"):
        arrange(
            columns | {"x": columns["meta"]}, Choice(("meta",), "grade", ("x",)), "d"
        )


def test_labels_are_integers_from_0():
    assert labels(np.array([0.0, 2.0]), None, "data").tolist() == [0, 2]
    for values, found in (([0, 0.5], "0.5 in row 1"), ([0, 1, -1], "-1 in row 2")):
        with pytest.raises(DataError, match=f"data, target: found {found}"):
            labels(np.array(values), None, "data")
    with pytest.raises(DataError, match=r"found 2 in row 0 .* needed: 0 or 1"):
        labels(np.array([2]), 1, "data")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", " "], "found '' in row 1|found  in row 1"),
        ([1.0, np.nan], "found nan in row 1"),
        (np.array(["a", None]), "objects of Python"),
        (["a", "b", "c"], r"found 3 workers \(a, b, c\), but config.workers is 2; set"),
    ],
)
def test_worker_ids_that_are_none(ids, message):
    with pytest.raises(DataError, match=message):
        by_owner(np.asarray(ids), 2, "site", "data")


def test_workers_are_in_the_order_of_their_ids():
    for ids in (["10", "9"], [10, 9], [10.0, 9.0]):
        first, second = by_owner(np.array(ids), None, "id", "data")
        assert (first.tolist(), second.tolist()) == ([1], [0])


def test_a_fraction_of_each_part_is_held_out():
    parts = [np.arange(0, 10), np.arange(10, 11), np.arange(11, 61)]
    kept, out = held_out(parts, 0.2, seed=3)
    assert [len(rows) for rows in kept] == [8, 1, 40]
    np.testing.assert_array_equal(np.sort(np.concatenate([*kept, out])), np.arange(61))
    assert not np.array_equal(out, held_out(parts, 0.2, seed=4)[1])


def test_features_are_normalised_by_the_training_rows():
    train = RNG.normal(3.0, [1.0, 50.0, 0.0], (200, 3))
    found, test = (normalised(x, scale_of(train)) for x in (train, train[:7]))
    np.testing.assert_allclose(found[:, :2].mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(found[:, :2].std(0), 1.0, rtol=1e-5)
    assert not found[:, 2].any()
    np.testing.assert_array_equal(test, found[:7])


def test_data_errors_are_errors_of_the_package():
    assert issubclass(DataError, asyn2f.Asyn2fError)


def test_a_training_set_alone_has_a_fraction_held_out(tmp_path):
    x, y = RNG.normal(size=(20, 3)), np.arange(20) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y)
    assert [*read_splits(tmp_path / "data.npz")] == ["train"]
    task = asyn2f.supervised(MLP((3,), 3), tmp_path / "data.npz", test=0.2)
    assert (len(task.train["x"]), len(task.test["x"])) == (16, 4)
    assert set(task.test["y"]) <= {0, 1, 2}


# ------------------------------------------------------------- bits


def flat(data):
    """The digits as columns of a table."""
    pixels = data["input"].reshape(len(data["input"]), -1)
    return {f"p{k}": column for k, column in enumerate(pixels.T)} | {
        "label": data["label"]
    }


def test_the_digits_of_a_file_train_to_the_bits_of_the_built_in_task(tmp_path):
    config = golden_run.config()
    own = build.build_experiment(config)

    def bits_of(task):
        parts = own.strategy, own.training, own.stop, own.seed
        run = asyn2f.simulate(config, asyn2f.make_experiment(task, *parts))
        assert len(run.scores) == 11
        return params_sha256(run.params), [x["accuracy"] for x in run.scores.values()]

    expected, (train, test) = (
        bits_of(own.task),
        map(flat, (own.task.train, own.task.test)),
    )
    for kind in ("csv", "parquet", "npz"):
        paths = [tmp_path / f"{split}.{kind}" for split in ("train", "test")]
        for path, table in zip(paths, (train, test), strict=True):
            if kind == "csv":
                path.write_text(csv_text(table))
            elif kind == "npz":
                np.savez(path, **table)
            else:
                pyarrow.parquet.write_table(pa.table(table), path)
        model = MLP(tuple(config["task"]["hidden"]), 10)
        task = asyn2f.supervised(model, *paths, shards=own.task.shards)
        assert bits_of(task) == expected
