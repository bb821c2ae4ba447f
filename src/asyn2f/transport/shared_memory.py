"""Payloads between processes of one machine: through memory that both see.

A server keeps an `Arena` of slots. A message's header goes through the sockets as ever,
and in its payload's place a *slip* that says in which slot the payload is, how long it
is, and its digest. Whoever reads copies first and compares digests then: what has been
overwritten in the meantime is as good as lost on its way, and comes again as that does.

Who shares the server's machine finds out by itself: a peer asks for the arena's name by
subscribing to a topic of its own, and is answered there. If it can open what is named,
it subscribes to `shared(topic)` in the place of each of its topics.

The memory belongs to no file: it is gone with the last process that sees it, however
that ends, and it cannot be cut short under a reader (its size is sealed). Only Linux
has it; elsewhere `Arena.create` gives None, and all goes through the sockets.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import struct

import numpy as np
import xxhash

from asyn2f.types import Buffer

LEAST_BYTES = 1 << 20
"""Payloads below this gain nothing: measured, see BUILD_NOTES."""

_MARK = b"@"
_ASK = b"@memory/"
_OWN = 3  # slots of the server: who reads a version must not be three behind
_EACH = 2  # of a peer: one is read while the next is written
_SLIP = struct.Struct("<IQ16s")  # slot, bytes, XXH3-128
_TOKEN_BYTES = 16
_PAGE = mmap.ALLOCATIONGRANULARITY


class Arena:
    """Slots of the same size in memory that other processes of this user can open.

    Pages that nobody has written cost nothing.
    """

    def __init__(self, fd: int, name: str, slot_bytes: int, slots: int) -> None:
        self.name = name
        self._fd = fd
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._seen: dict[int, np.ndarray] = {}  # slots that have been mapped

    @classmethod
    def create(cls, slot_bytes: int, slots: int) -> "Arena | None":
        """A new one, if this system can make it."""
        if not hasattr(os, "memfd_create"):
            return None
        stride = _in_pages(slot_bytes)
        try:
            fd = os.memfd_create("asyn2f", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, _PAGE + stride * slots)
        except OSError:
            return None
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        token = secrets.token_bytes(_TOKEN_BYTES)
        os.pwrite(fd, token, 0)
        name = f"{os.getpid()}:{fd}:{token.hex()}:{slot_bytes}:{slots}"
        return cls(fd, name, slot_bytes, slots)

    @classmethod
    def open(cls, name: str) -> "Arena | None":
        """The one of this name; None if it is not on this machine, or not ours."""
        fd = -1
        try:
            pid, number, token, slot_bytes, slots = name.split(":")
            path = f"/proc/{int(pid)}/fd/{int(number)}"
            # Whatever else may lie there must not make us wait.
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
            size = _PAGE + _in_pages(int(slot_bytes)) * int(slots)
            is_it = os.pread(fd, _TOKEN_BYTES, 0).hex() == token
            if sealed and is_it and os.fstat(fd).st_size == size:
                return cls(fd, name, int(slot_bytes), int(slots))
        except (OSError, ValueError):
            pass
        if fd >= 0:
            os.close(fd)
        return None

    def write(self, slot: int, payload: Buffer) -> bytes:
        """Puts a payload into a slot; its slip. ValueError if it is longer than one."""
        data = np.frombuffer(payload, np.uint8)
        self._slot(slot)[: data.size] = data
        return _SLIP.pack(slot, data.size, xxhash.xxh3_128_digest(data.data))

    def read(self, slip: Buffer) -> memoryview | None:
        """A copy of the payload that a slip speaks of; None if it is no slip, or no
        longer there."""
        if len(slip) != _SLIP.size:
            return None
        slot, size, digest = _SLIP.unpack(slip)
        if slot >= self._slots or size > self._slot_bytes:
            return None
        payload = np.array(self._slot(slot)[:size])
        if xxhash.xxh3_128_digest(payload.data) != digest:
            return None
        return payload.data.toreadonly()

    def close(self) -> None:
        """Sees it no longer."""
        self._seen.clear()
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _slot(self, slot: int) -> np.ndarray:
        if slot not in self._seen:
            stride = _in_pages(self._slot_bytes)
            mapped = mmap.mmap(self._fd, stride, offset=_PAGE + slot * stride)
            self._seen[slot] = np.frombuffer(mapped, np.uint8)
        return self._seen[slot]


def pays(payload_bytes: int) -> bool:
    """Whether such payloads gain by it."""
    return payload_bytes >= LEAST_BYTES


def shared(topic: bytes) -> bytes:
    """The topic under which slips go in the place of payloads."""
    return _MARK + topic


def is_shared(topic: bytes) -> bool:
    return topic.startswith(_MARK)


def unshared(topic: bytes) -> bytes:
    """The topic as it is said without shared memory."""
    return topic.removeprefix(_MARK)


def question() -> bytes:
    """A topic to subscribe to: asks for the arena's name, answered there."""
    return _ASK + secrets.token_hex(8).encode()


