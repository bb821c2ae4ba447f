"""`python -m tests.support.sharded_carry`: workers with a carry on three devices."""

import jax
import numpy as np


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 3)
    from asyn2f.sim.serial import execute_serially
    from tests.support.executions import assert_close, in_lanes, order_for
    from tests.support.tasks import counting, experiment_of

    experiment = experiment_of(counting())
    order = order_for(experiment, [{"step_s": 0.5}, {"step_s": 0.9}, {"step_s": 1.7}])
    serial = execute_serially(experiment, order)
    print(jax.device_count())
    found = in_lanes(experiment, order, 1, devices=3)
    assert_close(serial, found)
    np.testing.assert_array_equal(found.numbers.metric, serial.numbers.metric)
    print("same")


if __name__ == "__main__":
    main()
