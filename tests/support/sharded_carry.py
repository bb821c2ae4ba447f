"""`python -m tests.support.sharded_carry [kept]`: workers with a carry, or with a part
of the model that does not travel, on three devices."""

import sys

import jax
import numpy as np


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 3)
    from asyn2f.sim.executors.serial import execute_serially
    from asyn2f.sim.executors.vectorised import execute_in_lanes, prepare
    from tests.support.executions import assert_close, order_for
    from tests.support.tasks import BODY, counting, experiment_of, personal

    keeps = sys.argv[1:] == ["kept"]
    task, share = (personal(), BODY) if keeps else (counting(), ())
    experiment = experiment_of(task, share=share)
    order = order_for(experiment, [{"step_s": 0.5}, {"step_s": 0.9}, {"step_s": 1.7}])
    seen: list[list] = []

    def watch(node, time_s, state, kept_of):
        seen.append(jax.device_get([kept_of(worker) for worker in range(3)]))
        return False

    nodes = [2, 5]
    serial = execute_serially(experiment, order, nodes, watch)
    print(jax.device_count())
    machine = prepare(experiment, order, 1, 3, nodes)
    found = execute_in_lanes(machine, order, watch)
    assert_close(serial, found)
    if not keeps:
        np.testing.assert_array_equal(found.numbers.metric, serial.numbers.metric)
    assert len(seen) == 2 * len(nodes)
    one, other = jax.tree.leaves(seen[:2]), jax.tree.leaves(seen[2:])
    assert bool(one) == keeps
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    print("same")


if __name__ == "__main__":
    main()
