"""The simulated network behaves as the sockets do: each script runs over both.

Asserted is what both have in common: which messages arrive, in which order on a
connection, what is lost, what is refused, and whether the sender is notified. Names
such as Z3 are those of ZeroMQ's pitfalls, see BUILD_NOTES.
"""

from collections.abc import Iterator

import pytest
import zmq

from asyn2f.protocol.channels import UPDATES
from asyn2f.transport import zmq_limits
from tests.support.fake_network import FakeNetwork
from tests.support.networks import End, Network
from tests.support.real_network import RealNetwork

ALL = b"all"
MAX = 2000  # messages: the buffers between are full after some dozens
HASTY_MS = {
    zmq.HEARTBEAT_IVL: 200,
    zmq.HEARTBEAT_TIMEOUT: 600,
    zmq.HEARTBEAT_TTL: 600,
    zmq.RECONNECT_IVL: 50,
}
NETWORKS = ["sockets", *(f"simulated-{seed}" for seed in range(5))]


def made(name: str) -> Network:
    kind, _, seed = name.partition("-")
    return RealNetwork() if kind == "sockets" else FakeNetwork(int(seed))


@pytest.fixture(params=NETWORKS)
def net(request) -> Iterator[Network]:
    network = made(request.param)
    yield network
    network.close()


@pytest.fixture(
    params=[*NETWORKS, pytest.param("sockets as in a run", marks=pytest.mark.slow)]
)
def hasty_net(request, monkeypatch) -> Iterator[Network]:
    """Its sockets time out five times as fast as in a run, or exactly as in a run."""
    if request.param == "sockets":
        for option, value in HASTY_MS.items():
            monkeypatch.setitem(zmq_limits._COMMON, option, value)
    network = made(request.param.removesuffix(" as in a run"))
    yield network
    network.close()


def connected_peer(net: Network) -> End:
    """A peer with all three connections, known to both sides."""
    peer = net.peer()
    counts = len(net.server.subscribed)
    net.subscribe(peer, ALL)
    net.until(
        "both are subscribed",
        lambda: ALL in net.server.subscribed[counts:] and UPDATES in peer.subscribed,
    )
    return peer


def wait_for_reconnection(net: Network, peer: End, counts: tuple[int, int]) -> None:
    """Runs until both subscriptions have been made again."""
    net.until(
        "both are subscribed again",
        lambda: (
            len(net.server.subscribed) > counts[0] and len(peer.subscribed) > counts[1]
        ),
    )


def subscription_counts(net: Network, peer: End) -> tuple[int, int]:
    return len(net.server.subscribed), len(peer.subscribed)


def check_all_channels(net: Network, peer: End, number: int) -> None:
    """All channels carry this number; earlier messages on them have arrived, or never
    will."""
    assert net.publish(ALL, number)
    assert net.push(peer, number)
    assert net.send(peer, number)
    net.until("a model", lambda: number in peer.models)
    net.until("an update", lambda: number in net.server.updates)
    net.until("a control message", lambda: number in net.server.control)
    assert net.answer(net.server.routes[number], number)
    net.until("an answer", lambda: number in peer.control)


# ------------------------------------------------------------- Z1, Z2: slow joiners


def test_messages_published_before_a_subscription_are_dropped_silently(net):
    peer = net.peer()
    assert net.publish(ALL, 0)
    net.subscribe(peer, ALL)
    assert net.push(peer, 0)
    net.until("the server subscribes", lambda: UPDATES in peer.subscribed)
    net.until("the peer subscribes", lambda: ALL in net.server.subscribed)
    check_all_channels(net, peer, 1)
    assert (peer.models, net.server.updates) == ([1], [1])


def test_a_busy_server_does_not_subscribe_and_loses_updates(
    net,
):
    net.pause(net.server)
    peer = net.peer()
    net.subscribe(peer, ALL)
    net.connect_all(peer)
    assert all(net.push(peer, number) for number in range(10))
    assert all(net.send(peer, number) for number in range(10))
    assert peer.subscribed == []
    net.resume(net.server)
    net.until("the server subscribes", lambda: UPDATES in peer.subscribed)
    net.until("the peer subscribes", lambda: ALL in net.server.subscribed)
    check_all_channels(net, peer, 10)
    assert net.server.updates == [10]
    assert net.server.control == [*range(11)]


