"""Both ends report a peer that can reach only the first of its server's ports."""

import pytest

from asyn2f.protocol import events as p
from asyn2f.protocol import messages as wire
from asyn2f.protocol.channels import CONNECT_S, UPDATES, Subscribed, topic_of
from tests.support.chaos import ChaosProxy
from tests.support.messages import RUNTIME, hello_of
from tests.support.protocol_harness import (
    ASYN2F,
    WELCOME,
    PeerHarness,
    ProtocolHarness,
    heartbeat_of,
    joined,
    messages,
    those,
    welcomed,
    with_,
)
from tests.support.socket_run import SocketRun
from tests.support.stub_worker import RUNTIME as PATIENT

SOON_S = CONNECT_S + 2 * RUNTIME["heartbeat_interval_s"]


def heartbeats_for(peer, seconds, hears):
    """The effects while the server acknowledges its heartbeats."""
    effects = []
    for _ in range(round(seconds / 0.25)):
        effects += peer.wait(0.25)
        if those(effects, p.Finish):
            break
        effects += peer.hear(wire.HeartbeatAck(1, -1, hears))
    return effects


def warnings(effects):
    return [warned.text for warned in those(effects, p.Warn)]


@pytest.mark.parametrize(
    ("hears", "is_heard", "words"),
    [
        (False, False, "port 1 (models) and port 2 (updates)"),
        (False, True, "at port 1 (models):"),
        (True, False, "at port 2 (updates):"),
    ],
)
def test_a_worker_reports_a_closed_port_and_ends(hears, is_heard, words):
    peer = PeerHarness()
    peer.hear(WELCOME)
    if is_heard:
        peer.on(Subscribed(UPDATES))
    early = heartbeats_for(peer, CONNECT_S - 1.0, hears)
    assert not warnings(early)
    assert [words in said for said in warnings(heartbeats_for(peer, 2.0, hears))] == [
        True
    ]
    later = heartbeats_for(peer, RUNTIME["join_timeout_s"], hears)
    (finish,) = those(later, p.Finish)
    assert finish.status == "refused"
    assert words in finish.reason
    assert not warnings(later), "once is enough"


def registered(hears, incarnation=1):
    return wire.Registered(incarnation, 1, 1, 2, hears)


def test_a_worker_that_waits_for_others_tries_the_ports_and_ends():
    """The run may begin an hour later."""
    peer, said = PeerHarness(), []
    assert those(peer.hear(registered(False)), p.Connect)
    while not those(said, p.Finish):
        assert peer.now < RUNTIME["join_timeout_s"] + 2.0
        effects = peer.wait(0.25) + peer.hear(registered(False))
        assert not those(effects, p.Connect), "once"
        said += effects
    (text,) = warnings(said)
    assert "port 1 (models) and port 2 (updates)" in text
    (finish,) = those(said, p.Finish)
    assert (finish.status, finish.reason) == ("refused", text)


def test_a_worker_that_has_tried_the_ports_stays_connected():
    peer = PeerHarness()
    peer.hear(registered(False))
    peer.on(Subscribed(UPDATES))
    peer.hear(registered(True))
    effects = peer.hear(WELCOME)
    assert not those(effects, p.Connect)
    assert those(effects, p.NotifyAdmitted)
    assert messages(effects, wire.FetchModel) == [wire.FetchModel("0", -1)]
    assert those(peer.receive(0), p.Deliver)
    assert [x.message.seq for x in those(peer.push(), p.Broadcast)] == [0]


def test_another_server_is_connected_to_anew():
    peer = PeerHarness()
    peer.hear(registered(True))
    assert those(peer.hear(registered(False, incarnation=2)), p.Connect)
    later = WELCOME._replace(incarnation=3)
    assert those(peer.hear(later), p.Connect)


