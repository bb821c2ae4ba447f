"""What a server leaves in its folder for others: for its owner alone, and checked."""

import json
import stat

import pytest

from asyn2f import rundir
from asyn2f.cli import server
from asyn2f.errors import RunDirError
from asyn2f.rundir import SERVER, Listening

GOOD = Listening("tcp://127.0.0.1:5570", (5570, 5571, 5572), "run", "t0ken")


def test_only_its_owner_can_read_it_also_when_rewritten(tmp_path):
    (tmp_path / SERVER).write_text("{}")
    (tmp_path / SERVER).chmod(0o644)
    for _ in range(2):
        rundir.write_listening(tmp_path, GOOD)
        assert stat.S_IMODE((tmp_path / SERVER).stat().st_mode) == 0o600
        assert rundir.read_listening(tmp_path) == GOOD
    assert rundir.token_of(tmp_path) == "t0ken"


def test_without_a_server_there_is_no_token(tmp_path):
    assert rundir.token_of(tmp_path) == ""


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "[]",
        "7",
        "{}",
        json.dumps(GOOD._asdict() | {"ports": [1, 2]}),
        json.dumps(GOOD._asdict() | {"ports": 7}),
        json.dumps(GOOD._asdict() | {"ports": ["a", "b", "c"]}),
        json.dumps(GOOD._asdict() | {"ports": [5570, 5571, 2**16]}),
        json.dumps(GOOD._asdict() | {"ports": [True, 5571, 5572]}),
        json.dumps(GOOD._asdict() | {"address": "here"}),
        json.dumps(GOOD._asdict() | {"address": 5}),
        json.dumps(GOOD._asdict() | {"token": 5}),
    ],
)
def test_invalid_content_is_reported_and_costs_a_server_no_time(
    tmp_path, nonsense, caplog
):
    (tmp_path / SERVER).write_text(nonsense)
    with pytest.raises(RunDirError, match=r"server\.json"):
        rundir.read_listening(tmp_path)
    assert server._listening_before(tmp_path) is None, "and so it listens at any ports"
    assert "server.json" in caplog.text
