"""Failpoints are checked before a server touches anything."""

import os
import subprocess
import sys

import pytest

from asyn2f import failpoints
from asyn2f.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("savd", "found 'savd', allowed: begun, received, .*ending"),
        ("savd:3", "found 'savd', allowed"),
        ("saved:0", "found '0' after the colon"),
        ("saved:x", "found 'x' after the colon"),
    ],
)
def test_a_misspelt_failpoint_is_refused(monkeypatch, value, problem):
    point, _, times = value.partition(":")
    monkeypatch.setattr(failpoints, "_wanted", point)
    monkeypatch.setattr(failpoints, "_times", times)
    with pytest.raises(ConfigError, match=problem):
        failpoints.check()


@pytest.mark.parametrize("value", ["", "saved", "saved:3"])
def test_the_environment_may_name_a_failpoint(value):
    code = "from asyn2f import failpoints; failpoints.check()"
    env = os.environ | {failpoints.VARIABLE: value}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_only_the_named_point_kills_at_the_given_time():
    code = (
        "from asyn2f import failpoints\n"
        "for number in range(3):\n"
        "    failpoints.reach('made')\n"
        "    print(number, flush=True)\n"
        "    failpoints.reach('saved')\n"
    )
    env = os.environ | {failpoints.VARIABLE: "saved:2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert done.returncode == -9
    assert done.stdout == b"0\n1\n"
