"""`python -m tests.support.eight_devices`: one order on eight devices, and serially."""

import jax


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    from asyn2f.sim.executors.serial import execute_serially
    from asyn2f.sim.executors.vectorised import execute_in_lanes
    from tests.support import executions

    experiment = executions.experiment_of(workers=11, task__partition="iid")
    order = executions.order_for(experiment, executions.UNEQUAL, versions=6)
    serial = execute_serially(experiment, order)
    print(jax.device_count())
    machine = executions.machine_for(experiment, order, 1, devices=8)
    results = [execute_in_lanes(machine, order) for _ in range(2)]
    executions.assert_same_bits(*results)
    print("same")
    results.append(executions.in_lanes(experiment, order, 2, devices=8))
    for result in results[1:]:
        executions.assert_close(serial, result)
    print("close")


if __name__ == "__main__":
    main()