def is_question(topic: bytes) -> bool:
    return topic.startswith(_ASK)


class ShmPublisher:
    """A server's end: who hears slips, and which slots are whose."""

    def __init__(self, arena: Arena, peers: int) -> None:
        self.arena = arena
        self._heard: set[bytes] = set()  # topics
        self._free = [_OWN + _EACH * number for number in reversed(range(peers))]
        self._lent: dict[bytes, int] = {}  # by question
        self._newest: tuple[Buffer, bytes] | None = None  # a payload and its slip
        self._next = 0

    @classmethod
    def create(cls, payload_bytes: int, peers: int) -> "ShmPublisher | None":
        """One for so many peers, if that pays and this system can."""
        if not pays(payload_bytes):
            return None
        arena = Arena.create(payload_bytes, _OWN + _EACH * peers)
        return None if arena is None else cls(arena, peers)

    def lend(self, question: bytes) -> bytes:
        """The answer to a question: the arena, and slots of the peer's own, while there
        are any."""
        if question not in self._lent and self._free:
            self._lent[question] = self._free.pop()
        return f"{self._lent.get(question, -1)}:{self.arena.name}".encode()

    def take_back(self, question: bytes) -> None:
        """Whoever asked it has gone."""
        if question in self._lent:
            self._free.append(self._lent.pop(question))

    def begin_again(self) -> None:
        """Nobody hears anything any more, and all slots are free."""
        self._heard.clear()
        self._free += [self._lent.pop(question) for question in list(self._lent)]

    def hears_slips(self, topic: bytes, begins: bool) -> None:
        """Somebody hears slips under this topic now; or nobody any more."""
        (self._heard.add if begins else self._heard.discard)(topic)

    def slip(self, topic: bytes, payload: Buffer) -> bytes | None:
        """The slip of a payload that is published, if anybody hears slips there. The
        same payload again is where it was."""
        if topic not in self._heard:
            return None
        if self._newest is None or self._newest[0] is not payload:
            slot, self._next = self._next, (self._next + 1) % _OWN
            self._newest = payload, self.arena.write(slot, payload)
        return self._newest[1]


class ShmSubscriber:
    """A peer's end: the server's arena, and the slots this peer may write."""

    def __init__(self, arena: Arena, first: int) -> None:
        self.arena = arena
        self._first = first
        self._next = 0

    @classmethod
    def of(cls, answer: Buffer) -> "ShmSubscriber | None":
        """What the server's answer names, if it can be seen from here."""
        try:
            first, name = bytes(answer).decode("ascii").split(":", 1)
            arena = Arena.open(name)
            return None if arena is None else cls(arena, int(first))
        except ValueError:
            return None

    def slip(self, payload: Buffer) -> bytes | None:
        """The slip of an update, if this peer has slots."""
        if self._first < 0:
            return None
        slot, self._next = self._first + self._next, (self._next + 1) % _EACH
        return self.arena.write(slot, payload)


def _in_pages(size: int) -> int:
    return -(-max(size, 1) // _PAGE) * _PAGE


_SEALS = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    if hasattr(fcntl, "F_SEAL_SHRINK")
    else 0
)
