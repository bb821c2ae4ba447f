"""Writers killed at random times: no saved version is lost."""

import multiprocessing
import random
from pathlib import Path

import numpy as np
import pytest

from asyn2f.store.orbax import OrbaxStore
from tests.contracts.test_store import state_of
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("patient_stores")

MIB = 2**20
SIZE = 40 * MIB // 12  # rows of three float32


def _save_for_ever(folder: str, channel) -> None:
    store = OrbaxStore(Path(folder))
    store.begin_incarnation()
    version = max(store.versions(), default=0)
    while True:
        version += 1
        state = state_of(version, size=SIZE)
        channel.send(("begun", version))
        store.save(version, state, {"version": version})
        channel.send(("saved", version))


def kill_in_mid_save(folder: Path, seed: int, kills: int) -> int:
    """Kills each writer 0 to 600 ms into its second save; returns the number of kills
    that met an incomplete save."""
    print(f"seed {seed}")
    chance, context = random.Random(seed), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.test_store_killed"])
    saved, cut_short = 0, 0
    for _ in range(kills):
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=_save_for_ever, args=(str(folder), there))
        writer.start()
        there.close()
        while here.poll(PATIENCE_S) and here.recv() != ("begun", saved + 2):
            pass
        writer.join(chance.uniform(0.0, 0.6))
        writer.kill()
        writer.join()
        told = saved + 1
        newest = told
        while True:
            try:
                word, version = here.recv()
            except EOFError:
                break
            told = version if word == "saved" else told
            newest = version
        store = OrbaxStore(folder)
        versions = store.versions()
        # Every saved version is there, and at most one more, complete as well.
        assert told <= versions[-1] <= newest
        assert versions[-1] <= told + 1
        for version in versions[-3:]:
            state, record = store.load(version, state_of(0, size=SIZE))
            assert record["version"] == version
            assert (np.asarray(state.model.params["params"]["w"]) == version).all()
        cut_short += versions[-1] < newest
        saved = versions[-1]
        store.begin_incarnation()  # deletes what was left unfinished
        assert not list(folder.glob("*tmp*"))
        store.close()
    return cut_short


@pytest.mark.slow
@pytest.mark.processes
def test_a_writer_killed_in_mid_save_loses_no_saved_version(tmp_path):
    cut_short = kill_in_mid_save(tmp_path / "models", seed=3, kills=5)
    print(f"{cut_short} of 5 kills met an incomplete save")
