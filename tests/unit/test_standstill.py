"""A round of nothing: the server says that the run cannot go on, and no sooner."""

import math

import pytest

from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from tests.simulation.planted import PLANTED
from tests.simulation.sweep import simulate
from tests.support.messages import RUNTIME
from tests.support.protocol_harness import (
    FEDAVG,
    ProtocolHarness,
    beat_of,
    those,
    with_,
)

ASYNCHRONOUS = with_(FEDAVG, quorum="each", max_staleness=None)
DEAD_AFTER_S, LEASE_S = RUNTIME["heartbeat_timeout_s"], RUNTIME["server_timeout_s"]


def refused(server, session, seq=0, base=0):
    return server.receive(session, seq, base, loss=math.nan)


def lives_on(server, seconds, *sessions):
    """So long, in which only these beat; what came of it."""
    effects = []
    for _ in range(round(seconds / RUNTIME["heartbeat_interval_s"])):
        for session in sessions:
            effects += server.beat(session)
        effects += server.wait(RUNTIME["heartbeat_interval_s"])
    return effects


def ends(effects):
    """The reason that workers are told, if they are told to stop."""
    said = [x.message for x in those(effects, p.Send)]
    reasons = {x.reason for x in said if isinstance(x, messages.StopRun)}
    assert len(reasons) < 2
    return next(iter(reasons), "")


