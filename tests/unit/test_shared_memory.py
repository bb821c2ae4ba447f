"""Shared memory: the arena, its publisher and subscribers, and the transport."""

import os
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from asyn2f.protocol.channels import UPDATES, Channel, Frames, Subscribed
from asyn2f.transport import shared_memory
from asyn2f.transport.arena import Arena
from asyn2f.transport.base import MemoryNetwork, Transport
from asyn2f.transport.shared_memory import (
    SharedMemoryTransport,
    ShmPublisher,
    ShmSubscriber,
    new_probe,
    shared,
)
from asyn2f.transport.zmq import ZmqTransport
from tests.support.patience import PATIENCE_S

SIZE = 10_000


@pytest.fixture(autouse=True)
def _shares_small_payloads(monkeypatch):
    monkeypatch.setattr(shared_memory, "MIN_BYTES", 0)


@pytest.fixture
def arena():
    made = Arena.create(SIZE, slots=4)
    assert made is not None
    yield made
    made.close()


# ------------------------------------------------------------- the arena


@hypothesis.given(st.binary(max_size=SIZE), st.integers(0, 3))
def test_a_payload_written_at_one_end_is_read_at_the_other(payload, slot):
    here = Arena.create(SIZE, slots=4)
    there = Arena.open(here.name)
    assert bytes(there.read(here.write(slot, payload))) == payload
    assert bytes(here.read(there.write(slot, payload))) == payload
    here.close()
    there.close()


def test_an_overwritten_payload_is_lost_and_no_other(arena):
    first, other = arena.write(1, b"first"), arena.write(2, b"other")
    second = arena.write(1, b"again")
    assert arena.read(first) is None
    assert bytes(arena.read(second)) == b"again"
    assert bytes(arena.read(other)) == b"other"


def test_a_payload_does_not_change_after_it_was_read(arena):
    payload = arena.read(arena.write(0, b"before"))
    arena.write(0, b"after!")
    assert bytes(payload) == b"before"
    assert payload.readonly


@hypothesis.given(st.binary(max_size=40))
def test_an_invalid_descriptor_reads_nothing(descriptor):
    made = Arena.create(SIZE, slots=1)
    assert made.read(descriptor) is None
    made.close()


@pytest.mark.parametrize(("slot", "size"), [(4, 10), (2**32 - 1, 10), (0, SIZE + 1)])
def test_a_forged_descriptor_reads_nothing(arena, slot, size):
    good = arena.write(0, b"x" * 10)
    forged = slot.to_bytes(4, "little") + size.to_bytes(8, "little") + good[12:]
    assert arena.read(forged) is None


def test_the_arena_cannot_be_truncated(arena):
    pid, fd, *_ = arena.name.split(":")
    path = f"/proc/{pid}/fd/{fd}"
    with pytest.raises(PermissionError):
        os.truncate(path, 0)
    with pytest.raises(PermissionError):
        os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    "change",
    [
        lambda pid, fd, token, *rest: ("999999999", fd, token, *rest),
        lambda pid, fd, token, *rest: (pid, "99999", token, *rest),
        lambda pid, fd, token, *rest: (pid, "0", token, *rest),
        lambda pid, fd, token, *rest: (pid, fd, "0" * 32, *rest),
        lambda pid, fd, token, size, slots: (pid, fd, token, size, "9"),
        lambda pid, fd, token, size, slots: (pid, fd, token, size, "-1"),
        lambda pid, fd, token, *rest: (pid, "../../cwd", token, *rest),
        lambda *parts: parts[:3],
        lambda *parts: ("",),
    ],
)
def test_a_name_of_another_machine_or_a_wrong_one_opens_nothing(arena, change):
    assert Arena.open(":".join(change(*arena.name.split(":")))) is None
    assert ShmSubscriber.open(b"0:" + b"x") is None
    assert ShmSubscriber.open(b"\xff\xfe") is None


def test_other_kinds_of_files_are_not_opened(arena, tmp_path):
    """Nor does a pipe without a writer block."""
    *_, token, size, slots = arena.name.split(":")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    file = tmp_path / "file"
    file.write_bytes(bytes.fromhex(token) + bytes(200_000))
    for path, flags in ((pipe, os.O_RDWR), (file, os.O_RDWR)):
        fd = os.open(path, flags)
        assert Arena.open(f"{os.getpid()}:{fd}:{token}:{size}:{slots}") is None
        os.close(fd)
    assert file.read_bytes()[16:] == bytes(200_000)


