"""Authentication: peers without a key reach nothing, and a key has one name."""

import contextlib
import itertools
import random
import socket
import time

import pytest
import zmq

from asyn2f.errors import AddressError
from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import UPDATES, Channel, Frames, Malformed, Subscribed
from asyn2f.transport import keys, zmq_auth, zmq_limits
from asyn2f.transport.keys import AllowList
from asyn2f.transport.zmq import ZmqTransport
from tests.support.messages import header_of, hello_of
from tests.support.patience import PATIENCE_S
from tests.support.rogue_peers import KINDS, Keyring, Recorder, rogue_sockets
from tests.support.socket_run import SocketRun

SIZE = 4096


@pytest.fixture
def ring(tmp_path):
    return Keyring(tmp_path / "keys", workers=3)


@pytest.fixture
def server(ring):
    made = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=3, keys=ring.server)
    yield made
    made.close()


def join(server, key, *topics):
    """A connected peer."""
    address = f"tcp://127.0.0.1:{server.ports()[0]}"
    peer = ZmqTransport.connect_to(address, SIZE, depth=4, keys=key)
    peer.connect([b"all", *topics], *server.ports()[1:])
    return peer


def attend(holds, *ends):
    """Polls these ends until a condition holds; returns the arrivals of each end."""
    arrived = {id(end): [] for end in ends}
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds(arrived):
        assert time.monotonic() < deadline_s, f"not reached: {arrived}"
        for end in ends:
            arrived[id(end)] += end.poll(0.005)
    return [arrived[id(end)] for end in ends]


def has_received(end, header):
    return lambda arrived: any(
        isinstance(item, Frames) and bytes(item.header) == header
        for item in arrived[id(end)]
    )


def exchange(server, peer, mark):
    """Arrivals at the server until messages on CONTROL and UPDATE have reached it, and
    one on MODEL the peer."""
    came = []

    def knows(item):
        return lambda arrived: item in arrived[id(peer)]

    came += attend(knows(Subscribed(UPDATES)), server, peer)[0]
    peer.send(b"", mark + b" control")
    peer.publish(UPDATES, mark + b" update", b"payload")
    for header in (mark + b" control", mark + b" update"):
        if not has_received(server, header)({id(server): came}):
            came += attend(has_received(server, header), server, peer)[0]
    deadline_s = time.monotonic() + PATIENCE_S
    down = []
    while not has_received(peer, mark + b" model")({id(peer): down}):
        assert time.monotonic() < deadline_s
        server.publish(b"all", mark + b" model", b"payload")
        down += peer.poll(0.01)
        came += server.poll(0.01)
    return came


# ------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["worker-0", "worker-2", "evaluator"])
def test_messages_carry_the_name_of_their_key(ring, server, name):
    peer = join(server, ring.peer(name))
    came = exchange(server, peer, b"hello")
    peer.close()
    channels = {x.channel: x.identity for x in came if isinstance(x, Frames)}
    assert channels == {Channel.CONTROL: name, Channel.UPDATE: name}


def test_without_keys_messages_carry_no_name():
    server = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=1)
    peer = join(server, None)
    came = exchange(server, peer, b"hello")
    peer.close()
    server.close()
    assert {x.identity for x in came if isinstance(x, Frames)} == {""}


def test_keys_and_ipv6_go_together(ring):
    try:
        server = ZmqTransport.bind("tcp://[::1]:0", SIZE, workers=1, keys=ring.server)
    except AddressError as error:
        pytest.skip(f"no IPv6 here: {error}")
    address = f"tcp://[::1]:{server.ports()[0]}"
    peer = ZmqTransport.connect_to(address, SIZE, 1, keys=ring.peer("worker-1"))
    peer.send(b"", b"six")
    (came, _) = attend(has_received(server, b"six"), server, peer)
    peer.close()
    server.close()
    assert came[0].identity == "worker-1"


# ------------------------------------------------------------- S-08: unknown keys


def key_of(ring, who):
    match who:
        case "no key":
            return None
        case "unknown key":
            return ring.unknown_key()
        case "wrong server key":
            return ring.peer("worker-1")._replace(server=zmq.curve_keypair()[0])
        case "revoked key":
            return ring.peer("worker-1")


WHO = ["no key", "unknown key", "wrong server key", "revoked key"]