def test_a_topic_reaches_its_subscribers_only(net):
    one, two = connected_peer(net), net.peer()
    net.subscribe(two, ALL, b"only/two")
    net.until("the peer subscribes", lambda: b"only/two" in net.server.subscribed)
    assert net.publish(b"only/two", 1)
    assert net.publish(ALL, 2)
    net.until("both have it", lambda: 2 in one.models and 2 in two.models)
    assert (one.models, two.models) == ([2], [1, 2])


# ------------------------------------------------------------- Z3, Z4, Z5: full queues


def test_models_for_a_busy_peer_are_dropped_silently(net):
    """And other peers lose none (Z5)."""
    slow, fast = connected_peer(net), connected_peer(net)
    net.pause(slow)
    for number in range(200):
        assert net.publish(ALL, number)
        net.until("the other has it", lambda n=number: n in fast.models)
    assert fast.models == [*range(200)]
    net.resume(slow)
    while 200 not in slow.models:  # as soon as there is room again
        before = len(fast.models)
        assert before < MAX
        assert net.publish(ALL, 200)
        net.until("the other has it", lambda n=before: len(fast.models) > n)
    assert slow.models[0] == 0
    assert slow.models == sorted(slow.models)
    assert len(slow.models) < 150


def test_updates_beyond_the_queue_of_a_busy_server_are_refused_and_none_is_lost(net):
    peer = connected_peer(net)
    net.pause(net.server)
    results = []
    while all(results) and len(results) < MAX:
        results.append(net.push(peer, len(results)))
    assert results.count(False) == 1
    net.resume(net.server)
    accepted = [number for number, is_accepted in enumerate(results) if is_accepted]
    net.until("all have arrived", lambda: len(net.server.updates) == len(accepted))
    assert net.push(peer, MAX)
    net.until("the next too", lambda: MAX in net.server.updates)
    assert net.server.updates == [*accepted, MAX]


# ------------------------------------------------------------- Z7, Z8: dead connections


def test_models_published_during_a_partition_are_lost(hasty_net):
    net = hasty_net
    peer = connected_peer(net)
    counts = subscription_counts(net, peer)
    check_all_channels(net, peer, 0)
    net.partition(peer)
    assert all(net.publish(ALL, number) for number in range(1, 6))
    net.heal(peer)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 6)
    assert peer.models == [0, 6]


def test_models_in_flight_when_a_connection_times_out_are_lost(hasty_net):
    net = hasty_net
    peer = connected_peer(net)
    counts = subscription_counts(net, peer)
    check_all_channels(net, peer, 0)
    net.stall(peer)
    assert all(net.publish(ALL, number) for number in (1, 2))
    net.partition(peer)
    net.heal(peer)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 3)
    assert peer.models == [0, 3]


def test_updates_are_queued_for_a_new_connection_until_the_queue_is_full(
    hasty_net,
):
    net = hasty_net
    peer = connected_peer(net)
    counts = subscription_counts(net, peer)
    check_all_channels(net, peer, 0)
    net.partition(peer)
    results = {number: net.push(peer, number) for number in range(1, 20)}
    accepted = [number for number, is_accepted in results.items() if is_accepted]
    assert accepted == [*range(1, len(accepted) + 1)]
    assert 1 <= len(accepted) < 19
    net.heal(peer)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 20)
    assert net.server.updates == [0, *accepted, 20]


def test_control_messages_are_queued_for_a_new_connection(hasty_net):
    net = hasty_net
    peer = connected_peer(net)
    counts = subscription_counts(net, peer)
    check_all_channels(net, peer, 0)
    net.partition(peer)
    assert all(net.send(peer, number) for number in range(1, 20))
    net.heal(peer)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 20)
    assert net.server.control == [*range(21)]


def test_a_half_open_connection_swallows_messages_until_it_is_noticed(hasty_net):
    net = hasty_net
    peer = connected_peer(net)
    counts = subscription_counts(net, peer)
    check_all_channels(net, peer, 0)
    route = net.server.routes[0]
    net.half_open(peer)
    assert net.push(peer, 1)
    assert net.send(peer, 1)
    assert net.publish(ALL, 1)
    assert not net.answer(route, 1)
    wait_for_reconnection(net, peer, counts)
    net.until(
        "a control message", lambda: net.send(peer, 2) and 2 in net.server.control
    )
    check_all_channels(net, peer, 3)
    assert peer.models == net.server.updates == peer.control == [0, 3]
    assert sorted({*net.server.control}) == [0, 2, 3]


