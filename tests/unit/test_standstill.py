"""A round of nothing: the server says that the run cannot go on, and no sooner."""

import math

import pytest

from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from tests.simulation.planted import PLANTED
from tests.simulation.sweep import simulate
from tests.support.messages import RUNTIME
from tests.support.protocol_harness import FEDAVG, Desk, beat_of, those, with_

ASYNCHRONOUS = with_(FEDAVG, quorum="each", max_staleness=None)
DEAD_AFTER_S, LEASE_S = RUNTIME["heartbeat_timeout_s"], RUNTIME["server_timeout_s"]


def refused(desk, session, seq=0, base=0):
    return desk.receive(session, seq, base, loss=math.nan)


def lives_on(desk, seconds, *sessions):
    """So long, in which only these beat; what came of it."""
    effects = []
    for _ in range(round(seconds / RUNTIME["heartbeat_interval_s"])):
        for session in sessions:
            effects += desk.beat(session)
        effects += desk.wait(RUNTIME["heartbeat_interval_s"])
    return effects


def ends(effects):
    """The reason that workers are told, if they are told to stop."""
    said = [x.message for x in those(effects, p.Send)]
    reasons = {x.reason for x in said if isinstance(x, messages.StopRun)}
    assert len(reasons) < 2
    return next(iter(reasons), "")


