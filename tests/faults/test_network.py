"""The simulated network does what the sockets do: each script runs over both.

What is said is what both have in common: which messages arrive, in which order on a
connection, what is lost, what is refused, and whether the sender is told. Names such as
Z3 are those of ZeroMQ's pitfalls, see BUILD_NOTES.
"""

from collections.abc import Iterator

import pytest
import zmq

from asyn2f.protocol.channels import (
    UPDATES,
)
from asyn2f.transport import zmq_options
from tests.support.fake_network import FakeNetwork
from tests.support.networks import End, Network
from tests.support.real_network import RealNetwork

ALL = b"all"
MOST = 2000  # messages: the buffers between are full after some dozens
HASTY_MS = {
    zmq.HEARTBEAT_IVL: 200,
    zmq.HEARTBEAT_TIMEOUT: 600,
    zmq.HEARTBEAT_TTL: 600,
    zmq.RECONNECT_IVL: 50,
}
NETWORKS = ["sockets", *(f"pretended-{seed}" for seed in range(5))]


def made(name: str) -> Network:
    kind, _, seed = name.partition("-")
    return RealNetwork() if kind == "sockets" else FakeNetwork(int(seed))


@pytest.fixture(params=NETWORKS)
def net(request) -> Iterator[Network]:
    network = made(request.param)
    yield network
    network.close()


@pytest.fixture(
    params=[*NETWORKS, pytest.param("sockets as they are", marks=pytest.mark.slow)]
)
def impatient_net(request, monkeypatch) -> Iterator[Network]:
    """Its sockets give a connection up five times as fast, or as fast as in a run."""
    if request.param == "sockets":
        for option, value in HASTY_MS.items():
            monkeypatch.setitem(zmq_options._COMMON, option, value)
    network = made(request.param.removesuffix(" as they are"))
    yield network
    network.close()


def joined(net: Network) -> End:
    """A peer with all three connections, which both sides know of."""
    peer = net.peer()
    heard = len(net.server.hears)
    net.subscribe(peer, ALL)
    net.until(
        "it hears, and is heard",
        lambda: ALL in net.server.hears[heard:] and UPDATES in peer.hears,
    )
    return peer


def back_again(net: Network, peer: End, heard: tuple[int, int]) -> None:
    """Until both connections have been made anew."""
    net.until(
        "it hears again, and is heard",
        lambda: len(net.server.hears) > heard[0] and len(peer.hears) > heard[1],
    )


def heard_so_far(net: Network, peer: End) -> tuple[int, int]:
    return len(net.server.hears), len(peer.hears)


def show_that_all_works(net: Network, peer: End, number: int) -> None:
    """All three carry this number; what was sent before on the same has come or never
    comes."""
    assert net.publish(ALL, number)
    assert net.push(peer, number)
    assert net.say(peer, number)
    net.until("a model", lambda: number in peer.models)
    net.until("an update", lambda: number in net.server.updates)
    net.until("a word", lambda: number in net.server.said)
    assert net.answer(net.server.routes[number], number)
    net.until("an answer", lambda: number in peer.said)


# ------------------------------------------------------------- Z1, Z2: nobody hears yet


def test_what_is_published_before_a_subscription_is_lost_without_a_word(net):
    peer = net.peer()
    assert net.publish(ALL, 0)
    net.subscribe(peer, ALL)
    assert net.push(peer, 0)
    net.until("it is heard", lambda: UPDATES in peer.hears)
    net.until("it hears", lambda: ALL in net.server.hears)
    show_that_all_works(net, peer, 1)
    assert (peer.models, net.server.updates) == ([1], [1])


def test_a_busy_server_does_not_subscribe_and_loses_updates_but_no_word(net):
    net.stand_still(net.server)
    peer = net.peer()
    net.subscribe(peer, ALL)
    net.reach_out(peer)
    assert all(net.push(peer, number) for number in range(10))
    assert all(net.say(peer, number) for number in range(10))
    assert peer.hears == []
    net.go_on(net.server)
    net.until("it is heard", lambda: UPDATES in peer.hears)
    net.until("it hears", lambda: ALL in net.server.hears)
    show_that_all_works(net, peer, 10)
    assert net.server.updates == [10]
    assert net.server.said == [*range(11)]


