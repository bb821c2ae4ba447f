"""Versions carried by the links of a schedule, counted in two ways."""

import math
from random import Random

import numpy as np
import pytest

from asyn2f.api.results import bytes_by
from asyn2f.api.simulation import order_of_config
from asyn2f.sim import order as o
from asyn2f.sim.profiles import profiles_of
from asyn2f.sim.schedule import _over_links, carried, schedule
from asyn2f.timing import Stop
from tests.support.executions import experiment_of
from tests.support.experiments import config_with, experiment_with
from tests.support.schedules import EPS_S, MEGABYTE, Link, events_in, made_up
from tests.unit.test_programs import adopting, asynchronous, synchronous

EACH = asynchronous(min_updates=1)


def traffic_of(timing, rows, *, steps=1, num_bytes=MEGABYTE, seed=0, **stop):
    profiles = profiles_of(rows, len(rows))
    order = schedule(
        timing,
        profiles,
        Stop(**stop),
        seed,
        steps_per_epoch=[steps] * len(rows),
        num_bytes=num_bytes,
        update_bytes=0,
    )
    return order, carried(order, timing, profiles, num_bytes, seed)


def total(traffic):
    return int(traffic.versions.sum())


# ------------------------------------------------------------- merging


def test_a_slow_link_carries_what_it_can():
    """A version a second for 80 s; five links that take 5 s a version carry 16 each,
    where a broadcast counts all 80 of them (and the first) for each."""
    rows = [{"step_s": 1.0}, *[{"step_s": 500.0, "download_mbps": 1.6}] * 5]
    order, traffic = traffic_of(EACH, rows, max_time_s=80.5)
    assert len(order.version) == 81
    assert total(traffic) == 81 + 5 * 16
    assert order.receivers[1:].sum() == 6 * 80
    # 0 when the run begins; then 5, 10, ... on the slow links.
    times_s = np.array([0.0, 4.9, 5.0, 9.9, 80.5])
    assert traffic.until(times_s).tolist() == [1, 5, 6 + 5, 10 + 5, 81 + 80]


def test_a_free_link_carries_everything_from_when_its_worker_joins_until_it_leaves():
    """Versions 0 to 9 at 0 to 9 s. Worker 1 is there from 2.5 to 6.5 s: versions
    2 (the newest then) to 6. Nothing is carried of a version that ends the run."""
    rows = [{"step_s": 1.0}, {"step_s": 99.0, "join_s": 2.5, "leave_s": 6.5}]
    order, traffic = traffic_of(EACH, rows, max_versions=10)
    assert len(order.version) == 11
    assert total(traffic) == 10 + 5
    times_s = np.array([2.0, 3.0, 6.0, 10.0])
    assert traffic.until(times_s).tolist() == [3, 4 + 2, 7 + 5, 10 + 5]


def test_a_link_stands_still_in_an_outage():
    rows = [
        {"step_s": 1.0},
        {"step_s": 99.0, "download_mbps": 4.0, "outages": [[3.0, 8.0]]},
    ]
    # 2 s a version: 0 until 2 s, then 2 until 9 s (1 s of it before 3), then 9: 11 s.
    _, traffic = traffic_of(EACH, rows, max_time_s=11.5)
    assert total(traffic) == 12 + 3


def test_the_count_is_that_of_a_link_worked_out_version_by_version():
    compared = 0
    for seed in range(400):
        case = made_up(Random(f"traffic {seed}"))
        order = case.order()
        if case.timing.while_training != "merge":
            continue
        expected = 0
        for worker in range(case.profiles.workers):
            link = Link(case, order, worker)
            end_s = min(order.end_s, float(case.profiles.leave_s[worker]))
            latency_s = float(case.profiles.download_s[worker])
            has_outages = case.profiles.has_outages(worker)
            if not link.is_certain or (has_outages and latency_s):
                expected = math.nan
                break
            there_s = [x - latency_s for x in link.arrivals_s]
            if any(abs(x - end_s) < EPS_S for x in there_s):
                expected = math.nan  # carried just then, or not
                break
            expected += sum(x < end_s for x in there_s)
        if math.isnan(expected):
            continue
        arguments = (case.timing, case.profiles, case.num_bytes, case.seed)
        assert total(carried(order, *arguments)) == expected, seed
        compared += 1
    assert compared > 40


# ------------------------------------------------------------- fetching


def test_no_version_is_under_way_before_it_is_published():
    """Published within rounding of when the link is free, it takes a second from then:
    more than is left."""
    published_s, took_s = np.array([0.5e-9]), np.array([1.0])
    for end_s, count in ((1.0, 0), (1.0 + 1e-9, 1)):
        links = np.zeros(1), np.array([end_s]), took_s
        assert _over_links(published_s, *links, np.add).sum() == count


@pytest.mark.parametrize(
    "timing", [adopting(min_updates=1, min_workers=2), synchronous(min_workers=2)]
)
def test_one_download_per_cycle_counts_what_is_taken_in(timing):
    rows = [{"step_s": 1.0}, {"step_s": 10.0}]
    order, traffic = traffic_of(timing, rows, max_time_s=30.5)
    taken = {(did.worker, did.value) for did in events_in(order, o.ADOPT)}
    assert total(traffic) == len(taken)
    assert total(traffic) <= order.receivers.sum()
    if timing.after_push == "adopt":  # worker 1 takes in a tenth of them
        assert total(traffic) < 0.6 * order.receivers.sum()


def test_a_version_that_a_worker_holds_is_not_sent_again():
    """There are no other versions: worker 0 adopts version 0 after every push."""
    timing = adopting(min_updates=100, pending="all")
    order, traffic = traffic_of(timing, [{"step_s": 1.0}] * 2, max_time_s=9.5)
    assert len(events_in(order, o.ADOPT)) > 10
    assert total(traffic) == 2


# ------------------------------------------------------------- as bytes


@pytest.mark.parametrize(("strategy", "share"), [("fedasync", 0.25), ("asyn2f", 1.1)])
def test_a_methods_own_bytes_and_those_of_a_broadcast(strategy, share):
    """FedAsync makes a version of each update and takes in one for each that it sends:
    of 10 workers' pushes a broadcast moves ten times as much."""
    changes = {"workers": 10, "strategy__name": strategy, "stop__max_versions": 60}
    config = config_with(**changes, sim__step_spread=4.0)
    experiment = experiment_with(**changes)
    order = order_of_config(config, experiment)
    moved = bytes_by(config, experiment, order, np.array([order.end_s]))
    size = experiment.template.num_bytes
    assert moved.up == order.num_updates * size
    assert moved.broadcast_down == order.receivers.sum() * size
    assert moved.down <= share * moved.broadcast_down
    if strategy == "fedasync":
        assert moved.down <= moved.up + 10 * size


def test_bytes_never_fall():
    config = config_with(sim__download_mbps=0.5, workers=4)
    experiment = experiment_of(timing__epochs_per_push=5, task__partition="iid")
    order = order_of_config(config, experiment)
    moved = bytes_by(config, experiment, order, np.linspace(0.0, order.end_s, 50))
    for values in moved:
        assert (np.diff(values) >= 0).all()
        assert values[-1] > 0
