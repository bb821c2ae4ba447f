"""Executes one order by several executors and prints digests.

Each executor is run twice and must repeat itself; among each other they agree up to
rounding.
"""

import sys

from asyn2f.serialization import params_sha256
from asyn2f.sim.executors.serial import execute_serially
from asyn2f.sim.executors.vectorised import execute_in_lanes
from tests.support.executions import (
    assert_close,
    assert_same_bits,
    experiment_of,
    machine_for,
    order_for,
)


def main(strategy: str) -> None:
    experiment = experiment_of(strategy, training__optimizer_at_merge="reset")
    order = order_for(experiment)
    serial = execute_serially(experiment, order)
    assert_same_bits(serial, execute_serially(experiment, order))
    print("serial", params_sha256(serial.state.model.params))
    for lanes in (1, 3):
        machine = machine_for(experiment, order, lanes)
        result = execute_in_lanes(machine, order)
        assert_same_bits(result, execute_in_lanes(machine, order))
        assert_close(serial, result)
        print(lanes, "lanes", params_sha256(result.state.model.params))


if __name__ == "__main__":
    main(sys.argv[1])