# ------------------------------------------------------------- Z10: late delivery


def test_a_short_stall_delays_all_messages_and_loses_none(net):
    peer = connected_peer(net)
    check_all_channels(net, peer, 0)
    route = net.server.routes[0]
    net.stall(peer)
    assert all(net.publish(ALL, number) for number in (1, 2))
    assert all(net.push(peer, number) for number in (1, 2, 3))
    assert all(net.send(peer, number) for number in range(1, 10))
    assert all(net.answer(route, number) for number in range(1, 10))
    net.heal(peer)
    # The queues are short: the next message needs room in them.
    net.until("the models have come", lambda: peer.models[-1:] == [2])
    net.until("the updates have come", lambda: net.server.updates[-1:] == [3])
    check_all_channels(net, peer, 10)
    assert peer.models == [0, 1, 2, 10]
    assert net.server.updates == [0, 1, 2, 3, 10]
    assert net.server.control == peer.control == [*range(11)]


# ------------------------------------------------------------- Z20: routes


def test_sending_to_an_unknown_route_fails(net):
    assert not net.answer(b"nobody", 0)
    peer = connected_peer(net)
    check_all_channels(net, peer, 0)
    old = net.server.routes[0]
    counts = subscription_counts(net, peer)
    net.cut(peer)
    assert not net.answer(old, 1)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 2)
    assert net.server.routes[2] != old
    assert not net.answer(old, 3)
    assert peer.control == [0, 2]


# ------------------------------------------------------------- cuts, no server


def test_while_connections_are_refused_a_peer_queues_and_the_server_drops(net):
    peer = connected_peer(net)
    check_all_channels(net, peer, 0)
    counts = subscription_counts(net, peer)
    net.refuse(peer)
    assert all(net.send(peer, number) for number in (1, 2, 3))
    assert net.push(peer, 1)
    assert net.publish(ALL, 1)
    net.heal(peer)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 4)
    assert net.server.control == [0, 1, 2, 3, 4]
    assert net.server.updates == [0, 1, 4]
    assert peer.models == [0, 4]


def test_an_update_cut_in_two_does_not_arrive(net):
    peer = connected_peer(net)
    counts = len(peer.subscribed)
    assert net.push(peer, 0)
    net.until("it has come", lambda: 0 in net.server.updates)
    assert net.push_and_cut(peer, 1)
    net.until("the server subscribes again", lambda: len(peer.subscribed) > counts)
    assert net.push(peer, 2)
    net.until("the next has come", lambda: 2 in net.server.updates)
    assert net.server.updates == [0, 2]


def test_a_message_queued_at_a_busy_reader_survives_its_connection(net):
    peer = connected_peer(net)
    counts = subscription_counts(net, peer)
    net.pause(net.server)
    assert net.push(peer, 0)
    net.wait_for_arrival()
    net.cut(peer)
    net.resume(net.server)
    net.until("it has come", lambda: 0 in net.server.updates)
    wait_for_reconnection(net, peer, counts)
    check_all_channels(net, peer, 1)
    assert net.server.updates == [0, 1]


def test_the_next_server_receives_what_was_sent_while_there_was_none(net):
    peer = connected_peer(net)
    check_all_channels(net, peer, 0)
    counts = len(peer.subscribed)
    net.kill_server()
    assert all(net.send(peer, number) for number in (1, 2))
    assert net.push(peer, 1)
    net.start_server()
    net.until("the peer subscribes again", lambda: ALL in net.server.subscribed)
    net.until("the server subscribes again", lambda: len(peer.subscribed) > counts)
    check_all_channels(net, peer, 3)
    assert net.server.control == [1, 2, 3]
    assert net.server.updates == [1, 3]


def test_a_peer_that_connects_anew_drops_its_queue(net):
    """As it does when a server of another incarnation welcomes it."""
    peer = connected_peer(net)
    check_all_channels(net, peer, 0)
    net.kill_server()
    assert net.push(peer, 1)
    counts = len(peer.subscribed)
    net.subscribe(peer, ALL)
    assert net.push(peer, 2)
    net.start_server()
    net.until("the server subscribes again", lambda: len(peer.subscribed) > counts)
    assert net.push(peer, 3)
    net.until("the next has come", lambda: 3 in net.server.updates)
    assert net.server.updates == [3]
