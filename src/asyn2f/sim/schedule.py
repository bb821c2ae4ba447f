"""A run under a virtual clock: the programs interpreted without computing anything.

The same generators that the runtime's processes interpret say what is done; profiles of
the workers say how long it takes. What comes out is the order of the run, and a
function of its arguments alone.
"""

import gc
from collections.abc import Sequence

from asyn2f import programs
from asyn2f.sim.order import Order
from asyn2f.sim.presence import Presence
from asyn2f.sim.profiles import Profiles
from asyn2f.sim.virtual_worker import VirtualWorker
from asyn2f.sim.world import Accepts, SignalOf, World
from asyn2f.timing import Stop, Timing

_MOST_UNDER_WAY = 10_000  # updates of one worker


def schedule(
    timing: Timing,
    profiles: Profiles,
    stop: Stop,
    seed: int,
    *,
    steps_per_epoch: Sequence[int],
    num_bytes: int = 0,
    update_bytes: int | None = None,
    aggregate_s: float = 0.0,
    heartbeat_timeout_s: float = 3.0,
    signal_of: SignalOf | None = None,
    accepts: Accepts | None = None,
) -> Order:
    """The order of a run of these workers.

    A version travels to each worker over a link of its own, one after the other and the
    newest first: what a slow link has not begun to carry when a newer one appears, it
    never carries. Steps, uploads and downloads stand still during an outage; one longer
    than `heartbeat_timeout_s` makes the server count the worker as gone until it is
    over.

    Args:
      timing: the strategy's, with the experiment's settings.
      profiles: of the W workers.
      stop: `max_versions`, `max_time_s` (virtual, from the start of training). A
        target accuracy is the business of whoever executes the order (`order.cut`).
      seed: of jitter and drawn outages.
      steps_per_epoch: i [W], of each worker's shard.
      num_bytes: of a version, as it travels.
      update_bytes: of an update; None = as many.
      aggregate_s: seconds the server takes for a version.
      heartbeat_timeout_s: see above.
      signal_of: needed where `timing.depends_on_values`.
      accepts: updates that it does not are refused as they arrive; None = takes all.

    Raises:
      ValueError: nothing ends the run; `signal_of` is needed and missing; or a worker
        pushes faster, by far, than its link carries.

    >>> from asyn2f.sim.profiles import profiles_of
    >>> timing = Timing(while_training="merge", after_push="continue", quorum="some")
    >>> order = schedule(timing, profiles_of([{"step_s": 1.0}, {"step_s": 2.5}], 2),
    ...                  Stop(max_versions=2), seed=0, steps_per_epoch=[2, 2])
    >>> order.end_s, order.num_steps
    (4.0, 5)
    """
    if not stop.max_versions and not stop.max_time_s:
        raise ValueError(
            "stop: found neither max_versions nor max_time_s; set one of them, also "
            "where a target accuracy may end the run earlier"
        )
    if timing.depends_on_values and signal_of is None:
        raise ValueError(
            "timing: pushes depend on values (push_min_accuracy or the strategy); give "
            "signal_of"
        )
    sent_bytes = num_bytes if update_bytes is None else update_bytes
    workers = _workers(timing, profiles, seed, steps_per_epoch, num_bytes, sent_bytes)
    if timing.after_push != "wait":
        for worker, steps in zip(workers, steps_per_epoch, strict=False):
            _check_upload(worker, steps * timing.epochs_per_push)
    world = World(
        timing,
        stop,
        seed,
        aggregate_s,
        heartbeat_timeout_s,
        signal_of,
        accepts,
        len(workers),
    )
    for worker, join_s in zip(workers, profiles.join_s.tolist(), strict=True):
        world.foresee(join_s, world.join, worker)
    # Nothing here is garbage in circles, and looking for it among a million workers,
    # again and again, would cost more than the run.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return world.run()
    finally:
        if was_enabled:
            gc.enable()


def _workers(
    timing: Timing,
    profiles: Profiles,
    seed: int,
    steps_per_epoch: Sequence[int],
    version_bytes: int,
    update_bytes: int,
) -> list[VirtualWorker]:
    columns = profiles._replace(outages={})._asdict()
    lists = {name: column.tolist() for name, column in columns.items() if len(column)}
    # At one megabit per second.
    transfer_s, sending_s = 8e-6 * version_bytes, 8e-6 * update_bytes
    return [
        VirtualWorker(
            number=k,
            program=programs.worker_program(timing, steps_per_epoch[k]),
            step_s=lists["step_s"][k],
            jitter=lists["jitter"][k],
            upload_s=lists["upload_s"][k] + sending_s / lists["upload_mbps"][k],
            latency_s=lists["download_s"][k],
            transfer_s=transfer_s / lists["download_mbps"][k],
            leave_s=lists["leave_s"][k],
            presence=Presence(profiles, k, seed) if profiles.has_outages(k) else None,
        )
        for k in range(profiles.workers)
    ]


def _check_upload(worker: VirtualWorker, cycle_steps: int) -> None:
    cycle_s, upload_s = worker.step_s * cycle_steps, worker.upload_s
    if upload_s > _MOST_UNDER_WAY * cycle_s:
        raise ValueError(
            f"sim: worker {worker.number} would have {upload_s / cycle_s:,.3g} updates "
            f"under way at a time, as it pushes every {cycle_s:g} s and each travels "
            f"for {upload_s:g} s; allowed: {_MOST_UNDER_WAY:,}; give it a faster link "
            "or longer cycles"
        )
