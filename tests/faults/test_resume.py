"""What a server has to get back from the store to go on as if nothing had happened."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyn2f.programs import UpdateKey
from asyn2f.protocol.ledger import Ledger, Outcome
from asyn2f.runtime.startup import start_of
from asyn2f.store.orbax import OrbaxStore
from asyn2f.strategies import BUILDERS
from asyn2f.types import ServerState, UpdateInfo, WorkerUpdate
from tests.support.experiments import experiment_with

pytestmark = pytest.mark.usefixtures("patient_stores")


def updates_of(experiment, state, version: int) -> list[WorkerUpdate]:
    """As workers 0 and 1 might push them after that version, if so many are taken."""

    def update(worker: int) -> WorkerUpdate:
        chance = np.random.default_rng([version, worker])
        params = jax.tree.map(
            lambda x: jnp.asarray(
                x + 0.1 * chance.standard_normal(x.shape).astype(x.dtype), x.dtype
            ),
            state.model.params,
        )
        return WorkerUpdate(
            params=params,
            worker=jnp.int32(worker),
            info=UpdateInfo(
                base_version=jnp.int32(max(version - worker, 0)),
                start_version=jnp.int32(max(version - worker, 0)),
                step=jnp.int32(1),
                num_examples=jnp.float32(50 + worker),
                loss=jnp.float32(0.5 + 0.1 * worker),
                quality=jnp.float32(1.0),
                metric=jnp.float32(0.5),
                signal=jnp.float32(0.0),
            ),
        )

    most = experiment.strategy.timing.most_updates(experiment.workers)
    return [update(0), update(1)][:most]


def bits(state) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def versions_around_a_death(experiment, folder) -> list[ServerState]:
    """Versions 1 to 5 of a server that goes on, after asserting that one that has read
    version 3 from its store makes the others of the same bits."""
    store = OrbaxStore(folder)
    made = [start_of(experiment, store).state]
    for version in range(3):
        updates = updates_of(experiment, made[-1], version)
        made.append(experiment.aggregate(made[-1], updates)[0])
    store.save(3, made[-1], {"version": 3, "incarnation": 1, "accounting": {}})
    store.close()
    store = OrbaxStore(folder)
    again = start_of(experiment, store).state
    store.close()
    assert bits(again) == bits(made[-1])
    for version in (3, 4):
        updates = updates_of(experiment, made[-1], version)
        made.append(experiment.aggregate(made[-1], updates)[0])
        again, _ = experiment.aggregate(again, updates)
        assert bits(again) == bits(made[-1]), f"version {version + 1}"
    return made[1:]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_next_versions_are_the_same_bits_whether_or_not_a_server_died(
    tmp_path, name
):
    """Parameters, the strategy's memory, and where the schedule stands."""
    experiment = experiment_with(
        workers=2,
        strategy__name=name,
        timing__min_updates=2,
        training__schedule="synchronous",
        training__schedule_length=6,
    )
    made = versions_around_a_death(experiment, tmp_path / "models")
    rates = {float(state.model.learning_rate) for state in made}
    assert len(rates) > 1, "the schedule stands still: this shows nothing"


@pytest.mark.parametrize("seed", range(20))
def test_the_outcome_table_comes_back_with_all_that_was_committed(tmp_path, seed):
    """What had no last word is not known any more, so that it is asked for again."""
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger, committed, open_, floor = Ledger(), {}, set(), 0
    ledger.begin(0, "s", -1)
    for seq in range(chance.randrange(5, 30)):
        key = UpdateKey(0, "s", seq)
        ledger.add(key, 0)
        word = chance.choice(["committed", "rejected", "superseded", ""])
        if word:
            version = seq if word == "committed" else -1
            ledger.settle(key, Outcome(word, version, ""))
        else:
            open_.add(key)
        if word == "committed":
            committed[seq] = version
        if not open_ and chance.random() < 0.3:
            floor = seq + 1
            ledger.forget("s", floor)
    carried = sorted(open_)[:2]
    accounting = {"ledger": ledger.snapshot(99, carried)}
    experiment = experiment_with(workers=2)
    store = OrbaxStore(tmp_path / "models")
    state = start_of(experiment, store).state
    store.save(0, state, {"version": 0, "incarnation": 1, "accounting": accounting})
    again = Ledger.restore(start_of(experiment, store).accounting["ledger"])
    store.close()
    for seq, version in committed.items():
        assert again.is_known("s", seq)
        if seq >= floor:
            assert again.outcome("s", seq) == Outcome("committed", version, "")
    for key in carried:
        assert again.outcome("s", key.seq) == Outcome("committed", 99, "")
    for key in open_ - set(carried):
        assert not again.is_known("s", key.seq)
    assert again.unsettled() == frozenset()
    assert again.counts["committed"] == len(committed) + len(carried)
