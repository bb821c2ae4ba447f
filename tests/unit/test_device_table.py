"""Device tables, as people and their spreadsheets write them."""

import json
import math

import pytest

from asyn2f.sim.profiles import profiles_of, read_profiles
from tests.unit.test_profiles import assert_equal

PLAIN = "step_s,upload_s\n0.1,0.5\n0.2,0.6\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\n\n").encode(),
        (PLAIN + ",\n,\n , \n\n").encode(),
        b"step_s, upload_s\n 0.1 , 0.5\n0.2, 0.6\n",
        b"step_s,upload_s,,\n0.1,0.5,,\n0.2,0.6,,\n,,,\n",
        b'"step_s","upload_s"\n"0.1","0.5"\n"0.2","0.6"',
    ],
)
def test_what_spreadsheets_add_changes_nothing(tmp_path, content):
    path = tmp_path / "devices.csv"
    path.write_bytes(content)
    profiles = read_profiles(path, workers=4)
    assert profiles.step_s.tolist() == [0.1, 0.2, 0.1, 0.2]
    assert profiles.upload_s.tolist() == [0.5, 0.6, 0.5, 0.6]


def test_a_byte_order_mark_before_json_lines_is_let_pass(tmp_path):
    path = tmp_path / "devices.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"step_s": 0.1}\n\n{"step_s": 0.2}\n')
    assert read_profiles(path, workers=2).step_s.tolist() == [0.1, 0.2]


def test_a_csv_file_has_a_line_of_names_and_one_per_worker(tmp_path):
    path = tmp_path / "profiles.csv"
    path.write_text("step_s,leave_s,outages\n0.5,,10-20;35-40.5\n0.25,60,\n")
    profiles = read_profiles(path, workers=3)
    assert profiles.step_s.tolist() == [0.5, 0.25, 0.5]
    assert profiles.leave_s.tolist() == [math.inf, 60.0, math.inf]
    assert profiles.outages == {k: ((10.0, 20.0), (35.0, 40.5)) for k in (0, 2)}


def test_a_file_of_json_lines_has_one_per_worker(tmp_path):
    path = tmp_path / "profiles.jsonl"
    rows = [{"step_s": 0.5, "outages": [[10, 20]]}, {"step_s": 1, "upload_mbps": 8}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert_equal(read_profiles(path, workers=4), profiles_of(rows, workers=4))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "", "found no rows"),
        ("p.csv", "step_s\n", "found no rows"),
        ("p.csv", "speed\n1\n", "row 1: found a column 'speed', allowed: step_s,"),
        ("p.csv", "step_s\n1\n-1\n", "row 2, step_s: found '-1', allowed: a number a"),
        ("p.csv", "step_s\n1,2\n", "row 1: found '2' in column 2, which has no name"),
        (
            "p.csv",
            "step_s,outages\n1,3-1\n",
            "row 1, outages: found ['3', '1'], allowed: p",
        ),
        ("p.jsonl", "", "found no rows"),
        ("p.jsonl", "{}\n3\n", "every line must be a JSON object"),
        ("p.jsonl", "{}\n{step_s\n", "Expecting property name"),
        ("p.jsonl", '{"jitter": "a"}', "row 1, jitter: found 'a', allowed: a number a"),
        ("p.csv", "step_s,upload_s\n1,2\n,3\n", "row 2, step_s: found nothing"),
        ("p.csv", "upload_s\n3\n", "row 1, step_s: found nothing, allowed: a n"),
        ("p.csv", "step_s,jitter,step_s\n1,0,2\n", "the column 'step_s' twice"),
        ("p.csv", ",step_s\n0,1\n", "row 1: found '0' in column 1, which has no n"),
        ("p.csv", "step_s\n1_000\n", "row 1, step_s: found '1_000', allowed: a nu"),
        ("p.csv", 'step_s\n"1,000"\n', "row 1, step_s: found '1,000', allowed: a n"),
        ("p.csv", "step_s,upload_s\n1,N/A\n", "row 1, upload_s: found 'N/A', all"),
        ("p.csv", "step_s;upload_s\n1;2\n", "found a column 'step_s;upload_s'"),
        ("p.jsonl", '{"upload_s": 1}', "row 1, step_s: found nothing, allowed: a n"),
        ("p.jsonl", '{"step_s": true}', "row 1, step_s: found True, allowed: a num"),
        ("p.jsonl", '{"step_s": 1, "outages": [[true, 2]]}', "outages: found [True"),
        ("p.jsonl", '{"step_s": 1, "step_s": 2}', "the key 'step_s' twice in a line"),
        ("p.jsonl", '{"step_s": 1' + 400 * "0" + "}", "row 1, step_s: found 1000"),
        ("p.jsonl", "[" * 100_000, "recursion"),
        ("p.txt", "", "its name must end with .csv or .jsonl"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=name) as caught:
        read_profiles(path, workers=2)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "profiles.csv"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match=r"not UTF-8 text .*save it as") as caught:
        read_profiles(path, workers=2)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "profiles.csv"
    with pytest.raises(ValueError, match="No such file") as caught:
        read_profiles(path, workers=2)
    assert str(path) in str(caught.value)