def test_a_waiting_server_reports_peers_that_cannot_connect():
    server = ProtocolHarness(with_(ASYN2F, min_workers=2))
    said = server.join("0")
    server.join("e")
    for _ in range(round(SOON_S / 0.5) + 4):
        said += server.hear("0", hello_of(0, "0")) + server.hear("e", hello_of(-1, "e"))
        said += server.wait(0.5)
    assert not warnings(said)
    assert [m.hears for m in messages(said, wire.Registered, to="0")][-1]
    deaf = ProtocolHarness(with_(ASYN2F, min_workers=2))
    deaf.hear("0", hello_of(0, "0"))
    said = []
    for _ in range(round(SOON_S / 0.5) + 4):
        said += deaf.hear("0", hello_of(0, "0")) + deaf.wait(0.5)
    (text,) = warnings(said)
    assert "worker-0" in text
    assert "port 1 (models)" in text


def test_an_evaluator_needs_no_port_for_updates():
    peer = PeerHarness(worker=-1)
    peer.hear(WELCOME)
    assert not those(heartbeats_for(peer, 20.0, True), p.Finish | p.Warn)


def test_a_peer_that_was_connected_once_is_not_given_up():
    """A server that has lost its subscription acknowledges it as not heard."""
    peer = welcomed()
    assert not those(heartbeats_for(peer, 20.0, False), p.Finish | p.Warn)


def test_a_server_reports_a_closed_port_once():
    server = joined("0", "1")
    said = []
    for _ in range(round(SOON_S / 0.5) + 4):
        closed = heartbeat_of("1")._replace(hears=False, is_heard=False)
        said += server.heartbeat("0") + server.hear("1", closed) + server.wait(0.5)
    (text,) = warnings(said)
    assert "worker-1" in text
    assert "port 1 (models) and port 2 (updates)" in text


def test_a_heartbeat_ack_tells_whether_the_subscription_has_arrived():
    server = joined("1")
    server.hear("0", hello_of(0, "0"))
    assert [m.hears for m in messages(server.heartbeat("0"), wire.HeartbeatAck)] == [
        False
    ]
    server.on(Subscribed(topic_of("0")))
    assert [m.hears for m in messages(server.heartbeat("0"), wire.HeartbeatAck)] == [
        True
    ]


@pytest.mark.parametrize("link", ["model", "update"])
def test_over_sockets_a_worker_with_a_closed_port_ends(tmp_path, caplog, link):
    hurried = PATIENT.__class__(join_timeout_s=6.0)
    with SocketRun(tmp_path, workers=2, size=1000) as run:
        run.start_worker(0, every_s=0.05)
        proxy: ChaosProxy = run.proxy()
        getattr(proxy, link).refuse(True)
        cut_off = run.start_worker(1, proxy.address, runtime=hurried)
        run.until("it has ended", lambda: cut_off.finish)
        assert cut_off.finish.status == "refused"
        port = run.server.ports[1 if link == "model" else 2]
        assert f"port {port} ({link}s)" in cut_off.finish.reason
        assert f"worker-1 has registered, but does not get through to port {port}" in (
            caplog.text
        )
        run.finish()


# ---------------------------------------------------------------- a dishonest server


def test_a_version_out_of_range_does_not_hide_later_ones():
    peer = welcomed()
    for wild in (2**31, 2**40, 2**62):
        assert those(peer.receive(wild), p.Deliver) == []
        assert peer.hear(wire.HeartbeatAck(1, wild, True)) == []
    assert those(peer.receive(1), p.Deliver)


def test_a_backoff_is_shorter_than_server_timeout_s():
    peer = welcomed()
    for wild in (1e18, 1e300):
        peer.push()
        peer.hear(wire.Backoff("0", 0, wild))
        heard = []
        for _ in range(round(RUNTIME["server_timeout_s"]) + 1):
            peer.hear(wire.HeartbeatAck(1, -1, True))
            heard += peer.wait(1.0)
        assert 0 in [x.message.seq for x in those(heard, p.Broadcast)]


@pytest.mark.parametrize(
    "wild",
    [
        {"version": 2**40},
        {"version": -1},
        {"first": -1},
        {"heartbeat_interval_s": 1e18},
        {"heartbeat_interval_s": 0.0},
        {"model_port": 2**20},
    ],
    ids=str,
)
def test_an_invalid_welcome_is_not_followed(wild):
    peer = PeerHarness()
    assert not those(peer.hear(WELCOME._replace(**wild)), p.Connect)
    (finish,) = those(peer.wait(RUNTIME["join_timeout_s"] + 2), p.Finish)
    assert "is invalid" in finish.reason
