"""An arena: slots for payloads in memory that several processes map.

The memory belongs to no file: it is gone with the last process that maps it, however
that ends, and cannot be truncated under a reader (its size is sealed). Only Linux has
it; elsewhere `Arena.create` returns None.
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

_DESCRIPTOR = struct.Struct("<IQ16s")  # slot, bytes, XXH3-128
_TOKEN_BYTES = 16
_PAGE = mmap.ALLOCATIONGRANULARITY
_SEALS = (
    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    if hasattr(fcntl, "F_SEAL_SHRINK")
    else 0
)


class Arena:
    """Slots of equal size in memory that other processes of this user can open.

    Pages that were never written cost nothing.
    """

    def __init__(self, fd: int, name: str, slot_bytes: int, slots: int) -> None:
        self.name = name
        self._fd = fd
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._mapped: dict[int, np.ndarray] = {}  # by slot

    @classmethod
    def create(cls, slot_bytes: int, slots: int) -> "Arena | None":
        """A new arena; None if the system does not support it."""
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
        """The arena of this name; None unless it is on this machine and accessible."""
        fd = -1
        try:
            pid, number, token, slot_bytes, slots = name.split(":")
            path = f"/proc/{int(pid)}/fd/{int(number)}"
            # Another kind of file under that name must not block.
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
        """Writes a payload into a slot and returns its descriptor. Raises ValueError if
        it is longer than a slot."""
        data = np.frombuffer(payload, np.uint8)
        self._slot(slot)[: data.size] = data
        return _DESCRIPTOR.pack(slot, data.size, xxhash.xxh3_128_digest(data.data))

    def read(self, descriptor: Buffer) -> memoryview | None:
        """A copy of the payload; None if the descriptor is invalid, or the payload has
        been overwritten."""
        if len(descriptor) != _DESCRIPTOR.size:
            return None
        slot, size, digest = _DESCRIPTOR.unpack(descriptor)
        if slot >= self._slots or size > self._slot_bytes:
            return None
        payload = np.array(self._slot(slot)[:size])
        if xxhash.xxh3_128_digest(payload.data) != digest:
            return None
        return payload.data.toreadonly()

    def close(self) -> None:
        """Unmaps it."""
        self._mapped.clear()
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _slot(self, slot: int) -> np.ndarray:
        if slot not in self._mapped:
            stride = _in_pages(self._slot_bytes)
            mapped = mmap.mmap(self._fd, stride, offset=_PAGE + slot * stride)
            self._mapped[slot] = np.frombuffer(mapped, np.uint8)
        return self._mapped[slot]


def _in_pages(size: int) -> int:
    return -(-max(size, 1) // _PAGE) * _PAGE