@pytest.fixture(params=[FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def server(request):
    made = ProtocolHarness(with_(request.param, min_workers=2))
    made.join("0", "1")
    return made


def test_when_all_are_refused_the_run_ends_at_once(server):
    assert not ends(refused(server, "0"))
    assert "can be used: loss nan" in ends(refused(server, "1"))


def test_when_those_who_owed_an_update_say_goodbye_the_run_ends(server):
    refused(server, "0")
    server.hear("1", messages.Goodbye("1", "asked to stop"))
    assert "can be used: loss nan" in ends(lives_on(server, 1.0, "0"))


def test_without_a_deadline_a_round_does_not_wait_for_the_dead():
    """Worker 2 dies in the round, without a goodbye: the others' updates make the
    version once it has been silent for `heartbeat_timeout_s`, and nothing is
    lacking."""
    server = ProtocolHarness(with_(FEDAVG, min_workers=3), workers=3)
    server.join("0", "1", "2")
    server.push("0", 0)
    server.push("1", 0)
    assert not those(lives_on(server, DEAD_AFTER_S - 1.0, "0", "1"), p.AggregateVersion)
    (made,) = those(lives_on(server, 3.0, "0", "1"), p.AggregateVersion)
    assert (len(made.keys), made.lacking) == (2, 0)
    server.make(1)
    server.save(1)
    server.push("0", 1, base=1)
    (made,) = those(server.push("1", 1, base=1), p.AggregateVersion)
    assert made.version == 2
    # A live worker is waited for, however long it takes.
    server.make(2)
    server.save(2)
    server.push("0", 2, base=2)
    assert not those(lives_on(server, 20 * LEASE_S, "0", "1"), p.AggregateVersion)


def test_a_round_that_a_deadline_closes_says_how_many_live_workers_it_lacks():
    server = ProtocolHarness(with_(FEDAVG, min_workers=3, deadline_s=2.0), workers=3)
    server.join("0", "1", "2")
    server.push("0", 0)
    (made,) = those(lives_on(server, 3.0, "0", "1", "2"), p.AggregateVersion)
    assert made.lacking == 2
    server.make(1)
    assert server.machine.status().incomplete_versions == 1
    (saved,) = those(
        server.machine.on(p.SaveFailed(1, "full"), server.now), p.SaveVersion
    ) or [0]
    assert not saved
    server.save(1)
    for session in "012":
        server.push(session, 1, base=1)
    server.make(2)
    assert server.machine.status().incomplete_versions == 1


def test_who_falls_silent_may_come_back_for_as_long_as_a_lease(server):
    refused(server, "0")
    assert not ends(lives_on(server, LEASE_S, "0"))
    assert "none comes from worker-1" in ends(lives_on(server, DEAD_AFTER_S + 1.0, "0"))


def test_who_comes_back_in_time_saves_the_run(server):
    refused(server, "0")
    assert not ends(lives_on(server, LEASE_S, "0"))
    assert those(server.push("1", 0), p.AggregateVersion)
    assert not ends(lives_on(server, 3 * LEASE_S, "0", "1"))


def test_another_process_in_its_place_saves_the_run(server):
    refused(server, "0")
    lives_on(server, LEASE_S, "0")
    server.join("1b")
    assert not ends(lives_on(server, 3 * LEASE_S, "0", "1b"))
    assert those(server.push("1b", 1), p.AggregateVersion)


def test_a_refused_worker_that_was_silent_for_a_while_still_waits(server):
    refused(server, "0")
    lives_on(server, 2 * DEAD_AFTER_S, "1")
    lives_on(server, 1.0, "0", "1")
    assert "can be used" in ends(refused(server, "1"))


def test_without_a_deadline_who_is_there_is_waited_for_without_end(server):
    refused(server, "0")
    assert not ends(lives_on(server, 10 * LEASE_S, "0", "1"))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_with_a_deadline_who_trains_no_more_is_not_waited_for_without_end(timing):
    server = ProtocolHarness(with_(timing, min_workers=2, deadline_s=2.0))
    server.join("0", "1")
    refused(server, "0")
    assert not ends(lives_on(server, LEASE_S + 1.5, "0", "1"))
    assert "none comes from worker-1" in ends(lives_on(server, 1.0, "0", "1"))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_who_is_slow_and_trains_on_is_waited_for_as_long_as_it_takes(timing):
    """One is refused, the others are well and take longer than a deadline."""
    deadline_s = 2.0
    server = ProtocolHarness(with_(timing, min_workers=2, deadline_s=deadline_s))
    server.join("0", "1")
    refused(server, "0")
    for step in range(10):
        assert not ends(lives_on(server, LEASE_S, "0", "1"))
        server.hear("1", beat_of("1")._replace(step=step + 1))
    assert not ends(lives_on(server, LEASE_S, "0", "1"))
    assert not ends(lives_on(server, deadline_s - 0.5, "0", "1"))
    assert "none comes from worker-1" in ends(lives_on(server, 1.0, "0", "1"))


def test_who_was_refused_for_an_older_version_has_a_newer_one_to_go_on_with():
    server = ProtocolHarness(with_(ASYNCHRONOUS, min_workers=2))
    server.join("0", "1")
    server.push("1", 0)
    server.make(1)
    server.save(1)
    assert not ends(refused(server, "1", 1, base=1))
    assert not ends(refused(server, "0", 0, base=0))
    assert not ends(lives_on(server, LEASE_S, "0", "1"))
    assert "can be used" in ends(refused(server, "0", 1, base=1))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_who_is_refused_before_the_run_goes_on_is_not_waited_for(timing):
    """After a restart an update may be there before the workers that it takes."""
    server = ProtocolHarness(with_(timing, min_workers=2), version=3)
    server.join("0")
    assert not ends(refused(server, "0", base=3))
    server.join("1")
    assert those(server.push("1", 0, base=3), p.AggregateVersion)


def test_those_refused_before_the_run_goes_on_count_among_all():
    server = ProtocolHarness(with_(FEDAVG, min_workers=2), version=3)
    server.join("0")
    refused(server, "0", base=3)
    server.join("1")
    assert "can be used" in ends(refused(server, "1", base=3))


def test_runs_with_rounds_of_nothing_end_or_go_on():
    (world,) = [x.world for x in PLANTED if "round of nothing" in x.name]
    ended = 0
    for seed in range(200):
        net, problems = simulate(seed, world(seed))
        assert problems == [], f"seed {seed}"
        ended += net.count["round of nothing"]
    print(f"{ended} of 200 ended for that reason")
    assert 20 < ended < 190