def test_a_topic_is_heard_by_those_who_asked_for_it(net):
    one, two = joined(net), net.peer()
    net.subscribe(two, ALL, b"only/two")
    net.until("it hears", lambda: b"only/two" in net.server.hears)
    assert net.publish(b"only/two", 1)
    assert net.publish(ALL, 2)
    net.until("both have it", lambda: 2 in one.models and 2 in two.models)
    assert (one.models, two.models) == ([2], [1, 2])


# ------------------------------------------------------------- Z3, Z4, Z5: no room


def test_models_for_a_busy_peer_are_dropped_without_a_word(net):
    """And nobody else has less of it (Z5)."""
    slow, fast = joined(net), joined(net)
    net.stand_still(slow)
    for number in range(200):
        assert net.publish(ALL, number)
        net.until("the other has it", lambda n=number: n in fast.models)
    assert fast.models == [*range(200)]
    net.go_on(slow)
    while 200 not in slow.models:  # as soon as there is room again
        before = len(fast.models)
        assert before < MOST
        assert net.publish(ALL, 200)
        net.until("the other has it", lambda n=before: len(fast.models) > n)
    assert slow.models[0] == 0
    assert slow.models == sorted(slow.models)
    assert len(slow.models) < 150


def test_updates_for_a_busy_server_are_refused_and_none_is_lost(net):
    peer = joined(net)
    net.stand_still(net.server)
    told = []
    while all(told) and len(told) < MOST:
        told.append(net.push(peer, len(told)))
    assert told.count(False) == 1
    net.go_on(net.server)
    accepted = [number for number, was_taken in enumerate(told) if was_taken]
    net.until("all have come", lambda: len(net.server.updates) == len(accepted))
    assert net.push(peer, MOST)
    net.until("the next too", lambda: MOST in net.server.updates)
    assert net.server.updates == [*accepted, MOST]


# ------------------------------------------------------------- Z7, Z8: the line is dead


def test_after_a_partition_models_of_that_time_are_gone(impatient_net):
    net = impatient_net
    peer = joined(net)
    heard = heard_so_far(net, peer)
    show_that_all_works(net, peer, 0)
    net.part(peer)
    assert all(net.publish(ALL, number) for number in range(1, 6))
    net.heal(peer)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 6)
    assert peer.models == [0, 6]


def test_models_stalled_when_the_line_is_given_up_are_gone(impatient_net):
    net = impatient_net
    peer = joined(net)
    heard = heard_so_far(net, peer)
    show_that_all_works(net, peer, 0)
    net.stall(peer)
    assert all(net.publish(ALL, number) for number in (1, 2))
    net.part(peer)
    net.heal(peer)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 3)
    assert peer.models == [0, 3]


def test_updates_wait_for_a_new_connection_and_what_has_no_room_is_refused(
    impatient_net,
):
    net = impatient_net
    peer = joined(net)
    heard = heard_so_far(net, peer)
    show_that_all_works(net, peer, 0)
    net.part(peer)
    told = {number: net.push(peer, number) for number in range(1, 20)}
    accepted = [number for number, was_taken in told.items() if was_taken]
    assert accepted == [*range(1, len(accepted) + 1)]
    assert 1 <= len(accepted) < 19
    net.heal(peer)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 20)
    assert net.server.updates == [0, *accepted, 20]


def test_words_of_a_peer_wait_for_a_new_connection(impatient_net):
    net = impatient_net
    peer = joined(net)
    heard = heard_so_far(net, peer)
    show_that_all_works(net, peer, 0)
    net.part(peer)
    assert all(net.say(peer, number) for number in range(1, 20))
    net.heal(peer)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 20)
    assert net.server.said == [*range(21)]


def test_a_half_open_line_swallows_what_is_sent_until_it_is_noticed(impatient_net):
    net = impatient_net
    peer = joined(net)
    heard = heard_so_far(net, peer)
    show_that_all_works(net, peer, 0)
    route = net.server.routes[0]
    net.half_open(peer)
    assert net.push(peer, 1)
    assert net.say(peer, 1)
    assert net.publish(ALL, 1)
    assert not net.answer(route, 1)
    back_again(net, peer, heard)
    net.until("a word", lambda: net.say(peer, 2) and 2 in net.server.said)
    show_that_all_works(net, peer, 3)
    assert peer.models == net.server.updates == peer.said == [0, 3]
    assert sorted({*net.server.said}) == [0, 2, 3]


