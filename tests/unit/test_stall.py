"""A server ends a stalled run, and no other."""

import math

import pytest

from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from tests.simulation.bugs import BUGS
from tests.simulation.sweep import simulate
from tests.support.messages import RUNTIME
from tests.support.protocol_harness import FEDAVG, heartbeat_of, joined, those, with_

ASYNCHRONOUS = with_(FEDAVG, quorum="each", max_staleness=None)
DEAD_AFTER_S, LEASE_S = RUNTIME["heartbeat_timeout_s"], RUNTIME["server_timeout_s"]


def refused(server, session, seq=0, base=0):
    return server.receive(session, seq, base, loss=math.nan)


def heartbeats_for(server, seconds, *sessions):
    """The effects while only these sessions send heartbeats."""
    effects = []
    for _ in range(round(seconds / RUNTIME["heartbeat_interval_s"])):
        for session in sessions:
            effects += server.heartbeat(session)
        effects += server.wait(RUNTIME["heartbeat_interval_s"])
    return effects


def ends(effects):
    """The reason sent to workers, if they are stopped."""
    said = [x.message for x in those(effects, p.Send)]
    reasons = {x.reason for x in said if isinstance(x, messages.StopRun)}
    assert len(reasons) < 2
    return next(iter(reasons), "")


@pytest.fixture(params=[FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def server(request):
    made = joined("0", "1", timing=with_(request.param, min_workers=2))
    return made


def test_a_run_ends_when_all_updates_of_a_round_are_rejected(server):
    assert not ends(refused(server, "0"))
    assert "can be used: loss nan" in ends(refused(server, "1"))


def test_a_run_ends_when_the_workers_still_awaited_leave(server):
    refused(server, "0")
    server.hear("1", messages.Goodbye("1", "asked to stop"))
    assert "can be used: loss nan" in ends(heartbeats_for(server, 1.0, "0"))


def test_without_a_deadline_a_round_does_not_wait_for_a_dead_worker():
    """Worker 2 dies in the round, without a goodbye: the others' updates make the
    version once it has been silent for `heartbeat_timeout_s`, and nothing is
    lacking."""
    server = joined("0", "1", "2", timing=with_(FEDAVG, min_workers=3), workers=3)
    server.push("0", 0)
    server.push("1", 0)
    assert not those(
        heartbeats_for(server, DEAD_AFTER_S - 1.0, "0", "1"), p.AggregateVersion
    )
    (made,) = those(heartbeats_for(server, 3.0, "0", "1"), p.AggregateVersion)
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
    assert not those(heartbeats_for(server, 20 * LEASE_S, "0", "1"), p.AggregateVersion)


def test_a_round_closed_by_its_deadline_counts_the_live_workers_it_lacks():
    server = joined(
        "0", "1", "2", timing=with_(FEDAVG, min_workers=3, deadline_s=2.0), workers=3
    )
    server.push("0", 0)
    (made,) = those(heartbeats_for(server, 3.0, "0", "1", "2"), p.AggregateVersion)
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


def test_a_silent_worker_is_waited_for_as_long_as_server_timeout_s(server):
    refused(server, "0")
    assert not ends(heartbeats_for(server, LEASE_S, "0"))
    assert "none comes from worker-1" in ends(
        heartbeats_for(server, DEAD_AFTER_S + 1.0, "0")
    )


def test_a_silent_worker_that_comes_back_continues_the_run(server):
    refused(server, "0")
    assert not ends(heartbeats_for(server, LEASE_S, "0"))
    assert those(server.push("1", 0), p.AggregateVersion)
    assert not ends(heartbeats_for(server, 3 * LEASE_S, "0", "1"))


def test_a_new_process_of_a_silent_worker_continues_the_run(server):
    refused(server, "0")
    heartbeats_for(server, LEASE_S, "0")
    server.join("1b")
    assert not ends(heartbeats_for(server, 3 * LEASE_S, "0", "1b"))
    assert those(server.push("1b", 1), p.AggregateVersion)


def test_a_rejected_worker_that_was_silent_still_blocks(server):
    refused(server, "0")
    heartbeats_for(server, 2 * DEAD_AFTER_S, "1")
    heartbeats_for(server, 1.0, "0", "1")
    assert "can be used" in ends(refused(server, "1"))


def test_without_a_deadline_a_live_worker_is_waited_for_without_end(server):
    refused(server, "0")
    assert not ends(heartbeats_for(server, 10 * LEASE_S, "0", "1"))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_with_a_deadline_a_hung_worker_is_not_waited_for_without_end(timing):
    server = joined("0", "1", timing=with_(timing, min_workers=2, deadline_s=2.0))
    refused(server, "0")
    assert not ends(heartbeats_for(server, LEASE_S + 1.5, "0", "1"))
    assert "none comes from worker-1" in ends(heartbeats_for(server, 1.0, "0", "1"))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_a_slow_worker_is_waited_for_while_it_trains(timing):
    """One is rejected, the others take longer than a deadline."""
    deadline_s = 2.0
    server = joined(
        "0", "1", timing=with_(timing, min_workers=2, deadline_s=deadline_s)
    )
    refused(server, "0")
    for step in range(10):
        assert not ends(heartbeats_for(server, LEASE_S, "0", "1"))
        heartbeat = heartbeat_of("1")
        progress = heartbeat.progress._replace(step=step + 1)
        server.hear("1", heartbeat._replace(progress=progress))
    assert not ends(heartbeats_for(server, LEASE_S, "0", "1"))
    assert not ends(heartbeats_for(server, deadline_s - 0.5, "0", "1"))
    assert "none comes from worker-1" in ends(heartbeats_for(server, 1.0, "0", "1"))


def test_a_worker_rejected_for_an_older_version_does_not_block():
    server = joined("0", "1", timing=with_(ASYNCHRONOUS, min_workers=2))
    server.push("1", 0)
    server.make(1)
    server.save(1)
    assert not ends(refused(server, "1", 1, base=1))
    assert not ends(refused(server, "0", 0, base=0))
    assert not ends(heartbeats_for(server, LEASE_S, "0", "1"))
    assert "can be used" in ends(refused(server, "0", 1, base=1))


@pytest.mark.parametrize("timing", [FEDAVG, ASYNCHRONOUS], ids=["all", "each"])
def test_a_worker_rejected_before_a_resumed_start_is_not_waited_for(timing):
    """After a restart an update may arrive before enough workers have registered."""
    server = joined("0", timing=with_(timing, min_workers=2), version=3)
    assert not ends(refused(server, "0", base=3))
    server.join("1")
    assert those(server.push("1", 0, base=3), p.AggregateVersion)


def test_workers_rejected_before_a_resumed_start_count_among_all():
    server = joined("0", timing=with_(FEDAVG, min_workers=2), version=3)
    refused(server, "0", base=3)
    server.join("1")
    assert "can be used" in ends(refused(server, "1", base=3))


def test_stalled_runs_end_and_others_continue():
    (world,) = [x.world for x in BUGS if x.name == "a stall is not detected"]
    ended = 0
    for seed in range(200):
        net, problems = simulate(seed, world(seed))
        assert problems == [], f"seed {seed}"
        ended += net.count["round of nothing"]
    print(f"{ended} of 200 ended for that reason")
    assert 20 < ended < 190
