"""The program of the lanes, as an accelerator would run it: one call after the other
without a transfer, a compilation or a copy of its state."""

import jax
import pytest

from asyn2f.sim.executors.vectorised import calls_of, prepare
from tests.support.compilation import nothing_compiles
from tests.support.executions import experiment_of, order_for


@pytest.fixture(params=["asyn2f", "fedbuff"])
def machine(request):
    experiment = experiment_of(request.param)
    return prepare(experiment, order_for(experiment, versions=6), lanes=3, devices=1)


def test_a_call_transfers_nothing_and_reuses_its_buffers(machine):
    run = machine._run
    seen = []

    def guarded(hyperparams, carry, data, waves):
        on_device = jax.device_put(hyperparams)
        with jax.transfer_guard("disallow"):
            carry_after, notes = run(on_device, carry, data, waves)
        leaves = jax.tree.leaves(carry)
        seen.append(all(leaf.is_deleted() for leaf in leaves))
        return carry_after, notes

    machine._run = guarded
    calls = list(calls_of(machine.plan, machine.limits, frozenset()))
    for _ in machine.execute(calls[:1]):
        pass
    machine.reset()
    with nothing_compiles():
        for _ in machine.execute(calls):
            pass
    assert seen
    assert all(seen)


def test_a_program_keeps_one_copy_of_its_state(machine):
    """What XLA allocates beside the carry is less than that."""
    lowered = {}
    run = machine._run

    def recorded(*arguments):
        lowered["program"] = run.lower(*arguments).compile()
        return run(*arguments)

    machine._run = recorded
    calls = list(calls_of(machine.plan, machine.limits, frozenset()))
    for _ in machine.execute(calls[:1]):
        pass
    analysis = lowered["program"].memory_analysis()
    carry = sum(leaf.nbytes for leaf in jax.tree.leaves(machine.carry))
    assert analysis.alias_size_in_bytes >= carry