# ------------------------------------------------------------- Z10: what comes late


def test_a_short_stall_loses_nothing_and_delivers_all_of_it_late(net):
    peer = joined(net)
    show_that_all_works(net, peer, 0)
    route = net.server.routes[0]
    net.stall(peer)
    assert all(net.publish(ALL, number) for number in (1, 2))
    assert all(net.push(peer, number) for number in (1, 2, 3))
    assert all(net.say(peer, number) for number in range(1, 10))
    assert all(net.answer(route, number) for number in range(1, 10))
    net.heal(peer)
    # Queues are as short as they are: what comes next needs room in them.
    net.until("the models have come", lambda: peer.models[-1:] == [2])
    net.until("the updates have come", lambda: net.server.updates[-1:] == [3])
    show_that_all_works(net, peer, 10)
    assert peer.models == [0, 1, 2, 10]
    assert net.server.updates == [0, 1, 2, 3, 10]
    assert net.server.said == peer.said == [*range(11)]


# ------------------------------------------------------------- Z20: routes


def test_who_answers_to_a_route_that_is_not_there_is_told(net):
    assert not net.answer(b"nobody", 0)
    peer = joined(net)
    show_that_all_works(net, peer, 0)
    old = net.server.routes[0]
    heard = heard_so_far(net, peer)
    net.cut(peer)
    assert not net.answer(old, 1)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 2)
    assert net.server.routes[2] != old
    assert not net.answer(old, 3)
    assert peer.said == [0, 2]


# ------------------------------------------------------------- a cut, a server away


def test_while_no_connection_can_be_made_words_and_updates_wait_and_models_do_not(net):
    peer = joined(net)
    show_that_all_works(net, peer, 0)
    heard = heard_so_far(net, peer)
    net.refuse(peer)
    assert all(net.say(peer, number) for number in (1, 2, 3))
    assert net.push(peer, 1)
    assert net.publish(ALL, 1)
    net.heal(peer)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 4)
    assert net.server.said == [0, 1, 2, 3, 4]
    assert net.server.updates == [0, 1, 4]
    assert peer.models == [0, 4]


def test_of_an_update_that_is_cut_in_two_nothing_arrives(net):
    peer = joined(net)
    heard = len(peer.hears)
    assert net.push(peer, 0)
    net.until("it has come", lambda: 0 in net.server.updates)
    assert net.push_and_cut(peer, 1)
    net.until("it is heard again", lambda: len(peer.hears) > heard)
    assert net.push(peer, 2)
    net.until("the next has come", lambda: 2 in net.server.updates)
    assert net.server.updates == [0, 2]


def test_what_has_reached_a_busy_reader_survives_its_connection(net):
    peer = joined(net)
    heard = heard_so_far(net, peer)
    net.stand_still(net.server)
    assert net.push(peer, 0)
    net.rest_at_server()
    net.cut(peer)
    net.go_on(net.server)
    net.until("it has come", lambda: 0 in net.server.updates)
    back_again(net, peer, heard)
    show_that_all_works(net, peer, 1)
    assert net.server.updates == [0, 1]


def test_the_next_server_gets_what_was_said_and_pushed_while_there_was_none(net):
    peer = joined(net)
    show_that_all_works(net, peer, 0)
    heard = len(peer.hears)
    net.kill_server()
    assert all(net.say(peer, number) for number in (1, 2))
    assert net.push(peer, 1)
    net.start_server()
    net.until("it hears again", lambda: ALL in net.server.hears)
    net.until("it is heard again", lambda: len(peer.hears) > heard)
    show_that_all_works(net, peer, 3)
    assert net.server.said == [1, 2, 3]
    assert net.server.updates == [1, 3]


def test_a_peer_that_connects_anew_forgets_what_it_kept(net):
    """As it does when a server of another incarnation welcomes it."""
    peer = joined(net)
    show_that_all_works(net, peer, 0)
    net.kill_server()
    assert net.push(peer, 1)
    heard = len(peer.hears)
    net.subscribe(peer, ALL)
    assert net.push(peer, 2)
    net.start_server()
    net.until("it is heard again", lambda: len(peer.hears) > heard)
    assert net.push(peer, 3)
    net.until("the next has come", lambda: 3 in net.server.updates)
    assert net.server.updates == [3]
