"""Wall clocks decide nothing (R-22): they may be wrong, differ, or jump."""

import importlib.util
import time

import pytest

from asyn2f.store import base, orbax
from tests.contracts.test_store import state_of
from tests.support.socket_run import SocketRun

pytestmark = pytest.mark.usefixtures("patient_stores")


@pytest.mark.processes
def test_wrong_and_jumping_wall_clocks_change_nothing(tmp_path):
    """An hour fast, an hour slow, and one that is set back and forth in mid-run."""
    with SocketRun(tmp_path, workers=4, size=1000) as run:
        run.start_worker(0, total=200, every_s=0.02)
        for number, wrong_s in enumerate([3600.0, -3600.0, 7200.0], start=1):
            jumps_s = 1.0 if number == 3 else 0.0
            run.spawn(number, total=100, every_s=0.02, wall=(wrong_s, jumps_s))
        run.until("all is committed", lambda: run.server.committed == 500)
        assert run.finish() == {"committed": 500}
        assert not [e for e in run.events(object) if e[-1] == "silent"]


class Wall:
    """A wall clock that a test sets; the store's module is loaded anew, so that it
    cannot have kept the real one."""

    def __init__(self, monkeypatch, module=orbax) -> None:
        self.wrong_s, right = 0.0, time.time
        monkeypatch.setattr(time, "time", lambda: right() + self.wrong_s)
        spec = importlib.util.spec_from_file_location("store_anew", module.__file__)
        self.store = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.store)


@pytest.mark.parametrize("module", [base, orbax])
def test_a_wall_clock_that_is_set_makes_no_version_old(tmp_path, monkeypatch, module):
    """A published version can be loaded for the promised time (I6)."""
    wall = Wall(monkeypatch, module)
    if module is base:
        made = wall.store.MemoryStore(keep_last=1)
    else:
        made = wall.store.OrbaxStore(tmp_path, keep_last=1)
    for version, wall.wrong_s in enumerate([0.0, 3600.0, -3600.0, 7200.0]):
        made.save(version, state_of(version), {})
    assert made.versions() == [0, 1, 2, 3]
    if module is orbax:
        made.close()


def test_a_wall_clock_set_back_between_two_servers_keeps_nothing_for_ever(
    tmp_path, monkeypatch
):
    """A version saved in the future counts as new, and ages."""
    wall, now = Wall(monkeypatch), [1000.0]
    first = wall.store.OrbaxStore(tmp_path, keep_last=1, clock=lambda: now[0])
    first.save(0, state_of(0), {})
    first.close()
    wall.wrong_s = -3600.0
    second = wall.store.OrbaxStore(tmp_path, keep_last=1, clock=lambda: now[0])
    second.save(1, state_of(1), {})
    assert second.versions() == [0, 1]
    now[0] += 121.0
    second.save(2, state_of(2), {})
    assert second.versions() == [2]
    second.close()
