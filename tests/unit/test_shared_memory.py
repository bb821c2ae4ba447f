"""Payloads through memory that the processes of one machine see."""

import os
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from asyn2f.protocol.channels import (
    UPDATES,
    Channel,
    Frames,
    Subscribed,
)
from asyn2f.transport import shared_memory
from asyn2f.transport.shared_memory import Arena, ShmPublisher, ShmSubscriber, question
from asyn2f.transport.zmq import ZmqTransport
from tests.support.patience import PATIENCE_S

SIZE = 10_000


@pytest.fixture(autouse=True)
def _small_payloads_too(monkeypatch):
    monkeypatch.setattr(shared_memory, "LEAST_BYTES", 0)


@pytest.fixture
def arena():
    made = Arena.create(SIZE, slots=4)
    assert made is not None
    yield made
    made.close()


# ------------------------------------------------------------- an arena


@hypothesis.given(st.binary(max_size=SIZE), st.integers(0, 3))
def test_what_is_written_here_is_read_there(payload, slot):
    here = Arena.create(SIZE, slots=4)
    there = Arena.open(here.name)
    assert bytes(there.read(here.write(slot, payload))) == payload
    assert bytes(here.read(there.write(slot, payload))) == payload
    here.close()
    there.close()


def test_what_has_been_overwritten_is_lost_and_nothing_else(arena):
    first, other = arena.write(1, b"first"), arena.write(2, b"other")
    second = arena.write(1, b"again")
    assert arena.read(first) is None
    assert bytes(arena.read(second)) == b"again"
    assert bytes(arena.read(other)) == b"other"


def test_what_is_read_does_not_change_afterwards(arena):
    payload = arena.read(arena.write(0, b"before"))
    arena.write(0, b"after!")
    assert bytes(payload) == b"before"
    assert payload.readonly


@hypothesis.given(st.binary(max_size=40))
def test_what_is_no_slip_reads_nothing(slip):
    made = Arena.create(SIZE, slots=1)
    assert made.read(slip) is None
    made.close()


@pytest.mark.parametrize(("slot", "size"), [(4, 10), (2**32 - 1, 10), (0, SIZE + 1)])
def test_a_slip_leads_nowhere_else(arena, slot, size):
    good = arena.write(0, b"x" * 10)
    forged = slot.to_bytes(4, "little") + size.to_bytes(8, "little") + good[12:]
    assert arena.read(forged) is None


def test_nobody_cuts_it_short(arena):
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
def test_another_machines_name_or_a_wrong_one_opens_nothing(arena, change):
    assert Arena.open(":".join(change(*arena.name.split(":")))) is None
    assert ShmSubscriber.of(b"0:" + b"x") is None
    assert ShmSubscriber.of(b"\xff\xfe") is None


def test_files_that_are_no_such_memory_are_left_alone(arena, tmp_path):
    """A pipe that nobody writes must not keep us waiting either."""
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


def test_it_goes_with_its_process():
    """SIGKILL leaves nothing that somebody had to clean up."""
    code = (
        "from asyn2f.transport.shared_memory import Arena\n"
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


# ------------------------------------------------------------- lending


def test_slots_are_one_peers_at_a_time():
    lender = ShmPublisher.create(SIZE, peers=2)
    questions = [question() for _ in range(3)]
    answers = [lender.lend(topic) for topic in questions]
    firsts = [int(answer.split(b":")[0]) for answer in answers]
    assert len(set(firsts[:2])) == 2
    assert firsts[2] == -1  # it hears slips, and sends its own through the sockets
    assert ShmSubscriber.of(answers[2]).slip(b"update") is None
    lender.take_back(questions[0])
    assert int(lender.lend(question()).split(b":")[0]) == firsts[0]
    lender.arena.close()


def test_slips_are_made_where_somebody_hears_them_and_once_for_a_payload():
    lender = ShmPublisher.create(SIZE, peers=1)
    payload = b"version"
    assert lender.slip(b"all", payload) is None
    lender.hears_slips(b"all", begins=True)
    lender.hears_slips(b"one", begins=True)
    slip = lender.slip(b"all", payload)
    assert lender.slip(b"one", payload) == slip
    assert lender.slip(b"all", b"another") != slip
    lender.hears_slips(b"all", begins=False)
    assert lender.slip(b"all", b"a third") is None
    lender.arena.close()


def test_small_payloads_and_other_systems_go_through_the_sockets(monkeypatch):
    monkeypatch.setattr(shared_memory, "LEAST_BYTES", SIZE + 1)
    assert ShmPublisher.create(SIZE, peers=1) is None
    monkeypatch.setattr(shared_memory, "LEAST_BYTES", 0)
    monkeypatch.delattr(os, "memfd_create")
    assert ShmPublisher.create(SIZE, peers=1) is None


# ------------------------------------------------------------- in the transport


@pytest.fixture
def ends():
    """A server's transport and a peer's, each with shared memory or without."""
    made: list[ZmqTransport] = []

    def make(*, server: bool, peer: bool) -> list[ZmqTransport]:
        one = ZmqTransport.bind("tcp://127.0.0.1:0", SIZE, 1, shared_memory=server)
        made.append(one)
        address = f"tcp://127.0.0.1:{one.ports()[0]}"
        other = ZmqTransport.connect_to(address, SIZE, 64, shared_memory=peer)
        made.append(other)
        other.connect([b"all"], *one.ports()[1:])
        return made

    yield make
    for end in made:
        end.close()


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("peer", [False, True])
def test_no_version_is_missed_while_both_find_out(ends, server, peer):
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
    assert (other._borrower is not None) == (server and peer)


def test_updates_that_were_overwritten_are_dropped_and_said(ends):
    one, other = ends(server=True, peer=True)
    deadline_s = time.monotonic() + PATIENCE_S
    came: list = []
    while Subscribed(UPDATES) not in came or other._borrower is None:
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