@pytest.fixture(params=[FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def desk(request):
    made = Desk(with_(request.param, min_workers=2))
    made.join("0", "1")
    return made


def test_when_all_are_refused_the_run_ends_at_once(desk):
    assert not ends(refused(desk, "0"))
    assert "can be used: loss nan" in ends(refused(desk, "1"))


def test_when_those_who_owed_an_update_say_goodbye_the_run_ends(desk):
    refused(desk, "0")
    desk.hear("1", messages.Goodbye("1", "asked to stop"))
    assert "can be used: loss nan" in ends(lives_on(desk, 1.0, "0"))


def test_without_a_deadline_a_round_does_not_wait_for_the_dead():
    """Worker 2 dies in the round, without a goodbye: the others' updates make the
    version once it has been silent for `heartbeat_timeout_s`, and nothing is
    lacking."""
    desk = Desk(with_(FEDAVG, min_workers=3), workers=3)
    desk.join("0", "1", "2")
    desk.push("0", 0)
    desk.push("1", 0)
    assert not those(lives_on(desk, DEAD_AFTER_S - 1.0, "0", "1"), p.AggregateVersion)
    (made,) = those(lives_on(desk, 3.0, "0", "1"), p.AggregateVersion)
    assert (len(made.keys), made.lacking) == (2, 0)
    desk.make(1)
    desk.save(1)
    desk.push("0", 1, base=1)
    (made,) = those(desk.push("1", 1, base=1), p.AggregateVersion)
    assert made.version == 2
    # A live worker is waited for, however long it takes.
    desk.make(2)
    desk.save(2)
    desk.push("0", 2, base=2)
    assert not those(lives_on(desk, 20 * LEASE_S, "0", "1"), p.AggregateVersion)


def test_a_round_that_a_deadline_closes_says_how_many_live_workers_it_lacks():
    desk = Desk(with_(FEDAVG, min_workers=3, deadline_s=2.0), workers=3)
    desk.join("0", "1", "2")
    desk.push("0", 0)
    (made,) = those(lives_on(desk, 3.0, "0", "1", "2"), p.AggregateVersion)
    assert made.lacking == 2
    desk.make(1)
    assert desk.machine.status().incomplete_versions == 1
    (saved,) = those(
        desk.machine.on(p.SaveFailed(1, "full"), desk.now), p.SaveVersion
    ) or [0]
    assert not saved
    desk.save(1)
    for session in "012":
        desk.push(session, 1, base=1)
    desk.make(2)
    assert desk.machine.status().incomplete_versions == 1


def test_who_falls_silent_may_come_back_for_as_long_as_a_lease(desk):
    refused(desk, "0")
    assert not ends(lives_on(desk, LEASE_S, "0"))
    assert "none comes from worker-1" in ends(lives_on(desk, DEAD_AFTER_S + 1.0, "0"))


def test_who_comes_back_in_time_saves_the_run(desk):
    refused(desk, "0")
    assert not ends(lives_on(desk, LEASE_S, "0"))
    assert those(desk.push("1", 0), p.AggregateVersion)
    assert not ends(lives_on(desk, 3 * LEASE_S, "0", "1"))


def test_another_process_in_its_place_saves_the_run(desk):
    refused(desk, "0")
    lives_on(desk, LEASE_S, "0")
    desk.join("1b")
    assert not ends(lives_on(desk, 3 * LEASE_S, "0", "1b"))
    assert those(desk.push("1b", 1), p.AggregateVersion)


def test_a_refused_worker_that_was_silent_for_a_while_still_waits(desk):
    refused(desk, "0")
    lives_on(desk, 2 * DEAD_AFTER_S, "1")
    lives_on(desk, 1.0, "0", "1")
    assert "can be used" in ends(refused(desk, "1"))


def test_without_a_deadline_who_is_there_is_waited_for_without_end(desk):
    refused(desk, "0")
    assert not ends(lives_on(desk, 10 * LEASE_S, "0", "1"))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_with_a_deadline_who_trains_no_more_is_not_waited_for_without_end(timing):
    desk = Desk(with_(timing, min_workers=2, deadline_s=2.0))
    desk.join("0", "1")
    refused(desk, "0")
    assert not ends(lives_on(desk, LEASE_S + 1.5, "0", "1"))
    assert "none comes from worker-1" in ends(lives_on(desk, 1.0, "0", "1"))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_who_is_slow_and_trains_on_is_waited_for_as_long_as_it_takes(timing):
    """One is refused, the others are well and take longer than a deadline."""
    deadline_s = 2.0
    desk = Desk(with_(timing, min_workers=2, deadline_s=deadline_s))
    desk.join("0", "1")
    refused(desk, "0")
    for step in range(10):
        assert not ends(lives_on(desk, LEASE_S, "0", "1"))
        desk.hear("1", beat_of("1")._replace(step=step + 1))
    assert not ends(lives_on(desk, LEASE_S, "0", "1"))
    assert not ends(lives_on(desk, deadline_s - 0.5, "0", "1"))
    assert "none comes from worker-1" in ends(lives_on(desk, 1.0, "0", "1"))


def test_who_was_refused_for_an_older_version_has_a_newer_one_to_go_on_with():
    desk = Desk(with_(ASYNCHRONOUS, min_workers=2))
    desk.join("0", "1")
    desk.push("1", 0)
    desk.make(1)
    desk.save(1)
    assert not ends(refused(desk, "1", 1, base=1))
    assert not ends(refused(desk, "0", 0, base=0))
    assert not ends(lives_on(desk, LEASE_S, "0", "1"))
    assert "can be used" in ends(refused(desk, "0", 1, base=1))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_who_is_refused_before_the_run_goes_on_is_not_waited_for(timing):
    """After a restart an update may be there before the workers that it takes."""
    desk = Desk(with_(timing, min_workers=2), version=3)
    desk.join("0")
    assert not ends(refused(desk, "0", base=3))
    desk.join("1")
    assert those(desk.push("1", 0, base=3), p.AggregateVersion)


def test_those_refused_before_the_run_goes_on_count_among_all():
    desk = Desk(with_(FEDAVG, min_workers=2), version=3)
    desk.join("0")
    refused(desk, "0", base=3)
    desk.join("1")
    assert "can be used" in ends(refused(desk, "1", base=3))


def test_runs_with_rounds_of_nothing_end_or_go_on():
    (world,) = [x.world for x in PLANTED if "round of nothing" in x.name]
    ended = 0
    for seed in range(200):
        net, problems = simulate(seed, world(seed))
        assert problems == [], f"seed {seed}"
        ended += net.count["round of nothing"]
    print(f"{ended} of 200 ended for that reason")
    assert 20 < ended < 190