@pytest.mark.parametrize("who", WHO)
def test_an_unauthenticated_peer_neither_sends_nor_receives(ring, who):
    key = key_of(ring, who)
    if who == "revoked key":
        ring.revoke("worker-1")
    server = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=3, keys=ring.server)
    with rogue_sockets(key) as made:
        ports = server.ports()
        control, models, updates = map(made.open, KINDS, ports)
        left = {control, models, updates}
        control.send(b"intruder")
        deadline_s = time.monotonic() + PATIENCE_S
        came = []
        while left:  # until each has been refused
            assert time.monotonic() < deadline_s, f"{left} have not been refused"
            came += server.poll(0.005)
            left = {each for each in left if not made.was_refused(each)}
        updates.send_multipart([UPDATES, b"intruder", b"payload"])
        honest = join(server, ring.peer("worker-2"))
        came += exchange(server, honest, b"honest")
        assert not models.poll(0)
        assert not updates.poll(0)  # not even a subscription
    honest.close()
    server.close()
    assert {x.identity for x in came if isinstance(x, Frames)} == {"worker-2"}
    assert not [x for x in came if isinstance(x, Malformed)]
    assert [x for x in came if x == Subscribed(b"all")] == [Subscribed(b"all")]


def test_a_peer_with_an_unknown_key_is_refused_at_once(ring, tmp_path):
    with SocketRun(tmp_path, workers=2, size=SIZE, keys=ring.server) as run:
        peer = run.start_worker(0, keys=ring.unknown_key())
        run.until("it has ended", lambda: peer.finish)
        assert peer.finish.status == "refused"
        assert "does not know this key" in peer.finish.reason
        assert run.finish() == {}


@pytest.mark.parametrize("has_key", [False, True])
def test_a_peer_is_refused_at_once_if_only_one_side_has_keys(ring, tmp_path, has_key):
    """Not when the time allowed for registering is over: that has another reason."""
    theirs, own = (None, ring.peer("worker-0")) if has_key else (ring.server, None)
    with SocketRun(tmp_path, workers=2, size=SIZE, keys=theirs) as run:
        peer = run.start_worker(0, keys=own)
        run.until("it has ended", lambda: peer.finish, PATIENCE_S)
        assert peer.finish.status == "refused"
        wanted = "it has no keys" if has_key else "it requires keys"
        assert wanted in peer.finish.reason
        assert "config.runtime.keys_dir" in peer.finish.reason
        assert run.finish() == {}