def test_the_arena_is_gone_with_its_process():
    """SIGKILL leaves nothing to clean up."""
    code = (
        "from asyn2f.transport.arena import Arena\n"
        "made = Arena.create(1000, 1); made.write(0, b'x' * 1000)\n"
        "print(made.name, flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        name = process.stdout.readline().strip()
        seen = Arena.open(name)
        assert seen is not None
        process.kill()
        process.wait(PATIENCE_S)
        assert Arena.open(name) is None
        assert seen.read(seen.write(0, b"still here")) is not None
        seen.close()


# ------------------------------------------------------------- publisher, subscriber


@pytest.fixture
def publisher():
    made = ShmPublisher.create(SIZE, peers=2)
    yield made
    made.arena.close()


def first_slot(answer: bytes) -> int:
    return int(answer.split(b":")[0])


def test_a_slot_belongs_to_one_peer_at_a_time(publisher):
    probes = [new_probe() for _ in range(3)]
    answers = [publisher.answer(probe) for probe in probes]
    firsts = [first_slot(answer) for answer in answers]
    assert len(set(firsts[:2])) == 2
    assert firsts[2] == -1  # it receives descriptors, and sends through the sockets
    assert ShmSubscriber.open(answers[2]).descriptor(b"update") is None
    assert publisher.answer(probes[0]) == answers[0]  # it has reconnected
    publisher.on_unsubscribed(probes[0])
    assert first_slot(publisher.answer(new_probe())) == firsts[0]


def test_all_slots_are_free_when_all_connections_were_closed(publisher):
    publisher.on_subscribed(b"all")
    firsts = {first_slot(publisher.answer(new_probe())) for _ in range(2)}
    publisher.on_unsubscribed(None)
    assert publisher.descriptor(b"all", b"version") is None
    assert {first_slot(publisher.answer(new_probe())) for _ in range(2)} == firsts


def test_a_payload_is_written_once_and_only_for_subscribers(publisher):
    payload = b"version"
    assert publisher.descriptor(b"all", payload) is None
    publisher.on_subscribed(b"all")
    publisher.on_subscribed(b"one")
    descriptor = publisher.descriptor(b"all", payload)
    assert publisher.descriptor(b"one", payload) == descriptor
    assert publisher.descriptor(b"all", b"another") != descriptor
    publisher.on_unsubscribed(shared(b"all"))
    assert publisher.descriptor(b"all", b"a third") is None


def test_small_payloads_and_other_systems_use_the_sockets(monkeypatch):
    monkeypatch.setattr(shared_memory, "MIN_BYTES", SIZE + 1)
    assert ShmPublisher.create(SIZE, peers=1) is None
    peer = MemoryNetwork().peer()
    assert SharedMemoryTransport.at_peer(peer, SIZE) is peer
    monkeypatch.setattr(shared_memory, "MIN_BYTES", 0)
    monkeypatch.delattr(os, "memfd_create")
    assert ShmPublisher.create(SIZE, peers=1) is None


# ------------------------------------------------------------- in the transport


@pytest.fixture
def ends():
    """A server's transport and a peer's, each with shared memory or without."""
    made: list[Transport] = []

    def make(*, server: bool, peer: bool) -> list[Transport]:
        one = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, 1)
        made.append(SharedMemoryTransport.at_server(one, SIZE, 2, offers=server))
        address = f"tcp://127.0.0.1:{one.ports()[0]}"
        other = ZmqTransport.connect_to(address, SIZE, 64)
        other = SharedMemoryTransport.at_peer(other, SIZE, accepts=peer)
        made.append(other)
        other.connect([b"all"], *one.ports()[1:])
        return made

    yield make
    for end in made:
        end.close()


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("peer", [False, True])
def test_no_version_is_lost_during_discovery(ends, server, peer):
    """Each is published once, from the subscription on, when the one before has come;
    meanwhile the two agree on the memory, or that there is none."""
    one, other = ends(server=server, peer=peer)
    deadline_s = time.monotonic() + PATIENCE_S
    while Subscribed(b"all") not in one.poll(0.01):
        other.poll(0.0)
        assert time.monotonic() < deadline_s
    for number in range(50):
        payload = bytes([number]) * SIZE
        one.publish(b"all", str(number).encode(), payload)
        heard: list[tuple[bytes, bytes, bytes]] = []
        while (b"all", str(number).encode(), payload) not in heard:
            assert time.monotonic() < deadline_s, f"{number} never came"
            one.poll(0.0)
            found = [x for x in other.poll(0.01) if isinstance(x, Frames)]
            heard += [(x.sender, x.header, bytes(x.payload)) for x in found]
    assert getattr(other, "is_shared", False) == (server and peer)


def test_overwritten_updates_are_reported_as_malformed(ends):
    one, other = ends(server=True, peer=True)
    deadline_s = time.monotonic() + PATIENCE_S
    came: list = []
    while Subscribed(UPDATES) not in came or not other.is_shared:
        assert time.monotonic() < deadline_s
        one.poll(0.01)
        came += other.poll(0.01)
    for number in range(4):  # two slots
        assert other.publish(UPDATES, str(number).encode(), bytes([number]) * SIZE)
    arrived: list = []
    while len(arrived) < 4:
        assert time.monotonic() < deadline_s
        arrived += [x for x in one.poll(0.1) if x[0] is Channel.UPDATE]
    kinds = [type(x).__name__ for x in arrived]
    assert kinds == ["Malformed", "Malformed", "Frames", "Frames"]
    assert "no longer" in arrived[0].reason
    assert [x.header for x in arrived[2:]] == [b"2", b"3"]