def test_a_handshake_that_fails_otherwise_is_no_refusal():
    """A greeting of ZMTP 3 without keys, as both sides expect, then garbage."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(52, b"\0")
    with socket.create_server(("127.0.0.1", 0)) as door:
        peer = ZmqTransport.connect_to(
            f"tcp://127.0.0.1:{door.getsockname()[1]}", SIZE, depth=1
        )
        door.settimeout(PATIENCE_S)
        with contextlib.closing(door.accept()[0]) as caller:
            caller.sendall(greeting + b"\x04\x05\x04JUNK")
            assert peer._refusals.socket.poll(1000 * PATIENCE_S), (
                "it takes the garbage for good"
            )
            assert peer.poll(0.0) == []
        peer.close()


def test_without_a_zap_handler_nobody_is_admitted(ring, server):
    server._poller.unregister(server._zap.socket)
    server._zap.close()
    with rogue_sockets(ring.peer("worker-0")) as made:
        control = made.open(zmq.DEALER, server.ports()[0])
        control.send(b"a valid key")
        came = []
        deadline_s = time.monotonic() + PATIENCE_S
        while not made.was_refused(control):
            assert time.monotonic() < deadline_s
            came += server.poll(0.01)
    assert came == []


def test_a_failing_zap_handler_ends_the_server(ring, tmp_path, monkeypatch):
    with SocketRun(tmp_path, workers=2, size=SIZE, keys=ring.server) as run:
        first = run.start_worker(0, keys=ring.peer("worker-0"), total=3)
        run.until("one is in", lambda: first.machine.is_done)

        def fail(handler):
            raise RuntimeError("the handler has failed")

        monkeypatch.setattr(zmq_auth.ZapHandler, "answer", fail)
        second = run.start_worker(1, keys=ring.peer("worker-1"))
        run.until("the server has ended", lambda: run.server.finish)
        assert run.server.finish.status == "failed"
        assert "the handler has failed" in run.server.finish.reason
        run.server.join()
        for worker in (first, second):
            worker.stop()
            worker.join()


def refuses_everywhere(server, key) -> bool:
    """Whether every socket of a server refuses this key."""
    ports = server.ports()
    with rogue_sockets(key) as made:
        left = {made.open(kind, port) for kind, port in zip(KINDS, ports, strict=True)}
        deadline_s = time.monotonic() + PATIENCE_S
        while left and time.monotonic() < deadline_s:
            server.poll(0.005)
            outcomes = {each: made.outcomes(each) for each in left}
            if any("admitted" in found for found in outcomes.values()):
                return False
            left = {each for each, found in outcomes.items() if not found}
    assert not left, "the server has not answered in time"
    return True


@pytest.mark.parametrize("key", ["unknown key", "no key"])
def test_every_socket_of_a_server_refuses_unauthenticated_peers(ring, server, key):
    assert refuses_everywhere(server, key_of(ring, key))


@pytest.mark.parametrize("planted", ["all keys", "no encryption"])
def test_the_check_above_finds_open_sockets(ring, monkeypatch, planted):
    if planted == "all keys":
        monkeypatch.setattr(AllowList, "name_of", lambda self, key: "worker-0")
    else:
        monkeypatch.setattr("asyn2f.transport.zmq.curve_options", lambda keys: {})
    server = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, workers=1, keys=ring.server)
    key = None if planted == "no encryption" else ring.unknown_key()
    assert not refuses_everywhere(server, key)
    server.close()


# ------------------------------------------------------------- added and revoked keys


def test_messages_under_a_revoked_key_are_dropped(ring, server):
    peer = join(server, ring.peer("worker-1"))
    exchange(server, peer, b"before")
    ring.revoke("worker-1")
    numbers = itertools.count()

    def has_dropped(arrived):
        peer.send(b"", b"after %d" % next(numbers))
        return any(isinstance(item, Malformed) for item in arrived[id(server)])

    came, _ = attend(has_dropped, server, peer)
    refused = next(i for i, x in enumerate(came) if isinstance(x, Malformed))
    assert "revoked" in came[refused].reason
    assert not [x for x in came[refused:] if isinstance(x, Frames)]
    peer.close()


def test_a_revoked_peer_receives_no_further_versions_and_the_others_all(ring, server):
    """Even over connections that were open before."""
    revoked, other = (join(server, ring.peer(f"worker-{k}")) for k in (1, 2))
    arrived = {end: [] for end in (server, revoked, other)}

    def attend_until(holds):
        deadline_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline_s, f"not reached: {arrived}"
            for end, items in arrived.items():
                items += end.poll(0.005)

    def versions(end):
        models = [x for x in arrived[end] if isinstance(x, Frames)]
        return [bytes(x.header) for x in models if x.channel is Channel.MODEL]

    def subscriptions():
        return arrived[server].count(Subscribed(b"all"))

    attend_until(lambda: subscriptions() == 2)
    server.publish(b"all", b"version 1", b"payload")
    attend_until(lambda: versions(revoked) == versions(other) == [b"version 1"])
    ports = server.ports()
    ring.revoke("worker-1")
    attend_until(lambda: subscriptions() == 3)  # the other has reconnected
    assert server.ports() == ports
    server.publish(b"all", b"version 2", b"payload")
    attend_until(lambda: b"version 2" in versions(other))
    later_s = time.monotonic() + 1.5  # it has tried to reconnect
    attend_until(lambda: time.monotonic() > later_s)
    assert versions(revoked) == [b"version 1"]
    assert subscriptions() == 3
    for peer in (revoked, other):
        peer.close()


def test_a_key_added_at_run_time_is_accepted(ring, server):
    keys.add(ring.folder, "worker-3")
    read_again_s = time.monotonic() + 0.1
    attend(lambda _: time.monotonic() > read_again_s, server)
    address = f"tcp://127.0.0.1:{server.ports()[0]}"
    peer = ZmqTransport.connect_to(address, SIZE, 1, keys=ring.peer("worker-3"))
    peer.send(b"", b"new")
    came, _ = attend(has_received(server, b"new"), server, peer)
    peer.close()
    assert [x.identity for x in came] == ["worker-3"]


# ------------------------------------------------------------- S-07, S-14


def test_a_worker_cannot_impersonate_another(ring, tmp_path, caplog):
    with SocketRun(tmp_path, workers=3, size=SIZE, keys=ring.server) as run:
        worker = run.start_worker(0, keys=ring.peer("worker-0"), every_s=0.02)
        run.until("it works", lambda: worker.machine.made > 3)
        claims = [
            hello_of(0, "x"),
            hello_of(-1, "y"),
            hello_of(1, worker.session),
            messages.Goodbye(worker.session, "goodbye from another"),
            messages.EvalResult(worker.session, 1, {"accuracy": 1.0}),
            messages.StopRun(9, "because a worker says so"),
        ]
        header = header_of(0, worker.session, 10**6, payload=b"x" * SIZE)
        with rogue_sockets(ring.peer("worker-1")) as made:
            control = made.open(zmq.DEALER, run.server.ports[0])
            updates = made.open(zmq.XPUB, run.server.ports[2])
            assert updates.poll(PATIENCE_S * 1000)
            updates.send_multipart([UPDATES, wire_format.encode(header), b"x" * SIZE])
            for claim in claims:
                control.send(wire_format.encode(claim))
            refused = []
            for _ in claims[:3]:
                assert control.poll(PATIENCE_S * 1000)
                refused.append(wire_format.decode(control.recv()))
            control.send(wire_format.encode(hello_of(1, "its-own")))
            while not isinstance(wire_format.decode(control.recv()), messages.Welcome):
                assert control.poll(PATIENCE_S * 1000), "all before has been heard"
            control.send(wire_format.encode(messages.Goodbye("its-own", "done")))
            run.until(
                "it is said",
                lambda: "worker-1 sent a message as worker-0" in caplog.text,
            )
            before = worker.machine.made
            run.until("it works on", lambda: worker.machine.made > before + 5)
        assert [type(answer) for answer in refused] == [messages.Refused] * 3
        assert all("worker-1" in answer.reason for answer in refused[:2])
        assert "belongs to another" in refused[2].reason
        assert 10**6 not in {key.seq for key in run.server.arrived_s}
        assert run.server.machine.status().scores is None
        assert run.server.finish is None
        run.until("it is alone", lambda: run.server.live() == [0])
        worker.machine.total = 0
        run.until("all is settled", lambda: worker.machine.is_done)
        assert set(run.finish()) == {"committed"}


def test_a_worker_neither_scores_nor_stops_the_run_under_its_own_name(ring, tmp_path):
    with SocketRun(tmp_path, workers=2, size=SIZE, keys=ring.server) as run:
        worker = run.start_worker(0, keys=ring.peer("worker-0"), every_s=0.02)
        run.until("it works", lambda: worker.machine.made > 3)
        with rogue_sockets(ring.peer("worker-1")) as made:
            control = made.open(zmq.DEALER, run.server.ports[0])
            for said in (
                hello_of(1, "liar"),
                messages.EvalResult("liar", 1, {"accuracy": 1.0}),
                messages.StopRun(9, "enough"),
                messages.UpdateOutcome(1, worker.session, 0, "rejected", -1, "so"),
                messages.FetchModel("liar", 0),
            ):
                control.send(wire_format.encode(said))
            kinds = []
            while messages.EvalAck not in kinds:
                assert control.poll(PATIENCE_S * 1000)
                kinds.append(type(wire_format.decode(control.recv())))
            before = worker.machine.made
            run.until("it works on", lambda: worker.machine.made > before + 5)
        assert run.server.machine.status().scores is None
        assert run.server.finish is None
        worker.machine.total = 0
        run.until("all is settled", lambda: worker.machine.is_done)
        assert set(run.finish()) == {"committed"}


# ------------------------------------------------------------- S-16: eavesdropping


@pytest.mark.parametrize("with_keys", [False, True])
def test_only_with_keys_is_traffic_encrypted(ring, with_keys):
    own = (ring.server, ring.peer("worker-0")) if with_keys else (None, None)
    server = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, 2, keys=own[0])
    recorder = Recorder(server.ports())
    address = f"tcp://127.0.0.1:{recorder.ports[0]}"
    peer = ZmqTransport.connect_to(address, SIZE, depth=4, keys=own[1])
    peer.connect([b"all"], *recorder.ports[1:])
    rng = random.Random(16)
    model, update = rng.randbytes(SIZE), rng.randbytes(SIZE)
    secret = {"model": model[64:128], "update": update[-64:], "header": b"h" * 64}
    attend(lambda came: Subscribed(UPDATES) in came[id(peer)], server, peer)
    peer.send(b"", secret["header"])
    peer.publish(UPDATES, b"up", update)
    up = []
    for header in (secret["header"], b"up"):
        if not has_received(server, header)({id(server): up}):
            up += attend(has_received(server, header), server, peer)[0]
    down = []
    while not has_received(peer, b"down")({id(peer): down}):
        server.publish(b"all", b"down", model)
        server.poll(0.01)
        down += peer.poll(0.01)
    arrived = [bytes(x.payload) for x in (*up, *down) if isinstance(x, Frames)]
    assert {model, update} <= set(arrived)  # it did pass
    peer.close()
    server.close()
    recorder.close()
    assert len(recorder.seen) > 2 * SIZE
    shown = {name for name, part in secret.items() if part in recorder.seen}
    assert shown == (set() if with_keys else set(secret))


# ------------------------------------------------------------- options

UNREADABLE = {
    *(zmq.XPUB_VERBOSE, zmq.XPUB_NODROP, zmq.ROUTER_MANDATORY),
    *(zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY),
}


@pytest.mark.parametrize("with_keys", [False, True])
def test_every_socket_has_its_documented_options(ring, with_keys):
    own = (ring.server, ring.peer("worker-0")) if with_keys else (None, None)
    server = ZmqTransport.bind("tcp://127.0.0.1:0", 2 * SIZE, 2, keys=own[0])
    address = f"tcp://127.0.0.1:{server.ports()[0]}"
    peer = ZmqTransport.connect_to(address, 2 * SIZE, 3, keys=own[1])
    peer.connect([b"all"], *server.ports()[1:])
    seen = 0
    for end, key, depth in ((server, own[0], 8), (peer, own[1], 3)):
        for opened, channel in end._channels.items():
            wanted = zmq_limits.socket_options(channel, opened.type, 2 * SIZE, depth)
            wanted |= {} if key is None else zmq_auth.curve_options(key)
            for option, value in wanted.items():
                if option not in UNREADABLE:
                    found = opened.get(option)
                    found = found.rstrip(b"\0") if isinstance(found, bytes) else found
                    assert found == value, (channel, opened.type, option)
                    seen += 1
    peer.close()
    server.close()
    assert seen > (75 if with_keys else 60)


def options(channel, kind, size=10**6, depth=8):
    return zmq_limits.socket_options(channel, kind, size, depth)


def test_frames_are_limited_to_the_longest_valid_one():
    limits = {
        (channel, kind): options(channel, kind)[zmq.MAXMSGSIZE]
        for channel, kind in (
            (Channel.CONTROL, zmq.ROUTER),
            (Channel.CONTROL, zmq.DEALER),
            (Channel.MODEL, zmq.XPUB),
            (Channel.MODEL, zmq.SUB),
            (Channel.UPDATE, zmq.XPUB),
            (Channel.UPDATE, zmq.SUB),
        )
    }
    assert list(limits.values()) == [4160, 4160, 1088, 1000064, 1088, 1000064]


def test_queues_of_models_are_short():
    assert options(Channel.MODEL, zmq.XPUB)[zmq.SNDHWM] == 2
    assert options(Channel.UPDATE, zmq.XPUB)[zmq.SNDHWM] == 4
    assert options(Channel.MODEL, zmq.SUB, depth=1)[zmq.RCVHWM] == 1
    assert options(Channel.UPDATE, zmq.SUB, depth=40)[zmq.RCVHWM] == 40
    assert options(Channel.CONTROL, zmq.ROUTER)[zmq.RCVHWM] == 256


def test_no_socket_sets_a_routing_id_or_conflates(ring, server):
    for opened in server._channels:
        assert opened.get(zmq.ROUTING_ID) == b""
    for channel, kind in itertools.product(Channel, (zmq.ROUTER, zmq.XPUB, zmq.SUB)):
        assert zmq.CONFLATE not in options(channel, kind)


@pytest.mark.parametrize("version", [(4, 3, 4), (4, 2, 9), (3, 9, 9)])
def test_an_old_libzmq_is_refused(version):
    with pytest.raises(ImportError, match=r"found libzmq .*needed: 4\.3\.5 or newer"):
        zmq_limits.check_library(version)


@pytest.mark.parametrize("version", [(4, 3, 5), (4, 3, 6), (5, 0, 0)])
def test_a_newer_libzmq_is_accepted(version):
    zmq_limits.check_library(version)
